"""The multi-agent transformer (Wen et al. 2022)."""

from modules.mat.transformer import Encoded, MATAgent

__all__ = ["Encoded", "MATAgent"]

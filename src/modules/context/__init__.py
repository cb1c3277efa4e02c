"""Contexts of DAC: from a window of an agent's transitions to a category, and from it to the task's dynamics."""

from modules.context.decoder import DynamicsDecoder
from modules.context.encoder import ContextEncoder

__all__ = ["ContextEncoder", "DynamicsDecoder"]

"""Small torch helpers under PyMARL2's names."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


def get_parameters_num(parameters: Iterable[torch.Tensor]) -> str:
    """Number of parameters, in thousands, as PyMARL2 prints it: `"35.23K"`."""
    return f"{sum(p.nelement() for p in parameters) / 1000:.3f}K"


def orthogonal_init_(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases for a layer that has them, in place."""
    if isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.dim() >= 2:
        nn.init.orthogonal_(module.weight, gain=gain)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)

"""Small torch helpers under PyMARL2's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import nn


def get_parameters_num(parameters: Iterable[torch.Tensor]) -> str:
    """Number of parameters, in thousands: `"35.230K"`."""
    return f"{sum(p.numel() for p in parameters) / 1000:.3f}K"


@torch.no_grad()
def orthogonal_init_(module: nn.Module, gain: float = 1.0) -> None:
    """Orthogonal weights and zero biases, in place, for a linear layer; any other module stays as
    it is.

    A layer whose weight is [G, n_out, n_in] (G linear layers side by side) gets G orthogonal
    matrices.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(module, nn.Linear):
        matrices: Sequence[torch.Tensor] = [module.weight]
    elif (
        isinstance(weight, nn.Parameter)
        and weight.dim() == 3
        and not isinstance(module, nn.Conv1d | nn.ConvTranspose1d)
    ):
        matrices = weight.unbind()
    else:
        return
    for matrix in matrices:
        nn.init.orthogonal_(matrix, gain=gain)
    if bias is not None:
        nn.init.zeros_(bias)

"""The fused GRU of `gru.cpp` as an operation with a gradient; `modules.layers` has the same through
torch.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modules.kernels import gru_steps
from modules.kernels.build import load
from modules.kernels.calls import SIZE, address, usable


def available(*tensors: Tensor) -> bool:
    """Whether the kernel computes with these: float32 in main memory, and it could be built."""
    return usable(*tensors) and load("gru") is not None


def gru_sequence(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    sizes: Sequence[int],
    gates: Tensor | None = None,
) -> Tensor:
    """Hidden states of ragged sequences from a zero state; arguments as in `modules.layers.GRU`.

    Args:
        x: [(G,) R, F].
        gates: [(G,) R, 4 H], where the backward pass wants to find r, z, the candidate and what the
            hidden state adds to it; None to keep nothing.

    Returns:
        [(G,) R, H].
    """
    x, *weights = (t.detach().contiguous() for t in (x, weight_ih, weight_hh, bias_ih, bias_hh))
    out = x.new_empty(*x.shape[:-1], weight_hh.shape[-1])
    _library().gru_forward(
        *_shape(x, weight_hh),
        address(x),
        *map(address, weights),
        *_steps(sizes),
        address(out),
        address(gates),
    )
    return out


class GRUSequence(torch.autograd.Function):
    """`gru_sequence` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
        sizes: list[int],
    ) -> Tensor:
        gates = x.new_empty(*x.shape[:-1], 4 * weight_hh.shape[-1])
        out = gru_sequence(x, weight_ih, weight_hh, bias_ih, bias_hh, sizes, gates)
        ctx.save_for_backward(x, weight_ih, weight_hh, bias_ih, bias_hh, out, gates)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            return (*gru_steps.gradients(ctx.saved_tensors[:5], ctx.sizes, grad), None)
        out, gates = ctx.saved_tensors[5:]
        x, weight_ih, weight_hh, grad = (t.contiguous() for t in (*ctx.saved_tensors[:3], grad))
        n_hidden = weight_hh.shape[-1]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_i, grad_hh = torch.empty_like(weight_ih), torch.empty_like(weight_hh)
        grad_bias = x.new_empty(*weight_hh.shape[:-2], 4 * n_hidden)
        _library().gru_backward(
            *_shape(x, weight_hh),
            *map(address, (grad, out, gates, x, weight_ih, weight_hh)),
            *_steps(ctx.sizes),
            *map(address, (grad_x, grad_i, grad_hh, grad_bias)),
        )
        # The kernel has the candidate's gradient first for the inputs and last for the hidden
        # state, so that what either side needs stands side by side.
        grad_bias_i = grad_bias[..., : 3 * n_hidden].roll(-n_hidden, -1)
        return (
            grad_x,
            grad_i.roll(-n_hidden, -2),
            grad_hh,
            grad_bias_i,
            grad_bias[..., n_hidden:],
            None,
        )


def _library() -> ctypes.CDLL:
    library = load("gru")
    if library is None:
        raise RuntimeError("the GRU kernel could not be built; `available` tells")
    return library


def _shape(x: Tensor, weight_hh: Tensor) -> tuple[ctypes.c_int64, ...]:
    """G, R, F, H."""
    groups = x.shape[0] if x.dim() == 3 else 1
    return tuple(map(SIZE, (groups, x.shape[-2], x.shape[-1], weight_hh.shape[-1])))


def _steps(sizes: Sequence[int]) -> tuple[ctypes.Array[ctypes.c_int64], ctypes.c_int64]:
    return (SIZE * len(sizes))(*sizes), SIZE(len(sizes))

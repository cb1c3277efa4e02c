"""Attention of several heads over few items, values included, through `attention.cpp` or torch.

In torch's operations the values, their gradients and what stands between them are written to memory
and read again a dozen times; that takes longer than the products.
"""

from __future__ import annotations

import math
from ctypes import c_float
from typing import Any

import torch
from torch import Tensor

from modules.kernels import build
from modules.kernels.calls import SIZE, address, usable
from modules.kernels.linear import relu_
from utils.precision import rounded


def attend(items: Tensor, query: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    """What every head mixes of the items' values, by whichever way is faster.

    Head k of sample m gives item e_j the weight softmax_j(q_mk e_j / sqrt(D / h)), and mixes the
    k-th part of the values LeakyReLU(W e_j + b). (A query that meets the items themselves has the
    keys' matrix in it.)

    Args:
        items: e, [G, M, J, D].
        query: [G, h, M, D].
        weight: W, [G, D, D].
        bias: b, [G, D].
        slope: of the leaky ReLU below 0.

    Returns:
        [G, M, D], the heads side by side.
    """
    operands = items, query, weight, bias
    if not usable(*operands) or build.load("attention") is None:
        return _by_torch(*operands, slope)
    half = rounded(items.shape[-1])
    if torch.is_grad_enabled() and any(t.requires_grad for t in operands):
        return _Attention.apply(*operands, slope, half)
    return _forward(*operands, slope, half)[0]


def _by_torch(items: Tensor, query: Tensor, weight: Tensor, bias: Tensor, slope: float) -> Tensor:
    heads, width = query.shape[1], items.shape[-1] // query.shape[1]
    groups, samples, n_items, size = items.shape
    rows = items.reshape(groups, samples * n_items, size)
    values = relu_(torch.baddbmm(bias.unsqueeze(1), rows, weight.mT), slope)
    logits = torch.matmul(items, query.permute(0, 2, 3, 1)) / math.sqrt(width)
    attention = logits.softmax(2).unsqueeze(-1)
    parts = values.view(groups, samples, n_items, heads, width)
    return (attention * parts).sum(2).flatten(-2)


def _forward(
    items: Tensor, query: Tensor, weight: Tensor, bias: Tensor, slope: float, half: bool
) -> tuple[Tensor, Tensor]:
    """[G, M, D], and the weights of the items, [G, M, J, h]."""
    items, query, weight, bias = (t.detach().contiguous() for t in (items, query, weight, bias))
    groups, samples, n_items, size = items.shape
    out = items.new_empty(groups, samples, size)
    attention = items.new_empty(groups, samples, n_items, query.shape[1])
    _library().attention_forward(
        *_layout(items, query), c_float(slope), *map(address, (items, query, weight, bias)),
        SIZE(half), SIZE(torch.get_num_threads()), address(out), address(attention),
    )  # fmt: skip
    return out, attention


class _Attention(torch.autograd.Function):
    """`attend` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        items: Tensor,
        query: Tensor,
        weight: Tensor,
        bias: Tensor,
        slope: float,
        half: bool,
    ) -> Tensor:
        out, attention = _forward(items, query, weight, bias, slope, half)
        ctx.save_for_backward(items, query, weight, bias, attention)
        ctx.slope, ctx.half = slope, half
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        items, query, weight, bias, attention = (t.contiguous() for t in ctx.saved_tensors)
        grads = tuple(map(torch.empty_like, (items, query, weight, bias)))
        _library().attention_backward(
            *_layout(items, query), c_float(ctx.slope),
            *map(address, (grad.contiguous(), items, query, weight, bias, attention)),
            SIZE(ctx.half), SIZE(torch.get_num_threads()), *map(address, grads),
        )  # fmt: skip
        return (*grads, None, None)


def _layout(items: Tensor, query: Tensor) -> tuple[Any, ...]:
    """G, M, J, D, h, and what logits are multiplied by."""
    heads = query.shape[1]
    scale = 1 / math.sqrt(items.shape[-1] // heads)
    return (*map(SIZE, items.shape), SIZE(heads), c_float(scale))


def _library() -> Any:
    library = build.load("attention")
    assert library is not None, "`attend` looks"
    return library

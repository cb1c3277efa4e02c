"""Linear layers through `linear.cpp`, with a gradient; `modules.layers` chooses between these and
torch's.

torch multiplies float32 matrices on a CPU with a library that leaves half of what AMD's processors
can do unused (100 of 230 GFLOP/s on Zen 5).
"""

from __future__ import annotations

from ctypes import c_float
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.kernels import build
from modules.kernels.calls import SIZE, address, usable
from utils.precision import rounded

LEAST_WORK = 2_000_000  # multiplications below which the call costs more than it gains
WORK_PER_THREAD = 20_000_000  # multiplications below which a second thread costs more


def available(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether the kernel takes these operands, and is worth it.

    Args:
        x: [(G,) R, K]; the last axis contiguous.
        weight: [(G,) N, K].
        bias: [(G,) N] or None.
    """
    return (
        x.numel() * weight.shape[-2] >= LEAST_WORK
        and x.stride(-1) == 1
        and usable(x, weight, *(() if bias is None else (bias,)))
        and build.load("linear") is not None
    )


def takes_bfloat16() -> bool:
    """Whether the kernels of this machine can round operands to bfloat16."""
    library = build.load("linear")
    return library is not None and bool(library.takes_bfloat16())


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rectify: bool = False,
    slope: float = 0.0,
    half: bool = False,
) -> Tensor:
    """x weight^T + bias for every group, through a ReLU if `rectify`.

    Args:
        x: [(G,) R, K], or [R, K] that all groups of weights [G, N, K] read.
        weight: [(G,) N, K].
        bias: [(G,) N] or None.
        slope: of the ReLU below 0, not negative; above 0 it is a leaky one.
        half: the products' operands are rounded to bfloat16, here and in the gradient.

    Returns:
        [(G,) R, N].
    """
    if torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (x, weight, bias)
    ):
        return _Linear.apply(x, weight, bias, rectify, slope, half)
    return _forward(x, weight, bias, rectify, slope, half)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, rectify: bool, slope: float, half: bool
) -> Tensor:
    weight = weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(*weight.shape[:-2], x.shape[-2], weight.shape[-2])
    sizes, strides, threads = _layout(x, weight)
    _library().linear_forward(
        *sizes, address(x), *strides, address(weight), address(bias), SIZE(rectify),
        c_float(slope), SIZE(half), threads, address(out),
    )  # fmt: skip
    return out


class _Linear(torch.autograd.Function):
    """`linear` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rectify: bool,
        slope: float,
        half: bool,
    ) -> Tensor:
        out = _forward(x, weight, bias, rectify, slope, half)
        ctx.slope, ctx.half = slope, half
        ctx.save_for_backward(x, weight, bias, out if rectify else None)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, out = ctx.saved_tensors
        if torch.is_grad_enabled():  # a gradient of this gradient is wanted
            return (*_differentiable(grad, x, weight, bias, out, ctx.slope), *[None] * 3)
        grad, weight = grad.contiguous(), weight.contiguous()
        of_x = x.new_empty(x.shape) if ctx.needs_input_grad[0] and x.dim() == weight.dim() else None
        of_weight = torch.empty_like(weight)
        of_bias = None if bias is None else torch.empty_like(bias)
        sizes, strides, threads = _layout(x, weight)
        _library().linear_backward(
            *sizes, address(grad), address(out), c_float(ctx.slope), address(x), *strides,
            address(weight), SIZE(ctx.half), threads, *map(address, (of_x, of_weight, of_bias)),
        )  # fmt: skip
        if ctx.needs_input_grad[0] and of_x is None:
            # All groups read the same rows.
            if out is not None:
                grad = _before_relu(grad, out, ctx.slope)
            of_x = torch.matmul(grad, weight).sum(0)
        return of_x, of_weight, of_bias, None, None, None


def _differentiable(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    slope: float,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same gradients by operations that have gradients themselves."""
    if out is not None:
        grad = _before_relu(grad, out, slope)
    of_x = torch.matmul(grad, weight)
    if of_x.dim() > x.dim():
        of_x = of_x.sum(0)
    of_bias = None if bias is None else grad.sum(-2)
    return of_x, torch.matmul(grad.transpose(-1, -2), x), of_bias


def _before_relu(grad: Tensor, out: Tensor, slope: float) -> Tensor:
    """The gradient in front of a ReLU that gave `out`."""
    return torch.where(out > 0, grad, slope * grad)


def _layout(x: Tensor, weight: Tensor) -> tuple[tuple[Any, ...], tuple[Any, ...], Any]:
    """(G, R, K, N), (stride between groups, between rows), threads."""
    groups = weight.shape[0] if weight.dim() == 3 else 1
    rows, n_in, n_out = x.shape[-2], x.shape[-1], weight.shape[-2]
    work = groups * rows * n_in * n_out
    threads = min(torch.get_num_threads(), 1 + work // WORK_PER_THREAD)
    group_stride = x.stride(0) if x.dim() == 3 else 0
    sizes = tuple(map(SIZE, (groups, rows, n_in, n_out)))
    return sizes, (SIZE(group_stride), SIZE(x.stride(-2))), SIZE(threads)


def affine(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    rectify: bool = False,
    slope: float = 0.0,
    head: bool = False,
) -> Tensor:
    """`F.linear`, and a ReLU behind it if `rectify`, by whichever way is faster.

    Args:
        x: [..., K].
        weight: [N, K].
        bias: [N] or None.
        slope: of the ReLU below 0.
        head: float32 with every `precision`.

    Returns:
        [..., N].
    """
    half = not head and rounded(len(weight))
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    if available(rows, weight, bias):
        out = linear(rows, weight, bias, rectify, slope, half)
        return out.view(*x.shape[:-1], out.shape[-1])
    if half and x.is_cuda:
        out = F.linear(*in_bfloat16(x, weight, bias)).float()
    else:
        out = F.linear(x, weight, bias)
    return relu_(out, slope) if rectify else out


def in_bfloat16(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """A layer's operands rounded, for products on a GPU."""
    return x.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()


def relu_(x: Tensor, slope: float) -> Tensor:
    """In place: its gradient needs the result only, and the largest of these fill whole pages. Not
    for views, where the way back would copy the whole gradient.
    """
    return F.leaky_relu(x, slope, inplace=True) if slope else F.relu(x, inplace=True)


def _library() -> Any:
    library = build.load("linear")
    assert library is not None, "`available` tells"
    return library

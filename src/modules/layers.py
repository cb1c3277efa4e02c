"""Layers that exist once or G times side by side: one set of weights per group, computed as batched products.

A group is whatever has weights of its own: an agent without parameter sharing, a sub-value function of S2Q. With one
group the parameters have the names and shapes of `nn.Linear` and `nn.GRUCell`, so PyMARL's model files load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """G linear layers. Input [G, R, n_in], or [R, n_in] shared by all groups; output [G, R, n_out].

    Each group is initialised as `nn.Linear` is.
    """

    def __init__(self, n_in: int, n_out: int, groups: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(groups, n_out, n_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(groups, n_out).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            groups, n_out, _ = self.weight.shape
            # The same input for every group: one product with all weights side by side.
            return F.linear(x, self.weight.flatten(0, 1), self.bias.flatten()).view(-1, groups, n_out).transpose(0, 1)
        return torch.baddbmm(self.bias.unsqueeze(1), x, self.weight.transpose(1, 2))


def linear(n_in: int, n_out: int, groups: int = 1) -> nn.Module:
    """`nn.Linear` for one group, `StackedLinear` for several."""
    return nn.Linear(n_in, n_out) if groups == 1 else StackedLinear(n_in, n_out, groups)


class GRU(nn.Module):
    """A GRU layer with the parameters of `nn.GRUCell`, for single steps and for whole ragged sequences.

    Args:
        n_in: size of the inputs.
        n_hidden: size H of the hidden state.
        groups: number G of independent sets of weights; with 1 the leading axis [G] is absent everywhere.
    """

    def __init__(self, n_in: int, n_hidden: int, groups: int = 1) -> None:
        super().__init__()
        self.n_hidden, self.groups = n_hidden, groups
        bound = 1 / math.sqrt(n_hidden)
        lead = () if groups == 1 else (groups,)

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*lead, *shape).uniform_(-bound, bound))

        self.weight_ih = uniform(3 * n_hidden, n_in)
        self.weight_hh = uniform(3 * n_hidden, n_hidden)
        self.bias_ih = uniform(3 * n_hidden)
        self.bias_hh = uniform(3 * n_hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        """One step: x [(G,) R, n_in], h [(G,) R, H] -> [(G,) R, H]."""
        if self.groups == 1:
            return torch.gru_cell(x, h, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        gi = torch.baddbmm(self.bias_ih.unsqueeze(1), x, self.weight_ih.transpose(1, 2))
        gh = torch.baddbmm(self.bias_hh.unsqueeze(1), h, self.weight_hh.transpose(1, 2))
        i_r, i_z, i_n = gi.chunk(3, -1)
        h_r, h_z, h_n = gh.chunk(3, -1)
        candidate = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
        return torch.lerp(candidate, h, torch.sigmoid(i_z + h_z))

    def unroll(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """All steps of ragged sequences from a zero hidden state.

        Args:
            x: [(G,) R, n_in], rows time-major, the rows of step t before those of t + 1; a sequence keeps its place
                within a step, the longest come first (torch's PackedSequence layout).
            sizes: number of rows of every step, never increasing, summing to R.

        Returns:
            [(G,) R, H], the hidden state after every step.
        """
        if x.is_cuda and self.groups == 1:
            return self._unroll_cudnn(x, sizes)
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights)):
            return _GRUSequence.apply(x, *weights, tuple(sizes))
        return _gru_sequence(x, *weights, sizes)

    def _unroll_cudnn(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        h0 = x.new_zeros(1, sizes[0], self.n_hidden)
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        out, _ = torch._VF.gru(x, torch.tensor(sizes), h0, weights, True, 1, 0.0, self.training, False)
        return out


def _gru_sequence(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    sizes: Sequence[int],
    gates: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Tensor:
    """`GRU.unroll`: hidden states of all rows, [(G,) R, H].

    On a CPU the arithmetic is the limit, so what counts is that a finished sequence costs nothing and that what a step
    works on stays in the cache: hence one step after the other, in buffers that are used again.

    Args:
        gates: where the backward pass wants to find r and z side by side [(G,) R, 2H], the candidate [(G,) R, H] and
            the hidden state's share of it before the reset gate [(G,) R, H]; None to keep nothing.
    """
    n_hidden = weight_hh.shape[-1]
    split = 2 * n_hidden
    w_ih, w_hh = weight_ih.mT, weight_hh.mT
    w_rz, w_n, u_rz, u_n = w_ih[..., :split], w_ih[..., split:], w_hh[..., :split], w_hh[..., split:]
    bias = bias_ih.unsqueeze(-2), bias_hh.unsqueeze(-2)
    b_rz, b_n, c_n = bias[0][..., :split] + bias[1][..., :split], bias[0][..., split:], bias[1][..., split:]
    lead, first = x.shape[:-2], sizes[0]
    keep = gates is not None
    if not keep:
        gates = tuple(x.new_empty(*lead, first, n) for n in (split, n_hidden, n_hidden))
    out = x.new_empty(*lead, x.shape[-2], n_hidden)
    h = x.new_zeros(*lead, first, n_hidden)
    minus_one = x.new_tensor(-1.0)
    start = 0
    for n in sizes:
        at = start if keep else 0
        rz, candidate, hn = (buffer.narrow(-2, at, n) for buffer in gates)
        rows, h = x.narrow(-2, start, n), h.narrow(-2, 0, n)
        _affine(b_rz, rows, w_rz, out=rz)
        _add_product(rz, h, u_rz).sigmoid_()
        _affine(c_n, h, u_n, out=hn)
        _affine(b_n, rows, w_n, out=candidate)
        # tanh(y) = 2 sigmoid(2y) - 1: torch's tanh takes six times as long as its sigmoid on a CPU.
        candidate.addcmul_(rz[..., :n_hidden], hn).mul_(2).sigmoid_()
        torch.add(minus_one, candidate, alpha=2, out=candidate)
        h = torch.lerp(candidate, h, rz[..., n_hidden:], out=out.narrow(-2, start, n))
        start += n
    return out


class _GRUSequence(torch.autograd.Function):
    """`_gru_sequence` with its gradient: the same products as autograd's, about half of its other work."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, sizes: tuple
    ) -> Tensor:
        n_hidden = weight_hh.shape[-1]
        gates = tuple(x.new_empty(*x.shape[:-1], n) for n in (2 * n_hidden, n_hidden, n_hidden))
        out = _gru_sequence(x, weight_ih, weight_hh, bias_ih, bias_hh, sizes, gates)
        ctx.save_for_backward(x, weight_ih, weight_hh, out, *gates)
        ctx.sizes = sizes
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, out, *gates = ctx.saved_tensors
        n_hidden, lead, first = weight_hh.shape[-1], x.shape[:-2], ctx.sizes[0]
        split = 2 * n_hidden
        grad_x = torch.empty_like(x)
        grad_ih, grad_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
        grad_bias_ih, grad_bias_hh = (x.new_zeros(*lead, 3 * n_hidden) for _ in range(2))
        # Of the gates before their non-linearities, as the inputs and as the hidden state see them.
        grad_i, grad_n = x.new_empty(*lead, first, 3 * n_hidden), x.new_empty(*lead, first, n_hidden)
        spare = x.new_empty(*lead, first, n_hidden)
        grad_h = x.new_zeros(*lead, first, n_hidden)
        start = x.shape[-2]
        for t in reversed(range(len(ctx.sizes))):
            n = ctx.sizes[t]
            start -= n
            rz, candidate, hn = (buffer.narrow(-2, start, n) for buffer in gates)
            r, z = rz[..., :n_hidden], rz[..., n_hidden:]
            # A sequence that ends here has no gradient from a later step: its rows of `grad_h` are still zero.
            d = grad_h.narrow(-2, 0, n).add_(grad.narrow(-2, start, n))
            gi, gn, new = grad_i.narrow(-2, 0, n), grad_n.narrow(-2, 0, n), spare.narrow(-2, 0, n)
            gr, gz, gc = gi.split(n_hidden, -1)
            torch.addcmul(d, d, z, value=-1, out=new)
            # d (h - candidate) z (1 - z), where z (h - candidate) is what the step made of the candidate.
            torch.sub(out.narrow(-2, start, n), candidate, out=gz).mul_(new)
            torch.ops.aten.tanh_backward.grad_input(new, candidate, grad_input=gc)
            torch.mul(gc, r, out=gn)
            torch.mul(gc, hn, out=new)
            torch.ops.aten.sigmoid_backward.grad_input(new, r, grad_input=gr)
            d.mul_(z)
            grz = gi[..., :split]
            _add_product(d, grz, weight_hh[..., :split, :])
            _add_product(d, gn, weight_hh[..., split:, :])
            torch.matmul(gi, weight_ih, out=grad_x.narrow(-2, start, n))
            _add_product(grad_ih, gi.mT, x.narrow(-2, start, n))
            grad_bias_ih += gi.sum(-2)
            grad_bias_hh[..., split:] += gn.sum(-2)
            if t > 0:
                h = out.narrow(-2, start - ctx.sizes[t - 1], n)
                _add_product(grad_hh[..., :split, :], grz.mT, h)
                _add_product(grad_hh[..., split:, :], gn.mT, h)
        grad_bias_hh[..., :split] = grad_bias_ih[..., :split]
        return grad_x, grad_ih, grad_hh, grad_bias_ih, grad_bias_hh, None


def _affine(bias: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """bias + x weight, for one set of weights or several: [(G,) R, n_in], [(G,) n_in, n_out] -> [(G,) R, n_out]."""
    return (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, weight, out=out)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """to += a b, in place; the shapes are those of `_affine`."""
    return to.addmm_(a, b) if to.dim() == 2 else to.baddbmm_(a, b)

"""Layers that exist once or G times side by side: one set of weights per group, computed as batched
products.

A group is whatever has weights of its own: an agent without parameter sharing, a sub-value function
of S2Q. With one group the parameters have the names and shapes of `nn.Linear` and `nn.GRUCell`, so
PyMARL's model files load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.kernels import gru as kernels
from modules.kernels import linear as fused
from modules.kernels.linear import affine, relu_

LEAKY = 0.01  # slope of leaky ReLUs below 0, torch's default


def first_inputs(*parts: tuple[int, Sequence[int]]) -> Tensor:
    """Which of the inputs are there in every group, for inputs of several zero-padded parts: bool
    [G, n_in].

    Args:
        parts: of every part its width and, per group, how many of its first entries are used.
    """
    return torch.cat(
        [torch.arange(width) < torch.tensor(sizes).unsqueeze(1) for width, sizes in parts], dim=1
    )


class StackedLinear(nn.Module):
    """G linear layers. Input [G, R, n_in], or [R, n_in] shared by all groups; output [G, R, n_out].

    Each group is initialised as `nn.Linear` is.

    Args:
        in_sizes: for groups with inputs of different size: per group how many of the first inputs
            it reads, or a mask bool [G, n_in] (`first_inputs`). The others are padding, which must
            be zero: their weights start at zero, have no gradient and stay zero. A group is
            initialised as `nn.Linear` of its own size.
        rectify: a ReLU follows.
        slope: of the ReLU below 0; above 0 it is a leaky one.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        groups: int,
        in_sizes: Sequence[int] | Tensor | None = None,
        rectify: bool = False,
        slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.rectify, self.slope = rectify, slope
        if in_sizes is None:
            bound = 1 / math.sqrt(n_in)
            self.weight = nn.Parameter(torch.empty(groups, n_out, n_in).uniform_(-bound, bound))
            self.bias = nn.Parameter(torch.empty(groups, n_out).uniform_(-bound, bound))
            return
        used = in_sizes if isinstance(in_sizes, Tensor) else first_inputs((n_in, in_sizes))
        if used.shape != (groups, n_in) or not used.any(1).all():
            raise ValueError(
                f"in_sizes must select from 1 to {n_in} inputs for each of {groups} groups, got "
                f"{in_sizes}"
            )
        bounds = used.sum(1).rsqrt().unsqueeze(1)
        self.weight = nn.Parameter(
            torch.empty(groups, n_out, n_in).uniform_(-1, 1)
            * bounds.unsqueeze(2)
            * used.unsqueeze(1)
        )
        self.bias = nn.Parameter(torch.empty(groups, n_out).uniform_(-1, 1) * bounds)

    def forward(self, x: Tensor) -> Tensor:
        return grouped(x, self.weight, self.bias, self.rectify, self.slope)


def grouped(
    x: Tensor, weight: Tensor, bias: Tensor | None, rectify: bool = False, slope: float = 0.0
) -> Tensor:
    """G linear layers, and a ReLU behind them if `rectify`, by whichever way is faster.

    Args:
        x: [G, R, n_in], or [R, n_in] that all groups read.
        weight: [G, n_out, n_in].
        bias: [G, n_out] or None.
        slope: of the ReLU below 0.

    Returns:
        [G, R, n_out].
    """
    if fused.available(x, weight, *(() if bias is None else (bias,))):
        return fused.linear(x, weight, bias, rectify, slope)
    if x.dim() == 2:
        groups, n_out, _ = weight.shape
        # The same input for every group: one product with all weights side by side.
        out = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        out = out.view(-1, groups, n_out).transpose(0, 1)
    elif bias is None:
        out = torch.bmm(x, weight.transpose(1, 2))
    else:
        out = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
    return relu_(out, slope) if rectify else out


class StackedBatchNorm(nn.Module):
    """Batch normalisation without affine parameters, with statistics for every group and feature.

    The numbers are those of `nn.BatchNorm1d(affine=False)` for every group. A feature that is
    always zero stays zero. Fastest where x is a view of contiguous [R, G, F], as `x.transpose(0,
    1)` of a batch of observations.

    Args:
        n_features: F.
        groups: G.
        momentum: weight of a batch in the running statistics, which evaluation mode uses.
        eps: added to the variance.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self, n_features: int, groups: int, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.register_buffer("running_mean", torch.zeros(groups, n_features))
        self.register_buffer("running_var", torch.ones(groups, n_features))

    def forward(self, x: Tensor) -> Tensor:
        """[G, R, F] -> [G, R, F]; in training mode R >= 2, and the running statistics move."""
        rows = x.transpose(0, 1)
        mean, var = self.running_mean.view(-1), self.running_var.view(-1)
        out = F.batch_norm(
            rows.flatten(1), mean, var, training=self.training, momentum=self.momentum, eps=self.eps
        )
        return out.view(rows.shape).transpose(0, 1)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` subtracts from x [G, R, F] and what it multiplies by then, [G, 1, F] each.

        The running statistics stay as they are.
        """
        if self.training:
            var, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True)
        else:
            mean, var = self.running_mean.unsqueeze(1), self.running_var.unsqueeze(1)
        return mean, (var + self.eps).rsqrt()


class Linear(nn.Linear):
    """`nn.Linear` through this project's kernel where that is faster, [..., n_in] -> [..., n_out].

    Args:
        n_in, n_out: numbers of inputs and outputs.
        bias: whether there is one.
        rectify: a ReLU follows.
        slope: of the ReLU below 0; above 0 it is a leaky one.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        bias: bool = True,
        rectify: bool = False,
        slope: float = 0.0,
    ) -> None:
        super().__init__(n_in, n_out, bias)
        self.rectify, self.slope = rectify, slope

    def forward(self, x: Tensor) -> Tensor:
        return affine(x, self.weight, self.bias, self.rectify, self.slope)


def linear(
    n_in: int, n_out: int, groups: int = 1, rectify: bool = False, slope: float = 0.0
) -> Linear | StackedLinear:
    """`Linear` for one group, `StackedLinear` for several; `rectify`: a ReLU follows."""
    if groups == 1:
        return Linear(n_in, n_out, rectify=rectify, slope=slope)
    return StackedLinear(n_in, n_out, groups, rectify=rectify, slope=slope)


class StackedLayerNorm(nn.Module):
    """G layer normalisations, `nn.LayerNorm` each: [G, R, n] -> [G, R, n].

    Args:
        n: entries of a row.
        groups: G.
        eps: added to the variance.
    """

    def __init__(self, n: int, groups: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(groups, n))
        self.bias = nn.Parameter(torch.zeros(groups, n))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias.unsqueeze(1), normed, self.weight.unsqueeze(1))


def layer_norm(n: int, groups: int = 1) -> nn.LayerNorm | StackedLayerNorm:
    """Layer normalisation of n entries: one for all rows, or one for each of several groups."""
    return nn.LayerNorm(n) if groups == 1 else StackedLayerNorm(n, groups)


class NormedLayers(nn.Module):
    """Linear layers with layer normalisation and ReLU, [(G,) R, n_in] -> [(G,) R, n_out].

    Args:
        n_in: entries of the input.
        n_out: outputs of each layer.
        n_layers: number of layers, at least 1.
        groups: G independent sets of layers; with 1 the leading axis is absent.
        place: "before" or "after": where the normalisation is, seen from the ReLU.
        norm_inputs: also what the first layer reads is normalised.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        n_layers: int,
        groups: int = 1,
        place: str = "before",
        norm_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.after = place == "after"
        self.input_norm = layer_norm(n_in, groups) if norm_inputs else None
        widths = [n_in, *[n_out] * n_layers]
        self.layers = nn.ModuleList(
            linear(a, b, groups, rectify=self.after) for a, b in pairwise(widths)
        )
        self.norms = nn.ModuleList(layer_norm(n_out, groups) for _ in range(n_layers))

    def forward(self, x: Tensor) -> Tensor:
        if self.input_norm is not None:
            x = self.input_norm(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)) if self.after else F.relu(norm(layer(x)))
        return x


class GRU(nn.Module):
    """A GRU layer with the parameters of `nn.GRUCell`, for single steps and for whole ragged
    sequences.

    Args:
        n_in: size of the inputs.
        n_hidden: size H of the hidden state.
        groups: number G of independent sets of weights; with 1 the leading axis [G] is absent
            everywhere.
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

    @torch.no_grad()
    def init_orthogonal_(self) -> None:
        """Orthogonal weights, [3 * H, ...] as one matrix each (per group), and zero biases."""
        for weight in (self.weight_ih, self.weight_hh):
            for matrix in weight.view(-1, *weight.shape[-2:]):
                nn.init.orthogonal_(matrix)
        for bias in (self.bias_ih, self.bias_hh):
            nn.init.zeros_(bias)

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
            x: [(G,) R, n_in], rows time-major, the rows of step t before those of t + 1; a sequence
                keeps its place within a step, the longest come first (torch's PackedSequence
                layout).
            sizes: number of rows of every step, never increasing, summing to R.

        Returns:
            [(G,) R, H], the hidden state after every step.
        """
        if x.is_cuda:
            return self._unroll_cudnn(x, sizes)
        tensors = (x, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        fused = kernels.available(*tensors)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            sequence = kernels.GRUSequence if fused else _GRUSequence
            return sequence.apply(*tensors, list(sizes))
        return (kernels.gru_sequence if fused else _gru_sequence)(*tensors, list(sizes))

    def _unroll_cudnn(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """`unroll` by one kernel per group for the whole sequence, where launching kernels is the
        limit.
        """
        h0 = x.new_zeros(1, sizes[0], self.n_hidden)
        lengths = torch.tensor(sizes)
        weights: list[Tensor] = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        # There is no dropout: "training" only means that cuDNN keeps what a backward pass needs.
        options = True, 1, 0.0, torch.is_grad_enabled(), False
        if self.groups == 1:
            return torch._VF.gru(x, lengths, h0, weights, *options)[0]
        return torch.stack(
            [
                torch._VF.gru(x[g], lengths, h0, [w[g] for w in weights], *options)[0]
                for g in range(self.groups)
            ]
        )


def _gru_sequence(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    sizes: Sequence[int],
    gates: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """`GRU.unroll`: the hidden states of all rows, [(G,) R, H].

    On a CPU the arithmetic is the limit. What counts is that a finished sequence costs nothing, and
    that what a step works on stays in the cache: hence one step after the other, in buffers that
    are used again.

    Args:
        gates: where the backward pass wants to find, for all rows, r and z side by side [(G,) R,
            2H], the candidate [(G,) R, H] and what the hidden state adds to it if r is 1 [(G,) R,
            H]; None to keep nothing.
    """
    n_hidden = weight_hh.shape[-1]
    parts = [2 * n_hidden, n_hidden]
    (w_rz, w_n), (u_rz, u_n) = weight_ih.mT.split(parts, -1), weight_hh.mT.split(parts, -1)
    (b_rz, b_n), (c_rz, c_n) = (
        bias_ih.unsqueeze(-2).split(parts, -1),
        bias_hh.unsqueeze(-2).split(parts, -1),
    )
    b_rz = b_rz + c_rz
    lead = x.shape[:-2]
    if gates is None:
        shared = (x.new_empty(*lead, sizes[0], n) for n in (2 * n_hidden, n_hidden, n_hidden))
        rz, candidates, shares = (_first_rows(buffer, sizes) for buffer in shared)
    else:
        rz, candidates, shares = (buffer.split(sizes, -2) for buffer in gates)
    out = x.new_empty(*lead, x.shape[-2], n_hidden)
    h = x.new_zeros(*lead, sizes[0], n_hidden)
    minus_one = x.new_tensor(-1.0)
    steps = zip(x.split(sizes, -2), out.split(sizes, -2), rz, candidates, shares, strict=True)
    for t, (x_t, out_t, rz_t, c_t, share) in enumerate(steps):
        _affine(b_rz, x_t, w_rz, out=rz_t)
        if t == 0:
            share.copy_(c_n)  # the hidden state is zero
        else:
            h = h.narrow(-2, 0, sizes[t])
            _add_product(rz_t, h, u_rz)
            _affine(c_n, h, u_n, out=share)
        r, z = rz_t.sigmoid_().chunk(2, -1)
        _affine(b_n, x_t, w_n, out=c_t)
        # tanh(y) = 2 sigmoid(2y) - 1: on a CPU torch's tanh takes six times as long as its sigmoid.
        c_t.addcmul_(r, share).mul_(2).sigmoid_()
        torch.add(minus_one, c_t, alpha=2, out=c_t)
        h = torch.lerp(c_t, h, z, out=out_t)
    return out


class _GRUSequence(torch.autograd.Function):
    """`_gru_sequence` with its gradient: the products that autograd would compute, half of the work
    around them.
    """

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
        n_hidden = weight_hh.shape[-1]
        gates = tuple(x.new_empty(*x.shape[:-1], n) for n in (2 * n_hidden, n_hidden, n_hidden))
        out = _gru_sequence(x, weight_ih, weight_hh, bias_ih, bias_hh, sizes, gates)
        ctx.save_for_backward(x, weight_ih, weight_hh, out, *gates)
        ctx.sizes = sizes
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_ih, weight_hh, out, rz, candidates, shares = ctx.saved_tensors
        sizes, lead, n_hidden = ctx.sizes, x.shape[:-2], weight_hh.shape[-1]
        reset, update = rz.chunk(2, -1)
        steps = [a.split(sizes, -2) for a in (x, grad, out, reset, update, candidates, shares)]
        grad_x = torch.empty_like(x)
        grad_x_steps = grad_x.split(sizes, -2)
        # Gradients before the non-linearities, side by side: candidate, r, z, hidden share of the
        # candidate. The inputs see the first three, the hidden state the last three.
        buffer = x.new_empty(*lead, sizes[0], 4 * n_hidden)
        columns = {n: buffer.narrow(-2, 0, n) for n in set(sizes)}
        from_input = {
            n: (b[..., : 3 * n_hidden], b[..., n_hidden:], *b.chunk(4, -1))
            for n, b in columns.items()
        }
        spare = _first_rows(x.new_empty(*lead, sizes[0], n_hidden), sizes)
        # A sequence that ends at step t has no gradient from a later one: its rows are still zero
        # then.
        grad_h = _first_rows(x.new_zeros(*lead, sizes[0], n_hidden), sizes)
        weight_i = weight_ih.roll(n_hidden, -2)
        grad_i, grad_hh = torch.zeros_like(weight_ih), torch.zeros_like(weight_hh)
        grad_bias = x.new_zeros(*lead, 4 * n_hidden)
        for t in reversed(range(len(sizes))):
            x_t, grad_t, out_t, r, z, c, share = (a[t] for a in steps)
            g_input, g_hidden, g_c, g_r, g_z, g_share = from_input[sizes[t]]
            d, new = grad_h[t].add_(grad_t), spare[t]
            torch.addcmul(d, d, z, value=-1, out=new)
            # d (h - c) z (1 - z), where z (h - c) is what the step adds to the candidate c.
            torch.sub(out_t, c, out=g_z).mul_(new)
            torch.ops.aten.tanh_backward.grad_input(new, c, grad_input=g_c)
            torch.mul(g_c, r, out=g_share)
            torch.mul(g_c, share, out=new)
            torch.ops.aten.sigmoid_backward.grad_input(new, r, grad_input=g_r)
            torch.matmul(g_input, weight_i, out=grad_x_steps[t])
            _add_product(grad_i, g_input.mT, x_t)
            if t > 0:
                _add_product(d.mul_(z), g_hidden, weight_hh)
                _add_product(grad_hh, g_hidden.mT, steps[2][t - 1].narrow(-2, 0, sizes[t]))
            grad_bias += columns[sizes[t]].sum(-2)
        grad_bias_i, grad_bias_hh = grad_bias[..., : 3 * n_hidden], grad_bias[..., n_hidden:]
        return (
            grad_x,
            grad_i.roll(-n_hidden, -2),
            grad_hh,
            grad_bias_i.roll(-n_hidden, -1),
            grad_bias_hh,
            None,
        )


def _first_rows(buffer: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """For every step the part [(G,) n, H] of a buffer that all steps share."""
    views = {n: buffer.narrow(-2, 0, n) for n in set(sizes)}
    return [views[n] for n in sizes]


def _affine(bias: Tensor, x: Tensor, weight: Tensor, out: Tensor) -> Tensor:
    """bias + x weight, for one set of weights or several: [(G,) R, n_in], [(G,) n_in, n_out] ->
    [(G,) R, n_out].
    """
    return (torch.addmm if x.dim() == 2 else torch.baddbmm)(bias, x, weight, out=out)


def _add_product(to: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """to += a b, in place; the shapes are those of `_affine`."""
    return to.addmm_(a, b) if to.dim() == 2 else to.baddbmm_(a, b)

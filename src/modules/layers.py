"""Layers that exist once or G times side by side: one set of weights per group, computed as batched products.

A group is whatever has weights of its own: an agent without parameter sharing, a sub-value function of S2Q. With one
group the parameters have the names and shapes of `nn.Linear` and `nn.GRUCell`, so PyMARL's model files load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        # On a CPU the arithmetic is the limit: a loop whose steps fit the cache is as fast as any fused form, and what
        # counts is that a finished sequence costs nothing.
        outputs = []
        for rows in x.split(list(sizes), dim=-2):
            if not outputs:
                h = rows.new_zeros(*rows.shape[:-1], self.n_hidden)
            else:
                h = outputs[-1].narrow(-2, 0, rows.shape[-2])
            outputs.append(self(rows, h))
        return torch.cat(outputs, dim=-2)

    def _unroll_cudnn(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        h0 = x.new_zeros(1, sizes[0], self.n_hidden)
        weights = [self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh]
        out, _ = torch._VF.gru(x, torch.tensor(sizes), h0, weights, True, 1, 0.0, self.training, False)
        return out

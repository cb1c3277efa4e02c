"""Encodings of ragged windows by stacked recurrent networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from modules.layers import GRU


class Ragged(NamedTuple):
    """Index of the filled steps of N windows as rows, time-major from each window's first one, the
    longest first.
    """

    flat: Tensor  # int64 [R], window * L + place of every row
    sizes: list[int]  # rows of every step
    last: Tensor  # int64 [N], row of a window's last step; any where it has none
    empty: Tensor  # bool [N], whether nothing of a window is filled


def ragged(filled: Tensor) -> Ragged:
    """The index of windows whose filled steps have no gaps, wherever they begin: filled [N, L],
    nonzero.
    """
    filled = filled != 0
    n, length = filled.shape
    lengths = filled.sum(1)
    order = lengths.argsort(descending=True, stable=True)
    first = filled.byte().argmax(1)
    time = torch.arange(length, device=filled.device).unsqueeze(1)
    there = time < lengths[order]
    flat = (order * length + first[order] + time)[there]
    sizes = there.sum(1)
    begins = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(n, device=filled.device)
    last = begins[(lengths - 1).clamp(min=0)] + place
    empty = lengths == 0
    return Ragged(
        flat, [size for size in sizes.tolist() if size], last.masked_fill(empty, 0), empty
    )


class SequenceEncoder(nn.Module):
    """The hidden state of G two-layer GRUs after the last step of a window; zero for an empty one.

    Args:
        n_in: F, entries of a step.
        hidden_dim: H of both layers.
        groups: G, at least 2.
    """

    def __init__(self, n_in: int, hidden_dim: int, groups: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.layers = nn.ModuleList(
            [GRU(n_in, hidden_dim, groups), GRU(hidden_dim, hidden_dim, groups)]
        )

    def forward(self, x: Tensor, windows: Ragged) -> Tensor:
        """x [G, R, F], the rows of the index -> [G, N, H]."""
        if not windows.sizes:
            return x.new_zeros(len(x), len(windows.empty), self.hidden_dim)
        for layer in cast("Iterable[GRU]", self.layers):
            x = layer.unroll(x, windows.sizes)
        return x.index_select(1, windows.last).masked_fill(windows.empty.view(1, -1, 1), 0.0)

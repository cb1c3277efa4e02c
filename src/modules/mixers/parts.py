"""What the mixers share: sizes, rows, and small networks that exist once per head."""

from __future__ import annotations

import math
from itertools import pairwise
from types import SimpleNamespace

import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import StackedLinear, linear


def state_size(args: SimpleNamespace) -> int:
    """Entries S of the state; `args.state_shape` is an int or a tuple of ints."""
    shape = args.state_shape
    return int(shape) if isinstance(shape, int) else math.prod(int(n) for n in shape)


def as_rows(x: Tensor, size: int, groups: int = 1) -> Tensor:
    """[..., size] -> [N, size]; with `groups` G > 1: [G, ..., size] -> [G, N, size]."""
    return x.reshape(-1, size) if groups == 1 else x.reshape(groups, -1, size)


def context_rows(x: Tensor, size: int, n_rows: int, groups: int = 1) -> Tensor:
    """Rows of what the utilities are mixed with (states, actions), of which there may be one for
    all groups.

    Args:
        x: [..., size] as many rows as the utilities have, or [G, ..., size].
        size: entries of a row.
        n_rows: N, rows of the utilities (per group).
        groups: G.

    Returns:
        [N, size], or [G, N, size] where every group brought its own.

    Raises:
        ValueError: the number of rows is another one.
    """
    if x.numel() == n_rows * size:
        return x.reshape(n_rows, size)
    if groups > 1 and x.numel() == groups * n_rows * size:
        return x.reshape(groups, n_rows, size)
    raise ValueError(
        f"got {tuple(x.shape)} for {n_rows} rows of {size} entries"
        + (f" x {groups}" * (groups > 1))
    )


def hypernet(n_in: int, n_hidden: int, n_out: int, groups: int = 1) -> nn.Sequential:
    """Two layers with a ReLU between them, the form of most networks that a mixer conditions on the
    state.
    """
    first = linear(n_in, n_hidden, groups, rectify=True)
    # The place of PyMARL's ReLU, so that the layers' names stay.
    return nn.Sequential(first, nn.Identity(), linear(n_hidden, n_out, groups))


class MultiHeadMLP(nn.Module):
    """Independent ReLU networks on the same input, computed as batched products.

    [(G,) N, n_in] -> [(G,) N, heads, n_out].

    Args:
        n_in: entries of the input.
        n_hidden: width of the hidden layers.
        n_out: outputs of each head.
        heads: number of networks.
        layers: linear layers of each, at least 1.
        groups: G independent sets of heads; the input may be shared ([N, n_in]).
    """

    def __init__(
        self, n_in: int, n_hidden: int, n_out: int, heads: int, layers: int = 2, groups: int = 1
    ) -> None:
        super().__init__()
        self.heads = heads
        widths = [n_hidden] * (layers - 1) + [n_out]
        # All heads read the same input, so their first layers are one wide layer.
        self.first = linear(n_in, heads * widths[0], groups)
        self.rest = nn.ModuleList(StackedLinear(a, b, groups * heads) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).unflatten(-1, (self.heads, -1))
        if not self.rest:
            return x
        # Heads become the batch axis of the products; the groups, where there are any, go before
        # them.
        lead, rows = x.shape[:-3], x.shape[-3]
        x = x.transpose(-3, -2).reshape(-1, rows, x.shape[-1])
        for layer in self.rest:
            x = layer(F.relu(x))
        return x.reshape(*lead, self.heads, rows, x.shape[-1]).transpose(-3, -2)

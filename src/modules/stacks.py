"""The first of several networks that are stacked in one module (`groups` in `modules.layers`)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def _first_weights(stack: nn.Module, single: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Every parameter of `single` with the part of the stack that it stands for."""
    stacked = dict(stack.named_parameters())
    for name, param in single.named_parameters():
        yield param, stacked[name].detach().view(-1, *param.shape)[0]


@torch.no_grad()
def copy_first(stack: nn.Module, single: nn.Module) -> None:
    """Copies the weights of the first of G stacked networks into a network of the same kind with
    one group.
    """
    for param, weights in _first_weights(stack, single):
        param.copy_(weights)


class FirstOf:
    """Lets a network with one group compute with the weights of the first of G stacked ones,
    without copying them.

    For computing without gradients: `first(stack)` returns `single`, whose weights are the stack's
    own memory until the next call. It is callable, so that `utils.state` does not take it for
    state: it holds none.

    Args:
        single: a network of the kind that is stacked, with one group.
    """

    def __init__(self, single: nn.Module) -> None:
        self.single = single.requires_grad_(False)

    def __call__(self, stack: nn.Module) -> nn.Module:
        for param, weights in _first_weights(stack, self.single):
            param.data = weights
        return self.single

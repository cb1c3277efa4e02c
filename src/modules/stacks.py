"""Single ones of several networks that are stacked in one module (`groups` in `modules.layers`)."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from utils.errors import ConfigError


def _weights(
    stack: nn.Module, single: nn.Module, which: int = 0
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Every parameter of `single` with the part of the stack that it stands for."""
    stacked = dict(stack.named_parameters())
    for name, param in single.named_parameters():
        yield param, stacked[name].detach().view(-1, *param.shape)[which]


@torch.no_grad()
def copy_first(stack: nn.Module, single: nn.Module) -> None:
    """Copies the weights of the first of G stacked networks into a network of the same kind with
    one group.
    """
    for param, weights in _weights(stack, single):
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
        for param, weights in _weights(stack, self.single):
            param.data = weights
        return self.single


class Members:
    """G stacked networks as networks with one group each, to be trained one at a time.

    The weights and buffers of a member are leaves in the stack's own memory: a step of one is a
    step of its part of the stack, and of nothing else. It is callable, so that `utils.state` does
    not take it for state: it holds none.

    Args:
        stack: G networks in one module.
        single: a network of the kind that is stacked, with one group.
        groups: G.

    Raises:
        ConfigError: a parameter of the stack is not one for each of G networks.
    """

    def __init__(self, stack: nn.Module, single: nn.Module, groups: int) -> None:
        stacked = dict(stack.named_parameters())
        for name, param in single.named_parameters():
            if name not in stacked or stacked[name].numel() != groups * param.numel():
                raise ConfigError(
                    "agents that learn one after the other share no weights, but parameter "
                    f"'{name}' of the agent network is not one per agent: set share_params=False, "
                    "or an agent network that knows this key"
                )
        self.stack = stack
        self.singles = [copy.deepcopy(single) for _ in range(groups)]
        self.attach()

    def attach(self) -> None:
        """Finds the stack's memory again, after the stack was moved to another device."""
        buffers = dict(self.stack.named_buffers())
        for i, single in enumerate(self.singles):
            for param, weights in _weights(self.stack, single, i):
                param.data = weights
            for name, buffer in single.named_buffers():
                buffer.data = buffers[name].view(-1, *buffer.shape)[i]

    def __call__(self, which: int) -> nn.Module:
        """The network of this group."""
        return self.singles[which]

    def parameters(self, which: int) -> list[nn.Parameter]:
        """Of the network of this group, in the order of `single.parameters()`."""
        return list(self.singles[which].parameters())

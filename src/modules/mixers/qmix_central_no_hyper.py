"""The unrestricted joint value of weighted QMIX."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modules.kernels.linear import affine
from modules.layers import Linear
from modules.mixers.parts import context_rows, hypernet, state_size
from utils.ranges import COUNT, Range, check_ranges


class QMixerCentralFF(nn.Module):
    """Q* = f(q_1, ..., q_A, s) + V(s), f with three hidden ReLU layers (Rashid et al. 2020): not
    monotone.

    Args:
        args: `n_agents` (A), `state_shape` (S), `central_action_embed` (E, values per agent and
            action), `central_mixing_embed_dim` (width of the hidden layers).

    Raises:
        ConfigError: a key is out of range.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "central_action_embed": COUNT,
        "central_mixing_embed_dim": COUNT,
    }

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        self.state_dim = state_size(args)
        self.qs_dim = args.n_agents * args.central_action_embed
        width = args.central_mixing_embed_dim
        self.net = nn.Sequential(
            Linear(self.qs_dim + self.state_dim, width),
            nn.ReLU(),
            # PyMARL's ReLUs are part of these layers, in their places stands nothing.
            Linear(width, width, rectify=True),
            nn.Identity(),
            Linear(width, width, rectify=True),
            nn.Identity(),
            Linear(width, 1),
        )
        self.V = hypernet(self.state_dim, width, 1)

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Joint value of the actions whose utilities are given.

        Args:
            agent_qs: [..., A, E], [..., A * E], or [..., A] where E = 1.
            states: [..., S].

        Returns:
            [..., 1], with the leading axes of `states`.
        """
        q = agent_qs.reshape(-1, self.qs_dim)
        s = context_rows(states, self.state_dim, q.shape[0])
        q_tot = self.net(torch.cat([q, s], dim=-1)) + self.V(s)
        return q_tot.view(*states.shape[:-1], 1)

    def of_several(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Joint values of J joint actions in every state; what depends on the state alone is
        computed once.

        Args:
            agent_qs: [J, N, A * E].
            states: [N, S].

        Returns:
            [J, N, 1].
        """
        first = self.net[0]
        assert isinstance(first, nn.Linear)
        by_actions, by_state = first.weight.split([self.qs_dim, self.state_dim], dim=1)
        from_state, value = affine(states, by_state, first.bias), self.V(states)
        # One joint action after the other: products of this size gain nothing from being one, and
        # need less memory.
        return torch.stack(
            [self.net[1:](affine(rows, by_actions) + from_state) + value for rows in agent_qs]
        )

"""QTRAN's joint networks."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from modules.layers import Linear
from modules.mixers.parts import as_rows, context_rows, state_size
from utils.ranges import Range, check_ranges, one_of

_HIDDEN_LAYERS = {"small": 2, "big": 3}


def _mlp(n_in: int, width: int, hidden: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n in [n_in] + [width] * (hidden - 1):
        layers += [Linear(n, width), nn.ReLU()]
    return nn.Sequential(*layers, Linear(width, 1))


class QTranBase(nn.Module):
    """Joint action value Q(s, h, a) and state value V(s) of QTRAN-base (Son et al. 2019, section
    4).

    `qtran_arch: qtran_paper`: the agents' hidden states and actions are encoded one by one with
    shared weights and summed, so the size does not grow with the number of agents. `coma_critic`:
    Q reads the state and the actions of all agents, one after the other.

    Args:
        args: `n_agents` (A), `n_actions` (U), `state_shape` (S), `rnn_hidden_dim` (H),
            `mixing_embed_dim` (width of the hidden layers), `network_size` (small: two hidden
            layers, big: three), `qtran_arch`.

    Raises:
        ConfigError: a key has none of these values.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "network_size": one_of(*_HIDDEN_LAYERS),
        "qtran_arch": one_of("qtran_paper", "coma_critic"),
    }

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        hidden, width = _HIDDEN_LAYERS[args.network_size], args.mixing_embed_dim
        self.n_agents, self.state_dim = args.n_agents, state_size(args)
        n_pair = args.rnn_hidden_dim + args.n_actions
        self.action_encoding: nn.Module = nn.Identity()
        n_joint = args.n_agents * args.n_actions
        self.encodes = args.qtran_arch == "qtran_paper"
        if self.encodes:
            self.action_encoding = nn.Sequential(
                Linear(n_pair, n_pair), nn.ReLU(), Linear(n_pair, n_pair)
            )
            n_joint = n_pair
        self.Q = _mlp(self.state_dim + n_joint, width, hidden)
        self.V = _mlp(self.state_dim, width, hidden)

    def forward(
        self, batch: Any, hidden_states: Tensor, actions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Joint values of a batch of episodes, in PyMARL2's form.

        Args:
            batch: an `EpisodeBatch` [B, T].
            hidden_states: [B, T, A, H], of the agent network.
            actions: one-hot [B, T, A, U]; None: those of the batch.

        Returns:
            Q [B * T, 1] and V [B * T, 1].
        """
        actions = batch["actions_onehot"] if actions is None else actions
        q, v = self.joint(hidden_states, batch["state"], actions)
        return q.flatten(0, 1), v.flatten(0, 1)

    def joint(
        self, hidden_states: Tensor, states: Tensor, actions_onehot: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Joint values.

        Args:
            hidden_states: [..., A, H], of the agent network.
            states: [..., S].
            actions_onehot: [..., A, U].

        Returns:
            Q [..., 1] and V [..., 1].
        """
        actions = actions_onehot.to(hidden_states.dtype)
        encoding = actions.flatten(-2)
        if self.encodes:
            encoding = self.action_encoding(torch.cat([hidden_states, actions], dim=-1)).sum(-2)
        joint = as_rows(encoding, encoding.shape[-1])
        s = context_rows(states, self.state_dim, joint.shape[0])
        lead = encoding.shape[:-1]
        return self.Q(torch.cat([s, joint], dim=-1)).view(*lead, 1), self.V(s).view(*lead, 1)

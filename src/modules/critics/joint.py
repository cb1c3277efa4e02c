"""MADDPG's critics: one per agent, on the observations and actions of all agents."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import StackedLinear, first_inputs


class JointCritic(nn.Module):
    """Q_i(o_1, ..., o_n, a_1, ..., a_n) for every agent i (Lowe et al. 2017): two hidden layers,
    ReLU, side by side.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `env_info` (`obs_sizes`, `action_sizes`: the rest is
            padding), `critic_hidden_dim`.
    """

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        obs, n_agents, hidden = scheme["obs"]["vshape"], args.n_agents, args.critic_hidden_dim
        obs_size = obs if isinstance(obs, int) else obs[0]
        self.n_agents, self.n_actions = n_agents, args.n_actions
        # Every agent's critic reads the same.
        parts = [(obs_size, [n] * n_agents) for n in args.env_info["obs_sizes"]]
        parts += [(args.n_actions, [n] * n_agents) for n in args.env_info["action_sizes"]]
        self.fc1 = StackedLinear(
            sum(width for width, _ in parts), hidden, n_agents, first_inputs(*parts)
        )
        self.fc2 = StackedLinear(hidden, hidden, n_agents)
        self.fc3 = StackedLinear(hidden, 1, n_agents)

    def forward(self, obs: Tensor, actions: Tensor, own: Tensor | None = None) -> Tensor:
        """Values of joint actions.

        Args:
            obs: [N, A, O].
            actions: float32 [N, A, U], one-hot where they are discrete.
            own: [N, A, U]: Q_i is that of `actions` with agent i's own action replaced by this one
                (only i's).

        Returns:
            [N, A].
        """
        x = self.fc1(torch.cat([obs.flatten(1), actions.flatten(1)], dim=1))
        if own is not None:
            x = torch.baddbmm(x, (own - actions).transpose(0, 1), self._own_weights())
        return self.fc3(F.relu(self.fc2(F.relu(x)))).squeeze(-1).t()

    def _own_weights(self) -> Tensor:
        """What the first layer of agent i's critic makes of i's own action, [A, U, H]."""
        weight = self.fc1.weight[:, :, -self.n_agents * self.n_actions :].unflatten(
            2, (self.n_agents, self.n_actions)
        )
        return weight.diagonal(dim1=0, dim2=2).permute(2, 1, 0)

"""Critics of the state and the joint action, for a team with one reward."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from modules.layers import StackedLinear, first_inputs


class TwinCritic(nn.Module):
    """Q_1(s, a_1, ..., a_n) and Q_2: two hidden layers with ReLU each, side by side.

    Args:
        args: `state_shape`, `n_agents`, `n_actions`, `env_info` (`action_sizes`: the rest is
            padding), `critic_hidden_dim`.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        hidden, sizes = args.critic_hidden_dim, args.env_info["action_sizes"]
        parts = [(args.state_shape, [args.state_shape] * 2)]
        parts += [(args.n_actions, [size] * 2) for size in sizes]
        n_in = args.state_shape + len(sizes) * args.n_actions
        self.fc1 = StackedLinear(n_in, hidden, 2, first_inputs(*parts), rectify=True)
        self.fc2 = StackedLinear(hidden, hidden, 2, rectify=True)
        self.fc3 = StackedLinear(hidden, 1, 2)

    def forward(self, state: Tensor, actions: Tensor) -> Tensor:
        """States [N, S], actions float32 [N, A, U], one-hot where they are discrete -> [2, N]."""
        x = self.fc1(torch.cat([state, actions.flatten(1)], dim=1))
        return self.fc3(self.fc2(x)).squeeze(-1)

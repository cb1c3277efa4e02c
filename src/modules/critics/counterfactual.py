"""COMA's critic: one network values every action of an agent, given what the others did."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import Linear


class CounterfactualCritic(nn.Module):
    """Q(s, a_-i, .) of agent i, from state, own observation, the others' actions and the own
    number.

    One network for all agents, two hidden layers with ReLU (Foerster et al. 2018).

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `state_shape`, `critic_hidden_dim`.
    """

    numbers: Tensor  # [A, A], the identity

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        obs = scheme["obs"]["vshape"]
        self.n_agents, self.n_actions, width = args.n_agents, args.n_actions, args.critic_hidden_dim
        n_inputs = (
            args.state_shape
            + (obs if isinstance(obs, int) else obs[0])
            + self.n_agents * (self.n_actions + 1)
        )
        self.fc1 = Linear(n_inputs, width)
        self.fc2 = Linear(width, width)
        self.fc3 = Linear(width, self.n_actions, head=True)
        self.register_buffer("numbers", torch.eye(self.n_agents), persistent=False)

    def forward(self, state: Tensor, obs: Tensor, actions: Tensor) -> Tensor:
        """States [N, S], observations [N, A, O], actions taken int64 [N, A] -> [N, A, U]."""
        n, a = actions.shape
        done = F.one_hot(actions, self.n_actions).to(obs)
        others = done.unsqueeze(1) * (1 - self.numbers).unsqueeze(
            -1
        )  # [N, i, j, U], zero for i = j
        inputs = [
            state.unsqueeze(1).expand(-1, a, -1),
            obs,
            others.flatten(2),
            self.numbers.expand(n, -1, -1),
        ]
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat(inputs, -1))))))

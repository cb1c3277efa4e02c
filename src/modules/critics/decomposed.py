"""Critics of joint actions that are made of utilities, one for each agent and action."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modules.critics.inputs import entries
from modules.layers import linear
from modules.mixers.linear import LinearMixer


class UtilityCritic(nn.Module):
    """Q_i(., a) of every agent and action, from observation, the agent's number and, `with_state`,
    the state. One network for all agents, two hidden layers with ReLU.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `critic_hidden_dim`.
        with_state: also reads the state.
        groups: G networks side by side; with 1 the leading axis [G] is absent.
    """

    numbers: Tensor  # [A, A], the identity

    def __init__(
        self, scheme: Mapping[str, Any], args: SimpleNamespace, with_state: bool, groups: int = 1
    ) -> None:
        super().__init__()
        self.with_state, width = with_state, args.critic_hidden_dim
        n_in = entries(scheme, "obs") + args.n_agents
        n_in += entries(scheme, "state") if with_state else 0
        self.fc1 = linear(n_in, width, groups, rectify=True)
        self.fc2 = linear(width, width, groups, rectify=True)
        self.fc3 = linear(width, args.n_actions, groups)
        self.register_buffer("numbers", torch.eye(args.n_agents), persistent=False)

    def features(self, state: Tensor | None, obs: Tensor) -> Tensor:
        """States [N, S], observations [N, A, O] -> what the last layer reads, [(G,) N * A, H]."""
        n, a = obs.shape[:2]
        parts = [obs, self.numbers.expand(n, -1, -1)]
        if self.with_state and state is not None:
            parts.insert(0, state.unsqueeze(1).expand(-1, a, -1))
        x = torch.cat(parts, -1)
        return self.fc2(self.fc1(x.flatten(0, 1)))

    def forward(self, state: Tensor | None, obs: Tensor) -> Tensor:
        """States [N, S], None where they are not read, observations [N, A, O] -> [(G,) N, A, U]."""
        return self.fc3(self.features(state, obs)).unflatten(-2, obs.shape[:2])


class Decomposed(NamedTuple):
    """A value of joint actions that is linear in the agents' choices.

    Attributes:
        k: [N, A], weights.
        q: [N, A, U], utilities of all actions.
    """

    k: Tensor
    q: Tensor

    def of(self, choices: Tensor) -> Tensor:
        """sum_i k_i sum_a c_i(a) Q_i(a): of one-hot choices [N, A, U] the value of a joint action,
        of probabilities its mean under independent policies: [N, 1].
        """
        return (self.k * (choices * self.q).sum(-1)).sum(-1, keepdim=True)


class LinearCritic(UtilityCritic):
    """DOP's critic (Wang et al. 2021): utilities, each the sum of one head for the action and one
    for all actions, and the weights of a `LinearMixer`.

    Args:
        scheme, args: as for `UtilityCritic`, which reads the state here, and `LinearMixer`.
    """

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__(scheme, args, with_state=True)
        self.fc_v = linear(args.critic_hidden_dim, 1)
        self.mixer = LinearMixer(args)

    def decomposed(self, state: Tensor, obs: Tensor) -> Decomposed:
        """States [N, S], observations [N, A, O] -> weights and utilities."""
        return Decomposed(self.mixer.weights(state), self(state, obs))

    def forward(self, state: Tensor | None, obs: Tensor) -> Tensor:
        """States [N, S], observations [N, A, O] -> utilities [N, A, U]."""
        x = self.features(state, obs)
        return (self.fc3(x) + self.fc_v(x)).unflatten(0, obs.shape[:2])

"""State-value critics of PPO: from what they read at N steps to normalised values.

All are built as `Critic(input_shape, args)`, where `input_shape` is F, the entries of an agent's
input, and called as `critic(state [N, S], inputs [N, A, F], steps)` -> [N, n_values].
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import GRU, Linear, linear
from modules.recurrent import Agent

if TYPE_CHECKING:
    from components.steps import Steps


class StateCritic(nn.Module):
    """V(s), the central critic of MAPPO (Yu et al. 2022): two hidden layers with ReLU.

    Args:
        input_shape: not read.
        args: `state_shape`, `critic_hidden_dim`, `common_reward` (False: one value for each agent),
            `n_agents`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        hidden = args.critic_hidden_dim
        self.fc1 = Linear(args.state_shape, hidden)
        self.fc2 = Linear(hidden, hidden)
        self.n_values = 1 if args.common_reward else args.n_agents
        self.fc3 = Linear(hidden, self.n_values, head=True)

    def forward(self, state: Tensor, inputs: Tensor, steps: Steps) -> Tensor:
        """[N, 1] with a common reward, else [N, A]."""
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(state)))))


class ObservationCritic(Agent):
    """V_i of what agent i has seen, the critic of IPPO (de Witt et al. 2020), recurrent as the
    policy may be.

    Args:
        input_shape: F.
        args: `critic_hidden_dim`, `critic_recurrent` (True: a GRU layer in the middle, False: a
            linear one), `share_params` (one critic for all agents), `n_agents`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args)
        hidden, self.n_values = args.critic_hidden_dim, args.n_agents
        self.fc1 = linear(input_shape, hidden, self.groups)
        self.recurrent = args.critic_recurrent
        if self.recurrent:
            self.rnn = GRU(hidden, hidden, self.groups)
        else:
            self.fc2 = linear(hidden, hidden, self.groups)
        self.fc3 = linear(hidden, 1, self.groups)

    def forward(self, state: Tensor, inputs: Tensor, steps: Steps) -> Tensor:
        """[N, A]."""
        x = F.relu(self.fc1(self.to_rows(inputs)))
        x = (
            self.rnn.unroll(x, self.row_sizes(steps.sizes))
            if self.recurrent
            else F.relu(self.fc2(x))
        )
        return self.from_rows(self.fc3(x)).squeeze(-1)

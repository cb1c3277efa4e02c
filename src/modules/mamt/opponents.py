"""Every agent's models of the others' policies: one network for each ordered pair of agents, all
side by side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.layers import LEAKY, StackedBatchNorm, StackedLinear


class Pairs:
    """The P = A (A - 1) ordered pairs (i, j) of different agents, row by row.

    Attributes:
        first, second: int64 [P], i and j.
    """

    def __init__(self, n_agents: int) -> None:
        self.n_agents = n_agents
        pairs = [(i, j) for i in range(n_agents) for j in range(n_agents) if j != i]
        self.first, self.second = torch.tensor(pairs).T.contiguous()

    def of_second(self, x: Tensor) -> Tensor:
        """What agent j has, for every pair: [N, A, ...] -> [P, N, ...]."""
        return x.transpose(0, 1).index_select(0, self.second.to(x.device))

    def matrix(self, x: Tensor) -> Tensor:
        """[P, N] -> [N, A, A] with a zero diagonal."""
        out = x.new_zeros(x.shape[1], self.n_agents, self.n_agents)
        out[:, self.first, self.second] = x.t()
        return out


class OpponentPolicies(nn.Module):
    """h_ij(a_j | o_i), agent i's model of agent j's policy, each of the architecture of a policy
    (MAMT, eq. 6).

    Args:
        pairs: of the agents.
        obs_sizes: of every agent; the padding behind them is not read.
        n_outputs: numbers that describe a policy: U, or 2 U for continuous actions.
        hidden_dim: units of the two hidden layers.
    """

    def __init__(
        self, pairs: Pairs, obs_sizes: Sequence[int], n_outputs: int, hidden_dim: int
    ) -> None:
        super().__init__()
        self.pairs = pairs
        n_pairs = len(pairs.first)
        # Without weights and biases of its own the normalisation is the same for all models of one
        # agent.
        self.norm = StackedBatchNorm(max(obs_sizes), len(obs_sizes))
        in_sizes = [obs_sizes[i] for i in pairs.first.tolist()]
        self.fc1 = StackedLinear(
            max(obs_sizes), hidden_dim, n_pairs, in_sizes=in_sizes, rectify=True, slope=LEAKY
        )
        self.fc2 = StackedLinear(hidden_dim, hidden_dim, n_pairs, rectify=True, slope=LEAKY)
        self.fc3 = StackedLinear(hidden_dim, n_outputs, n_pairs, head=True)

    def forward(self, obs: Tensor) -> Tensor:
        """obs [N, A, O] -> [P, N, n_outputs]; entries of actions that agent j does not have mean
        nothing.
        """
        x = self.norm(obs.transpose(0, 1)).index_select(0, self.pairs.first.to(obs.device))
        return self.fc3(self.fc2(self.fc1(x)))

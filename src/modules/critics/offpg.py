"""PyMARL2's critic of DOP, for its learner."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.critics.inputs import entries, numbers, states


class OffPGCritic(nn.Module):
    """Q = V + A of every action of each agent, from state, observation and number: two hidden
    layers of 256 units.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`.
    """

    output_type = "q"

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.args, self.n_agents, self.n_actions = args, args.n_agents, args.n_actions
        n_in = entries(scheme, "state") + entries(scheme, "obs") + args.n_agents
        self.fc1, self.fc2 = nn.Linear(n_in, 256), nn.Linear(256, 256)
        self.fc_v, self.fc3 = nn.Linear(256, 1), nn.Linear(256, args.n_actions)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., F] -> [..., U]."""
        x = F.relu(self.fc2(F.relu(self.fc1(inputs))))
        return self.fc3(x) + self.fc_v(x)

    def _build_inputs(self, batch: Any, bs: int, max_t: int) -> Tensor:
        """What `forward` reads of `bs` episodes of `max_t` steps, [B, T, A, F] (called by the
        learner).
        """
        ts = slice(None)
        parts = [states(batch, ts, self.n_agents), batch["obs"], numbers(batch, ts, self.n_agents)]
        return torch.cat([part.reshape(bs, max_t, self.n_agents, -1) for part in parts], dim=-1)

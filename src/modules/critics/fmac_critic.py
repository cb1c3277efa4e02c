"""PyMARL2's critic of RIIT (FMAC), for its learner."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.critics.inputs import entries, numbers


class FMACCritic(nn.Module):
    """Q of an agent's observation (its number, with `obs_agent_id`) and action probabilities.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`, `obs_agent_id`, `critic_hidden_dim` (units of both layers).
    """

    output_type = "q"

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.args, self.n_agents, self.n_actions = args, args.n_agents, args.n_actions
        self.hidden_states, self.critic_hidden_dim = None, args.critic_hidden_dim
        self.input_shape = entries(scheme, "obs") + args.n_agents * bool(args.obs_agent_id)
        width = args.critic_hidden_dim
        self.fc1 = nn.Linear(self.input_shape + args.n_actions, width)
        self.fc2, self.fc3 = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, inputs: Any, actions: Tensor, hidden_state: Any = None) -> tuple[Tensor, Any]:
        """A batch [B, T] and actions [B, T, A, U] -> ([B, T, A, 1], the hidden state as it was)."""
        parts = [inputs["obs"]]
        if self.args.obs_agent_id:
            parts.append(numbers(inputs, slice(None), self.n_agents))
        x = torch.cat([*parts, actions], dim=-1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))), hidden_state

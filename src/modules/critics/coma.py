"""PyMARL's critic of COMA, for learners that are written for it; ours is `counterfactual`."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.critics.inputs import entries, last_actions, numbers, others_actions, states, step


class COMACritic(nn.Module):
    """Q of every action of each agent, from state, observation, the others' actions, all last
    actions and the agent's number: two hidden layers of 128 units.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`.
    """

    output_type = "q"

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.args, self.n_agents, self.n_actions = args, args.n_agents, args.n_actions
        joint = 2 * args.n_agents * args.n_actions
        n_in = entries(scheme, "state") + entries(scheme, "obs") + joint + args.n_agents
        self.fc1, self.fc2 = nn.Linear(n_in, 128), nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, args.n_actions)

    def forward(self, batch: Any, t: int | None = None) -> Tensor:
        """[B, T, A, U] of all steps, or of step `t` (T = 1)."""
        ts = step(t)
        x = torch.cat(
            [
                states(batch, ts, self.n_agents),
                batch["obs"][:, ts],
                others_actions(batch, ts),
                last_actions(batch, ts),
                numbers(batch, ts, self.n_agents),
            ],
            dim=-1,
        )
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))

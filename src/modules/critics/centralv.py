"""PyMARL's state-value critic, for learners that are written for it; ours is `value`."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from modules.critics.inputs import entries, step


class CentralVCritic(nn.Module):
    """V(s): two hidden layers of 256 units.

    Args:
        scheme: of the episode batch.
        args: `n_agents`, `n_actions`.
    """

    output_type = "v"

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.args, self.n_agents, self.n_actions = args, args.n_agents, args.n_actions
        self.fc1 = nn.Sequential(
            nn.Linear(entries(scheme, "state"), 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 1),
        )  # fmt: skip

    def forward(self, batch: Any, t: int | None = None) -> Tensor:
        """[B, T, 1] of all steps, or of step `t` (T = 1)."""
        return self.fc1(batch["state"][:, step(t)])

"""Single transitions drawn from a replay buffer: what learners train on with `replay:
transitions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# Entries that are given one step later too, as `next_NAME`.
OBSERVED = ("obs", "state", "avail_actions")


class Transitions(Mapping[str, Tensor]):
    """N transitions by name.

    | name | |
    | --- | --- |
    | `obs`, `next_obs` | float32 [N, A, O], zero padded to the largest |
    | `state`, `next_state` | float32 [N, S] |
    | `avail_actions`, `next_avail_actions` | uint8 [N, A, U] |
    | `actions` | int64 [N, A]; continuous ones float32 [N, A, U] |
    | `reward` | float32 [N, A]; [N, 1] with a common reward |
    | `terminated` | float32 [N, 1]: 1 where the task's own rules ended the episode; one that was
    cut goes on |

    and what the controller recorded beside the actions, e.g. `log_prob` [N, A]. With a history of H
    steps, the oldest first and zero where the episode had not begun: `past_obs` [N, H, A, O],
    `past_actions` [N, H, A] (or [N, H, A, U]) and `past_filled` float32 [N, H].

    Args:
        entries: the above.
        reward_mean, reward_std: [A] or [1], of all transitions in the buffer that these were drawn
            from.
        recent: the newest transitions of that buffer, the oldest first; None: not asked for.
    """

    def __init__(
        self,
        entries: Mapping[str, Tensor],
        reward_mean: Tensor,
        reward_std: Tensor,
        recent: Transitions | None = None,
    ) -> None:
        self._entries = dict(entries)
        self.reward_mean, self.reward_std, self.recent = reward_mean, reward_std, recent

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._entries:
            raise KeyError(f"'{name}' is not in the transitions, known: {sorted(self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """N."""
        return len(self._entries["obs"])

    @property
    def device(self) -> torch.device:
        """Where the transitions are."""
        return self._entries["obs"].device

    def stored(self, name: str) -> Tensor:
        """The entry, as `EpisodeBatch.stored`."""
        return self[name]

    def standardised_rewards(self) -> Tensor:
        """Rewards with mean 0 and deviation 1 over the buffer, per agent (MAAC); constant ones
        become 0.
        """
        return (self["reward"] - self.reward_mean) / self.reward_spread()

    def reward_spread(self) -> Tensor:
        """The rewards' deviation over the buffer per agent, 1 for constant ones: [A]."""
        return torch.where(self.reward_std > 0, self.reward_std, 1.0)

    def to(self, device: torch.device | str) -> Transitions:
        """The same on another device."""
        if self.device == torch.device(device):
            return self
        entries = {name: value.to(device) for name, value in self._entries.items()}
        recent = None if self.recent is None else self.recent.to(device)
        return Transitions(entries, self.reward_mean.to(device), self.reward_std.to(device), recent)

"""Sliding windows: for every transition of a batch the last k transitions of its episode."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from components.steps import Steps


class Windows:
    """Index of the windows of k transitions that end with each of the M transitions of a batch.

    Transitions are rows in the order of `steps.cur` and `steps.nxt`: time-major, longest episode
    first. A window never reaches into another episode; near the start of its own the first places
    are missing.

    Args:
        steps: the filled steps of the batch; what is padded is in no window.
        k: transitions of a window, at least 1.

    Attributes:
        k: the same.
        n: M.
        longest: transitions of the longest episode.
        starts: list of T' + 1 ints: the rows of time t are `starts[t]` to `starts[t + 1] - 1`.
        time, place: int64 [M]: the step of a transition, and which of the rows of this step it is.
        following: int64 [M]: the row of the same episode's next transition, a row itself where
            there is none.
    """

    def __init__(self, steps: Steps, k: int) -> None:
        self.k, self.device = k, steps.device
        # The transitions of step t are those of the episodes with a filled step t + 1: the same
        # layout, one step less.
        sizes = np.array(steps.sizes[1:], dtype=np.int64)
        self.n = int(sizes.sum())
        self.starts: list[int] = [0, *np.cumsum(sizes).tolist()]
        self.longest = len(sizes)
        starts = np.array(self.starts)
        self._time = np.repeat(np.arange(self.longest), sizes)
        self._place = np.arange(self.n) - starts[self._time]
        self.time, self.place = (
            torch.from_numpy(x).to(self.device) for x in (self._time, self._place)
        )
        after = np.append(sizes[1:], 0)[self._time] > self._place
        following = np.where(after, starts[self._time + 1] + self._place, np.arange(self.n))
        self.following = torch.from_numpy(following).to(self.device)

    def lag(self, j: int) -> tuple[slice, slice | Tensor]:
        """The windows that contain the transition j steps before their last one, and the rows of
        those transitions.

        Returns:
            (the windows, which are the last rows; their transitions, in the same order), each of
            the same length; both are empty where no episode is so long.
        """
        first = self.starts[min(j, self.longest)]
        if self.n == self.starts[1] * self.longest:
            # All episodes are equally long: the transitions are the first rows.
            return slice(first, self.n), slice(0, self.n - first)
        return slice(first, self.n), self._lagged[j]

    @cached_property
    def _lagged(self) -> list[Tensor]:
        starts = np.array(self.starts)
        sources = []
        for j in range(self.k):
            first = self.starts[min(j, self.longest)]
            sources.append(
                torch.from_numpy(starts[self._time[first:] - j] + self._place[first:]).to(
                    self.device
                )
            )
        return sources

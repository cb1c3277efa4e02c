"""How much agents tell one another while they act."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class SentNumbers:
    """Counts the numbers that agents send in the episodes under way.

    A message to k receivers counts k times, what an agent sends to itself not at all. The collector
    logs the mean per step as `numbers_sent_mean` and, in evaluation, `test_numbers_sent_mean`.
    """

    def __init__(self) -> None:
        self.start(0)

    def start(self, batch_size: int, device: torch.device | str = "cpu") -> None:
        """New episodes."""
        self._sent = torch.zeros(batch_size, device=device)
        self._steps = torch.zeros(batch_size, device=device)

    def add(self, rows: Any, numbers: Tensor | float) -> None:
        """A step of the episodes `rows`, in which so many numbers were sent, [len(rows)] or one."""
        self._sent[rows] += numbers
        self._steps[rows] += 1

    def figures(self) -> dict[str, Tensor]:
        """`numbers_sent` of each episode: all agents together, mean over its steps so far, [B]."""
        return {"numbers_sent": self._sent / self._steps.clamp(min=1)}

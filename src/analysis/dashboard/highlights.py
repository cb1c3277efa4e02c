"""The few figures of a run that stand in the table."""

from __future__ import annotations

import functools
import json
import math
import re
from dataclasses import dataclass, field

from analysis.aggregate import is_rate
from analysis.runs import Run

RETURN_KEY = "test_return_mean"
WIN_KEY = "test_battle_won_mean"
_EVALUATED = re.compile(rb'"(test_\w+_mean)"')
_END = 16 * 1024  # [bytes] within which a file that is not damaged has a readable line


@dataclass
class Highlights:
    """The few figures of a run that stand in the table.

    Attributes:
        steps: the last environment step recorded.
        last, best: by metric, of `RETURN_KEY` and of every win rate over evaluation episodes.
        broken: lines that should have held one of them and do not.
    """

    steps: int | None = None
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    broken: int = 0

    def add(self, lines: bytes) -> None:
        """Takes in complete lines of `metrics.jsonl`."""
        self.steps = _last_step(lines, self.steps)
        for match in _EVALUATED.finditer(lines):
            key = match.group(1).decode()
            if not _counts(key):
                continue
            start = lines.rfind(b"\n", 0, match.start()) + 1
            end = lines.find(b"\n", match.end())
            try:
                entry = json.loads(lines[start : len(lines) if end < 0 else end])
                if entry["key"] != key or entry["value"] is None:
                    continue
                self._note(key, float(entry["value"]))
            except (ValueError, TypeError, KeyError):
                self.broken += 1

    def add_run(self, run: Run) -> None:
        """Takes in a run that was read as a whole."""
        for key, series in run.metrics.items():
            if len(series.t):
                self.steps = max(self.steps or 0, int(series.t[-1]))
            if _counts(key):
                for value in filter(math.isfinite, series.values.tolist()):
                    self._note(key, value)

    def _note(self, key: str, value: float) -> None:
        self.last[key] = value
        self.best[key] = max(value, self.best.get(key, value))

    def win_key(self) -> str | None:
        """The metric that is the run's win rate."""
        rates = [key for key in self.last if key != RETURN_KEY]
        return WIN_KEY if WIN_KEY in rates else min(rates, default=None)


@functools.cache
def _counts(key: str) -> bool:
    return key == RETURN_KEY or is_rate(key, ())


def _last_step(lines: bytes, before: int | None) -> int | None:
    for line in reversed(lines[-_END:].splitlines()):
        try:
            return int(json.loads(line)["t"])
        except (ValueError, TypeError, KeyError, OverflowError):
            continue
    return before

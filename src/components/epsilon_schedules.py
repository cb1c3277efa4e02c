"""Schedules of exploration rates."""

from __future__ import annotations

import math

from utils.errors import ConfigError
from utils.ranges import NOT_NEGATIVE, check_ranges, one_of

RANGES = {"decay": one_of("linear", "exp"), "time_length": NOT_NEGATIVE}


class DecayThenFlatSchedule:
    """From `start` to `finish` in `time_length` steps, then flat. Without state: a function of the
    time alone.

    Args:
        start, finish: first and last value; a linear schedule may rise.
        time_length: steps between them; 0 is `finish` at once.
        decay: "linear", or "exp": finish ** (T / time_length), not above `start` and not below
            `finish`.

    Raises:
        ConfigError: an unknown decay, a negative `time_length`, or an exponential one that would
            rise or is negative.
    """

    def __init__(self, start: float, finish: float, time_length: float, decay: str = "exp") -> None:
        check_ranges({"decay": decay, "time_length": time_length}, RANGES, "a schedule's ")
        if decay == "exp" and not 0 <= finish <= start:
            raise ConfigError(
                f"an exponential schedule from {start} to {finish}: 0 <= finish <= start is needed"
            )
        self.start, self.finish, self.time_length, self.decay = start, finish, time_length, decay
        # The time constant of PyMARL; it has none to give for finish = 0, and takes 1.
        self._exp_scaling = -time_length / math.log(finish) if 0 < finish < 1 else 1.0

    def eval(self, T: int) -> float:
        """The value at step T."""
        if self.time_length <= T:
            return self.finish
        if self.decay == "linear":
            return self.start + (self.finish - self.start) * max(T, 0) / self.time_length
        return min(self.start, max(self.finish, math.exp(-T / self._exp_scaling)))

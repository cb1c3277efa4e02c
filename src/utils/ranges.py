"""Ranges of settings: what a value must be, how a mistake reads, one table per owner of keys."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from utils.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """A condition on the value of one key, and how it reads after "must be"."""

    holds: Callable[[Any], bool]
    text: str


def at_least(low: float) -> Range:
    """`low` or more."""
    return Range(lambda value: value >= low, f"at least {low}")


def between(low: float, high: float) -> Range:
    """From `low` to `high`, both included."""
    return Range(lambda value: low <= value <= high, f"between {low} and {high}")


def one_of(*choices: object) -> Range:
    """One of a few values."""
    return Range(lambda value: value in choices, f"one of {', '.join(map(str, choices))}")


ANY_NUMBER = Range(math.isfinite, "a finite number")
COUNT = at_least(1)  # sizes, intervals, numbers of things
NOT_NEGATIVE = at_least(0)  # weights, penalties, times that may be none
PROBABILITY = between(0, 1)  # probabilities, shares, discounts, lambdas
POSITIVE = Range(lambda value: value > 0, "greater than 0")  # infinity is "no limit"
FINITE_POSITIVE = Range(lambda value: 0 < value < math.inf, "greater than 0 and finite")
SMOOTHING = Range(lambda value: 0 <= value < 1, "at least 0 and less than 1")
NAME = Range(lambda value: bool(value.strip()), "a name, not an empty string")


FOR_BATCH_NORM = Range(lambda value: value >= 2, "at least 2 transitions, for batch norm")


def _is_amount(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and FINITE_POSITIVE.holds(value)


AMOUNTS = Range(
    lambda value: all(map(_is_amount, value.values())), "a number above 0 for each name"
)


def check_ranges(
    settings: Mapping[str, Any], ranges: Mapping[str, Range], prefix: str = ""
) -> None:
    """Checks every setting that has a range; None and absent ones are not looked at.

    Args:
        settings: key -> value; a key "a.b" of `ranges` is entry b of the mapping at a.
        ranges: key -> what its value must be.
        prefix: stands before the key in the message ("env_args.").

    Raises:
        ConfigError: naming the key, the range and the value.
    """
    for key, wanted in ranges.items():
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None and not wanted.holds(value):
            raise ConfigError(f"{prefix}{key} must be {wanted.text}, got {value!r}")

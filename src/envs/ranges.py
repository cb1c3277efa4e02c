"""Ranges of `env_args`, which come from Python as well as from yaml: the type counts, too."""

from __future__ import annotations

import math
import numbers
from typing import Any

import numpy as np

from utils.ranges import Range


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def whole(low: int, high: float = math.inf) -> Range:
    """A whole number of at least `low` and at most `high`."""
    limits = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
    return Range(
        lambda value: (
            isinstance(value, numbers.Integral) and _is_number(value) and low <= value <= high
        ),
        f"a whole number {limits}",
    )


def number(low: float = -math.inf, high: float = math.inf) -> Range:
    """A finite number of at least `low` and at most `high`."""
    text = "a finite number"
    if high < math.inf:
        text = f"a number from {low} to {high}"
    elif low > -math.inf:
        text += f" of at least {low}"
    return Range(
        lambda value: _is_number(value) and math.isfinite(value) and low <= value <= high, text
    )


SIZE = whole(1)  # numbers of things, steps
NUMBER = number()  # rewards
AMOUNT = number(0)  # weights, times
ABOVE_ZERO = Range(lambda value: NUMBER.holds(value) and value > 0, "a finite number above 0")
CHANCE = number(0, 1)
SWITCH = Range(lambda value: isinstance(value, (bool, np.bool_)), "True or False")

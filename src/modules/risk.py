"""Risk measures: what a distribution of returns is worth to somebody who does, or does not, like
risk.

A measure distorts probabilities by a function g that grows from g(0) = 0 to g(1) = 1, and is the
mean of the distorted distribution, the integral of F^-1(tau) g'(tau). Where g is concave the low
returns count for more. Of a distribution with equally probable values, in ascending order, it is a
weighted sum of these: the k-th of W has the weight g((k + 1) / W) - g(k / W).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import ConfigError
from utils.ranges import ANY_NUMBER, Range, one_of


@dataclass(frozen=True)
class Measure:
    """A distortion of probabilities.

    Attributes:
        g: (tau [...], parameter) -> [...].
        allowed: what the parameter must be.
    """

    g: Callable[[Tensor, float], Tensor]
    allowed: Range


def _conditional(tau: Tensor, share: float) -> Tensor:
    if share < 0:  # the best share of the returns, in place of the worst one
        return 1 - _conditional(1 - tau, -share)
    return (tau / share).clamp(max=1)


def _weighted(tau: Tensor, power: float) -> Tensor:
    up = tau**power
    return up / (up + (1 - tau) ** power) ** (1 / power)


MEASURES = {
    # the mean
    "neutral": Measure(lambda tau, _: tau, ANY_NUMBER),
    # Wang 2000: above 0 it dislikes risk, below 0 it likes it
    "wang": Measure(
        lambda tau, shift: torch.special.ndtr(torch.special.ndtri(tau) + shift), ANY_NUMBER
    ),
    # the mean of the worst share of the returns, or of the best one
    "cvar": Measure(
        _conditional, Range(lambda value: 0 < abs(value) <= 1, "from -1 to 1, and not 0")
    ),
    # one quantile
    "var": Measure(
        lambda tau, level: (tau > level).to(tau),
        Range(lambda value: 0 <= value < 1, "at least 0 and less than 1"),
    ),
    # cumulative prospect theory (Tversky and Kahneman 1992): what is rare counts for more
    "cpw": Measure(_weighted, Range(lambda value: 0 < value <= 1, "above 0 and at most 1")),
}
RANGES = {"risk_measure": one_of(*MEASURES), "risk_parameter": ANY_NUMBER}


def risk_weights(name: str, parameter: float, n_values: int) -> Tensor:
    """Weights of W equally probable values in ascending order, float32 [W]; they sum to 1.

    Args:
        name: of the measure, one of `MEASURES`.
        parameter: its parameter; "neutral" has none, and does not read it.
        n_values: W.

    Raises:
        ConfigError: the measure is unknown, or its parameter out of range.
    """
    if name not in MEASURES:
        raise ConfigError(f"risk_measure must be {RANGES['risk_measure'].text}, got {name!r}")
    measure = MEASURES[name]
    if not measure.allowed.holds(parameter):
        raise ConfigError(
            f"risk_parameter must be {measure.allowed.text} with risk_measure={name}, got "
            f"{parameter!r}"
        )
    # In float64: differences of numbers that are close to each other.
    bounds = torch.arange(n_values + 1, dtype=torch.float64) / n_values
    return measure.g(bounds, parameter).diff().float()

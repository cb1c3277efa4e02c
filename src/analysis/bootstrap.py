"""Point estimates over runs and their stratified bootstrap intervals.

Source of the method: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice", NeurIPS 2021: percentile bootstrap that resamples the runs of every task separately,
interquartile mean over all runs and tasks.

A resample is kept as counts: how often each run was drawn. Equal seeds and sizes give equal counts,
so statistics of the same runs are taken over the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from utils.errors import UserError

_BATCH = 4_000_000  # counts in memory at a time


def iqm(x: np.ndarray, axis: int = 0) -> np.ndarray:
    """Interquartile mean: `scipy.stats.trim_mean(x, 0.25)`, the mean without the floor(n / 4)
    lowest and highest.

    With fewer than 4 values nothing is cut: it is the plain mean. With 4 it is the mean of the
    middle 2, with 5 of the middle 3, with 8 of the middle 4.
    """
    return stats.trim_mean(x, 0.25, axis=axis)


STATISTICS: dict[str, Callable[..., np.ndarray]] = {
    "iqm": iqm,
    "mean": np.mean,
    "median": np.median,
}
STATISTIC_NAMES = {"iqm": "interquartile mean", "mean": "mean", "median": "median"}
# Each of them is the mean of n values without so many lowest and highest.
_CUT: dict[str, Callable[[int], int]] = {
    "iqm": lambda n: n // 4,
    "mean": lambda n: 0,
    "median": lambda n: (n - 1) // 2,
}


@dataclass(frozen=True)
class Method:
    """How seeds become one number with an interval.

    Attributes:
        statistic: a key of `STATISTICS`.
        confidence: coverage of the interval.
        resamples: number of bootstrap resamples.
        seed: of the bootstrap; equal data and seed give equal intervals.
    """

    statistic: str = "iqm"
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise UserError(f"unknown statistic '{self.statistic}'; known: {', '.join(STATISTICS)}")
        if not 0 < self.confidence < 1:
            raise UserError(f"the confidence must lie between 0 and 1, not {self.confidence}")
        if self.resamples < 1:
            raise UserError(
                f"the number of bootstrap resamples must be positive, not {self.resamples}"
            )

    @property
    def percent(self) -> str:
        """The confidence in words: `95%`."""
        return f"{100 * self.confidence:g}%"

    @property
    def bounds(self) -> tuple[float, float]:
        """The quantiles that are the ends of an interval."""
        tail = (1 - self.confidence) / 2
        return tail, 1 - tail


DEFAULT = Method()


class Estimate(NamedTuple):
    """A statistic and the bounds of its interval; these are NaN where no task has two runs."""

    value: float
    low: float
    high: float


def resamples(
    sizes: Sequence[int], method: Method = DEFAULT, seed: int = 0
) -> Iterator[list[np.ndarray]]:
    """Bootstrap resamples of strata, in batches.

    Args:
        sizes: numbers of runs n_i of the strata.
        seed: another stream than that of `method.seed` alone, for a second set of runs.

    Yields:
        For a batch of R resamples one array float32 [R, n_i] for each stratum: how often each run
        was drawn. The rows of all batches are `method.resamples`.
    """
    streams = [
        np.random.default_rng((method.seed, seed, i) if seed or i else method.seed)
        for i in range(len(sizes))
    ]
    batch = max(1, _BATCH // max(1, sum(sizes)))
    for start in range(0, method.resamples, batch):
        rows = min(batch, method.resamples - start)
        yield [
            _counts(stream.integers(0, n, (rows, n)), n)
            for stream, n in zip(streams, sizes, strict=True)
        ]


def _counts(drawn: np.ndarray, n: int) -> np.ndarray:
    """How often each of n runs is among the drawn ones [R, n]."""
    rows = np.arange(len(drawn))[:, None]
    flat = np.bincount((rows * n + drawn).ravel(), minlength=drawn.size)
    return flat.reshape(drawn.shape).astype(np.float32)


def bounds(found: np.ndarray, method: Method = DEFAULT) -> tuple[np.ndarray, np.ndarray]:
    """Ends [...] of the percentile interval of a statistic over resamples [R, ...]."""
    low, high = np.quantile(found, method.bounds, axis=0)
    return low, high


def interval(
    strata: Sequence[np.ndarray], method: Method = DEFAULT
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Point estimate over all runs and its percentile bootstrap interval, runs resampled within
    their stratum.

    A stratum is a task: the runs of one task never stand in for those of another. Within a stratum
    whole runs are resampled, the same ones for every column. A stratum of a single run has nothing
    to resample and stays as it is.

    Args:
        strata: arrays [n_i, ...] with the runs of one task each along the first axis; the other
            axes are equal.

    Returns:
        (centre, low, high), each [...]; low and high are NaN where no stratum has two runs.
    """
    strata = [np.asarray(x, dtype=np.float64) for x in strata]
    pooled = np.concatenate(strata, axis=0)
    centre = np.asarray(STATISTICS[method.statistic](pooled, axis=0))
    if all(len(x) < 2 for x in strata):
        return centre, np.full_like(centre, np.nan), np.full_like(centre, np.nan)
    columns = pooled.reshape(len(pooled), -1)
    order = np.argsort(columns, axis=0)
    found = np.concatenate(
        [
            _trimmed_means(np.concatenate(counts, axis=1), columns, order, method.statistic)
            for counts in resamples([len(x) for x in strata], method)
        ]
    )
    low, high = bounds(found, method)
    return centre, low.reshape(centre.shape), high.reshape(centre.shape)


def _trimmed_means(
    counts: np.ndarray, columns: np.ndarray, order: np.ndarray, statistic: str
) -> np.ndarray:
    """A statistic of resampled columns.

    Args:
        counts: [R, n], how often each run is in a resample.
        columns: [n, C].
        order: [n, C], what sorts each column.

    Returns:
        [R, C].
    """
    n = len(columns)
    cut = _CUT[statistic](n)
    kept = n - 2 * cut
    if not cut:
        # In float64: float32 holds the counts exactly, but not the values.
        return counts.astype(np.float64) @ columns / n
    found = np.empty((len(counts), columns.shape[1]))
    for c in range(columns.shape[1]):
        x = columns[order[:, c], c]
        # How many of the values up to the j-th are kept, [R, n]. Each step between two neighbours
        # counts for the values above it: the sum of the kept ones by parts.
        below = np.clip(np.cumsum(counts[:, order[:, c]], axis=1), cut, n - cut) - cut
        found[:, c] = x[-1] - below[:, :-1].astype(np.float64) @ np.diff(x) / kept
    return found

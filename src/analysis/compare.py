"""Groups against each other over all maps: aggregates, performance profiles, probability of
improvement, ranks; and how many steps each group needs.

The definitions are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the
Statistical Precipice", NeurIPS 2021, and of their package rliable, which Gorsane et al. ("Towards a
Standardised Performance Evaluation Protocol for Cooperative MARL", NeurIPS 2022) use in marl-eval.
Intervals come from `analysis.bootstrap`: runs are resampled map by map.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.aggregate import FinalRow, Task, complete_rows, scaled, tasks_of
from analysis.bootstrap import DEFAULT, Estimate, Method, bounds, interval, resamples
from analysis.runs import Run, Series

_log = logging.getLogger(__name__)

AGGREGATES = {
    "iqm": "Interquartile mean",
    "median": "Median of the maps' means",
    "mean": "Mean",
    "optimality_gap": "Optimality gap",
}
GROUPS_AT_MOST = 30  # more of them make tables of pairs that nobody reads
THRESHOLDS = 101  # of a performance profile

Strata = list[np.ndarray]  # scores [n_i] of a group's runs on every map


@dataclass(frozen=True, eq=False)
class Profile:
    """Share of runs whose score lies above a threshold, over H thresholds.

    Attributes:
        thresholds: [H], increasing.
        share, low, high: [H], of all runs on all maps; the bounds are NaN where no map has two
            runs.
    """

    thresholds: np.ndarray
    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True, eq=False)
class Comparison:
    """What final results say about A groups over the same maps.

    Attributes:
        tasks: the maps.
        labels: names of the A groups.
        n_runs: of every group.
        normalised: scores are scaled to the lowest and highest value on each map; otherwise they
            are shares.
        aggregates: label -> key of `AGGREGATES` -> estimate.
        profiles: label -> performance profile.
        improvement: (x, y) -> probability that a run of x is better than one of y on a map drawn
            at random; ties count half. Every pair of groups stands there once.
        ranks: label -> [A], probability of every rank from the first to the last.
        mean_ranks: label -> mean rank, 1 being the best.
    """

    tasks: list[Task]
    labels: list[str]
    n_runs: dict[str, int]
    normalised: bool
    aggregates: dict[str, dict[str, Estimate]]
    profiles: dict[str, Profile]
    improvement: dict[tuple[str, str], Estimate]
    ranks: dict[str, np.ndarray]
    mean_ranks: dict[str, Estimate]

    @property
    def ranking(self) -> list[str]:
        """The groups from the best mean rank to the worst."""
        return sorted(self.labels, key=lambda label: self.mean_ranks[label].value)


def compare(
    rows: Sequence[FinalRow],
    *,
    scale: Mapping[Task, tuple[float, float]] | None = None,
    method: Method = DEFAULT,
) -> Comparison | None:
    """Compares groups over the maps that all of them have. Where not all groups have runs on all
    maps, some of both are left out: what is compared has the largest number of groups times maps.

    Args:
        rows: of `final_table`.
        scale: task -> (lowest, highest): scores are (value - lowest) / (highest - lowest). None:
            values are shares already.
        method: its statistic plays no part here.

    Returns:
        The comparison, or None where no two groups share a map, where there is one group on one
        map, or where there are more groups than `GROUPS_AT_MOST`.
    """
    rows = _comparable(rows)
    groups = {label: scaled(found, scale) for label, found in complete_rows(rows).items()}
    if len(groups) > GROUPS_AT_MOST:
        _log.warning(
            "comparisons are made of at most %d groups, not of %d: left out",
            GROUPS_AT_MOST,
            len(groups),
        )
        return None
    tasks = list(dict.fromkeys(row.task for row in rows))
    if not groups or len(groups) == len(tasks) == 1:
        return None
    improvement, mean_ranks = _pairs(groups, method)
    return Comparison(
        tasks,
        list(groups),
        {label: sum(map(len, strata)) for label, strata in groups.items()},
        scale is not None,
        {label: aggregates(strata, method) for label, strata in groups.items()},
        {label: profile(strata, _thresholds(), method) for label, strata in groups.items()},
        improvement,
        rank_probabilities(groups),
        mean_ranks,
    )


def _comparable(rows: Sequence[FinalRow]) -> list[FinalRow]:
    """The rows of the groups and maps that are compared."""
    tasks: dict[str, set[Task]] = {}
    for row in rows:
        tasks.setdefault(row.label, set()).add(row.task)
    blocks = []
    for maps in (*tasks.values(), set.intersection(*tasks.values())):
        labels = [label for label, mine in tasks.items() if maps <= mine]
        if maps and len(labels) >= min(2, len(tasks)):
            blocks.append((len(labels) * len(maps), len(maps), labels, maps))
    if not blocks:
        return []
    _, _, labels, maps = max(blocks, key=lambda block: block[:2])
    return [row for row in rows if row.label in labels and row.task in maps]


def aggregates(strata: Strata, method: Method = DEFAULT) -> dict[str, Estimate]:
    """The aggregates of one group's scores, which lie between 0 and 1.

    Interquartile mean, mean and optimality gap (by how much the runs miss 1 on average, scores
    above 1 counting as 1) are over all runs together. The median is that of the maps' means: it
    does not change when hard maps become harder.
    """
    found: dict[str, Estimate] = {}
    for statistic in ("iqm", "mean"):
        how = Method(statistic, method.confidence, method.resamples, method.seed)
        found[statistic] = Estimate(*map(float, interval(strata, how)))
    n = sum(map(len, strata))
    medians, gaps = [], []
    for counts in resamples([len(x) for x in strata], method):
        means = [c @ x / len(x) for c, x in zip(counts, strata, strict=True)]
        medians.append(np.median(means, axis=0))
        missing = [c @ (1 - np.minimum(x, 1)) for c, x in zip(counts, strata, strict=True)]
        gaps.append(np.sum(missing, axis=0) / n)
    median = float(np.median([x.mean() for x in strata]))
    gap = float(np.mean(1 - np.minimum(np.concatenate(strata), 1)))
    found["median"] = _estimate(median, np.concatenate(medians), strata, method)
    found["optimality_gap"] = _estimate(gap, np.concatenate(gaps), strata, method)
    return {key: found[key] for key in AGGREGATES}


def profile(strata: Strata, thresholds: np.ndarray, method: Method = DEFAULT) -> Profile:
    """The run-score distribution of one group: share of all runs with scores above a threshold.

    Args:
        thresholds: [H].
    """
    above = [(x[:, None] > thresholds).astype(np.float64) for x in strata]  # each [n_i, H]
    n = sum(map(len, strata))
    share = np.concatenate(above).mean(axis=0)
    if all(len(x) < 2 for x in strata):
        return Profile(thresholds, share, np.full_like(share, np.nan), np.full_like(share, np.nan))
    found = [
        sum(c @ x for c, x in zip(counts, above, strict=True)) / n
        for counts in resamples([len(x) for x in strata], method)
    ]
    return Profile(thresholds, share, *bounds(np.concatenate(found), method))


def _thresholds() -> np.ndarray:
    return np.linspace(0, 1, THRESHOLDS)


def better(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, m]: 1 where a score of x [n] is higher than one of y [m], 0.5 where they are equal."""
    return (x[:, None] > y).astype(np.float64) + 0.5 * (x[:, None] == y)


def _pairs(
    groups: Mapping[str, Strata], method: Method
) -> tuple[dict[tuple[str, str], Estimate], dict[str, Estimate]]:
    """Probability of improvement of every pair, and every group's mean rank.

    The first is the Mann-Whitney statistic U / (n m) of each map, averaged over maps. A run's rank
    among one run of each group is 1 and one more for every group that is better, so that the mean
    rank is 1 + the sum over the others of 1 - P(improvement).
    """
    labels = list(groups)
    counts = {
        label: [np.concatenate(parts) for parts in zip(*_all(strata, method, i), strict=True)]
        for i, (label, strata) in enumerate(groups.items())
    }
    improvement: dict[tuple[str, str], Estimate] = {}
    rank = dict.fromkeys(labels, 1.0)
    ranks = {label: np.ones(method.resamples) for label in labels}
    for i, x in enumerate(labels):
        for y in labels[i + 1 :]:
            values, found = [], []
            for a, b, of_a, of_b in zip(groups[x], groups[y], counts[x], counts[y], strict=True):
                won = better(a, b)
                values.append(won.mean())
                found.append(np.einsum("rm,rm->r", of_a @ won, of_b) / won.size)
            value, resampled = float(np.mean(values)), np.mean(found, axis=0)
            strata = groups[x] + groups[y]
            improvement[x, y] = _estimate(value, resampled, strata, method)
            rank[x] += 1 - value
            rank[y] += value
            ranks[x] += 1 - resampled
            ranks[y] += resampled
    everything = [part for strata in groups.values() for part in strata]
    return improvement, {
        label: _estimate(rank[label], ranks[label], everything, method) for label in labels
    }


def _all(strata: Strata, method: Method, seed: int) -> list[list[np.ndarray]]:
    return list(resamples([len(x) for x in strata], method, seed))


def rank_probabilities(groups: Mapping[str, Strata]) -> dict[str, np.ndarray]:
    """Probability [A] of each group to have the first, second, ... rank on a map, when one run of
    each group is drawn; ties are broken at random. The mean over maps.

    Not simulated but exact: a run with a score beats, ties with or loses to a run of each other
    group with known probabilities, independently of each other. Let u be uniform in 0..1, the
    run's luck in ties; given u, each other group is ahead with probability P(better) + u P(equal),
    and the number of groups ahead follows from convolving these. That is a polynomial in u of
    degree A - 1, which Gauss-Legendre quadrature with A/2 nodes integrates exactly.
    """
    labels = list(groups)
    nodes, weights = np.polynomial.legendre.leggauss((len(labels) + 1) // 2)
    luck, weights = (nodes + 1) / 2, weights / 2
    found = {label: np.zeros(len(labels)) for label in labels}
    n_tasks = len(next(iter(groups.values())))
    for task in range(n_tasks):
        ordered = {label: np.sort(strata[task]) for label, strata in groups.items()}
        for label in labels:
            scores = ordered[label]
            ahead = np.zeros((len(scores), len(luck), len(labels)))  # number of groups ahead
            ahead[..., 0] = 1
            for other in labels:
                if other != label:
                    theirs = ordered[other]
                    higher = 1 - np.searchsorted(theirs, scores, "right") / len(theirs)
                    at_least = 1 - np.searchsorted(theirs, scores, "left") / len(theirs)
                    p = (higher[:, None] + luck * (at_least - higher)[:, None])[..., None]
                    one_more = p * ahead[..., :-1]
                    ahead *= 1 - p
                    ahead[..., 1:] += one_more
            found[label] += np.einsum("k,nka->a", weights, ahead) / len(scores)
    return {label: total / n_tasks for label, total in found.items()}


def _estimate(value: float, found: np.ndarray, strata: Strata, method: Method) -> Estimate:
    """A statistic with its interval, from its values [R] in resamples of the strata."""
    if all(len(x) < 2 for x in strata):
        return Estimate(value, math.nan, math.nan)
    return Estimate(value, *map(float, bounds(found, method)))


# --- Sample efficiency ---


@dataclass(frozen=True)
class Reach:
    """How many environment steps a group needs on a map.

    Attributes:
        level: share of the map's range, or of won episodes.
        value: the same in the metric's unit.
        reached: how many of the runs get there.
        n_runs: how many there are.
        steps: median over runs, with the bootstrap interval; infinite where half of the runs do
            not get there.
    """

    task: Task
    label: str
    level: float
    value: float
    reached: int
    n_runs: int
    steps: Estimate


def reach_table(
    groups: Mapping[str, Sequence[Run]],
    metric: str,
    levels: Sequence[float],
    *,
    scale: Mapping[Task, tuple[float, float]] | None = None,
    last: int = 5,
    method: Method = DEFAULT,
) -> list[Reach]:
    """Steps to each level, for every map and group that has the metric.

    Args:
        levels: from 0 to 1.
        scale: task -> (lowest, highest), which are levels 0 and 1; None: values are levels.
        last: as in `final_table`: a level is reached where the mean of so many evaluations is.
    """
    found = []
    for task in tasks_of([run for group in groups.values() for run in group]):
        low, high = scale[task] if scale is not None else (0.0, 1.0)
        for label, group in groups.items():
            members = [s for run in group if run.task == task and (s := run.finite(metric))]
            for level in levels if members else ():
                value = low + level * (high - low)
                steps = np.asarray([steps_to(series, value, last) for series in members])
                median = median_steps(steps, method)
                reached = int(np.isfinite(steps).sum())
                found.append(Reach(task, label, level, value, reached, len(steps), median))
    return found


def steps_to(series: Series, value: float, last: int = 5) -> float:
    """Steps at the first evaluation at which the mean of it and the `last` - 1 before reaches
    `value` (of all, where there are fewer); infinite where none does.
    """
    width = min(last, len(series.t))
    means = np.lib.stride_tricks.sliding_window_view(series.values, width).mean(axis=1)
    there = np.flatnonzero(means >= value)
    return float(series.t[there[0] + width - 1]) if len(there) else math.inf


def median_steps(steps: np.ndarray, method: Method = DEFAULT) -> Estimate:
    """Median of steps [n], some of them infinite, with its bootstrap interval, whose bounds may be
    infinite, too.
    """
    ordered = np.sort(steps)
    n = len(ordered)
    with np.errstate(invalid="ignore"):
        value = float(ordered[[(n - 1) // 2, n // 2]].mean())
    if n < 2:
        return Estimate(value, math.nan, math.nan)
    medians = []
    for (counts,) in resamples([n], method):
        reached = np.cumsum(counts, axis=1)  # draws up to the j-th of the ordered runs
        middle = [(reached > k).argmax(axis=1) for k in ((n - 1) // 2, n // 2)]
        medians.append((ordered[middle[0]] + ordered[middle[1]]) / 2)
    # Bounds that are values: between a finite and an infinite one nothing can be interpolated.
    low, high = np.quantile(np.concatenate(medians), method.bounds, method="inverted_cdf")
    return Estimate(value, float(low), float(high))

"""Groups compared over maps: against figures of the package rliable, and against slow references
that follow the definitions literally.
"""

import itertools
import math

import numpy as np
import pytest

from analysis import overview
from analysis.aggregate import final_table, higher_is_better
from analysis.bootstrap import Method
from analysis.compare import (
    AGGREGATES,
    GROUPS_AT_MOST,
    aggregates,
    compare,
    median_steps,
    profile,
    rank_probabilities,
    reach_table,
    steps_to,
)
from analysis.findings import Options, find
from analysis.runs import Run, Series, group_runs, settings_by_cell

# Scores [runs, maps] of three groups, with ties; group b has fewer runs.
SCORES = {
    "a": [[0.57, 0.72, 0.58], [0.51, 0.28, 0.57], [0.94, 0.75, 0.54], [0.65, 0.82, 0.93],
          [0.92, 0.82, 0.84], [0.54, 0.54, 0.73]],
    "b": [[0.5, 0.3, 0.4], [0.5, 0.9, 0.3], [0.3, 0.5, 0.5], [0.9, 0.2, 0.3], [0.5, 0.4, 0.4]],
    "c": [[0.6, 0.4, 0.3], [0.7, 0.4, 0.4], [0.1, 0.6, 0.2], [0.2, 0.6, 0.3], [0.3, 0.5, 0.5],
          [0.1, 0.2, 0.3]],
}  # fmt: skip
MAPS = ("m1", "m2", "m3")
# rliable 1.2.0 on these scores: get_interval_estimates with 20,000 resamples (value, low, high).
RLIABLE = {
    "a": {"iqm": (0.675, 0.584, 0.784), "median": (0.6883333333, 0.5933333333, 0.7733333333),
          "mean": (0.6805555556, 0.6, 0.76), "optimality_gap": (0.3194444444, 0.24, 0.4)},
    "b": {"iqm": (0.4222222222, 0.3555555556, 0.5333333333), "median": (0.46, 0.34, 0.6),
          "mean": (0.46, 0.3733333333, 0.56), "optimality_gap": (0.54, 0.44, 0.6266666667)},
    "c": {"iqm": (0.36, 0.27, 0.47), "median": (0.3333333333, 0.2833333333, 0.4833333333),
          "mean": (0.3722222222, 0.2944444444, 0.45),
          "optimality_gap": (0.6277777778, 0.55, 0.7055555556)},
}  # fmt: skip
# probability_of_improvement, 5,000 resamples.
RLIABLE_IMPROVEMENT = {
    ("a", "b"): (0.8555555556, 0.6888888889, 1.0),
    ("a", "c"): (0.8703703704, 0.7222222222, 0.9814814815),
    ("b", "c"): (0.6, 0.4055555556, 0.7777777778),
}
# create_performance_profile at 0, 0.25, 0.5, 0.75 and 1, 5,000 resamples.
RLIABLE_PROFILE = {
    "a": ([1, 1, 0.9444444444, 0.3333333333, 0], [1, 1, 0.8333333333, 0.1111111111, 0],
          [1, 1, 1, 0.5555555556, 0]),
    "b": ([1, 0.9333333333, 0.1333333333, 0.1333333333, 0], [1, 0.8, 0, 0, 0],
          [1, 1, 0.3333333333, 0.3333333333, 0]),
    "c": ([1, 0.7222222222, 0.2222222222, 0, 0], [1, 0.5, 0.0555555556, 0, 0],
          [1, 0.8888888889, 0.3888888889, 0, 0]),
}  # fmt: skip
MANY = Method(resamples=5000)


def strata(label):
    return list(np.asarray(SCORES[label]).T)


def a_run(name, task, seed, values, metric="test_battle_won_mean", seconds=None, **config):
    t = np.arange(len(values), dtype=np.int64) * 100
    config = {"name": name, "seed": seed, "env": "sc2", "env_args": {"map_name": task}, **config}
    timing = {}
    if seconds is not None:
        timing["seconds"] = Series(t[-1:], np.asarray([seconds], dtype=np.float64))
    series = Series(t, np.asarray(values, dtype=np.float64))
    return Run(f"{name}/{task}/{seed}", config, "COMPLETED", {metric: series}, timing=timing)


def runs_of(scores=None, maps=MAPS, **options):
    return [
        a_run(name, task, seed, [value], **options)
        for name, rows in (SCORES if scores is None else scores).items()
        for seed, row in enumerate(rows)
        for task, value in zip(maps, row, strict=True)
    ]


# --- Against rliable ---


@pytest.mark.parametrize("label", SCORES)
def test_aggregates_are_rliable_s(label):
    found = aggregates(strata(label), MANY)
    assert list(found) == list(AGGREGATES)
    for key, (value, low, high) in RLIABLE[label].items():
        assert found[key].value == pytest.approx(value), key
        assert found[key].low == pytest.approx(low, abs=0.015), key
        assert found[key].high == pytest.approx(high, abs=0.015), key


@pytest.mark.parametrize("label", SCORES)
def test_profiles_are_rliable_s(label):
    found = profile(strata(label), np.linspace(0, 1, 5), MANY)
    share, low, high = RLIABLE_PROFILE[label]
    np.testing.assert_allclose(found.share, share, atol=1e-9)
    np.testing.assert_allclose(found.low, low, atol=0.06)  # one run is 1 / 18 of all
    np.testing.assert_allclose(found.high, high, atol=0.06)


def test_probability_of_improvement_is_rliable_s():
    rows = final_table(runs_of(), "test_battle_won_mean")
    found = compare(rows, method=MANY)
    assert found.labels == ["a", "b", "c"]
    assert list(found.improvement) == list(RLIABLE_IMPROVEMENT)
    for pair, (value, low, high) in RLIABLE_IMPROVEMENT.items():
        assert found.improvement[pair].value == pytest.approx(value)
        assert found.improvement[pair].low == pytest.approx(low, abs=0.02)
        assert found.improvement[pair].high == pytest.approx(high, abs=0.02)


# --- Against slow references ---


def slow_improvement(x, y):
    """Mean over maps of the share of pairs of runs in which x is better."""
    shares = []
    for mine, theirs in zip(x, y, strict=True):
        won = 0.0
        for a in mine:
            for b in theirs:
                won += 1.0 if a > b else 0.5 if a == b else 0.0
        shares.append(won / (len(mine) * len(theirs)))
    return sum(shares) / len(shares)


def resampled(parts, rng):
    return [[part[int(rng.integers(len(part)))] for _ in part] for part in parts]


def test_improvement_s_interval_against_a_slow_bootstrap():
    """Maps with different numbers of runs."""
    x = [[0.1, 0.5, 0.5, 0.9], [0.3, 0.2]]
    y = [[0.5, 0.4, 0.1], [0.25, 0.3, 0.1, 0.0]]
    scores = {"x": x, "y": y}
    runs = [
        a_run(name, MAPS[m], seed, [value])
        for name, parts in scores.items()
        for m, part in enumerate(parts)
        for seed, value in enumerate(part)
    ]
    found = compare(final_table(runs, "test_battle_won_mean"), method=MANY)
    rng = np.random.default_rng(5)
    slow = [slow_improvement(resampled(x, rng), resampled(y, rng)) for _ in range(2000)]
    estimate = found.improvement["x", "y"]
    assert estimate.value == pytest.approx(slow_improvement(x, y))
    assert estimate.low == pytest.approx(np.percentile(slow, 2.5), abs=0.03)
    assert estimate.high == pytest.approx(np.percentile(slow, 97.5), abs=0.03)
    assert found.mean_ranks["x"].value == pytest.approx(2 - estimate.value)
    assert found.mean_ranks["y"].high == pytest.approx(1 + estimate.high)


def test_median_and_gap_against_a_slow_bootstrap():
    parts = [[0.1, 0.5, 0.7], [0.9, 1.3], [0.4], [0.2, 0.1, 0.3, 0.35]]

    def median(sample):
        means = sorted(sum(part) / len(part) for part in sample)
        return (means[1] + means[2]) / 2

    def gap(sample):
        everything = [min(1.0, value) for part in sample for value in part]
        return 1 - sum(everything) / len(everything)

    found = aggregates([np.asarray(part) for part in parts], MANY)
    rng = np.random.default_rng(5)
    samples = [resampled(parts, rng) for _ in range(3000)]
    for key, slow in (("median", median), ("optimality_gap", gap)):
        values = [slow(sample) for sample in samples]
        assert found[key].value == pytest.approx(slow(parts)), key
        assert found[key].low == pytest.approx(np.percentile(values, 2.5), abs=0.02), key
        assert found[key].high == pytest.approx(np.percentile(values, 97.5), abs=0.02), key


def slow_ranks(groups):
    """Every combination of one run of each group; tied groups share their places evenly."""
    labels = list(groups)
    found = {label: np.zeros(len(labels)) for label in labels}
    n_maps = len(groups[labels[0]])
    for m in range(n_maps):
        combinations = list(itertools.product(*(groups[label][m] for label in labels)))
        for scores in combinations:
            for label, score in zip(labels, scores, strict=True):
                ahead = sum(other > score for other in scores)
                tied = sum(other == score for other in scores)
                share = 1 / (tied * len(combinations) * n_maps)
                found[label][ahead : ahead + tied] += share
    return found


@pytest.mark.parametrize("n_groups", [2, 3, 5, 6])
def test_rank_probabilities_against_all_combinations(n_groups):
    rng = np.random.default_rng(n_groups)
    groups = {
        f"g{i}": [rng.integers(0, 4, int(rng.integers(1, 5))) / 4 for _ in range(2)]
        for i in range(n_groups)
    }
    found, slow = rank_probabilities(groups), slow_ranks(groups)
    for label in groups:
        np.testing.assert_allclose(found[label], slow[label], atol=1e-12)
        assert found[label].sum() == pytest.approx(1)


def test_mean_ranks_belong_to_the_rank_probabilities():
    found = compare(final_table(runs_of(), "test_battle_won_mean"))
    for label, shares in found.ranks.items():
        mean = sum((k + 1) * share for k, share in enumerate(shares))
        assert found.mean_ranks[label].value == pytest.approx(mean)
        assert found.mean_ranks[label].low <= mean <= found.mean_ranks[label].high
    assert found.ranking == ["a", "b", "c"]
    assert sum(one.value for one in found.mean_ranks.values()) == pytest.approx(1 + 2 + 3)


def test_equal_groups_are_not_better():
    """The runs of both groups are resampled independently: their difference is uncertain."""
    scores = {"x": SCORES["a"], "y": SCORES["a"]}
    found = compare(final_table(runs_of(scores), "test_battle_won_mean"))
    assert found.improvement["x", "y"].value == 0.5
    assert found.improvement["x", "y"].low < 0.4
    assert found.improvement["x", "y"].high > 0.6
    np.testing.assert_allclose(found.ranks["x"], [0.5, 0.5])


def test_single_runs_have_no_interval():
    scores = {"x": [[0.4, 0.6, 0.8]], "y": [[0.5, 0.6, 0.7]]}
    found = compare(final_table(runs_of(scores), "test_battle_won_mean"))
    estimates = [found.improvement["x", "y"], found.mean_ranks["x"]]
    estimates += found.aggregates["x"].values()
    for one in estimates:
        assert math.isfinite(one.value)
        assert math.isnan(one.low)
        assert math.isnan(one.high)
    assert np.isnan(found.profiles["x"].low).all()
    assert found.improvement["x", "y"].value == pytest.approx(0.5)


# --- What is compared ---


def test_scores_are_scaled_map_by_map():
    runs = [
        a_run(name, task, seed, [0, first + seed], metric="test_return_mean")
        for name, first in (("x", 10.0), ("y", 6.0))
        for task in ("m1", "m2")
        for seed in (0, 2)
    ]
    for run in runs[:4]:
        run.metrics["test_return_mean"].values[0] = -8.0
    found = find(group_runs(runs), "test_return_mean", Options(last=1))
    assert found.comparison.normalised
    # The lowest value is -8 on both maps, the highest is 12.
    assert found.comparison.aggregates["x"]["mean"].value == pytest.approx((18 + 20) / 2 / 20)
    assert found.comparison.aggregates["y"]["mean"].value == pytest.approx((14 + 16) / 2 / 20)


def lacking(*pairs):
    """Rows of all groups but of some (group, map)."""
    runs = [run for run in runs_of() if (run.name, run.task[1]) not in pairs]
    return final_table(runs, "test_battle_won_mean")


@pytest.mark.parametrize(
    ("pairs", "labels", "maps"),
    [
        ((), "abc", ("m1", "m2", "m3")),
        ((("c", "m2"),), "ab", ("m1", "m2", "m3")),  # 2 groups on 3 maps, not 3 on 2
        ((("c", "m2"), ("b", "m2")), "abc", ("m1", "m3")),
        ((("c", "m2"), ("b", "m3")), "ab", ("m1", "m2")),  # 2 on 2, not 3 on 1
        ((("a", "m1"), ("c", "m1"), ("c", "m2")), "ab", ("m2", "m3")),
    ],
)
def test_groups_that_lack_a_map(pairs, labels, maps, caplog):
    found = compare(lacking(*pairs))
    assert found.labels == list(labels)
    assert [task[1] for task in found.tasks] == list(maps)
    assert not caplog.records  # the report's text says what is left out


def test_what_cannot_be_compared(caplog):
    one = {"a": SCORES["a"]}
    metric = "test_battle_won_mean"
    alone = compare(final_table(runs_of(one), metric))
    assert alone.labels == ["a"]  # its aggregates over maps are worth something
    assert not alone.improvement
    on_one_map = [run for run in runs_of(one) if run.task[1] == "m1"]
    assert compare(final_table(on_one_map, metric)) is None
    apart = [a_run("x", "m1", 0, [0.1]), a_run("y", "m2", 0, [0.1])]
    assert compare(final_table(apart, metric)) is None
    many = {f"g{i}": [[0.5, 0.5, 0.5]] for i in range(GROUPS_AT_MOST + 1)}
    caplog.clear()
    assert compare(final_table(runs_of(many), metric)) is None
    assert "at most 30 groups, not of 31" in caplog.text


def test_only_metrics_of_which_more_is_better_are_compared():
    for metric in ("test_return_mean", "test_battle_won_mean", "return_mean", "test_solved_mean"):
        assert higher_is_better(metric), metric
    for metric in ("loss", "test_ep_length_mean", "test_return_std", "epsilon", "reward_std"):
        assert not higher_is_better(metric), metric
    found = find(group_runs(runs_of(metric="loss")), "loss", Options())
    assert found.comparison is None
    assert found.reach == []


def test_a_map_on_which_all_values_are_equal_takes_no_part(caplog):
    scores = {"x": [[1.0, 3.0], [1.0, 4.0]], "y": [[1.0, 2.0], [1.0, 5.0]]}
    runs = runs_of(scores, ("m1", "m2"), metric="test_return_mean")
    found = find(group_runs(runs), "test_return_mean", Options())
    assert found.comparison.tasks == [("sc2", "m2")]
    assert {one.task for one in found.reach} == {("sc2", "m2")}
    assert not caplog.records


# --- Sample efficiency ---


def test_steps_to_a_level_by_hand():
    series = Series(np.arange(6) * 10, np.asarray([0.0, 0.9, 0.0, 0.6, 0.8, 1.0]))
    assert steps_to(series, 0.5, last=1) == 10
    # Means of three: 0.3, 0.5, 0.47, 0.8, at 20, 30, 40, 50.
    assert steps_to(series, 0.5, last=3) == 30
    assert steps_to(series, 0.51, last=3) == 50
    assert steps_to(series, 0.81, last=3) == math.inf
    assert steps_to(series, 0.549, last=9) == 50  # fewer evaluations: all of them
    assert steps_to(series, 0.56, last=9) == math.inf


def slow_median(values):
    ordered = sorted(values)
    n = len(ordered)
    low, high = ordered[(n - 1) // 2], ordered[n // 2]
    return math.inf if math.isinf(high) else (low + high) / 2


@pytest.mark.parametrize(
    "steps",
    [[10, 20, 30, 50, 70], [10, 20, 30, math.inf], [10, 20, math.inf, math.inf], [math.inf] * 3],
)
def test_median_steps_against_a_slow_bootstrap(steps):
    found = median_steps(np.asarray(steps, dtype=np.float64), MANY)
    rng = np.random.default_rng(3)
    values = sorted(slow_median(resampled([steps], rng)[0]) for _ in range(5000))
    assert found.value == slow_median(steps)
    assert found.low == values[round(0.025 * 5000)]
    assert found.high == values[round(0.975 * 5000)]


def test_a_single_run_s_steps_have_no_interval():
    found = median_steps(np.asarray([40.0]))
    assert found.value == 40
    assert math.isnan(found.low)


def test_reach_table():
    runs = [
        a_run("x", "m1", 0, [0.0, 0.6, 0.9]),
        a_run("x", "m1", 1, [0.0, 0.2, 0.5]),
        a_run("x", "m1", 2, [0.0, 0.0, 0.1]),
        a_run("y", "m1", 0, [0.5, 0.5, 0.5]),
    ]
    metric = "test_battle_won_mean"
    rows = reach_table(group_runs(runs), metric, [0.5, 0.8], last=1)
    shown = [(r.label, r.level, r.value, r.reached, r.n_runs, r.steps.value) for r in rows]
    assert shown == [
        ("x", 0.5, 0.5, 2, 3, 200.0),
        ("x", 0.8, 0.8, 1, 3, math.inf),
        ("y", 0.5, 0.5, 1, 1, 0.0),
        ("y", 0.8, 0.8, 0, 1, math.inf),
    ]
    scale = {("sc2", "m1"): (-0.1, 0.9)}
    (row,) = reach_table(group_runs(runs[:3]), metric, [0.5], scale=scale, last=1)
    assert row.value == pytest.approx(0.4)
    assert row.steps.value == 200


# --- Cost, settings, films ---


def test_costs():
    runs = [
        a_run("x", "m1", 0, [0] * 11, seconds=100.0),
        a_run("x", "m1", 1, [0] * 21, seconds=400.0),
        a_run("x", "m1", 2, [0] * 11),
        a_run("y", "m2", 0, [0] * 11),
    ]
    one, other = overview.costs(group_runs(runs))
    assert (one.task, one.label, one.n_runs, one.timed) == (("sc2", "m1"), "x", 3, 2)
    assert one.steps == 1000 + 2000 + 1000
    assert one.hours == pytest.approx(500 / 3600)
    assert one.hours_per_run == pytest.approx(250 / 3600)
    assert one.speed == pytest.approx((10 + 5) / 2)
    assert (other.timed, other.hours) == (0, 0)
    assert math.isnan(other.hours_per_run)
    assert math.isnan(other.speed)


def test_settings_common_and_different():
    runs = [
        a_run("x", "m1", 0, [0], lr=0.1, gamma=0.9, mixer=None),
        a_run("x", "m1", 1, [0], lr=0.2, gamma=0.9, mixer=None),
        a_run("y", "m1", 0, [0], lr=0.1, gamma=0.9),
    ]
    found = overview.compare_settings(settings_by_cell(group_runs(runs)))
    assert found.common == {"env": "sc2", "env_args.map_name": "m1", "gamma": "0.9"}
    assert found.differing == {
        "lr": {"x": ["0.1", "0.2"], "y": ["0.1"]},
        "mixer": {"x": ["None"], "y": []},
        "name": {"x": ["x"], "y": ["y"]},
    }

"""Reading runs, aggregation over seeds against slow references, figures, tables and exports."""

import csv
import json
import logging
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from result_fixtures import learning_curve, write_run
from sacred import Experiment
from sacred.observers import FileStorageObserver

from analysis import aggregate, marl_eval, plots, published, report
from analysis.aggregate import curves, final_table
from analysis.bootstrap import Method, interval, iqm
from analysis.findings import Options
from analysis.runs import Run, Series, group_runs, load_runs, natural_key, warn_about_mixtures
from utils.errors import UserError


def make_run(
    values, *, t=None, name="qmix", seed=0, task="3m", metric="test_return_mean", **config
):
    """A run in memory with one metric."""
    t = np.arange(len(values)) * 1000 if t is None else np.asarray(t)
    config = {"name": name, "seed": seed, "env": "sc2", "env_args": {"map_name": task}, **config}
    series = Series(t.astype(np.int64), np.asarray(values, dtype=np.float64))
    return Run(
        path=f"{name}/{task}/{seed}", config=config, status="COMPLETED", metrics={metric: series}
    )


@pytest.fixture
def tree(tmp_path):
    """Two algorithms, two maps, three seeds; the curves rise."""
    for name, final in (("qmix", 0.9), ("vdn", 0.5)):
        for task in ("3m", "10m_vs_11m"):
            for seed in range(3):
                write_run(
                    tmp_path / "sacred" / name / task / str(seed + 1),
                    learning_curve(12, final, seed + len(name) + 10 * len(task)),
                    {
                        "name": name,
                        "seed": seed,
                        "lr": 0.1,
                        "env_args": {"map_name": task, "seed": seed},
                    },
                    timing=[
                        (0, "seconds", 0.0),
                        (11000, "seconds", 22.0 + seed),
                        (11000, "steps_per_second", 1.0),
                    ],
                )
    return tmp_path / "sacred"


# --- Reading ---


def test_reads_a_run(tmp_path):
    lines = [
        (0, "test_return_mean", 1.5),
        (0, "test_returns", [1, 2]),
        (10, "test_return_mean", None),
    ]
    write_run(tmp_path / "7", lines, {"lr": 0.5}, status="FAILED", timing=[(5, "seconds", 2.5)])
    (run,) = load_runs([tmp_path])
    assert run.path == tmp_path / "7"
    assert (run.name, run.seed, run.task, run.status) == ("qmix", 1, ("sc2", "3m"), "FAILED")
    assert run.setting("env_args.map_name") == "3m"
    assert run.setting("lr") == 0.5
    np.testing.assert_array_equal(run.metrics["test_return_mean"].t, [0, 10])
    np.testing.assert_array_equal(run.metrics["test_return_mean"].values, [1.5, np.nan])
    np.testing.assert_array_equal(run.finite("test_return_mean").values, [1.5])
    assert run.episodes["test_returns"].values == [[1.0, 2.0]]
    assert run.timing["seconds"].values.tolist() == [2.5]
    with pytest.raises(KeyError):
        run.setting("env_args.map_name.x")


def test_values_that_are_not_finite_are_left_out_with_a_warning(caplog):
    run = make_run([1.0, math.nan, math.inf, 4.0])
    series = run.finite("test_return_mean")
    assert series.t.tolist() == [0, 3000]
    assert "2 of 4 values of test_return_mean are not finite" in caplog.text
    assert make_run([math.nan]).finite("test_return_mean") is None


@pytest.mark.parametrize("keys", [None, ["a"]])
def test_torn_and_broken_lines(tmp_path, caplog, keys):
    folder = write_run(tmp_path / "1", [(0, "a", 1.0), (1, "a", 2.0), (1, "b", 5.0)])
    path = folder / "metrics.jsonl"
    path.write_text(
        path.read_text().replace('{"t": 1, "key": "a"', '{"t": 1, "key": "a"}{')
        + '{"t": 2, "key": "a", "val'
    )
    (run,) = load_runs([tmp_path], keys)
    assert run.metrics["a"].values.tolist() == [1.0]
    assert ("b" in run.metrics) == (keys is None)
    assert "last line is torn" in caplog.text
    assert "1 broken line(s)" in caplog.text


def test_a_torn_last_line_that_is_valid_json_is_no_value(tmp_path, caplog):
    folder = write_run(tmp_path / "1", [(0, "a", 1.0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("12")
    (run,) = load_runs([tmp_path])
    assert run.metrics["a"].values.tolist() == [1.0]
    assert "last line is torn" in caplog.text


def test_where_steps_go_back_the_later_lines_count(tmp_path, caplog):
    write_run(
        tmp_path / "1",
        [(0, "a", 0.0), (10, "a", 1.0), (20, "a", 2.0), (10, "a", 1.5), (15, "a", 1.7)],
    )
    (run,) = load_runs([tmp_path])
    assert run.metrics["a"].t.tolist() == [0, 10, 15]
    assert run.metrics["a"].values.tolist() == [0.0, 1.5, 1.7]
    assert "steps go back" in caplog.text


def test_equal_steps_keep_the_last_value_without_a_warning(tmp_path, caplog):
    write_run(tmp_path / "1", [(0, "a", 0.0), (10, "a", 1.0), (10, "a", 2.0)])
    (run,) = load_runs([tmp_path])
    assert run.metrics["a"].values.tolist() == [0.0, 2.0]
    assert not caplog.records


def test_filter_reads_only_the_wanted_metrics(tree):
    (run,) = load_runs([tree / "vdn/3m/2"], ["test_wins"])
    assert list(run.metrics) == []
    assert list(run.episodes) == ["test_wins"]
    assert list(run.timing) == ["seconds"]


def test_finds_runs_in_folders_and_patterns_once_and_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        write_run(tmp_path / "vdn" / str(number), [(0, "a", 1.0)])
    nested = write_run(tmp_path / "vdn" / "1" / "checkpoints" / "5", [(0, "a", 1.0)])
    runs = load_runs([tmp_path, str(tmp_path / "v*" / "*"), tmp_path / "vdn" / ".." / "vdn" / "9"])
    assert [run.path.name for run in runs] == ["1", "9", "10"]
    assert nested not in [run.path for run in runs]
    assert [run.path.name for run in load_runs([str(tmp_path / "**" / "1?")])] == ["10"]


def test_broken_runs_are_left_out_with_a_warning(tmp_path, caplog):
    write_run(tmp_path / "good", [(0, "a", 1.0)])
    write_run(tmp_path / "empty", [])
    (write_run(tmp_path / "no_config", [(0, "a", 1.0)]) / "config.json").unlink()
    (write_run(tmp_path / "torn_config", [(0, "a", 1.0)]) / "config.json").write_text('{"name": "q')
    started = tmp_path / "started"
    started.mkdir()
    (started / "config.json").write_text("{}")
    (started / "run.json").write_text('{"status": "FAILED"}')
    assert [run.path.name for run in load_runs([tmp_path])] == ["good"]
    for name in ("empty", "no_config", "torn_config", "started"):
        assert any(
            str(tmp_path / name) in r.getMessage() and "left out" in r.getMessage()
            for r in caplog.records
        ), name
    assert "no metrics (status FAILED)" in caplog.text


def test_no_runs_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="no run folders found"):
        load_runs([tmp_path])
    with pytest.raises(UserError, match=r"no such file or folder: .*nowhere"):
        load_runs([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="no such file or folder"):
        load_runs([str(tmp_path / "x*")])
    write_run(tmp_path / "1", [])
    with pytest.raises(UserError, match=r"1 run folder\(s\) found, none with readable metrics"):
        load_runs([tmp_path])


def test_reads_pymarl_info_as_sacred_writes_it(tmp_path):
    """The file comes from Sacred itself: NumPy scalars as today's jsonpickle wraps them."""
    experiment = Experiment("pymarl", save_git_info=False)
    experiment.logger = logging.getLogger(
        "pymarl"
    )  # else Sacred takes the root logger's handlers away
    experiment.add_config(
        name="vdn", seed=3, env="gymma", env_args={"key": "lbforaging:Foraging-8x8"}
    )
    experiment.observers.append(FileStorageObserver(str(tmp_path)))

    @experiment.main
    def train(_run):
        for t in (0, 5000, 10000):
            _run.info.setdefault("test_return_mean", []).append(np.float64(t / 4))
            _run.info.setdefault("test_return_mean_T", []).append(t)
            _run.info.setdefault("epsilon", []).append(0.5)
            _run.info.setdefault("epsilon_T", []).append(t)
            _run.info.setdefault("episodes", []).append(np.int64(t))

    experiment.run(options={"--force": True})
    (run,) = load_runs([tmp_path])
    assert run.task == ("gymma", "lbforaging:Foraging-8x8")
    assert run.status == "COMPLETED"
    assert sorted(run.metrics) == ["epsilon", "test_return_mean"]
    assert run.metrics["test_return_mean"].t.tolist() == [0, 5000, 10000]
    assert run.metrics["test_return_mean"].values.tolist() == [0.0, 1250.0, 2500.0]
    assert 0 <= run.wall_clock < 60


def test_reads_old_forms_of_pymarl_info(tmp_path, caplog):
    folder = write_run(tmp_path / "1", [])
    (folder / "metrics.jsonl").unlink()
    record = {
        "status": "RUNNING",
        "start_time": "2021-01-01T10:00:00.5",
        "heartbeat": "2021-01-01T11:00:00.5",
    }
    (folder / "run.json").write_text(json.dumps(record))
    wrapped = [
        {"dtype": "float64", "py/object": "numpy.float64", "value": 0.25},
        1,
        {"py/id": 7},
        2.0,
    ]
    info = {
        "test_return_mean": wrapped,
        "test_return_mean_T": [0, 10, 20, {"value": 30}],
        "loss": [1.0],
        "loss_T": [],
    }
    (folder / "info.json").write_text(json.dumps(info))
    (run,) = load_runs([tmp_path])
    np.testing.assert_array_equal(run.metrics["test_return_mean"].t, [0, 10, 20, 30])
    np.testing.assert_array_equal(run.metrics["test_return_mean"].values, [0.25, 1.0, np.nan, 2.0])
    assert run.wall_clock == 3600.0
    assert "loss has 1 values for 0 steps" in caplog.text
    assert list(run.metrics) == ["test_return_mean"]


def test_torn_info_leaves_the_run_out(tmp_path, caplog):
    write_run(tmp_path / "1", [(0, "a", 1.0)])
    torn = write_run(tmp_path / "2", [])
    (torn / "metrics.jsonl").unlink()
    (torn / "info.json").write_text('{"a": [1.0], "a_T": [0')
    assert [run.path.name for run in load_runs([tmp_path])] == ["1"]
    assert "info.json cannot be read" in caplog.text


def test_metrics_jsonl_comes_before_info_json(tmp_path):
    folder = write_run(tmp_path / "1", [(0, "a", 1.0)])
    (folder / "info.json").write_text('{"a": [9.0], "a_T": [0]}')
    assert load_runs([tmp_path])[0].metrics["a"].values.tolist() == [1.0]


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"env": "sc2", "env_args": {"map_name": "MMM2", "key": "x"}}, ("sc2", "MMM2")),
        ({"env": "gymma", "env_args": {"map_name": None, "key": "x"}}, ("gymma", "x")),
        (
            {"env": "predator_prey", "env_args": {}, "env_config": "pp_hard"},
            ("predator_prey", "pp_hard"),
        ),
        ({"env": "stag_hunt", "env_args": None}, ("stag_hunt", "stag_hunt")),
    ],
)
def test_task(config, task):
    assert Run("x", config, "COMPLETED", {}).task == task


# --- Groups ---


def test_groups_by_nested_keys():
    runs = [make_run([0], seed=s, lr=lr) for s, lr in ((0, 0.1), (1, 0.1), (2, 0.01))]
    runs.append(make_run([0], name="iql", seed=5))
    groups = group_runs(runs, ["name", "lr"])
    assert {label: [run.seed for run in group] for label, group in groups.items()} == {
        "iql, lr=unset": [5],
        "qmix, lr=0.01": [2],
        "qmix, lr=0.1": [0, 1],
    }
    assert list(group_runs(runs, ["env_args.map_name"])) == ["map_name=3m"]
    assert list(group_runs(runs)) == ["iql", "qmix"]
    with pytest.raises(
        UserError, match=r"config key 'env_args\.map'; did you mean 'env_args\.map_name'"
    ):
        group_runs(runs, ["env_args.map"])


def test_natural_order():
    assert sorted(["10m", "3s", "2m", "MMM"], key=natural_key) == ["2m", "3s", "10m", "MMM"]


def test_mixtures_are_warned_about(caplog):
    runs = [
        make_run([0], seed=0, lr=0.1),
        make_run([0], seed=1, lr=0.2),
        make_run([0], seed=1, lr=0.2, use_cuda=True),
    ]
    runs[0] = Run(runs[0].path, runs[0].config, "INTERRUPTED", runs[0].metrics)
    warn_about_mixtures({"qmix": runs})
    assert "'qmix' on 3m mixes runs that differ in lr (0.1 / 0.2); --by" in caplog.text
    assert "several runs of seed 1" in caplog.text
    assert "has status INTERRUPTED" in caplog.text
    assert "use_cuda" not in caplog.text
    caplog.clear()
    warn_about_mixtures(
        {
            "qmix": [
                make_run([0], seed=0),
                make_run([0], seed=1),
                make_run([0], seed=0, task="8m", lr=1),
            ]
        }
    )
    assert not caplog.records


# --- Statistics ---


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 10.0, 100.0], 37.0),  # fewer than 4: the mean
        ([100.0, 2.0, 4.0, -50.0], 3.0),
        ([100.0, 1.0, 2.0, 6.0, -50.0], 3.0),
        ([8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 70.0], 4.5),  # 3, 4, 5, 6
    ],
)
def test_iqm_by_hand(values, expected):
    assert iqm(np.asarray(values)) == pytest.approx(expected)
    np.testing.assert_allclose(iqm(np.stack([values, values], axis=1)), [expected, expected])


def slow_statistic(values, statistic):
    values = sorted(values)
    if statistic == "iqm":
        cut = len(values) // 4
        values = values[cut : len(values) - cut]
    if statistic == "median":
        middle = len(values) // 2
        return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return sum(values) / len(values)


def slow_interval(strata, statistic, confidence, resamples=6000, seed=7):
    """Percentile bootstrap as plain loops: every stratum is resampled from itself."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        pooled = []
        for stratum in strata:
            for _ in stratum:
                pooled.append(stratum[int(rng.integers(len(stratum)))])
        found.append(slow_statistic(pooled, statistic))
    tail = 100 * (1 - confidence) / 2
    return np.percentile(found, tail), np.percentile(found, 100 - tail)


@pytest.mark.parametrize("statistic", ["iqm", "mean", "median"])
@pytest.mark.parametrize(
    "strata",
    [
        [[1.0, 2.0, 4.0, 8.0, 9.0, 11.0, 3.5]],
        [[0.0, 0.1, 0.2, 0.4], [10.0, 11.0, 14.0, 12.5, 13.0]],
        [[0.0, 1.0, 5.0], [3.0]],  # a task with a single run
    ],
    ids=["one task", "two tasks", "single run"],
)
def test_interval_against_a_slow_bootstrap(strata, statistic):
    for confidence in (0.95, 0.6):
        method = Method(statistic, confidence, resamples=6000)
        centre, low, high = interval([np.asarray(x) for x in strata], method)
        slow_low, slow_high = slow_interval(strata, statistic, confidence)
        pooled = [value for stratum in strata for value in stratum]
        tolerance = 0.05 * (max(pooled) - min(pooled))
        assert centre == pytest.approx(slow_statistic(pooled, statistic))
        assert low == pytest.approx(slow_low, abs=tolerance)
        assert high == pytest.approx(slow_high, abs=tolerance)
        assert low <= centre <= high


def test_strata_are_resampled_from_themselves():
    """Tasks that differ a lot but whose runs agree leave no uncertainty; runs thrown into one pot
    would.
    """
    strata = [np.asarray([0.0, 0.0, 0.0]), np.asarray([100.0, 100.0, 100.0])]
    assert [float(x) for x in interval(strata, Method("mean"))] == [50.0, 50.0, 50.0]
    _, low, high = interval([np.concatenate(strata)], Method("mean"))
    assert high - low > 50


def test_interval_of_columns_resamples_whole_runs():
    """Column 1 is column 0 plus 5: with the same runs in every resample the intervals differ by
    exactly 5.
    """
    x = np.random.default_rng(0).normal(size=(6, 1))
    centre, low, high = interval([np.concatenate([x, x + 5], axis=1), np.asarray([[3.0, 8.0]])])
    for numbers in (centre, low, high):
        assert numbers[1] - numbers[0] == pytest.approx(5)


def test_interval_does_not_depend_on_batches():
    """Many columns are resampled in batches; one column in one go."""
    x = np.random.default_rng(0).normal(size=(5, 10000))
    method = Method(resamples=250)
    for a, b in zip(interval([x], method), interval([x[:, :1]], method), strict=True):
        assert a[0] == pytest.approx(b[0])


def test_a_single_run_has_no_interval():
    centre, low, high = interval([np.asarray([3.0]), np.asarray([5.0])])
    assert centre == 4.0
    assert np.isnan(low)
    assert np.isnan(high)


def test_bootstrap_is_deterministic():
    x = [np.random.default_rng(0).normal(size=9)]
    assert interval(x) == interval(x)
    assert interval(x, Method(seed=1)) != interval(x)


@pytest.mark.parametrize("wrong", [{"statistic": "mode"}, {"confidence": 1.0}, {"resamples": 0}])
def test_wrong_methods(wrong):
    with pytest.raises(UserError):
        Method(**wrong)


# --- Curves ---


def test_curve_interpolates_between_evaluations():
    a = make_run([0.0, 10.0, 20.0], t=[0, 100, 200], seed=0)
    b = make_run([4.0, 24.0], t=[0, 200], seed=1)
    curve = curves([a, b], "test_return_mean", label="x", method=Method("mean"))
    assert curve.label == "x"
    assert curve.t.tolist() == [0, 100, 200]
    np.testing.assert_allclose(curve.centre, [2.0, 12.0, 22.0])  # b is 14 at 100
    np.testing.assert_allclose(curve.low, [0.0, 10.0, 20.0])  # of two runs: the lower one, twice
    np.testing.assert_allclose(curve.high, [4.0, 14.0, 24.0])
    assert curve.n.tolist() == [2, 2, 2]
    assert not curve.uneven


def test_curve_never_extrapolates():
    long = [make_run([1.0] * 11, seed=seed) for seed in (0, 1)]
    short = make_run([4.0] * 5, seed=2)
    curve = curves([*long, short], "test_return_mean")
    assert curve.t.tolist() == list(range(0, 11000, 1000))
    assert curve.n.tolist() == [3] * 5 + [2] * 6
    np.testing.assert_allclose(curve.centre, [2.0] * 5 + [1.0] * 6)
    assert curve.uneven
    late = curves(
        [*long, make_run([4.0] * 5, t=np.arange(6000, 11000, 1000), seed=2)], "test_return_mean"
    )
    assert late.n.tolist() == [2] * 6 + [3] * 5
    assert late.uneven


def test_curve_with_one_run_left_has_no_band_there():
    curve = curves([make_run([1.0] * 9), make_run([3.0] * 4, seed=1)], "test_return_mean")
    assert np.isfinite(curve.low[:4]).all()
    assert np.isnan(curve.low[4:]).all()
    np.testing.assert_allclose(curve.centre, [2.0] * 4 + [1.0] * 5)


def test_jitter_of_the_last_evaluation_is_no_different_length():
    a = make_run([0.0, 1.0, 2.0], t=[7, 1003, 2031])
    b = make_run([0.0, 1.0, 2.0], t=[2, 1018, 2008], seed=1)
    curve = curves([a, b], "test_return_mean")
    assert curve.t.tolist() == [7, 1003, 1018, 2008]
    assert curve.n.tolist() == [2] * 4
    assert not curve.uneven


def test_gap_between_runs_stays_empty():
    curve = curves(
        [make_run([1.0, 1.0], t=[0, 10]), make_run([2.0, 2.0], t=[100, 110], seed=1)],
        "test_return_mean",
    )
    assert curve.t.tolist() == [0, 10, 100, 110]
    np.testing.assert_allclose(curve.centre, [1.0, 1.0, 2.0, 2.0])
    assert curve.n.tolist() == [1, 1, 1, 1]


def test_long_curves_get_an_even_grid():
    values = np.linspace(0, 1, 2001)
    runs = [make_run(values, t=np.arange(2001) * 100 + 7 * seed, seed=seed) for seed in range(3)]
    curve = curves(runs, "test_return_mean", points=51)
    assert len(curve.t) == 51
    assert (curve.t[0], curve.t[-1]) == (14, 200000)
    expected = [
        np.mean([np.interp(t, run.metrics["test_return_mean"].t, values) for run in runs])
        for t in curve.t
    ]
    np.testing.assert_allclose(curve.centre, expected)


def test_curve_over_tasks_is_stratified_and_ends_with_the_shortest_task():
    runs = [make_run([0.0] * 6, seed=s) for s in range(3)] + [
        make_run([8.0] * 4, seed=s, task="8m") for s in range(3)
    ]
    curve = curves(runs, "test_return_mean", method=Method("mean"))
    assert curve.t.tolist() == [0, 1000, 2000, 3000]
    assert curve.n_tasks == 2
    for numbers in (curve.centre, curve.low, curve.high):
        np.testing.assert_allclose(numbers, 4.0)
    scaled = curves(
        runs,
        "test_return_mean",
        method=Method("mean"),
        scale={("sc2", "3m"): (-2, 2), ("sc2", "8m"): (0, 8)},
    )
    np.testing.assert_allclose(scaled.centre, (0.5 + 1.0) / 2)


def test_tasks_without_a_common_range_make_no_curve():
    runs = [make_run([1.0, 2.0], t=[0, 10]), make_run([1.0, 2.0], t=[50, 60], task="8m")]
    with pytest.raises(UserError, match="tasks of 'qmix' share no range of steps"):
        curves(runs, "test_return_mean", label="qmix")


def test_curve_without_the_metric():
    with pytest.raises(UserError, match="no run of 'qmix' has the metric loss"):
        curves([make_run([1.0])], "loss", label="qmix")


# --- Tables ---


def test_final_table_by_hand():
    runs = [make_run([0, 0, 9, 1 + s, 3 + s], seed=s) for s in (4, 1, 2, 8)]
    runs.append(make_run([5.0], name="iql", seed=0))
    rows = final_table(runs, "test_return_mean", last=2, method=Method(resamples=4000))
    assert [row.label for row in rows] == ["iql", "qmix"]
    iql, qmix = rows
    assert qmix.finals == [6.0, 3.0, 4.0, 10.0]
    assert qmix.seeds == [4, 1, 2, 8]
    assert (qmix.iqm, qmix.mean, qmix.median) == (5.0, 5.75, 5.0)
    low, high = slow_interval([qmix.finals], "iqm", 0.95)
    assert (qmix.low, qmix.high) == (pytest.approx(low, abs=0.3), pytest.approx(high, abs=0.3))
    assert qmix.steps == [4000] * 4
    assert qmix.notes == []
    assert (iql.mean, iql.evaluations) == (5.0, [1])
    assert math.isnan(iql.low)
    assert iql.notes == ["only 1 of 2 evaluations"]


def test_final_table_marks_different_lengths_and_unfinished_runs():
    runs = [make_run([1.0] * 10), make_run([1.0] * 6, seed=1)]
    runs[1] = Run(runs[1].path, runs[1].config, "INTERRUPTED", runs[1].metrics)
    (row,) = final_table(runs, "test_return_mean")
    assert row.notes == ["runs of different lengths", "1 interrupted"]
    assert row.steps == [9000, 5000]


def test_wall_clock_and_speed():
    runs = [make_run([0.0, 1.0], t=[0, 6000], seed=s) for s in range(3)]
    runs[0].timing["seconds"] = Series(np.asarray([0, 6000]), np.asarray([1.0, 30.0]))
    runs[1] = Run(runs[1].path, runs[1].config, "COMPLETED", runs[1].metrics, wall_clock=60.0)
    (row,) = final_table(runs, "test_return_mean")
    assert row.wall_clock == 45.0
    assert row.steps_per_second == 150.0  # of 200 and 100; the third run has no clock


def test_aggregate_over_tasks(caplog):
    runs = [make_run([s], seed=s, task="3m") for s in (0, 1, 2)] + [
        make_run([10 + s], seed=s, task="8m") for s in (0, 4)
    ]
    runs += [make_run([1.0], name="vdn", task="3m")]
    rows = final_table(runs, "test_return_mean", last=1)
    scale = aggregate.normalisation(runs, "test_return_mean")
    assert scale == {("sc2", "3m"): (0.0, 2.0), ("sc2", "8m"): (10.0, 14.0)}
    (row,) = aggregate.aggregate_table(rows, scale=scale, method=Method("mean", resamples=4000))
    assert row.finals == [0.0, 0.5, 1.0, 0.0, 1.0]
    assert (row.mean, row.iqm, row.label) == (0.5, 0.5, "qmix")
    low, high = slow_interval([[0.0, 0.5, 1.0], [0.0, 1.0]], "mean", 0.95)
    assert (row.low, row.high) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))
    assert "'vdn' has no runs on 8m" in caplog.text
    with pytest.raises(UserError, match="cannot be normalised"):
        aggregate.normalisation([make_run([1.0, 1.0])], "test_return_mean")


def test_rates_are_recognised_by_name_and_range():
    won = "test_battle_won_mean"
    assert aggregate.is_rate(won, [make_run([0.0, 1.0], metric=won)])
    assert not aggregate.is_rate(won, [make_run([0.0, 1.5], metric=won)])
    assert not aggregate.is_rate("test_return_mean", [make_run([0.0, 1.0])])
    assert not aggregate.is_rate("test_window_mean", [])


# --- marl-eval ---


def test_marl_eval_structure(tree):
    runs = load_runs([tree])
    exported = marl_eval.export(runs, ["name", "lr"], last=3)
    assert list(exported) == ["sc2"]
    assert list(exported["sc2"]) == ["3m", "10m_vs_11m"]
    assert list(exported["sc2"]["3m"]) == ["qmix; lr=0.1", "vdn; lr=0.1"]
    assert list(exported["sc2"]["3m"]["vdn; lr=0.1"]) == ["seed_0", "seed_1", "seed_2"]
    entry = exported["sc2"]["10m_vs_11m"]["vdn; lr=0.1"]["seed_1"]
    assert list(entry) == [f"step_{k}" for k in range(12)] + ["absolute_metrics"]
    run = next(
        run for run in runs if run.name == "vdn" and run.seed == 1 and run.task[1] == "10m_vs_11m"
    )
    for k in range(12):
        t = int(run.episodes["test_returns"].t[k])
        assert entry[f"step_{k}"] == {
            "step_count": t,
            "elapsed_time": pytest.approx(min(t / 11000, 1) * 23.0),
            "return": run.episodes["test_returns"].values[k],
            "win_rate": run.episodes["test_wins"].values[k],
        }
    last = [value for k in (9, 10, 11) for value in run.episodes["test_wins"].values[k]]
    assert entry["absolute_metrics"]["win_rate"] == last
    assert sorted(entry["absolute_metrics"]) == ["return", "win_rate"]
    rows = final_table(runs, "test_battle_won_mean", last=3)
    row = next(row for row in rows if row.label == "vdn" and row.task[1] == "10m_vs_11m")
    assert np.mean(last) == pytest.approx(row.finals[row.seeds.index(1)])
    json.dumps(exported)


def test_marl_eval_names_runs_by_number_where_seeds_differ_and_warns_if_unbalanced(caplog):
    runs = [
        make_run([1.0, 2.0], seed=5),
        make_run([1.0, 2.0], seed=6),
        make_run([1.0], name="vdn", seed=7),
    ]
    exported = marl_eval.export(runs)
    assert list(exported["sc2"]["3m"]["qmix"]) == ["run_0", "run_1"]
    assert list(exported["sc2"]["3m"]["vdn"]) == ["run_0"]
    assert exported["sc2"]["3m"]["vdn"]["run_0"] == {
        "step_0": {"step_count": 0, "return": [1.0]},
        "absolute_metrics": {"return": [1.0]},
    }
    assert "on sc2 the runs and evaluations differ" in caplog.text


def test_marl_eval_leaves_incomplete_metrics_out(tmp_path, caplog):
    lines = [
        (0, "test_returns", [1.0, 2.0]),
        (0, "test_wins", [1, 0]),
        (9, "test_returns", [3.0]),
        (20, "x", 1.0),
    ]
    write_run(tmp_path / "1", lines)
    entry = marl_eval.export(load_runs([tmp_path]))["sc2"]["3m"]["qmix"]["seed_1"]
    assert entry["step_1"] == {"step_count": 9, "return": [3.0]}
    assert "win_rate" not in entry["step_0"]
    assert "evaluations without a win_rate" in caplog.text


# --- Figures ---


def picture(path):
    return imread(path)[..., :3]


def has_colour(image, colour):
    wanted = np.asarray([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return bool((np.abs(image - wanted).max(axis=-1) < 0.02).any())


def test_plot_curves_draws_centre_band_and_seeds():
    runs = [make_run([0.0, 0.5, 1.0], seed=0), make_run([0.2, 0.5, 0.6], seed=1)]
    curve = curves(runs, "test_return_mean", label="qmix", method=Method("mean"))
    ax = Figure().subplots()
    (handle,) = plots.plot_curves(ax, [curve], percent=True, title="3m", ylabel="Test win rate (%)")
    assert handle.get_label() == "qmix"
    assert ax.get_title() == "3m"
    assert ax.get_ylim()[0] < 0 < 100 < ax.get_ylim()[1] < 110
    seeds = [line.get_ydata() for line in ax.lines if line.get_linewidth() < 0.8]
    np.testing.assert_allclose(seeds, [[0, 50, 100], [20, 50, 60]])
    (centre,) = [line.get_ydata() for line in ax.lines if line.get_linewidth() > 1.5]
    np.testing.assert_allclose(centre, [10, 50, 80])
    (band,) = ax.collections
    box = band.get_paths()[0].get_extents()
    np.testing.assert_allclose([box.y0, box.y1], [0, 100])
    without = Figure().subplots()
    plots.plot_curves(without, [curve], seeds=False)
    assert [line for line in without.lines if line.get_linewidth() < 0.8] == []


def test_line_is_thin_where_runs_are_missing():
    curve = curves(
        [make_run([1.0] * 9), make_run([3.0] * 4, seed=1)], "test_return_mean", label="qmix"
    )
    ax = Figure().subplots()
    plots.plot_curves(ax, [curve], seeds=False)
    thin, thick = sorted(ax.lines, key=lambda line: line.get_linewidth())
    assert np.isfinite(thick.get_ydata()).tolist() == [True] * 4 + [False] * 5
    assert np.isfinite(thin.get_ydata()).tolist() == [False] * 3 + [True] * 6


def test_looks_stay_distinct():
    found = plots.looks([str(i) for i in range(28)])
    assert len({(colour, str(dash)) for colour, dash in found.values()}) == 28


@pytest.mark.parametrize(
    ("metric", "rate", "words"),
    [
        ("test_return_mean", False, "Test return"),
        ("test_battle_won_mean", True, "Test win rate (%)"),
        ("return_mean", False, "Training return"),
        ("td_error_abs", False, "Td error abs"),
    ],
)
def test_axis_words(metric, rate, words):
    assert plots.in_words(metric, rate) == words


def test_nothing_in_a_figure_overlaps():
    """Titles, axis labels, legend and note keep apart and inside the picture, with many long
    labels, too.
    """
    labels = [f"algorithm_with_a_long_name_{i}, lr=0.0005" for i in range(9)]
    panels = {
        f"a_rather_long_name_of_a_map_{k}": [
            curves(
                [make_run([i + k, i + k + 1.0], seed=s) for s in range(2)],
                "test_return_mean",
                label=label,
            )
            for i, label in enumerate(labels)
        ]
        for k in range(5)
    }
    figure = plots.draw(panels, ylabel="Test return")
    figure.draw_without_rendering()
    size = figure.bbox.size
    boxes = [ax.get_tightbbox() for ax in figure.axes if ax.axison]
    boxes.append(figure.legends[0].get_window_extent())
    for i, a in enumerate(boxes):
        assert a.x0 >= -1
        assert a.y0 >= -1
        assert a.x1 <= size[0] + 1
        assert a.y1 <= size[1] + 1
        for b in boxes[i + 1 :]:
            assert not (a.x0 < b.x1 - 1 and b.x0 < a.x1 - 1 and a.y0 < b.y1 - 1 and b.y0 < a.y1 - 1)


# --- The whole report ---


def test_report_writes_everything(tree, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    (tree / "vdn/3m/9").mkdir()
    (tree / "vdn/3m/9/run.json").write_text('{"status": "RUNNING"}')
    assert (
        report.main(
            [str(tree), "--out", str(out), "--over-maps", "--last", "4", "--resamples", "200"]
        )
        == 0
    )
    kinds = ("aggregates", "curves", "improvement", "profiles", "ranks")
    metrics = ("test_battle_won_mean", "test_return_mean")
    names = [f"{kind}_{m}.{end}" for kind in kinds for m in metrics for end in ("pdf", "png")]
    tables = ["final.csv", "marl_eval.json", "report.md", "statistics.csv"]
    assert sorted(path.name for path in out.iterdir()) == sorted(names + tables)
    for metric in ("test_return_mean", "test_battle_won_mean"):
        image = picture(out / f"curves_{metric}.png")
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.03
        assert has_colour(image, plots.PALETTE[0])
        assert has_colour(image, plots.PALETTE[1])
        assert not has_colour(image, plots.PALETTE[2])
        assert (out / f"curves_{metric}.pdf").read_bytes().startswith(b"%PDF")
    printed = capsys.readouterr().out
    assert "Test win rate (%)" in printed
    assert "curves_test_return_mean.png" in printed
    text = (out / "report.md").read_text()
    assert "12 runs, grouped by `name`." in text
    assert "![Test return: learning curves](curves_test_return_mean.png)" in text
    assert text.count("9: no readable config.json: run left out") == 1

    runs = load_runs([tree])
    with (out / "final.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["metric"], row["map"], row["group"]) for row in rows] == [
        (metric, task, name)
        for metric in ("test_return_mean", "test_battle_won_mean")
        for task in ("3m", "10m_vs_11m", "all maps")
        for name in ("qmix", "vdn")
    ]
    row = next(
        r
        for r in rows
        if (r["metric"], r["map"], r["group"]) == ("test_battle_won_mean", "10m_vs_11m", "vdn")
    )
    members = [run for run in runs if run.name == "vdn" and run.task[1] == "10m_vs_11m"]
    finals = [sum(run.metrics["test_battle_won_mean"].values[-4:]) / 4 for run in members]
    assert [float(x) for x in row["finals"].split()] == pytest.approx(finals)
    assert row["seeds"] == "0 1 2"
    assert float(row["iqm"]) == float(row["mean"]) == pytest.approx(sum(finals) / 3)
    assert (float(row["min"]), float(row["max"])) == pytest.approx((min(finals), max(finals)))
    assert (
        min(finals) <= float(row["low"]) <= float(row["iqm"]) <= float(row["high"]) <= max(finals)
    )
    assert float(row["wall_clock_s"]) == 23.0
    assert int(row["steps_max"]) == max(run.metrics["test_return_mean"].t[-1] for run in members)
    assert f"| {100 * sum(finals) / 3:.1f} |" in text
    assert "| all maps | qmix |" in text
    everything = next(
        r for r in rows if r["metric"] == "test_battle_won_mean" and r["map"] == "all maps"
    )
    assert everything["n_seeds"] == "6"
    assert json.loads((out / "marl_eval.json").read_text()) == json.loads(
        json.dumps(marl_eval.export(runs, last=4))
    )


def test_report_is_deterministic(tree, tmp_path):
    for name in ("a", "b"):
        report.write_report(
            [tree],
            tmp_path / name,
            options=Options(method=Method(resamples=100)),
            style=report.Style(formats=plots.FORMATS),
        )
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_report_options(tree, tmp_path):
    made = report.write_report(
        [tree / "qmix"],
        tmp_path / "out",
        metrics=["test_battle_won_mean"],
        options=Options(by=["name", "env_args.seed"], method=Method("median", 0.8, 50), last=2),
        style=report.Style(seeds=True),
    )
    assert list(made.tables) == ["test_battle_won_mean"]
    assert [row.label for row in made.tables["test_battle_won_mean"]][:3] == [
        "qmix, seed=0",
        "qmix, seed=1",
        "qmix, seed=2",
    ]
    text = (tmp_path / "out/report.md").read_text()
    assert "| Map | Group | Median | 80% interval | IQM | Mean |" in text
    assert "curves_test_return_mean" not in text


def test_warnings_are_said_once_and_end_in_the_report(tmp_path, caplog):
    lines = [
        (0, "test_return_mean", 1.0),
        (5, "test_return_mean", None),
        (9, "test_return_mean", 2.0),
    ]
    write_run(tmp_path / "runs" / "1", lines)
    write_run(tmp_path / "runs" / "2", [(0, "loss", 1.0)], {"seed": 2}, status="FAILED")
    report.write_report([tmp_path / "runs"], tmp_path / "out")
    messages = [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    assert len(messages) == len(set(messages)) == 3
    text = (tmp_path / "out/report.md").read_text()
    for part in (
        "1 of 3 values of test_return_mean",
        "2 has no test_return_mean: left out",
        "has status FAILED",
    ):
        assert any(part in message for message in messages)
        assert part in text


def test_maps_without_a_metric_have_no_panel(tmp_path, caplog):
    write_run(
        tmp_path / "runs" / "1", [(0, "test_return_mean", 1.0), (0, "test_battle_won_mean", 1.0)]
    )
    write_run(
        tmp_path / "runs" / "2",
        [(0, "test_return_mean", 1.0)],
        {"env": "matrix_game", "env_args": {}},
    )
    made = report.write_report([tmp_path / "runs"], tmp_path / "out")
    assert [row.task[1] for row in made.tables["test_return_mean"]] == ["matrix_game", "3m"]
    assert [row.task[1] for row in made.tables["test_battle_won_mean"]] == ["3m"]
    assert not caplog.records
    report.write_report([tmp_path / "runs"], tmp_path / "out", metrics=["test_battle_won_mean"])
    assert [r.getMessage() for r in caplog.records] == [
        "no run on matrix_game has the metric test_battle_won_mean: no panel"
    ]


def test_runs_without_tests_are_reported_by_the_training_return(tmp_path):
    write_run(tmp_path / "runs" / "1", [(0, "return_mean", 1.0), (5, "return_mean", 3.0)])
    made = report.write_report([tmp_path / "runs"], tmp_path / "out")
    assert [row.finals for row in made.tables["return_mean"]] == [[2.0]]
    write_run(tmp_path / "more" / "1", [(0, "loss", 1.0)])
    with pytest.raises(UserError, match="no run has the metric 'return_mean'; known: loss"):
        report.write_report([tmp_path / "more"], tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PATH"),
        (
            ["RUNS", "--metric", "test_retrun_mean"],
            "no run has the metric 'test_retrun_mean'; did you mean 'test_return_me",
        ),
        (
            ["RUNS", "--metric", "test_return_mean,xyz"],
            "no run has the metric 'xyz'; known: test_battle_won_mean",
        ),
        (["RUNS", "--by", "nam"], "config key 'nam'; did you mean 'name'"),
        (["RUNS", "--by", ","], "--by is empty"),
        (["RUNS", "--last", "0"], "last evaluations must be positive"),
        (["RUNS", "--points", "1"], "at least 2 points"),
        (["RUNS", "--ylim", "3", "3"], "lower limit"),
        (["RUNS", "--statistic", "mode"], "invalid choice: 'mode'"),
        (["RUNS", "--confidence", "95"], "between 0 and 1"),
        (["RUNS", "--out", "FILE/x"], "cannot be written to"),
        (["NOWHERE"], "no such file or folder"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tree, tmp_path, arguments, message):
    (tmp_path / "file").write_text("")
    places = {
        "RUNS": str(tree),
        "FILE/x": str(tmp_path / "file" / "x"),
        "NOWHERE": str(tmp_path / "nowhere"),
    }
    arguments = [places.get(argument, argument) for argument in arguments]
    before = sorted(tmp_path.rglob("*"))
    if "--out" not in arguments:
        arguments += ["--out", str(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        report.main(arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_published_run_reads_like_the_folder_it_was_made_of(tmp_path, caplog):
    lines = [(0, "loss", 1.0), (5, "test_returns", [1.0, 2.0]), (5, "loss", 0.1 + 0.2)]
    lines += [(9, "loss", None), (3, "loss", 7.0), (9, "left_out", 1.0)]  # resumed at 3
    folder = write_run(tmp_path / "runs/1", lines, timing=[(9, "seconds", 61.5)])
    record = {"status": "COMPLETED", "start_time": "a", "stop_time": "b", "host": {"name": "h"}}
    record["experiment"] = {"repositories": [{"url": "u", "commit": "c", "dirty": False}]}
    (folder / "run.json").write_text(json.dumps(record))
    file = tmp_path / "kept/qmix/3m/2.jsonl.gz"
    published.write(folder, file, ["loss", "test_returns"], ["seconds"])
    (whole,), (copy,) = load_runs([folder]), load_runs([tmp_path / "kept"])
    assert copy.path == file
    assert (copy.config, copy.status, copy.task) == (whole.config, "COMPLETED", ("sc2", "3m"))
    assert list(copy.metrics) == ["loss"]
    assert copy.metrics["loss"].t.tolist() == whole.metrics["loss"].t.tolist() == [0, 3]
    assert copy.metrics["loss"].values.tolist() == [1.0, 7.0]
    assert copy.episodes["test_returns"].values == [[1.0, 2.0]]
    assert copy.timing["seconds"].values.tolist() == [61.5]
    assert published.read_head(file)[1]["experiment"] == {
        "repositories": [{"commit": "c", "dirty": False}]
    }
    (filtered,) = load_runs([file], ["test_returns"])
    assert not filtered.metrics
    assert list(filtered.episodes) == ["test_returns"]

    (tmp_path / "kept/broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "kept/torn.jsonl.gz").write_bytes(file.read_bytes()[:60])
    caplog.clear()
    assert [run.path for run in load_runs([tmp_path / "kept"])] == [file]
    assert sum("is no published run" in record.message for record in caplog.records) == 2


def test_a_report_draws_published_runs(tmp_path):
    for seed in (1, 2):
        folder = write_run(tmp_path / f"runs/{seed}", learning_curve(6, 0.9, seed), {"seed": seed})
        record = {"status": "COMPLETED", "start_time": "a", "stop_time": "b"}
        record["experiment"] = {"repositories": []}
        (folder / "run.json").write_text(json.dumps(record))
        published.write(folder, tmp_path / f"kept/{seed}.jsonl.gz", ["test_battle_won_mean"], [])
    tables = [
        report.write_report([tmp_path / place], tmp_path / "out" / place,
                            metrics=["test_battle_won_mean"]).tables["test_battle_won_mean"]
        for place in ("runs", "kept")
    ]  # fmt: skip
    assert [row.finals for row in tables[0]] == [row.finals for row in tables[1]]

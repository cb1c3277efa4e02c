"""The dashboard: the index over all kinds of result folders, files that grow, curves, the page's
callbacks as functions, the token. tests/analysis/test_dashboard_browser.py opens it in a browser.
"""

import gzip
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from datetime import datetime, timedelta, timezone

import numpy as np
import pytest
from result_fixtures import learning_curve, write_run

from analysis import aggregate, dashboard, published
from analysis.bootstrap import Method
from analysis.dashboard import curves as curves_module
from analysis.dashboard import figures, files, table
from analysis.dashboard.commands import commands
from analysis.dashboard.curves import MS_PER_HOUR, Curves, Options, by_time, smooth
from analysis.dashboard.entry import DEAD, DEAD_AFTER, Entry
from analysis.dashboard.index import Index, Watcher
from analysis.dashboard.tail import GUARD, SeriesFile, Tail, last_lines, select
from analysis.runs import Run, Series, load_runs
from main import main as main_program
from utils.errors import MissingPackage, UserError


def append(path, lines):
    with open(path, "a") as file:
        for t, key, value in lines:
            file.write(json.dumps({"t": t, "key": key, "value": value}) + "\n")


def record(**own):
    """Sacred's run.json of a run of ours."""
    return {
        "status": "COMPLETED",
        "start_time": "2026-01-01T10:00:00.000000",
        "heartbeat": "2026-01-01T11:00:00.000000",
        "host": {"hostname": "node7"},
        "meta": {"command_line": ["--config=qmix", "--env-config=sc2sim", "with", "lr=0.001"]},
        **own,
    }


def full_run(folder, seed=1, points=12, final=0.9, status="COMPLETED", **config):
    """A run of ours with all of its files."""
    config = {"seed": seed, "t_max": 20_000, "lr": 0.001, **config}
    timing = [(1000 * k, "seconds", 2.0 * k) for k in range(points)]
    timing += [(11_000, "steps_per_second", 500.0), (11_000, "share_learning", 0.6)]
    timing += [(11_000, "share_environment", 0.4)]
    write_run(folder, learning_curve(points, final, seed), config, timing=timing)
    (folder / "run.json").write_text(json.dumps(record(status=status)))
    (folder / "cout.txt").write_text("\x1b[32mbegun\x1b[0m\nline 2\n")
    return folder


def pymarl_run(folder, epymarl=False):
    """What PyMARL (or EPyMARL, which has a metrics.json beside it) leaves behind."""
    folder.mkdir(parents=True)
    args = {"key": "lbforaging:Foraging-8x8"} if epymarl else {"map_name": "3s5z"}
    config = {"name": "vdn", "seed": 4, "env": "gymma", "env_args": args, "t_max": 100}
    (folder / "config.json").write_text(json.dumps(config))
    times = {"start_time": "2024-05-01T08:00:00.1", "stop_time": "2024-05-01T10:00:00.1"}
    (folder / "run.json").write_text(json.dumps({"status": "COMPLETED", **times}))
    wins = [0.0, 0.75, 0.5]
    info = {"test_battle_won_mean": wins, "test_battle_won_mean_T": [0, 50, 100]}
    (folder / "info.json").write_text(json.dumps(info))
    if epymarl:
        stamps = [f"2024-05-01T0{hour}:00:00.500000" for hour in (8, 8, 9)]
        scalar = {"steps": [0, 50, 100], "values": wins, "timestamps": stamps}
        (folder / "metrics.json").write_text(json.dumps({"test_battle_won_mean": scalar}))
    return folder


def index_of(*paths, **more):
    index = Index([str(path) for path in paths], **more)
    index.scan()
    assert index.fill(60)
    return index


def by_name(index):
    return {entry.path.name: entry for entry in index.entries()}


# --- Files that grow ---


def test_only_new_bytes_are_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, [(t, "a", t / 2) for t in range(1000)])
    file = SeriesFile(path)
    assert file.refresh()
    size = path.stat().st_size
    assert file.tail.bytes_read == size
    assert not file.refresh()
    assert file.tail.bytes_read == size
    append(path, [(1000, "a", 7.0), (1000, "list", [1, 2])])
    assert file.refresh()
    assert file.tail.bytes_read == path.stat().st_size + GUARD
    assert file.metrics["a"].t.tolist() == list(range(1001))
    assert file.metrics["a"].values[-1] == 7.0
    assert file.episodes["list"].values == [[1.0, 2.0]]


def test_a_half_written_last_line_waits_for_its_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = b'{"t": 1, "key": "a", "value": 0.25}\n'
    path.write_bytes(b'{"t": 0, "key": "a", "value": 0.0}\n' + line[:11])
    file = SeriesFile(path)
    file.refresh()
    assert file.metrics["a"].t.tolist() == [0]
    for end in (20, len(line) - 1):  # still no end of the line
        path.write_bytes(b'{"t": 0, "key": "a", "value": 0.0}\n' + line[:end])
        file.refresh()
        assert file.metrics["a"].t.tolist() == [0]
        assert file.broken == 0
    with open(path, "ab") as handle:
        handle.write(line[-1:])
    file.refresh()
    assert file.metrics["a"].values.tolist() == [0.0, 0.25]
    assert file.broken == 0


@pytest.mark.parametrize("grown", [False, True])
def test_a_file_that_was_cut_is_read_anew(tmp_path, grown):
    path = tmp_path / "metrics.jsonl"
    append(path, [(t, "a", 1.0) for t in range(10)])
    file = SeriesFile(path)
    file.refresh()
    kept = path.read_text().splitlines(keepends=True)[:4]
    path.write_text("".join(kept))
    append(path, [(t, "a", 2.0) for t in range(4, 30 if grown else 5)])
    assert (path.stat().st_size > file.tail.bytes_read) == grown
    file.refresh()
    expected = [1.0] * 4 + [2.0] * (26 if grown else 1)
    assert file.metrics["a"].values.tolist() == expected


def test_a_replaced_file_is_read_anew(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, [(0, "a", 1.0)])
    tail = Tail(path)
    assert tail.read() == (b'{"t": 0, "key": "a", "value": 1.0}\n', False)
    append(tmp_path / "other", [(0, "a", 2.0), (1, "a", 2.0)])
    os.replace(tmp_path / "other", path)
    lines, anew = tail.read()
    assert anew
    assert lines.count(b"2.0") == 2


def test_a_filtered_file_equals_the_whole_one(tmp_path):
    write_run(tmp_path / "1", learning_curve(20, 0.8, 3))
    keys = frozenset({"test_return_mean", "test_wins"})
    file = SeriesFile(tmp_path / "1" / "metrics.jsonl", keys)
    file.refresh()
    (run,) = load_runs([tmp_path])
    assert set(file.metrics) == {"test_return_mean"}
    assert set(file.episodes) == {"test_wins"}
    np.testing.assert_array_equal(file.metrics["test_return_mean"], run.metrics["test_return_mean"])
    assert file.episodes["test_wins"].values == run.episodes["test_wins"].values


def test_lines_at_the_end_and_by_key(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append(path, [(t, "ab"[t % 2], 1.0) for t in range(100)])
    lines, whole = last_lines(path, 120)
    assert not whole
    assert [json.loads(line)["t"] for line in lines.splitlines()] == [97, 98, 99]
    assert last_lines(path, 10**6) == (path.read_bytes(), True)
    found = select(path.read_bytes(), frozenset({"b"}))
    assert [json.loads(line)["t"] for line in found] == list(range(1, 100, 2))
    assert select(path.read_bytes(), frozenset()) == []


# --- The index ---


def test_index_over_all_kinds_of_folders(tmp_path):
    full_run(tmp_path / "ours" / "1")
    pymarl_run(tmp_path / "pymarl" / "2")
    pymarl_run(tmp_path / "epymarl" / "3", epymarl=True)
    kept = tmp_path / "kept" / "x.jsonl.gz"
    full_run(tmp_path / "packed" / "1")
    path = tmp_path / "packed" / "1" / "run.json"
    code = {"repositories": [{"commit": "abc", "dirty": False}]}
    done = record(experiment=code, stop_time="2026-01-01T11:00:00")
    path.write_text(json.dumps(done))
    published.write(tmp_path / "packed" / "1", kept, ["test_return_mean"], ["seconds"])

    index = index_of(tmp_path / "ours", tmp_path / "pymarl", tmp_path / "epymarl", kept)
    ours, pymarl, epymarl, packed = (by_name(index)[name] for name in ("1", "2", "3", "x.jsonl.gz"))
    row = table.row(ours, ["lr", "env_args.map_name", "nothing"])
    assert (row["name"], row["map"], row["seed"], row["status"]) == ("qmix", "3m", 1, "COMPLETED")
    assert row["host"] == "node7"
    (run,) = load_runs([ours.path])
    wins = run.metrics["test_battle_won_mean"].values
    assert (row["win_last"], row["win_best"]) == (wins[-1], wins.max())
    assert len(set(wins)) > 2
    assert row["return_best"] == run.metrics["test_return_mean"].values.max()
    assert row["steps"] == run.metrics["test_return_mean"].t[-1]
    assert row["progress"] == row["steps"] / 20_000
    assert (row["speed"], row["elapsed"], row["eta"]) == (500.0, 22.0, None)
    assert row["config:lr"] == 0.001
    assert row["config:env_args.map_name"] == "3m"
    assert row["config:nothing"] == "unset"
    assert row["problems"] is None

    row = table.row(pymarl)
    assert (row["map"], row["steps"], row["win_last"], row["win_best"]) == ("3s5z", 100, 0.5, 0.75)
    assert (row["elapsed"], row["speed"]) == (7200.0, 100 / 7200)
    row = table.row(epymarl)
    assert (row["map"], row["win_best"]) == ("lbforaging:Foraging-8x8", 0.75)
    assert row["elapsed"] == 3600.0  # from the times of its metrics
    row = table.row(packed)
    assert (row["name"], row["status"], row["seed"]) == ("qmix", "COMPLETED", 1)
    assert row["return_best"] == run.metrics["test_return_mean"].values.max()
    assert {"lr", "env_args.map_name", "env_args.key"} <= set(index.config_keys())


def test_a_long_run_is_peeked_at_first_and_filled_later(tmp_path):
    folder = full_run(tmp_path / "1", points=400)
    size = (folder / "metrics.jsonl").stat().st_size
    assert size > 100_000
    index = Index([str(tmp_path)])
    index.scan()
    (entry,) = index.entries()
    (run,) = load_runs([tmp_path])
    wins = run.metrics["test_battle_won_mean"].values
    row = table.row(entry)
    assert (row["win_last"], row["win_best"]) == (wins[-1], None)
    assert row["steps"] == run.metrics["test_battle_won_mean"].t[-1]
    assert entry.highlights.last["test_return_mean"] == run.metrics["test_return_mean"].values[-1]
    assert not entry.whole
    before = index.version
    assert index.fill(60)
    assert table.row(entry)["win_best"] == wins.max()
    assert [e.id for e in index.changes(before).changed] == [entry.id]


def test_live_points_new_runs_and_gone_runs(tmp_path):
    now = datetime(2026, 1, 1, 11, 0, 30, tzinfo=timezone.utc)
    first = full_run(tmp_path / "1", status="RUNNING", points=400)
    index = index_of(tmp_path, clock=now.timestamp)
    (entry,) = index.entries()
    index.run(entry, ["test_battle_won_mean"])
    seen = index.version
    assert not index.changes(seen).changed

    append(first / "metrics.jsonl", [(500_000, "test_battle_won_mean", 1.0)])
    read_before = entry._tail.bytes_read
    index.refresh()
    changes = index.changes(seen)
    assert [e.id for e in changes.changed] == [entry.id]
    assert table.row(entry)["win_best"] == 1.0
    assert table.row(entry)["steps"] == 500_000
    assert entry._tail.bytes_read - read_before < 200
    assert index.run(entry, ["test_battle_won_mean"]).metrics["test_battle_won_mean"].t[-1] == 5e5

    full_run(tmp_path / "2")
    index.scan()
    assert [e.path.name for e in index.changes(changes.version).changed] == ["2"]
    latest = index.version
    for file in first.iterdir():
        file.unlink()
    index.scan()
    assert index.changes(latest).removed == [entry.id]
    assert index.entry(entry.id) is None


def test_the_eta_of_a_running_run_and_a_run_without_a_sign_of_life(tmp_path):
    folder = full_run(tmp_path / "1", status="RUNNING")
    os.utime(folder / "metrics.jsonl", (0, 0))
    beat = datetime(2026, 1, 1, 11, tzinfo=timezone.utc)
    clock = {"now": beat + timedelta(seconds=5)}
    index = index_of(tmp_path, clock=lambda: clock["now"].timestamp())
    (entry,) = index.entries()
    row = table.row(entry)
    assert row["status"] == "RUNNING"
    assert row["eta"] == (20_000 - row["steps"]) / 500.0
    clock["now"] = beat + timedelta(seconds=DEAD_AFTER + 1)
    seen = index.version
    index.refresh()
    assert table.row(entry)["status"] == DEAD
    assert table.row(entry)["eta"] is None
    assert index.changes(seen).changed == [entry]


def damaged(root):
    """Runs that are broken in one way each -> a word of what is said about it."""
    good = learning_curve(5, 0.5, 1)
    write_run(root / "no_config", good)
    (root / "no_config" / "config.json").unlink()
    write_run(root / "torn_config", good)
    (root / "torn_config" / "config.json").write_text('{"name": "qm')
    write_run(root / "list_config", good)
    (root / "list_config" / "config.json").write_text("[1]")
    write_run(root / "odd_args", good, {"env_args": [1]})
    write_run(root / "torn_record", good)
    (root / "torn_record" / "run.json").write_text("{")
    write_run(root / "garbage", [])
    (root / "garbage" / "metrics.jsonl").write_bytes(b"\x00\xff" * 500 + b"\n{}\n12\n")
    write_run(root / "broken_line", good)
    path = root / "broken_line" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"value": ', '"value": x', 1))
    write_run(root / "folder", good)
    (root / "folder" / "metrics.jsonl").unlink()
    (root / "folder" / "metrics.jsonl").mkdir()
    pymarl_run(root / "torn_info")
    (root / "torn_info" / "info.json").write_text('{"test_return_mean": [1')
    pymarl_run(root / "odd_info")
    (root / "odd_info" / "info.json").write_text('{"a": [1], "a_T": ["x"], "b": 3}')
    (root / "odd.jsonl.gz").write_bytes(gzip.compress(b'{"config": 1}\n'))
    head = {"config": [1], "record": {"status": "COMPLETED"}}
    (root / "list.jsonl.gz").write_bytes(gzip.compress(json.dumps(head).encode()))
    write_run(root / "huge", [*good, (10**30, "test_return_mean", 1.0)])
    append(root / "huge" / "metrics.jsonl", good[-4:])
    write_run(root / "deep", good)
    with open(root / "deep" / "metrics.jsonl", "a") as file:
        file.write('{"t": 1, "key": "test_return_mean", "value": ' + "[" * 100_000 + "\n")
    (root / "no.jsonl.gz").write_bytes(b"no gzip")
    return {
        "no_config": "config.json is missing",
        "torn_config": "config.json cannot be read",
        "list_config": "config.json cannot be read",
        "odd_args": "env_args in config.json is not a mapping",
        "torn_record": "run.json cannot be read",
        "garbage": "metrics.jsonl holds no readable line",
        "broken_line": "broken line",
        "folder": "metrics.jsonl cannot be read",
        "torn_info": "info.json",
        "odd_info": "unreadable steps",
        "odd.jsonl.gz": "no published run",
        "no.jsonl.gz": "no published run",
        "list.jsonl.gz": "no published run",
        "huge": "broken line",
        "deep": "broken line",
    }


def test_damaged_runs_are_shown_as_such(tmp_path, caplog):
    expected = damaged(tmp_path)
    index = index_of(tmp_path)
    entries = by_name(index)
    assert set(entries) == set(expected)
    for name, words in expected.items():
        row = table.row(entries[name], ["lr", "env_args.map_name"])
        json.dumps(row, allow_nan=False)
        assert words in (row["problems"] or ""), (name, row["problems"])
        assert isinstance(index.run(entries[name]), Run)
        index.run(entries[name], ["test_return_mean"])
    assert table.row(entries["broken_line"])["win_last"] is not None
    index.metric_names(index.entries())
    assert not caplog.records  # it is on the page, not on the console


def test_a_run_that_is_mended_loses_its_problem(tmp_path):
    write_run(tmp_path / "1", learning_curve(5, 0.5, 1))
    text = (tmp_path / "1" / "config.json").read_text()
    (tmp_path / "1" / "config.json").write_text(text[:10])
    index = index_of(tmp_path)
    (entry,) = index.entries()
    assert table.row(entry)["name"] is None
    (tmp_path / "1" / "config.json").write_text(text)
    index.scan()
    assert table.row(entry)["problems"] is None
    assert table.row(entry)["name"] == "qmix"


def test_the_watcher_keeps_up(tmp_path):
    first = full_run(tmp_path / "1", status="RUNNING")
    index = index_of(tmp_path)
    watcher = Watcher(index)
    watcher.start()
    try:
        append(first / "metrics.jsonl", [(77_000, "test_battle_won_mean", 1.0)])
        (entry,) = index.entries()
        end = time.monotonic() + 5
        while entry.highlights.steps != 77_000 and time.monotonic() < end:
            time.sleep(0.05)
        assert entry.highlights.steps == 77_000
    finally:
        watcher.stop()
    assert not watcher.is_alive()


def test_two_thousand_runs(tmp_path):
    """A loose bound, for a machine that does other things at the same time; docs/dashboard.md has
    the measured time.
    """
    lines = learning_curve(60, 0.9, 1)
    template = write_run(tmp_path / "template", lines)
    content = {file.name: file.read_bytes() for file in template.iterdir()}
    for i in range(2000):
        folder = tmp_path / "runs" / f"{i % 40}" / f"{i}"
        folder.mkdir(parents=True)
        for name, text in content.items():
            (folder / name).write_bytes(text)
    start = time.perf_counter()
    index = Index([str(tmp_path / "runs")])
    index.scan()
    rows = table.rows(index.entries())
    assert time.perf_counter() - start < 15
    assert len(rows) == 2000
    assert {row["win_last"] for row in rows} == {lines[-3][2]}
    start = time.perf_counter()
    index.scan()
    assert time.perf_counter() - start < 5


# --- Curves ---


def test_aggregated_curves_are_those_of_the_report(tmp_path):
    for name, final in (("qmix", 0.9), ("vdn", 0.4)):
        for task in ("3m", "8m"):
            for seed in range(4):
                config = {"name": name, "env_args": {"map_name": task}}
                full_run(tmp_path / name / task / str(seed), seed, final=final, **config)
    index = index_of(tmp_path)
    metric = "test_battle_won_mean"
    runs = [index.run(entry, (metric,)) for entry in index.entries()]
    cache = Curves()
    for statistic in ("iqm", "mean"):
        panels, notes = cache.panels(runs, metric, Options(aggregated=True, statistic=statistic))
        assert notes == []
        assert [panel.task[1] for panel in panels] == ["3m", "8m"]
        for panel in panels:
            assert [curve.label for curve in panel.groups] == ["qmix", "vdn"]
            for curve in panel.groups:
                group = load_runs([tmp_path / curve.label / panel.task[1]])
                method = Method(statistic)
                expected = aggregate.curves(group, metric, method=method)
                for name in ("t", "centre", "low", "high", "n"):
                    np.testing.assert_array_equal(getattr(curve, name), getattr(expected, name))
                assert np.isfinite(curve.low).any()


def test_a_curve_is_computed_again_only_when_its_runs_have_new_points(tmp_path, monkeypatch):
    for name in ("qmix", "vdn"):
        full_run(tmp_path / name / "1", status="RUNNING", name=name)
    index = index_of(tmp_path)
    computed = []
    original = aggregate.curves

    def counting(*args, **kwargs):
        computed.append(kwargs["label"])
        return original(*args, **kwargs)

    monkeypatch.setattr(curves_module.aggregate, "curves", counting)
    cache, metric = Curves(), "test_return_mean"

    def panels():
        index.refresh()
        runs = [index.run(entry, (metric,)) for entry in index.entries()]
        return cache.panels(runs, metric, Options(aggregated=True))[0]

    panels()
    panels()
    assert computed == ["qmix", "vdn"]
    append(tmp_path / "vdn" / "1" / "metrics.jsonl", [(90_000, metric, 3.0)])
    assert panels()[0].groups[1].t[-1] == 90_000
    assert computed == ["qmix", "vdn", "vdn"]


def test_groups_by_any_key_and_an_unknown_one(tmp_path):
    for seed, lr in enumerate((0.1, 0.1, 0.2)):
        full_run(tmp_path / str(seed), seed, lr=lr)
    index = index_of(tmp_path)
    runs = [index.run(entry) for entry in index.entries()]
    metric = "test_return_mean"
    ((panel,), notes) = Curves().panels(runs, metric, Options(aggregated=True, by=("name", "lr")))
    assert [(c.label, c.n_runs) for c in panel.groups] == [("qmix, lr=0.1", 2), ("qmix, lr=0.2", 1)]
    assert notes == []
    ((panel,), notes) = Curves().panels(runs, metric, Options(aggregated=True, by=("lrr",)))
    assert panel.groups == []
    assert "no run has the config key 'lrr'" in notes[0]


def test_smoothing_is_a_weighted_mean_of_the_past():
    values = np.random.default_rng(0).normal(size=30)
    series = Series(np.arange(30), values)
    for weight in (0.3, 0.9):
        expected = [
            np.average(values[: i + 1], weights=weight ** np.arange(i, -1, -1.0)) for i in range(30)
        ]
        np.testing.assert_allclose(smooth(series, weight).values, expected)
    assert smooth(series, 0.0) is series
    constant = smooth(Series(np.arange(5), np.full(5, 3.0)), 0.9)
    np.testing.assert_allclose(constant.values, 3.0)


def test_hours_come_from_the_run_s_clock(tmp_path):
    def series(*t):
        return Series(np.asarray(t), np.arange(len(t), dtype=float))

    def run(**more):
        return Run(tmp_path, {}, "COMPLETED", {"a": series(0, 100)}, **more)

    clock = {"seconds": Series(np.asarray([50, 100]), np.asarray([10.0, 40.0]))}
    timed = by_time(series(0, 25, 75, 100, 200), run(timing=clock))
    assert timed.t.tolist() == [0, 5_000, 25_000, 40_000, 80_000]
    assert timed.values.tolist() == [0, 1, 2, 3, 4]
    spread = by_time(series(0, 50, 100), run(wall_clock=3600.0))
    assert spread.t.tolist() == [0, MS_PER_HOUR // 2, MS_PER_HOUR]
    assert by_time(series(0, 1), run()) is None


def test_runs_without_the_metric_or_a_clock_are_named(tmp_path):
    full_run(tmp_path / "1")
    write_run(tmp_path / "2", [(0, "other", 1.0)])
    index = index_of(tmp_path)
    runs = [index.run(entry) for entry in index.entries()]
    panels, notes = Curves().panels(runs, "test_return_mean", Options())
    assert [len(panel.single) for panel in panels] == [1]
    assert notes == ["1 of 2 runs have no test_return_mean and are left out."]
    assert Curves().panels(runs, "other", Options(hours=True))[0] == []


def test_figures_draw_what_they_are_given(tmp_path):
    for seed in range(3):
        full_run(tmp_path / str(seed), seed)
    index = index_of(tmp_path)
    runs = [index.run(entry) for entry in index.entries()]
    metric = "test_battle_won_mean"
    options = Options(hours=True, log_x=True, log_y=True)
    ((panel,), _) = Curves().panels(runs, metric, options)
    labels = [label for label, _ in panel.single]
    figure = figures.curves(panel, metric, options, "light", labels=labels, rate=True, title="wins")
    assert [trace["name"] for trace in figure["data"]] == labels
    expected = by_time(runs[0].metrics[metric], runs[0])
    np.testing.assert_allclose(figure["data"][0]["x"], expected.t / MS_PER_HOUR)
    assert figure["data"][0]["y"] == expected.values.tolist()
    assert {trace["line"]["color"] for trace in figure["data"]} == {"#0072B2", "#E69F00", "#009E73"}
    axes = [figure["layout"][name] for name in ("xaxis", "yaxis")]
    assert [axis["type"] for axis in axes] == ["log", "log"]
    assert axes[0]["title"]["text"] == "Hours of training"

    figure = figures.returns_over_time(runs[0].episodes["test_returns"], "dark")
    middle = next(trace for trace in figure["data"] if trace.get("name") == "median")
    medians = [np.median(values) for values in runs[0].episodes["test_returns"].values]
    np.testing.assert_allclose(middle["y"], medians)
    last, first = figures.histogram(runs[0].episodes["test_returns"], "dark")["data"]
    assert last["x"] == runs[0].episodes["test_returns"].values[-1]
    assert first["x"] == runs[0].episodes["test_returns"].values[0]
    shares = figures.time_shares(runs[0].timing, "light")["data"]
    assert {trace["name"]: trace["y"] for trace in shares} == {
        "learning": [0.6],
        "environment": [0.4],
    }
    assert figures.time_shares({}, "light")["layout"]["annotations"][0]["text"]


# --- Commands and files ---


def test_commands_go_on_with_the_run(tmp_path):
    folder = full_run(tmp_path / "a run" / "1")
    words = ["-i", "5", "--config=qmix", "--env-config=sc2sim", "-p", "with", "seed=3", "resume=x"]
    (folder / "run.json").write_text(json.dumps(record(meta={"command_line": words})))
    found, reason = commands(index_of(tmp_path).entries()[0])
    assert list(found) == ["Run it again"]
    assert "no checkpoint" in reason
    (folder / "checkpoints" / "100").mkdir(parents=True)
    found, reason = commands(index_of(tmp_path).entries()[0])
    start = "python src/main.py --config=qmix --env-config=sc2sim with seed=3"
    assert reason == ""
    assert found == {
        "Resume": f"{start} 'resume={folder}'",
        "Evaluate": f"{start} evaluate=True 'checkpoint_path={folder}/checkpoints' "
        "test_nepisode=100",
        "Film": f"{start} evaluate=True 'checkpoint_path={folder}/checkpoints' render=True "
        "test_nepisode=1",
        "Play": f"python src/main.py play '{folder}'",
    }
    foreign = index_of(pymarl_run(tmp_path / "2")).entries()[0]
    assert commands(foreign)[0] == {}
    assert "does not say how it was started" in commands(foreign)[1]


def test_checkpoints_films_and_replays(tmp_path):
    folder = full_run(tmp_path / "1")
    for step, names in ((500, ("agent.th", "state.pt")), (1000, ("agent.th",))):
        (folder / "checkpoints" / str(step)).mkdir(parents=True)
        for name in names:
            (folder / "checkpoints" / str(step) / name).write_bytes(b"x" * 10)
    replay_dir = tmp_path / "replays"
    args = {"map_name": "3m", "replay_dir": str(replay_dir)}
    evaluation = full_run(
        tmp_path / "2",
        evaluate=True,
        save_replay=True,
        checkpoint_path=str(folder / "checkpoints"),
        env_args=args,
    )
    (evaluation / "evaluation.gif").write_bytes(b"GIF")
    replay_dir.mkdir()
    start = datetime(2026, 1, 1, 10, tzinfo=timezone.utc).timestamp()
    for name, moment in (("3m_0.npz", start + 60), ("old.npz", start - 60), ("a.txt", start + 1)):
        (replay_dir / name).write_text("x")
        os.utime(replay_dir / name, (moment, moment))
    index = index_of(tmp_path)
    entry = by_name(index)["1"]
    points = files.checkpoints(entry)
    assert [(p.step, p.size, p.resumable) for p in points] == [(1000, 10, False), (500, 20, True)]
    assert files.films(index, entry) == {"2/evaluation.gif": evaluation / "evaluation.gif"}
    (folder / "evaluation.mp4").write_bytes(b"MP4")
    assert list(files.films(index, entry)) == ["evaluation.mp4", "2/evaluation.gif"]
    assert files.replays(index, entry) == {"2/3m_0.npz": replay_dir / "3m_0.npz"}
    assert files.served(index, entry, "cout.txt") == folder / "cout.txt"
    assert files.served(index, entry, "2/3m_0.npz") == replay_dir / "3m_0.npz"
    for name in ("metrics.jsonl", "../2/cout.txt", "/etc/passwd", "checkpoints/500/state.pt"):
        assert files.served(index, entry, name) is None


# --- The page ---


@pytest.fixture
def app():
    pytest.importorskip("dash")
    pytest.importorskip("dash_ag_grid")
    from analysis.dashboard import app

    return app


def texts(component):
    """All text below Dash components."""
    if component is None:
        return ""
    if isinstance(component, list | tuple):
        return " ".join(map(texts, component))
    return texts(component.children) if hasattr(component, "children") else str(component)


def graphs(component):
    if isinstance(component, list | tuple):
        return [graph for one in component for graph in graphs(one)]
    if type(component).__name__ == "Graph":
        return [component]
    return graphs(getattr(component, "children", None) or [])


def test_the_table_s_callbacks(app, tmp_path):
    first = full_run(tmp_path / "1", status="RUNNING", lr=0.5)
    index = index_of(tmp_path)
    calls = app.Callbacks(index)
    columns, rows, seen, keys, _ = calls.load(["lr", "gone"])
    assert "config:lr" in [column["field"] for column in columns]
    assert "config:gone" not in [column["field"] for column in columns]
    assert rows[0]["config:lr"] == 0.5
    assert "env_args.map_name" in keys
    run_id = rows[0]["id"]

    def poll():
        return calls.poll(seen, ["lr"], [run_id], f"/run/{run_id}", (0, 0))

    transaction, version, counts, chosen, opened = poll()
    assert transaction is app.no_update
    assert version is app.no_update
    assert counts.startswith("1 run: 1 ")
    append(first / "metrics.jsonl", [(50_000, "test_battle_won_mean", 1.0)])
    full_run(tmp_path / "2")
    index.scan()
    transaction, version, _, newer, newest = poll()
    assert [row["steps"] for row in transaction["update"]] == [50_000]
    assert [row["path"] for row in transaction["add"]] == [str(tmp_path / "2")]
    assert newer > chosen
    assert newest > opened
    assert calls.poll(version, [], [], "/", (0, 0))[0] is app.no_update
    assert calls.poll(None, [], [], "/", (0, 0))[:2] == (app.no_update, app.no_update)
    old = {"version": 3, "epoch": "another server"}
    assert calls.poll(old, [], [], "/", (0, 0))[1] == {"version": -1, "epoch": None}


def test_the_callbacks_of_the_chosen_runs(app, tmp_path):
    for seed in range(14):
        full_run(tmp_path / str(seed), seed, lr=0.1 if seed % 2 else 0.2)
    calls = app.Callbacks(index_of(tmp_path))
    ids = [row["id"] for row in calls.load(None)[1]]
    assert "Choose runs" in texts(calls.curves([], [], Options(), "light"))
    names, drawn = calls.metrics(ids, None)
    assert names == ["test_battle_won_mean", "test_return_mean"]
    assert drawn == ["test_battle_won_mean"]
    assert calls.metrics(ids, ["test_return_mean", "gone"])[1] == ["test_return_mean"]
    how = app.options(0.0, "steps", [], "single", [], "iqm")
    (graph,) = graphs(calls.curves(ids[:3], drawn, how, None))
    assert len(graph.figure["data"]) == 3
    how = app.options(0.5, "hours", ["x"], "groups", ["name", "lr"], "median")
    assert how == Options(True, ("name", "lr"), "median", 0.5, True, True, False)
    (graph,) = graphs(calls.curves(ids, drawn, how, "dark"))
    named = [trace.get("name") for trace in graph.figure["data"]]
    assert {"qmix, lr=0.1 (7 runs)", "qmix, lr=0.2 (7 runs)"} <= set(named)

    head, rows, note, style = calls.differences(ids[:2])
    assert note == ""
    assert style["display"] == "block"
    assert len(head) == 3
    assert {row["key"]: (row["run0"], row["run1"]) for row in rows} == {
        "lr": ("0.2", "0.1"),
        "seed": ("0", "1"),
    }
    rows = {row["key"]: row["values"] for row in calls.differences(ids)[1]}
    assert rows["lr"] == "0.2 (7), 0.1 (7)"
    assert calls.differences(ids[:1])[2] == "Choose two or more runs."
    assert calls.differences(ids[:1])[3]["display"] == "none"


def test_the_page_of_a_run(app, tmp_path):
    folder = full_run(tmp_path / "1", status="FAILED")
    trace = ["Traceback\n", "ZeroDivisionError: <b>bad</b>\n"]
    (folder / "run.json").write_text(json.dumps(record(status="FAILED", fail_trace=trace)))
    (folder / "checkpoints" / "900").mkdir(parents=True)
    (folder / "checkpoints" / "900" / "state.pt").write_bytes(b"x" * 2000)
    (folder / "evaluation.gif").write_bytes(b"GIF")
    index = index_of(tmp_path)
    calls = app.Callbacks(index)
    run_id = index.entries()[0].id
    runs, run, opened, settings, names, drawn, lists, key = calls.open(f"/run/{run_id}")
    assert (runs, run, opened) == ({"display": "none"}, {}, run_id)
    assert {"key": "env_args.map_name", "value": "3m"} in settings
    assert set(drawn) <= set(names)
    assert (lists, key) == (["test_returns", "test_wins"], "test_returns")
    head, lines, problems, shown, console = calls.run(run_id)
    assert "qmix on 3m" in texts(head)
    assert "FAILED" in texts(head)
    assert f"resume={folder}" in texts(lines)
    assert "ZeroDivisionError: <b>bad</b>" in texts(problems)
    assert "2.0 kB" in texts(shown)
    assert "evaluation.gif" in texts(shown)
    assert console == "begun\nline 2\n"
    assert len(graphs(calls.run_curves(run_id, drawn, Options(), "light"))) == len(drawn) > 1
    returns, time_share = calls.run_distributions(run_id, key, "light")
    assert len(graphs(returns)) == 2
    assert len(graphs(time_share)) == 1
    assert calls.open("/")[:3] == ({}, {"display": "none"}, None)
    assert "not (or no longer) there" in texts(calls.run("gone"))


def test_no_traceback_on_the_pages_of_damaged_runs(app, tmp_path):
    expected = damaged(tmp_path)
    index = index_of(tmp_path)
    calls = app.Callbacks(index)
    ids = [row["id"] for row in calls.load(["lr"])[1]]
    for entry in index.entries():
        settings, *_ = calls.open(f"/run/{entry.id}")[3:]
        assert isinstance(settings, list)
        _, _, problems, _, _ = calls.run(entry.id)
        # Once everything is read, broken lines are counted.
        words = (expected[entry.path.name], "broken line(s), left out")
        assert any(text in texts(problems) for text in words)
        calls.run_curves(entry.id, ["test_return_mean"], Options(hours=True), "light")
        calls.run_distributions(entry.id, "test_returns", "light")
    names, drawn = calls.metrics(ids, None)
    for mode in ("single", "groups"):
        calls.curves(ids, names, app.options(0.5, "steps", [], mode, ["lr"]), "dark")
    assert drawn == ["test_battle_won_mean"]
    calls.differences(ids)


# --- The server ---


@pytest.fixture
def client(app, tmp_path):
    """(a Flask test client's maker, the index)."""
    from analysis.dashboard.server import add_files, protect

    full_run(tmp_path / "1")
    (tmp_path / "1" / "evaluation.gif").write_bytes(b"GIF89a")
    index = index_of(tmp_path)

    def make(token, local):
        flask = app.make_app(index).server
        protect(flask, token, local=local)
        add_files(flask, index)
        return flask.test_client()

    return make, index


def test_without_the_token_nothing_is_answered(client):
    make, index = client
    web = make("secret-token", False)
    (entry,) = index.entries()
    for path in ("/", "/_dash-layout", f"/files/{entry.id}/cout.txt", "/?token=secret-toke"):
        answer = web.get(path)
        assert answer.status_code == 401
        assert b"qmix" not in answer.data
    assert web.post("/_dash-update-component", json={}).status_code == 401
    assert web.get("/", headers={"Authorization": "Bearer secret-token"}).status_code == 200
    answer = web.get("/run/x?token=secret-token&a=1")
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/run/x?a=1"
    assert "HttpOnly" in answer.headers["Set-Cookie"]
    assert web.get("/_dash-layout").status_code == 200  # the cookie is enough now


def test_without_a_token_only_this_machine_s_names_are_answered(client):
    make, _ = client
    web = make(None, True)
    assert web.get("/", headers={"Host": "127.0.0.1:8050"}).status_code == 200
    assert web.get("/", headers={"Host": "[::1]:8050"}).status_code == 200
    answer = web.get("/", headers={"Host": "evil.example:8050"})
    assert answer.status_code == 403
    answer = web.get("/", headers={"Host": "localhost:8050"})
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert b"http://" not in answer.data
    assert b"https://" not in answer.data


def test_files_of_a_run_are_handed_out_and_no_others(client):
    make, index = client
    web = make(None, True)
    (entry,) = index.entries()
    answer = web.get(f"/files/{entry.id}/cout.txt")
    assert answer.mimetype == "text/plain"
    assert b"line 2" in answer.data
    assert web.get(f"/files/{entry.id}/evaluation.gif").mimetype == "image/gif"
    for name in ("metrics.jsonl", "..%2f1%2fcout.txt", "../../etc/passwd", "x"):
        assert web.get(f"/files/{entry.id}/{name}").status_code in (404, 308)
    assert web.get("/files/none/cout.txt").status_code == 404


def test_the_command_line(app, tmp_path, monkeypatch, capsys):
    from analysis.dashboard import server

    full_run(tmp_path / "1")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    addresses = []

    def serve(flask, listener):
        made = original(flask, listener)
        addresses.append(listener.getsockname())
        threading.Thread(target=answer, args=(made,), daemon=True).start()
        return made

    answers = []

    def answer(made):
        port = addresses[-1][1]
        for path in ("/", "/?token=0123456789"):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as reply:
                    answers.append(reply.status)
            except urllib.error.HTTPError as error:
                answers.append(error.code)
        made.shutdown()

    original = server.serve
    monkeypatch.setattr(server, "serve", serve)
    assert main_program(["dashboard", str(tmp_path), "--port", "0"]) == 0
    assert addresses[-1][0] == "127.0.0.1"
    assert answers == [200, 200]
    said = capsys.readouterr().out
    assert said.startswith("1 run; the dashboard is at http://127.0.0.1:")
    assert "token" not in said
    arguments = ["dashboard", str(tmp_path), "--host", "0.0.0.0", "--port", "0"]
    assert main_program(arguments) == 0
    assert addresses[-1][0] == "0.0.0.0"
    assert answers[2:] == [401, 401]
    assert "?token=" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["--port", "x"], "dashboard: argument --port"),
        (["--port", "70000"], "between 0 and 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--token", "abc"], "--token takes at least 8"),
        (["--prot", "1"], "unrecognized arguments"),
    ],
)
def test_wrong_arguments_are_one_line(app, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    assert main_program(["dashboard", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_busy_port_is_one_line(app, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert main_program(["dashboard", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}" in said
    assert said.count("\n") == 1


def test_without_dash_the_message_names_the_requirements(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "dash", None)
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-dashboard.txt"):
        dashboard.main([])


def test_no_runs_yet(app, tmp_path):
    index = index_of(tmp_path)
    assert app.Callbacks(index).load(None)[1] == []
    from analysis.dashboard import views

    assert f"0 runs under {tmp_path} yet" in views.counts(index, views.utc_now())
    with pytest.raises(UserError, match="no such file or folder"):
        Index([str(tmp_path / "x")]).scan()


def test_ids_stay_the_same(tmp_path, monkeypatch):
    folder = full_run(tmp_path / "1")
    monkeypatch.chdir(tmp_path)
    assert Entry(folder).id == index_of("1").entries()[0].id

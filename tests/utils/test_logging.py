"""The logger's files, Sacred's folder and observers, the progress line."""

import errno
import io
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from console_fixtures import fresh_console  # noqa: F401
from rich.console import Console
from sacred.observers import RunObserver

from utils import logging as logging_module
from utils import observers as observers_module
from utils.errors import UserError
from utils.logging import Logger, ProgressLine, format_duration, get_logger, record_output
from utils.observers import (
    Detached,
    Interrupted,
    RunFolder,
    make_observers,
    mask_secrets,
    write_json,
)

LOG = logging.getLogger("test_logging")
SRC = Path(logging_module.__file__).resolve().parents[1]


@pytest.fixture
def logger(tmp_path):
    """A logger with files and a Sacred run."""
    made = Logger(LOG)
    made.run = SimpleNamespace(info={})
    made.setup_sacred(made.run)
    made.setup_files(tmp_path)
    yield made
    made.close()


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- Logger ---


def test_figures_reach_file_and_sacred_in_pymarl_form(logger, tmp_path):
    logger.log_stat("return_mean", 1.5, 10)
    logger.log_stat("loss", torch.tensor([0.25]), 10)
    logger.log_stat("return_mean", np.float32(0.5), 20)
    logger.log_stat("episode", 3, np.int64(20))
    logger.log_stat("big", 1.0, 20, to_sacred=False)
    logger.log_list("test_returns", np.array([1.0, 2.5]), 20)
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"t": 10, "key": "return_mean", "value": 1.5}\n'
        '{"t": 10, "key": "loss", "value": 0.25}\n'
        '{"t": 20, "key": "return_mean", "value": 0.5}\n'
        '{"t": 20, "key": "episode", "value": 3}\n'
        '{"t": 20, "key": "big", "value": 1.0, "sacred": false}\n'
        '{"t": 20, "key": "test_returns", "value": [1.0, 2.5]}\n'
    )
    assert logger.run.info == {
        "return_mean": [1.5, 0.5],
        "return_mean_T": [10, 20],
        "loss": [0.25],
        "loss_T": [10],
        "episode": [3],
        "episode_T": [20],
    }
    assert logger.stats["return_mean"] == [(10, 1.5), (20, 0.5)]


def test_a_point_is_recorded_once(logger, tmp_path):
    for value in (1.0, 2.0):
        logger.log_stat("a", value, 10)
        logger.log_list("a", [value], 10)
    logger.log_stat("b", 3.0, 10)
    assert [entry["value"] for entry in lines(tmp_path / "metrics.jsonl")] == [1.0, [1.0], 3.0]
    assert logger.run.info["a"] == [1.0]
    assert logger.run.info["a_T"] == [10]
    assert logger.stats["a"] == [(10, 1.0)]


def test_nan_and_infinity_are_null(logger, tmp_path):
    logger.log_stat("a", math.nan, 1)
    logger.log_stat("a", -math.inf, 2)
    logger.log_list("l", [1, math.nan], 1)
    logger.log_timing("t", math.inf, 1)
    assert [entry["value"] for entry in lines(tmp_path / "metrics.jsonl")] == [
        None,
        None,
        [1, None],
    ]
    assert [entry["value"] for entry in lines(tmp_path / "timing.jsonl")] == [None]
    assert logger.run.info["a"] == [None, None]
    assert math.isnan(logger.stats["a"][0][1])


def test_wall_clock_figures_stay_out_of_metrics_and_sacred(logger, tmp_path):
    logger.log_timing("seconds", 12.5, 10)
    assert lines(tmp_path / "timing.jsonl") == [{"t": 10, "key": "seconds", "value": 12.5}]
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    assert logger.run.info == {}
    assert "seconds" not in logger.stats


def test_memory_is_bounded(logger):
    for t in range(1000):
        logger.log_stat("a", t, t)
    assert len(logger.stats["a"]) < 200
    assert logger.stats["a"][-1] == (999, 999)
    assert len(logger.run.info["a"]) == 1000


def test_recent_stats_are_means_of_five(logger, caplog):
    caplog.set_level(logging.INFO)
    for t in range(1, 8):
        logger.log_stat("return_mean", t, t * 100)
        logger.log_stat("epsilon", 1 / t, t * 100)
    logger.log_stat("episode", 1234, 700)
    logger.print_recent_stats()
    title, *cells = caplog.messages[-1].splitlines()
    assert title == "Recent Stats | t_env:        700 | Episode:    1,234"
    # the mean of 3, 4, 5, 6, 7, but the last epsilon, 1/7
    assert " ".join(cells).split() == ["epsilon:", "0.1429", "return_mean:", "5.0000"]


def test_recent_stats_fit_the_terminal(logger, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    for n in range(8):
        logger.log_stat(f"figure_{n}", n, 1)
    for width, rows in ((200, 2), (100, 4), (30, 8)):
        monkeypatch.setattr(
            logging_module,
            "_terminal",
            lambda width=width: Console(file=io.StringIO(), width=width),
        )
        logger.print_recent_stats()
        assert len(caplog.messages[-1].splitlines()) == 1 + rows


def test_recent_stats_of_a_run_without_any(caplog):
    caplog.set_level(logging.INFO)
    Logger(LOG).print_recent_stats()
    assert "t_env:          0" in caplog.text


def test_without_files_or_sacred_it_still_keeps_stats():
    bare = Logger(LOG)
    bare.log_stat("a", 1, 2)
    bare.log_list("b", [1], 2)
    bare.log_timing("c", 1, 2)
    assert bare.stats["a"] == [(2, 1)]
    assert bare.position() == {}


def test_every_line_is_one_write(logger, monkeypatch):
    written = []
    write = os.write
    monkeypatch.setattr(
        os, "write", lambda fd, data: written.append(bytes(data)) or write(fd, data)
    )
    logger.log_stat("a", 1.0, 1)
    logger.log_list("b", list(range(5000)), 1)
    assert len(written) == 2
    assert all(data.endswith(b"\n") for data in written)


def test_a_full_disk_leaves_no_torn_line(logger, tmp_path, monkeypatch):
    logger.log_stat("a", 1.0, 1)
    write = os.write
    calls = []

    def half(fd, data):
        calls.append(len(data))
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space left") as caught:
        logger.log_stat("a", 2.0, 2)
    assert caught.value.filename == str(tmp_path / "metrics.jsonl")
    assert len(calls) == 2
    assert lines(tmp_path / "metrics.jsonl") == [{"t": 1, "key": "a", "value": 1.0}]


def fill(target, steps):
    for t in steps:
        target.log_stat("a", t / 8, t)
        target.log_stat("n", math.nan, t)
        target.log_list("l", [t, t + 1], t)
        target.log_stat("hidden", t, t, to_sacred=False)
        target.log_timing("s", 2.0 * t, t)


def test_rewind_continues_as_if_never_interrupted(tmp_path):
    def fresh(folder):
        folder.mkdir(exist_ok=True)
        made = Logger(LOG)
        made.run = SimpleNamespace(info={})
        made.setup_sacred(made.run)
        made.setup_files(folder)
        return made

    whole = fresh(tmp_path / "whole")
    fill(whole, range(1, 200))
    first = fresh(tmp_path / "cut")
    fill(first, range(1, 150))
    position = json.loads(json.dumps(first.position()))  # as it comes out of a checkpoint
    assert position["metrics"]["lines"] == 4 * 149
    assert position["timing"]["lines"] == 149
    fill(first, range(150, 170))
    first.close()
    with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"t": 170, "key": "a", "val')  # killed in mid-write
    second = fresh(tmp_path / "cut")
    second.rewind(position)
    fill(second, range(149, 200))  # 149 is recorded already
    for name in ("metrics", "timing"):
        expected = (tmp_path / "whole" / f"{name}.jsonl").read_bytes()
        got = (tmp_path / "cut" / f"{name}.jsonl").read_bytes()
        if name == "timing":  # wall-clock figures may come twice
            expected = expected.replace(
                b'{"t": 149,', b'{"t": 149, "key": "s", "value": 298.0}\n{"t": 149,'
            )
        assert got == expected
    assert second.run.info == whole.run.info
    assert second.stats["a"][-30:] == whole.stats["a"][-30:]
    assert "hidden" not in second.run.info
    for made in (whole, second):
        made.close()


def test_rewind_in_the_same_process_drops_what_came_later(logger):
    fill(logger, range(1, 5))
    position = logger.position()
    before = json.dumps(logger.run.info)
    logger.run.info["metrics"] = ["a database's own entry"]
    fill(logger, range(5, 9))
    logger.log_stat("late", 1, 9)
    logger.rewind(position)
    assert logger.run.info.pop("metrics") == ["a database's own entry"]
    assert json.dumps(logger.run.info) == before
    assert "late" not in logger.stats
    assert logger.position() == position


def test_rewind_of_a_file_that_lost_lines_warns(logger, tmp_path, caplog):
    fill(logger, range(1, 5))
    position = logger.position()
    os.truncate(tmp_path / "metrics.jsonl", position["metrics"]["bytes"] - 3)
    logger.rewind(position)
    assert "has 15 lines where the checkpoint had 16" in caplog.text
    assert len(lines(tmp_path / "metrics.jsonl")) == 15
    logger.log_stat("next", 1.0, 9)
    assert lines(tmp_path / "metrics.jsonl")[-1] == {"t": 9, "key": "next", "value": 1.0}


def test_opening_a_file_drops_a_torn_end(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"t": 1, "key": "a", "value": 1}\n{"t": 2')
    made = Logger(LOG)
    made.setup_files(tmp_path)
    made.log_stat("a", 3, 3)
    made.close()
    assert [entry["t"] for entry in lines(tmp_path / "metrics.jsonl")] == [1, 3]


# --- Console ---


@pytest.mark.usefixtures("fresh_console")
def test_get_logger_is_plain_without_a_terminal_and_idempotent(capsys):
    logger = get_logger()
    assert get_logger() is logger
    logger.info("hello %d", 3)
    logger.debug("quiet")
    err = capsys.readouterr().err
    assert err.endswith("] hello 3\n")
    assert err.startswith("[INFO ")
    assert err.count("\n") == 1


@pytest.mark.usefixtures("fresh_console")
def test_get_logger_draws_with_rich_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    get_logger().warning("careful [bold]")
    assert "careful [bold]" in terminal.getvalue()
    with record_output() as recorder:
        get_logger().warning("recorded")
    assert recorder.getvalue().endswith("] recorded\n")
    assert "\x1b" not in recorder.getvalue()
    get_logger().warning("not recorded")
    assert "not recorded" not in recorder.getvalue()


@pytest.mark.usefixtures("fresh_console")
def test_sacreds_chatter_is_left_out(capsys):
    logger = get_logger()
    for level, message in (
        (20, "Started run"),
        (40, "Failed after %s!"),
        (30, "The observer 'x' failed"),
    ):
        record = logging.LogRecord(
            "pymarl", level, "/site-packages/sacred/run.py", 1, message, (), None
        )
        logger.handle(record)
    assert [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "The observer 'x' failed"
    ]


@pytest.mark.usefixtures("fresh_console")
def test_record_output_keeps_prints_and_log_lines_in_order(capsys):
    logger = get_logger()
    with record_output() as recorder:
        sys.stdout.write("one\n")
        logger.info("two")
        sys.stderr.write("three\n")
    sys.stdout.write("four\n")
    seen = [line.rpartition("] ")[2] for line in recorder.getvalue().splitlines()]
    assert seen == ["one", "two", "three"]
    out, err = capsys.readouterr()
    assert out == "one\nfour\n"
    assert err.endswith("two\nthree\n")


# --- Progress line ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0:00:00"),
        (59.9, "0:00:59"),
        (3723, "1:02:03"),
        (86399, "23:59:59"),
        (2 * 86400 + 61, "2d 00:01:01"),
    ],
)
def test_format_duration(seconds, text):
    assert format_duration(seconds) == text


def test_format_of_an_unknown_duration():
    assert format_duration(math.inf) == "-"


class Clock:
    """Replaces time.monotonic."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    fake = Clock()
    monkeypatch.setattr(logging_module, "time", SimpleNamespace(monotonic=fake))
    return fake


def test_progress_line_in_a_log_file(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = ProgressLine(10_000, LOG, t_start=1000, spent=50.0)
    for _ in range(100):
        clock.now += 0.1
        progress.update(
            int(1000 + (clock.now - 1000) * 50), {"env": 0.25, "learning": 0.75}, "test return 1.50"
        )
    assert not caplog.records
    progress.line()
    assert caplog.messages == [
        "t_env 1,500/10,000 (15%) | 50 steps/s | ETA 0:02:50 | test return 1.50 | time: env 25%, "
        "learning 75%"
    ]
    assert progress.seconds() == pytest.approx(60.0)
    assert progress.steps_per_second() == pytest.approx(50.0, rel=0.01)
    progress.close()


def test_steps_per_second_cover_the_last_half_minute(clock):
    progress = ProgressLine(10_000, LOG)
    t_env = 0
    for speed in (1, 10):  # 60 s each
        for _ in range(120):
            clock.now += 0.5
            t_env += speed
            progress.update(t_env, {})
    assert progress.steps_per_second() == pytest.approx(20.0)  # 10 steps per half second


def test_progress_line_before_the_first_step(clock):
    progress = ProgressLine(100, LOG)
    assert progress.text() == "t_env 0/100 (0%) | 0 steps/s | ETA -"
    assert progress.steps_per_second() == 0.0


def test_progress_line_on_a_terminal_is_throttled_and_one_line(clock):
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    progress = ProgressLine(1000, LOG, console=terminal)
    drawings = []
    draw = progress._draw
    progress._draw = lambda: drawings.append(clock.now) or draw()
    for t_env in range(1000):
        clock.now += 0.001
        progress.update(
            t_env, {"environment": 0.5, "acting": 0.5}, "a long word about the last test"
        )
    assert 9 <= len(drawings) <= 11
    progress.line()
    progress.close()
    text = terminal.file.getvalue()
    assert "t_env 999/1,000 (100%)" in text
    assert text.count("\n") == 1
    progress.close()


def test_prints_appear_above_a_live_line_and_are_recorded(clock, monkeypatch):
    stdout = io.StringIO()
    stdout.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", stdout)
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60)
    with record_output() as recorder:
        progress = ProgressLine(1000, LOG, console=terminal)
        progress.update(1, {})
        clock.now += 1
        progress.update(2, {})
        sys.stdout.write("from a plug-in\n")
        progress.close()
        sys.stdout.write("afterwards\n")
    assert recorder.getvalue() == "from a plug-in\nafterwards\n"
    assert "from a plug-in" in terminal.file.getvalue()
    assert stdout.getvalue() == "afterwards\n"


# --- Sacred's folder ---


EVENT = {
    "ex_info": {
        "name": "x",
        "base_dir": "/",
        "sources": [],
        "repositories": [{"url": "https://me:pw@host/x"}],
    },
    "command": "train",
    "host_info": {"hostname": "h"},
    "meta_info": {},
}
NOW = datetime(2024, 1, 2, 3, 4, 5)


def start(folder, config=None, _id=None):
    return folder.started_event(**EVENT, start_time=NOW, config=config or {"lr": 0.1}, _id=_id)


def beat(folder, info, text=""):
    folder.heartbeat_event(info=info, captured_out=text, beat_time=NOW, result=None)


def read(path):
    return json.loads(
        path.read_text(), parse_constant=lambda name: pytest.fail(f"{path} has {name}")
    )


def test_run_folder_writes_sacreds_files(tmp_path):
    folder = RunFolder(tmp_path / "alg" / "map")
    assert start(folder) == "1"
    run = tmp_path / "alg" / "map" / "1"
    assert folder.created == run
    info = {"a": [1.0, math.nan], "a_T": [1, 2], "odd": {"x": np.float32(0.5)}}
    beat(folder, info, "first\n")
    assert read(run / "run.json")["status"] == "RUNNING"
    info["a"].append(3.0)
    info["a_T"].append(3)
    folder.heartbeat_event(info=info, captured_out="first\nsecond\n", beat_time=NOW, result=2.5)
    folder.completed_event(stop_time=NOW, result=2.5)
    assert read(run / "config.json") == {"lr": 0.1}
    assert read(run / "info.json")["a"] == [1.0, None, 3.0]
    entry = read(run / "run.json")
    assert (entry["status"], entry["result"], entry["stop_time"]) == (
        "COMPLETED",
        2.5,
        NOW.isoformat(),
    )
    assert "pw" not in (run / "run.json").read_text()
    assert (run / "cout.txt").read_text() == "first\nsecond\n"
    assert sorted(path.name for path in run.iterdir()) == [
        "config.json",
        "cout.txt",
        "info.json",
        "run.json",
    ]


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (lambda folder: folder.interrupted_event(NOW, "INTERRUPTED"), "INTERRUPTED"),
        (lambda folder: folder.failed_event(NOW, ["trace"]), "FAILED"),
    ],
)
def test_the_last_info_is_written_whatever_happens(tmp_path, end, status):
    folder = RunFolder(tmp_path)
    start(folder)
    info = {"a": [1], "a_T": [1]}
    folder.watch(info)  # no heartbeat came
    info["a"].append(2)
    info["a_T"].append(2)
    end(folder)
    assert read(tmp_path / "1" / "info.json") == {"a": [1, 2], "a_T": [1, 2]}
    assert read(tmp_path / "1" / "run.json")["status"] == status


def test_info_is_rewritten_only_when_it_grew_and_seldom(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(observers_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = RunFolder(tmp_path)
    dumps = []
    save = folder.save_json

    def slow_save(obj, filename):
        if filename == "info.json":
            dumps.append(now[0])
            now[0] += 0.5  # so long does it take
        save(obj, filename)

    folder.save_json = slow_save
    start(folder)
    info = {"a": [1], "a_T": [1]}
    for _ in range(3):
        beat(folder, info)
    assert dumps == [100.0]
    for _ in range(20):  # 10 s each, the info grows
        now[0] += 10
        info["a"].append(1)
        info["a_T"].append(1)
        beat(folder, info)
    assert len(dumps) == 5  # 0.5 s of 50 s: 1%
    folder.completed_event(NOW, None)
    folder.completed_event(NOW, None)
    assert len(dumps) == 5 + (info["a_T"] != read(tmp_path / "1" / "info.json")["a_T"])
    assert read(tmp_path / "1" / "info.json") == info


def test_files_are_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "info.json"
    write_json(path, {"a": 1})
    monkeypatch.setattr(
        observers_module.os,
        "replace",
        lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")),
    )
    with pytest.raises(OSError, match="full"):
        write_json(path, {"a": 2})
    assert read(path) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_folder_that_cannot_write_warns_once_and_recovers(tmp_path, monkeypatch, caplog):
    folder = RunFolder(tmp_path)
    start(folder)
    with monkeypatch.context() as patch:
        patch.setattr(
            observers_module.os,
            "replace",
            lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")),
        )
        for t in range(3):
            beat(folder, {"a": [t], "a_T": [t]})
    assert len(caplog.records) == 1
    beat(folder, {"a": [7], "a_T": [7]})
    assert read(tmp_path / "1" / "info.json")["a"] == [7]
    with monkeypatch.context() as patch:
        patch.setattr(
            observers_module.os,
            "replace",
            lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")),
        )
        folder.completed_event(NOW, None)
    assert len(caplog.records) == 2


def test_the_info_may_grow_while_it_is_written(tmp_path):
    folder = RunFolder(tmp_path)
    start(folder)
    info, stop = {}, threading.Event()

    def train():
        t = 0
        while not stop.is_set():
            info.setdefault(f"key{t // 50}", []).append(t)
            info.setdefault(f"key{t // 50}_T", []).append(t)
            t += 1
            if t % 500 == 0:
                time.sleep(0.001)

    thread = threading.Thread(target=train)
    thread.start()
    sizes = set()
    try:
        for _ in range(20):
            folder._next_dump = 0.0
            time.sleep(0.002)
            beat(folder, info)
            written = read(tmp_path / "1" / "info.json")
            sizes.add(len(written))
            for key in written:
                if not key.endswith("_T") and f"{key}_T" in written:
                    assert len(written[key]) == len(written[f"{key}_T"])
    finally:
        stop.set()
        thread.join()
    assert len(sizes) > 10  # it did grow
    folder.completed_event(NOW, None)
    assert read(tmp_path / "1" / "info.json") == info


def test_a_resumed_run_goes_on_in_its_folder(tmp_path):
    first = RunFolder(tmp_path)
    start(first)
    beat(first, {"a": [1], "a_T": [1]}, "first\n")
    first.interrupted_event(NOW, "INTERRUPTED")
    second = RunFolder(tmp_path, tmp_path / "1")
    later = datetime(2024, 5, 6)
    event = {**EVENT, "start_time": later}
    assert second.started_event(**event, config={"lr": 0.1, "t_max": 9}, _id="1") == "1"
    assert second.created is None
    beat(second, {"a": [1, 2], "a_T": [1, 2]}, "second\n")
    second.completed_event(NOW, None)
    run = tmp_path / "1"
    assert (run / "cout.txt").read_text() == "first\nsecond\n"
    assert read(run / "config.json")["t_max"] == 9
    entry = read(run / "run.json")
    assert (entry["status"], entry["start_time"], entry["resumed"]) == (
        "COMPLETED",
        NOW.isoformat(),
        [later.isoformat()],
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_number_that_is_taken_is_refused_and_left_alone(tmp_path):
    start(RunFolder(tmp_path), _id="5")
    folder = RunFolder(tmp_path)
    with pytest.raises(UserError, match="run 5 exists already"):
        start(folder, {"lr": 9}, _id="5")
    assert (folder.dir, folder.created) == (None, None)
    folder.failed_event(NOW, [])
    assert read(tmp_path / "5" / "config.json") == {"lr": 0.1}


def test_processes_that_start_at_once_get_different_numbers(tmp_path):
    script = (
        "import datetime, sys\n"
        "from utils.observers import RunFolder\n"
        "folder = RunFolder(sys.argv[1])\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush(); sys.stdin.readline()\n"
        "event = dict(ex_info={'base_dir': '/', 'sources': []}, command='', host_info={}, "
        "meta_info={}, _id=None)\n"
        "number = folder.started_event(**event, start_time=datetime.datetime.now(), config={'me': "
        "sys.argv[2]})\n"
        "sys.stdout.write(number)\n"
    )
    basedir = tmp_path / "a" / "b"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(SRC), "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(basedir), str(n)], env=environment, **pipes
        )
        for n in range(8)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    numbers = [process.communicate()[0] for process in processes]
    assert sorted(map(int, numbers)) == list(range(1, 9))
    assert [read(basedir / number / "config.json")["me"] for number in numbers] == [
        str(n) for n in range(8)
    ]


def test_metrics_json_exists_only_with_metrics(tmp_path):
    folder = RunFolder(tmp_path)
    start(folder)
    folder.log_metrics({}, {})
    assert not (tmp_path / "1" / "metrics.json").exists()
    folder.log_metrics({"x": {"values": [1.0], "steps": [2], "timestamps": [NOW]}}, {})
    assert read(tmp_path / "1" / "metrics.json")["x"]["values"] == [1.0]


# --- Databases ---


class Database(RunObserver):
    """Records events; fails and hangs on demand."""

    def __init__(self):
        self.events = []
        self.failing = ()
        self.gate = threading.Event()
        self.gate.set()

    def _note(self, name, content):
        self.gate.wait(10)
        if name in self.failing:
            raise ConnectionError("mongodb://me:pw@host is away\nmore")
        self.events.append((name, content, threading.current_thread().name))

    def started_event(self, **event):
        self._note("started", event["_id"])

    def heartbeat_event(self, **event):
        self._note("heartbeat", event["info"])

    def completed_event(self, **event):
        self._note("completed", event["result"])


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run_detached(database, beats=3):
    detached = Detached("mongo", database)
    assert start(detached, _id="4") is None
    for t in range(beats):
        detached.heartbeat_event(info={"a": [t]}, captured_out="", beat_time=NOW, result=None)
        wait_for(detached._thread._calls.empty)
    detached.completed_event(stop_time=NOW, result=1.0)


def test_a_database_gets_everything_in_a_thread_of_its_own(caplog):
    database = Database()
    run_detached(database)
    assert [(name, content) for name, content, _ in database.events] == [
        ("started", None),  # not our number: a database has its own
        ("heartbeat", {"a": [0]}),
        ("heartbeat", {"a": [1]}),
        ("heartbeat", {"a": [2]}),
        ("completed", 1.0),
    ]
    assert {thread for _, _, thread in database.events} == {"observer-mongo"}
    assert not caplog.records


def test_a_database_that_is_away_at_the_start_is_one_warning(caplog):
    database = Database()
    database.failing = ("started",)
    run_detached(database)
    assert database.events == []
    assert len(caplog.records) == 1
    assert "observers.mongo: the database cannot be reached" in caplog.text
    assert "pw" not in caplog.text


def test_a_database_that_goes_away_in_the_middle_is_one_warning(caplog):
    database = Database()
    database.failing = ("heartbeat",)
    run_detached(database)
    assert [name for name, _, _ in database.events] == ["started", "completed"]
    assert len(caplog.records) == 1
    assert "fails: trying again" in caplog.text


class Session:
    """As SQLAlchemy's: after a failure it refuses everything until it is rolled back."""

    def __init__(self):
        self.broken = False

    def rollback(self):
        self.broken = False


class SqlDatabase(Database):
    def __init__(self):
        super().__init__()
        self.session = Session()

    def _note(self, name, content):
        if self.session.broken:
            raise RuntimeError("This Session's transaction has been rolled back")
        self.session.broken = name in self.failing
        super()._note(name, content)


def test_an_sql_database_that_was_away_gets_what_comes_later(caplog):
    database = SqlDatabase()
    detached = Detached("sql", database)
    start(detached)

    def beat(t):
        detached.heartbeat_event(info={"a": [t]}, captured_out="", beat_time=NOW, result=None)
        wait_for(detached._thread._calls.empty)

    database.failing = ("heartbeat",)
    beat(1)
    beat(2)
    wait_for(lambda: len(caplog.records) == 1)
    database.failing = ()
    beat(3)
    detached.completed_event(stop_time=NOW, result=1.0)
    assert [content for _, content, _ in database.events] == [None, {"a": [3]}, 1.0]


def test_a_database_that_hangs_does_not_hold_up_the_run(monkeypatch, caplog):
    monkeypatch.setattr(observers_module, "_START_WAIT", 0.05)
    monkeypatch.setattr(observers_module, "_END_WAIT", 0.05)
    database = Database()
    database.gate.clear()
    detached = Detached("sql", database)
    began = time.monotonic()
    start(detached)
    for t in range(100):
        detached.heartbeat_event(info={"a": [t]}, captured_out="", beat_time=NOW, result=None)
    detached.completed_event(stop_time=NOW, result=1.0)
    assert time.monotonic() - began < 2
    assert len(caplog.records) == 1
    database.gate.set()
    wait_for(lambda: len(database.events) == 3)
    assert [name for name, _, _ in database.events] == ["started", "heartbeat", "completed"]


def test_missing_packages_and_bad_options_are_warnings(tmp_path, monkeypatch, caplog):
    for package in ("pymongo", "sqlalchemy"):
        monkeypatch.setitem(sys.modules, package, None)
    config = {
        "observers": {"mongo": {"url": "x"}, "sql": {"url": "sqlite:///x"}},
        "local_results_path": str(tmp_path),
    }
    assert make_observers(config, RunFolder(tmp_path)) == []
    assert [record.getMessage().rpartition("; ")[2] for record in caplog.records] == [
        "pip install -r requirements-mongo.txt",
        "pip install sqlalchemy",
    ]
    caplog.clear()
    config["observers"] = {"sql": {"urk": "x"}}
    assert make_observers(config, RunFolder(tmp_path)) == []
    assert len(caplog.records) == 1
    assert "unexpected keyword argument 'urk'" in caplog.text


def test_mask_secrets():
    assert mask_secrets({"url": "mongodb://me:p@w@host/db", "password": "x", "n": [1, "a@b"]}) == {
        "url": "mongodb://***@host/db",
        "password": "***",
        "n": [1, "a@b"],
    }
    assert (
        mask_secrets("observers.mongo.url=mongodb://me:pw@host")
        == "observers.mongo.url=mongodb://***@host"
    )


@pytest.mark.parametrize(
    "text",
    [
        "observers.sql.url=me:pw@host/db",
        "observers.sql.url=pw@host/db",
        "observers.sql.url=postgresql:me:pw@host/db",
        "mongodb://me:p/w@pw@host",
        "me:pw@host",
        "observers.mongo.password=pw",
        "mongodb://host/?user=me&password=pw",
    ],
)
def test_no_password_is_kept_whatever_the_form(text):
    assert "pw" not in mask_secrets(text)
    assert "pw" not in str(mask_secrets({"url": text.rpartition("url=")[2]}))


def test_interrupted_is_sacreds_interrupt():
    exc = Interrupted(15)
    assert (exc.signum, exc.STATUS) == (15, "INTERRUPTED")

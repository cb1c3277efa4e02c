"""Loggers beside Sacred: how they are attached, and what happens to one that fails."""

import logging
import sys
import threading
import time

import pytest

import utils.loggers as loggers_module
from main import main
from utils.config import build_config
from utils.elsewhere import note, recall
from utils.errors import ConfigError, MissingPackage
from utils.loggers import Attached, asked_for, check_packages
from utils.loggers.base import Recorded, RunLogger, flat
from utils.logging import Logger

LOG = logging.getLogger("test_loggers")


class Notes(RunLogger):
    """Notes what it is told; fails or hangs on demand."""

    package = "json"

    def __init__(self, empty=True, rewinds=False):
        self.empty, self.rewinds = empty, rewinds
        self.calls, self.threads, self.failing = [], set(), ()
        self.gate = threading.Event()
        self.gate.set()

    def _note(self, name, *content):
        assert self.gate.wait(10)
        self.threads.add(threading.current_thread().name)
        if name in self.failing:
            raise ConnectionError("http://me:pw@host is away\nmore")
        self.calls.append((name, *content))

    def open(self, known):
        self._note("open", known)
        return known or "an-id", self.empty

    def figures(self, figures):
        for figure in figures:
            self._note("figure", *figure)

    def values(self, key, values, t):
        self._note("values", key, list(values), t)

    def film(self, path, t):
        self._note("film", path.name, t)

    def rewind(self, t):
        self._note("rewind", t)
        return self.rewinds

    def flush(self):
        self._note("flush")

    def close(self, status):
        self._note("close", status)


def attached(logger, folder):
    return Attached("notes", logger, folder)


def test_a_logger_gets_everything_in_order_in_a_thread_of_its_own(tmp_path):
    logger = Notes()
    one = attached(logger, tmp_path)
    one.figure("early", 1.0, 0)  # before it begins there is nobody to tell
    one.flush()
    one.begin(-1, {}, list)
    one.figure("a", 1.0, 10)
    one.figure("b", 2.0, 10)
    one.values("returns", [1.0, None, 3.0], 10)
    one.values("broken", [None], 10)  # nothing that could be drawn
    one.figure("a", 3.0, 20)
    one.film(tmp_path / "x.gif", 20)
    one.flush()
    one.close("finished")
    assert logger.calls == [
        ("open", None),
        ("figure", "a", 1.0, 10),
        ("figure", "b", 2.0, 10),
        ("values", "returns", [1.0, 3.0], 10),
        ("figure", "a", 3.0, 20),
        ("film", "x.gif", 20),
        ("flush",),
        ("close", "finished"),
    ]
    assert logger.threads == {"logger-notes"}
    assert recall(tmp_path, "notes") == {"id": "an-id", "reached": {}}


def test_figures_that_wait_arrive_together(tmp_path, monkeypatch):
    logger = Notes()
    batches = []
    monkeypatch.setattr(logger, "figures", lambda figures: batches.append(len(figures)))
    logger.gate.clear()
    one = attached(logger, tmp_path)
    one.begin(-1, {}, list)
    for t in range(1000):
        one.figure("a", 0.0, t)
    logger.gate.set()
    one.close("finished")
    assert batches == [1000]


@pytest.mark.parametrize("failing", ["open", "figure", "values", "film", "flush", "close"])
def test_a_logger_that_fails_is_one_warning_and_is_left_out(tmp_path, caplog, failing):
    logger = Notes()
    logger.failing = (failing,)
    one = attached(logger, tmp_path)
    one.begin(-1, {}, list)
    for t in range(5):
        one.figure("a", 1.0, t)
        one.values("b", [1.0], t)
        one.film(tmp_path / "x.gif", t)
        one.flush()
    one.close("finished")
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "logger 'notes' fails and is left out" in caplog.text
    assert "pw" not in caplog.text
    assert all(call[0] != "close" for call in logger.calls)


def test_a_logger_that_hangs_does_not_hold_up_the_run(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(loggers_module, "_END_WAIT", 0.05)
    logger = Notes()
    logger.gate.clear()
    one = attached(logger, tmp_path)
    began = time.monotonic()
    one.begin(-1, {}, list)
    for t in range(1000):
        one.figure("a", 1.0, t)
    one.close("finished")
    assert time.monotonic() - began < 2
    assert "logger 'notes' does not answer" in caplog.text
    logger.gate.set()


def test_threads_end_with_their_loggers(tmp_path):
    one = attached(Notes(), tmp_path)
    one.begin(-1, {}, list)
    one.close("finished")
    deadline = time.monotonic() + 5
    while any(thread.name == "logger-notes" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.005)


# --- Resumed runs ---


def test_a_logger_that_cannot_go_back_does_not_get_a_point_twice(tmp_path):
    note(tmp_path, "notes", {"id": "old", "reached": {"a": 30}})
    logger = Notes(empty=False)
    one = attached(logger, tmp_path)
    one.begin(20, {"a": 25, "b": 40, "c[]": 40}, lambda: [Recorded("a", 1.0, 10)])
    for t in (25, 30, 35, 40, 45):
        one.figure("a", 1.0, t)
        one.figure("b", 1.0, t)
        one.values("c", [1.0], t)
    one.close("finished")
    got = [(call[1], call[-1]) for call in logger.calls if call[0] in ("figure", "values")]
    assert sorted(got) == [("a", 35), ("a", 40), ("a", 45), ("b", 45), ("c", 45)]
    assert logger.calls[:2] == [("open", "old"), ("rewind", 20)]
    assert recall(tmp_path, "notes") == {"id": "old", "reached": {"a": 30, "b": 40, "c[]": 40}}


def test_a_logger_that_can_go_back_gets_every_point_anew(tmp_path):
    logger = Notes(empty=False, rewinds=True)
    one = attached(logger, tmp_path)
    one.begin(20, {"a": 25}, list)
    one.figure("a", 1.0, 25)
    one.close("finished")
    assert logger.calls[1:3] == [("rewind", 20), ("figure", "a", 1.0, 25)]


def test_a_logger_that_has_nothing_gets_what_is_recorded(tmp_path):
    note(tmp_path, "notes", {"id": "old", "reached": {"a": 90}})
    logger = Notes()
    one = attached(logger, tmp_path)
    recorded = [Recorded("a", 1.0, 5), Recorded("c", [1.0, None], 5), Recorded("a", 2.0, 9)]
    one.begin(9, {"a": 50}, lambda: recorded)
    one.figure("a", 3.0, 10)
    one.close("finished")
    assert logger.calls[1:-1] == [
        ("figure", "a", 1.0, 5),
        ("values", "c", [1.0], 5),
        ("figure", "a", 2.0, 9),
        ("figure", "a", 3.0, 10),
    ]
    assert recall(tmp_path, "notes")["reached"] == {}


def test_a_run_that_paused_goes_on_without_going_back(tmp_path):
    logger = Notes()
    one = attached(logger, tmp_path)
    one.begin(-1, {}, list)
    one.figure("a", 1.0, 1)
    one.begin(1, {}, list)
    one.figure("a", 1.0, 2)
    one.close("finished")
    assert [call[0] for call in logger.calls] == ["open", "figure", "figure", "close"]


def test_the_run_tells_what_was_lost_and_what_is_there(tmp_path):
    def record(made, times):
        for t in times:
            made.log_stat("a", t, t)
            made.log_list("a", [t, float("nan")], t)
            made.log_timing("seconds", 0.5, t)

    made = Logger(LOG)
    made.setup_files(tmp_path)
    record(made, (10, 20))
    position = made.position()
    record(made, (30, 40))
    logger = Notes()
    one = attached(logger, tmp_path)
    made.setup_loggers([one])
    told = []
    begin = one.begin
    one.begin = lambda *args: (told.append(args[:2]), begin(*args))
    made.rewind(position)
    assert told == [(20, {"a": 40, "a[]": 40, "seconds": 40})]
    made.log_stat("a", 7.0, 30)
    made.log_film(tmp_path / "x.gif", 30)
    made.close()
    made.close_loggers("interrupted")
    assert logger.calls == [
        ("open", None),
        ("figure", "a", 10, 10),
        ("values", "a", [10], 10),
        ("figure", "seconds", 0.5, 10),
        ("figure", "a", 20, 20),
        ("values", "a", [20], 20),
        ("figure", "seconds", 0.5, 20),
        ("figure", "a", 7.0, 30),
        ("film", "x.gif", 30),
        ("close", "interrupted"),
    ]


# --- Settings ---


def settings(*updates):
    return build_config("qmix", "matrix_game", updates)


def test_pymarls_key_means_the_same():
    assert asked_for(settings()) == []
    assert asked_for(settings("use_tensorboard=True")) == ["tensorboard"]
    both = settings("use_tensorboard=True", "loggers=[wandb,tensorboard,wandb]")
    assert asked_for(both) == ["wandb", "tensorboard"]
    assert asked_for(settings("loggers=mlflow")) == ["mlflow"]


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ("loggers=[wandp]", "unknown logger 'wandp'; did you mean 'wandb'?"),
        ("logger_args.mlflov.experiment=x", "unknown logger 'mlflov'; did you mean 'mlflow'?"),
        ("logger_args.wandb.projekt=x", "unknown option 'projekt'; did you mean 'project'?"),
        ("logger_args.tensorboard.x=1", "unknown option 'x'; it has no options"),
        ("logger_args.wandb=online", "logger_args.wandb must be a mapping, got 'online'"),
    ],
)
def test_a_wrong_setting_is_one_line(update, said):
    with pytest.raises(ConfigError, match=r"^logger") as caught:
        settings(update)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_ends_the_command_before_anything_is_written(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.setitem(sys.modules, name, None)
    words = ["with", f"loggers=[{name}]", f"local_results_path={tmp_path / 'results'}"]
    assert main(["--config=qmix", "--env-config=matrix_game", *words]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"error: logger '{name}' needs the package {name}: pip install -r ")
    assert f'".[{name}]"' in last
    assert not (tmp_path / "results").exists()


def test_a_folder_of_wandb_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(MissingPackage, match="needs the package wandb"):
        check_packages({**settings(), "loggers": ["wandb"]})


def test_nested_settings_by_dotted_key():
    nested = {"a": 1, "env_args": {"seed": 2, "deep": {"x": None}}, "observers": {}}
    assert dict(flat(nested)) == {
        "a": 1,
        "env_args.seed": 2,
        "env_args.deep.x": None,
        "observers": {},
    }

"""Searches: the form, the trials that processes share, what is pruned, failed and gone on with.

Runs are pretended here; `test_search_runs.py` trains.
"""

import json
import math
import re
import sqlite3
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from optuna.trial import TrialState, create_trial
from PIL import Image
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError

from launch import process, spec
from launch.folder import AtWork, SweepRun
from launch.jobs import Job
from launch.search import main, study, work
from launch.search.best import nested, write_best
from launch.search.figures import RunFigure, final_value, mean_by_evaluation
from launch.search.report import write_report
from launch.search.space import all_points, read_space
from launch.search.spec import read_search
from launch.search.study import SharedStudy, counted, counts, load_study
from launch.search.work import Worker
from launch.sweep import main as sweep
from utils.errors import ConfigError, MissingPackage, RunFailure, UserError

ROOT = Path(__file__).resolve().parents[2]
SPEC = """# QMIX on a matrix game
methods: {QMIX: qmix, VDN: {algorithm: vdn, optional: true}}
tasks:
  game: {environment: matrix_game, settings: {env_args.map_name: two_step}}
seeds: [1, 2]
settings: {t_max: 40, test_interval: 10, use_cuda: false}
metrics: {test_return_mean: Return}
search:
  trials: 6
  last: 2
  space:
    lr: {float: [0.001, 0.1], log: true}
    td_lambda: {float: [0.0, 1.0], step: 0.1}
    batch_size: [8, 16]
    optimizer: [adam, rmsprop]
    optim_alpha: {float: [0.9, 0.99], when: {optimizer: rmsprop}}
"""
EVALUATIONS = 4


def _without_waiting_for_the_disk(connection, _):
    connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("_LOOK_EVERY", "_ASK_EVERY"):
        monkeypatch.setattr(work, name, 0.0)
    monkeypatch.setattr(process, "time", SimpleNamespace(sleep=lambda _: time.sleep(0.002)))
    event.listen(Engine, "connect", _without_waiting_for_the_disk)
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    yield path
    event.remove(Engine, "connect", _without_waiting_for_the_disk)


def read(path, **changes):
    """The search of the file, with changed keys of its section."""
    return _search(path, {**yaml.safe_load(path.read_text())["search"], **changes})


def _search(path, section):
    content = {**yaml.safe_load(path.read_text()), "search": section}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_search(spec.read(path).select(methods=["QMIX"]))


# --- Pretended runs ---


def goodness(job):
    """Best at lr 0.01, and a little better with seed 2."""
    return 10 - abs(math.log10(job.settings["lr"]) + 2) + 0.5 * (job.settings["seed"] - 1)


class PretendedRun:
    """Logs one evaluation at every look, and is then done."""

    def __init__(self, launcher, run):
        self.launcher, self.run = launcher, run
        self.code = None
        self.folder = run.folder / "sacred" / "qmix" / "game" / "1"
        self.folder.mkdir(parents=True, exist_ok=True)
        run.note("start")

    def poll(self):
        if self.code is None:
            self.code = self.launcher.outcome(self)
            if self.code is not None:
                self.run.note("end", code=self.code)
        return self.code

    @property
    def t(self):
        file = self.folder / "metrics.jsonl"
        return json.loads(file.read_text().splitlines()[-1])["t"] if file.exists() else 0

    def log(self):
        t = self.t + 10
        value = self.launcher.value(self.run.job) * t / 40
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"t": t, "key": "test_return_mean", "value": value}) + "\n")
        return t

    def stop(self):
        self.code = 143 if self.code is None else self.code

    abort = stop

    def wait(self):
        return self.code


class Pretended:
    """A launcher of pretended runs."""

    def __init__(self, value=goodness, runs=2, outcome=None):
        self.value, self.runs, self.active = value, runs, 0
        self.started = []
        if outcome is not None:
            self.outcome = outcome

    def outcome(self, process):
        while process.log() < 40:
            pass
        return 0

    def room(self):
        return self.active < self.runs

    def start(self, sweep, run):
        if not self.room():
            return None
        self.active += 1
        self.started.append((sweep.folder.name, run.job.settings["seed"]))
        return PretendedRun(self, run)

    def ended(self, run):
        self.active -= 1


def worked(search, folder, launcher=None):
    """The trials, once a process has worked at the search."""
    launcher = launcher or Pretended()
    Worker(search, SharedStudy(search, folder), launcher).run()
    return load_study(folder).get_trials()


def slowly(process):
    """One evaluation at each look."""
    return 0 if process.log() == 40 else None


# --- The form ---


def test_a_space_in_words_and_all_its_points():
    content = {
        "a": ["x", None, 3],
        "b": {"int": [2, 8], "step": 3},
        "c": {"float": [0.1, 0.4], "step": 0.1, "when": {"a": ["x", 3]}},
        "d": {"int": [1, 100], "log": True},
    }
    space = read_space(content, "space.")
    assert [str(one) for one in space] == [
        "x, None, 3",
        "2 to 8 in steps of 3",
        "0.1 to 0.4 in steps of 0.1, when a is x or 3",
        "1 to 100 (logarithmic)",
    ]
    c = (0.1, 0.2, 0.3, 0.4)
    expected = [{"a": "x", "b": b, "c": value} for b in (2, 5, 8) for value in c]
    expected += [{"a": None, "b": b} for b in (2, 5, 8)]
    expected += [{"a": 3, "b": b, "c": value} for b in (2, 5, 8) for value in c]
    assert list(all_points(space[:3])) == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("trials: 6", "trails: 6", "unknown key 'trails'; did you mean 'trials'?"),
        ("trials: 6", "trials: 0", "search.trials must be at least 1, got 0"),
        ("  trials: 6\n", "", "search.trials is missing"),
        ("last: 2", "goal: up", "search.goal must be one of maximize, minimize, got 'up'"),
        ("last: 2", "sampler: cma", "search.sampler.kind must be one of tpe, random, grid"),
        ("last: 2", "pruner: {kind: median, warmup: 3}", "search.pruner.unknown key 'warmup'"),
        ("last: 2", "sampler: grid", "space.lr: the sampler 'grid' needs a step or a list"),
        ("lr: {float: [0.001, 0.1]", "lr: {float: [-1, 0.1]", "begins above 0, got -1"),
        ("lr: {float: [0.001, 0.1], log: true}", "lr: {float: [-1, 0.1]}", "space.lr: lr must be"),
        ("lr: {float", "rl: {float", "unknown key 'rl'"),
        ("lr: {float", "lr: {flaot", "space.lr.unknown key 'flaot'; did you mean 'float'?"),
        ("lr: {float: [0.001, 0.1]", "lr: {float: [0.1]", "must be [lowest, highest]"),
        ("lr: {float: [0.001, 0.1]", "lr: {float: [1, 0.1]", "1 must be less than 0.1"),
        ("step: 0.1}", "step: 0.3}", "there must be whole steps, got 0.3"),
        ("[8, 16]", "[8, 8]", "space.batch_size has a value twice"),
        ("[8, 16]", "[]", "space.batch_size must be a list of numbers, words"),
        ("[8, 16]", "[8, many]", "space.batch_size: batch_size must be an int, got 'many'"),
        ("[8, 16]", "{int: [8.5, 16]}", "space.batch_size.int must be an int, got 8.5"),
        ("when: {optimizer: rmsprop}", "when: {optimizer: sgd}", "'sgd' is none of its values"),
        ("when: {optimizer: rmsprop}", "when: {mixer: vdn}", "it must stand before this one"),
        ("    batch_size: [8, 16]", "    seed: [8, 16]", "seed makes no difference"),
        ("    batch_size: [8, 16]", "    use_cuda: [True, False]", "use_cuda makes no difference"),
        ("search:\n  trials", "hunt:\n  trials", "unknown key 'hunt'"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(path, old, new, message):
    assert old in SPEC
    path.write_text(SPEC.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        main([str(path)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["status", "mine.yaml"], "no search in"),
        (["report", "mine.yaml"], "no search in"),
        (["mine.yaml", "--only", "QMIX", "VDN"], "about one method, mine has 2: choose with"),
        (["mine.yaml", "--launcher", "slurm"], "--launcher slurm needs --jobs N"),
        (["mine.yaml", "--launcher", "ray"], "--launcher ray needs --jobs N"),
        (["mine.yaml", "--jobs", "-1"], "--jobs must be at least 0"),
        (["mine.yaml", "--fast"], "search: unrecognized arguments: --fast; `python src/main.py"),
        (["status", "mine.yaml", "with", "lr=1"], "search status takes no settings"),
        (["none.yaml"], "cannot read"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(path, words, message):
    with pytest.raises(UserError) as caught:
        main(words)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()


def test_a_storage_that_cannot_be_used_is_one_line(path):
    for url, message in (
        ("nonsense", "(no URL of a database) cannot be used"),
        ("postgresql://me:secret@127.0.0.1:1/none", "me:***@127.0.0.1:1/none cannot be used"),
    ):
        search = read(path, storage=url)
        with pytest.raises(UserError) as caught:
            SharedStudy(search, Path("results"))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_tables_that_another_process_is_making_are_waited_for(path, monkeypatch):
    made, refusals = study._storage, [1]

    def making(url, heartbeat):
        if refusals:
            refusals.pop()
            raise IntegrityError("CREATE TABLE", {}, Exception("already exists"))
        return made(url, heartbeat)

    monkeypatch.setattr(study, "_storage", making)
    SharedStudy(read(path), Path("results/mine")).close()
    assert not refusals


def test_a_storage_that_fails_ends_the_search_in_one_line(path):
    def outcome(process):
        with sqlite3.connect("results/mine/search.db") as database:
            database.execute("DROP TABLE IF EXISTS trial_values")
        return slowly(process)

    with pytest.raises(RunFailure) as caught:
        worked(read(path), Path("results/mine"), Pretended(outcome=outcome))
    assert str(caught.value).startswith("the storage of the search fails: ")
    assert "\n" not in str(caught.value)


def test_a_sweep_is_no_search_and_a_search_no_sweep(path):
    with pytest.raises(UserError, match=r"mine.yaml is a search: `python src/main.py search`"):
        sweep([str(path)])
    path.write_text(SPEC.partition("search:")[0])
    with pytest.raises(UserError, match="mine has no section 'search'"):
        main([str(path)])


def test_a_missing_package_is_one_line(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingPackage, match=r"pip install -r requirements-search\.txt"):
        main([str(path)])


# --- What decides ---


def figure(tmp_path, name, points, interval=10, over=False):
    """A run's figure, from (t, value) pairs."""
    run = SweepRun(name, Job("qmix", "matrix_game", {"seed": 1}), tmp_path / name)
    folder = run.folder / "sacred" / "qmix" / "game" / "1"
    folder.mkdir(parents=True)
    lines = ({"t": t, "key": "return", "value": value} for t, value in points)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = RunFigure(run, "return", interval)
    made.over = over
    made.refresh()
    return made


def test_evaluations_of_a_run(tmp_path):
    # t 3 is before the first one; 12 and 17 are the first, of which the later counts; none between
    # 30 and 39: the one before stands for it; a value that is none is left out.
    points = [(3, 9.0), (12, 1.0), (17, 2.0), (21, 3.0), (45, 5.0), (51, None)]
    assert figure(tmp_path, "a", points).evaluations() == {1: 2.0, 2: 3.0, 3: 3.0, 4: 5.0, 5: 5.0}
    assert figure(tmp_path, "b", points, interval=20).evaluations() == {1: 3.0, 2: 5.0}


def test_a_run_that_began_anew_counts_with_its_newest_folder(tmp_path):
    old = figure(tmp_path, "a", [(10, 1.0)])
    for number in ("2", "10"):
        again = old.run.folder / "sacred" / "qmix" / "game" / number
        again.mkdir()
        line = json.dumps({"t": 10, "key": "return", "value": float(number)})
        (again / "metrics.jsonl").write_text(f"{line}\n")
        old.refresh()
        assert old.evaluations() == {1: float(number)}


def test_the_mean_over_runs_goes_as_far_as_all_that_have_begun(tmp_path):
    first = figure(tmp_path, "a", [(10, 1.0), (20, 2.0), (30, 3.0)])
    second = figure(tmp_path, "b", [(11, 3.0), (22, 6.0)])
    nothing = figure(tmp_path, "c", [])
    assert mean_by_evaluation([first, second, nothing]) == {1: 2.0, 2: 4.0}
    second.over = True
    assert mean_by_evaluation([first, second, nothing]) == {1: 2.0, 2: 4.0, 3: 4.5}
    assert mean_by_evaluation([nothing]) == {}


def test_the_value_of_a_trial_is_the_mean_of_the_last_values_of_its_runs(tmp_path):
    first = figure(tmp_path, "a", [(10, 1.0), (20, 2.0), (30, 6.0)])
    second = figure(tmp_path, "b", [(10, 5.0), (20, 7.0), (30, 9.0)])
    assert final_value([first, second], last=2) == (4.0 + 8.0) / 2
    with pytest.raises(UserError, match=r"the runs log no 'retrun'; did you mean 'return'\?"):
        RunFigure(first.run, "retrun", 10).final(1)


# --- Trials ---


def test_a_search_finds_the_best_and_writes_it_down(path):
    search = read(path, trials=6, sampler={"kind": "tpe", "startup_trials": 4})
    trials = worked(search, Path("results/mine"))
    assert counts(trials) == {"complete": 6}
    for trial in trials:
        # The last two of evaluations at t = 10, 20, 30, 40; the seeds are 0.5 apart.
        best = 10 - abs(math.log10(trial.params["lr"]) + 2)
        assert trial.value == pytest.approx((best + 0.25) * (0.75 + 1) / 2)
        assert list(trial.intermediate_values) == [1, 2, 3, 4]
        assert trial.intermediate_values[2] == pytest.approx((best + 0.25) * 0.5)
        assert ("optim_alpha" in trial.params) == (trial.params["optimizer"] == "rmsprop")
    best = max(trials, key=lambda trial: trial.value)
    text = Path("results/mine/best.yaml").read_text()
    assert f"trial {best.number}, test_return_mean {best.value:.6g} (mean of 2 runs)" in text
    chosen = {**best.params, "td_lambda": round(best.params["td_lambda"], 1)}
    expected = {"inherits": "qmix", "t_max": 40, "test_interval": 10, "use_cuda": False, **chosen}
    assert yaml.safe_load(text) == expected


def test_less_may_be_better(path):
    search = read(path, goal="minimize", trials=4)
    trials = worked(search, Path("results/mine"))
    worst = min(trials, key=lambda trial: trial.value)
    assert f"trial {worst.number}," in Path("results/mine/best.yaml").read_text()


def test_best_settings_of_a_file_of_ones_own_and_of_mappings(path):
    Path("own.yaml").write_text("inherits: qmix\n")
    path.write_text(
        path.read_text()
        .replace("{QMIX: qmix,", "{QMIX: {algorithm: own.yaml, settings: {gamma: 0.9}},")
        .replace("batch_size: [8, 16]", "env_args.episode_limit: [2, 3]")
    )
    search = read(path)
    file = write_best(search, Path("results"), 3, 1.5, {"lr": 0.1, "env_args.episode_limit": 2})
    content = yaml.safe_load(file.read_text())
    assert content["inherits"] == "../own.yaml"
    assert (content["gamma"], content["env_args"]) == (0.9, {"episode_limit": 2})
    assert nested({"a.b": 1, "a.c": 2, "d": 3}) == {"a": {"b": 1, "c": 2}, "d": 3}


def test_the_same_seed_tries_the_same(path):
    search = read(path, trials=4, sampler={"kind": "tpe", "startup_trials": 2, "seed": 3})
    other = read(path, trials=4, sampler={"kind": "tpe", "startup_trials": 2, "seed": 4})
    first, second, third = (
        [trial.params for trial in worked(one, Path(place), Pretended(runs=2))]
        for one, place in ((search, "a"), (search, "b"), (other, "c"))
    )
    assert first == second != third


def test_a_grid_is_worked_through_once(path):
    space = {"lr": [0.001, 0.01], "gamma": {"float": [0.5, 0.9], "step": 0.2}}
    search = _search(path, {"sampler": "grid", "space": space})
    launcher = Pretended(runs=4)
    trials = worked(search, Path("results/mine"), launcher)
    found = [(trial.params["lr"], trial.params["gamma"]) for trial in trials]
    assert found == [(lr, gamma) for lr in (0.001, 0.01) for gamma in (0.5, 0.7, 0.9)]
    assert len(launcher.started) == 12
    assert len(worked(search, Path("results/mine"), launcher)) == 6
    assert len(launcher.started) == 12


def test_settings_that_were_tried_are_not_trained_again(path):
    search = read(path, trials=3, space={"batch_size": [8]})
    launcher = Pretended(lambda job: 1.0)
    trials = worked(search, Path("results/mine"), launcher)
    assert counts(trials) == {"complete": 3}
    assert launcher.started == [("0000", 1), ("0000", 2)]


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_what_is_behind_is_pruned(path, pruner):
    """Worse and worse trials, one after the other: the first is complete, the last is not."""
    content = {
        "median": {"kind": "median", "startup_trials": 1, "first_evaluation": 2},
        "hyperband": {"kind": "hyperband", "reduction_factor": 2},
    }[pruner]
    space = {"lr": [0.01, 0.02, 0.05, 0.1]}
    search = _search(path, {"sampler": "grid", "pruner": content, "space": space})
    launcher = Pretended(outcome=slowly)
    trials = worked(search, Path("results/mine"), launcher)
    assert trials[0].state is TrialState.COMPLETE
    assert trials[-1].state is TrialState.PRUNED
    assert trials[-1].last_step < EVALUATIONS
    assert trials[-1].value == trials[-1].intermediate_values[trials[-1].last_step]
    assert launcher.active == 0
    if pruner == "median":
        # Never before the second evaluation, and then at once.
        assert [trial.last_step for trial in trials] == [4, 2, 2, 2]
    assert "trial 0," in Path("results/mine/best.yaml").read_text()


def test_a_trial_fails_with_its_run_and_several_in_a_row_end_the_search(path, capsys):
    def outcome(process):
        process.run.log.write_text("error: loss is NaN\n")
        return 1

    search = read(path, trials=7)
    with pytest.raises(RunFailure, match=r"5 trials in a row have failed.*loss is NaN; the same"):
        worked(search, Path("results/mine"), Pretended(runs=1, outcome=outcome))
    trials = load_study(Path("results/mine")).get_trials()
    assert counts(trials)["failed"] == 5
    assert all(t.user_attrs["error"] == "error: loss is NaN" for t in trials)
    # What is mended goes on with the rest, and failed trials count.
    trials = worked(search, Path("results/mine"), Pretended(runs=8))
    assert counts(trials) == {"failed": 5, "complete": 2}
    assert main(["status", str(path)]) == 0
    assert "trial 4 failed: error: loss is NaN" in capsys.readouterr().out


def test_a_figure_that_is_no_number_is_a_failure(path):
    def value(job):
        return math.nan if job.settings["batch_size"] == 8 else 1.0

    search = read(path, sampler="grid", space={"batch_size": [8, 16]}, trials=2)
    trials = worked(search, Path("results/mine"), Pretended(value))
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert trials[0].user_attrs["error"] == "test_return_mean is nan"


def test_a_figure_that_is_not_logged_ends_the_search(path):
    path.write_text(path.read_text().replace("test_return_mean", "test_retrun_mean"))
    with pytest.raises(UserError, match="log no 'test_retrun_mean'; did you mean 'test_return_m"):
        worked(read(path), Path("results/mine"))


def test_an_impossible_combination_is_a_failed_trial(path):
    space = {"batch_size": [8, 64], "buffer_size": [16, 64]}
    search = read(path, sampler="grid", space=space, trials=4)
    launcher = Pretended(lambda job: 1.0)
    trials = worked(search, Path("results/mine"), launcher)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert "must not be greater than buffer_size (16)" in trials[2].user_attrs["error"]
    assert ("0002", 1) not in launcher.started


def test_a_run_that_somebody_kills_goes_on(path):
    kills = {1: 2, 2: 9}  # seed -> how often

    def outcome(process):
        seed = process.run.job.settings["seed"]
        if process.log() == 40:
            return 0
        if kills[seed]:
            kills[seed] -= 1
            return 137
        return None

    search = read(path, trials=1)
    launcher = Pretended(outcome=outcome)
    (trial,) = worked(search, Path("results/mine"), launcher)
    assert trial.state is TrialState.COMPLETE, "four starts are enough for four evaluations"
    assert launcher.started.count(("0000", 1)) == 3
    assert launcher.started.count(("0000", 2)) == 4
    kills[2] = 9
    again = Pretended(outcome=lambda process: 137)
    (trial,) = worked(search, Path("results/again"), again)
    assert (trial.state, len(again.started)) == (TrialState.FAIL, 8)


# --- Several processes ---


def abandoned(search, folder, trials=1):
    """A process dies with trials at work; the last one and its settings."""
    dying = SharedStudy(search, folder)
    for _ in range(trials):
        trial, chosen = dying.ask()
    dying._alive.close()  # the system takes the lock of a process that dies
    return trial, chosen


def test_a_trial_of_a_dead_process_is_taken_over_and_counted_once(path):
    search = read(path, trials=2)
    folder = Path("results/mine")
    dead, chosen = abandoned(search, folder)
    living = SharedStudy(search, folder)
    trial, again = living.ask()
    assert (again, trial.user_attrs["folder"]) == (chosen, dead.user_attrs["folder"])
    assert living.ask() is not None
    assert living.ask() is None, "two are enough"
    trials = load_study(folder).get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "RUNNING", "RUNNING"]
    assert [trial.number for trial in counted(trials)] == [1, 2]
    # A process that is alive keeps its trials.
    other = SharedStudy(search, folder)
    assert other.ask() is None
    assert other.others_at_work() == 2
    living.close()
    assert other.ask()[1] == chosen
    assert len(counted(load_study(folder).get_trials())) == 2


def test_all_trials_of_a_dead_process_are_taken_over(path):
    search = read(path, trials=3)
    folder = Path("results/mine")
    abandoned(search, folder, trials=2)
    trials = worked(search, folder)
    assert [trial.state.name for trial in trials] == ["FAIL"] * 2 + ["COMPLETE"] * 3
    assert [trial.user_attrs["folder"] for trial in trials[2:4]] == ["0000", "0001"]
    assert list(Path(folder, "processes").iterdir()) == []


def test_signs_of_life_decide_where_no_folder_is_shared(path):
    search = read(path, trials=1, storage=f"sqlite:///{path.parent / 'shared.db'}")
    there, here = Path("there/mine"), Path("here/mine")
    _, chosen = abandoned(search, there)
    living = SharedStudy(search, here)
    assert living.ask() is None
    with sqlite3.connect("shared.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    assert living.ask()[1] == chosen


def test_a_process_that_was_stopped_too_long_lets_go(path):
    search = read(path, trials=1, heartbeat=1)
    folder = Path("results/mine")
    sleepy = SharedStudy(search, folder)
    trial, _ = sleepy.ask()
    assert sleepy.beat() == []
    with sqlite3.connect(folder / "search.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    other = SharedStudy(search, folder)
    assert other.ask() is not None
    with pytest.raises(study.TakenOver):
        sleepy.report(trial, {1: 1.0})
    sleepy._next_beat = 0.0
    assert sleepy.beat() == [trial]
    assert sleepy.mine == {}
    assert not sleepy.complete(trial, 1.0)
    other.close()


def test_the_runs_of_a_lost_trial_end(path):
    search = read(path, trials=1)
    folder = Path("results/mine")
    shared = SharedStudy(search, folder)

    def outcome(process):
        if process.t == 10:  # it is taken for dead, and the other one is done at once
            shared._start_over(next(iter(shared.mine.values()))._trial_id)
            shared._next_beat = 0.0
            worked(search, folder)
        return slowly(process)

    Worker(search, shared, Pretended(runs=1, outcome=outcome)).run()
    trials = load_study(folder).get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE"]
    assert counts(trials) == {"complete": 1}


def test_two_processes_do_what_one_would_do(path):
    search = read(path, trials=6)
    folder = Path("results/mine")
    both_at_work = threading.Barrier(2, timeout=60)

    class Meeting(Pretended):
        def start(self, sweep, run):
            if not self.started:
                both_at_work.wait()
            return super().start(sweep, run)

    launchers = [Meeting(runs=1), Meeting(runs=2)]
    threads = [threading.Thread(target=worked, args=(search, folder, one)) for one in launchers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = load_study(folder).get_trials()
    assert counts(trials) == {"complete": 6}
    assert len({trial.params["lr"] for trial in trials}) == 6
    assert all(launcher.started for launcher in launchers)
    assert sum(len(launcher.started) for launcher in launchers) == 12


def test_a_run_that_another_process_has_is_waited_for(path):
    class Busy(Pretended):
        refusals = 3

        def start(self, sweep, run):
            if self.refusals:
                self.refusals -= 1
                raise AtWork("at work")
            return super().start(sweep, run)

    trials = worked(read(path, trials=1), Path("results/mine"), Busy())
    assert counts(trials) == {"complete": 1}


def test_a_search_grows_but_does_not_change(path):
    folder = Path("results/mine")
    worked(read(path, trials=2), folder)
    assert len(worked(read(path, trials=3), folder)) == 3
    for changes, message in (
        ({"last": 3}, r"another last \(2\)"),
        ({"goal": "minimize"}, r"another goal \(maximize\)"),
        ({"last": 2, "goal": "maximize", "space": {"lr": [0.1]}}, r"another space \(lr\)"),
    ):
        with pytest.raises(UserError, match=f"was begun with {message}; choose another folder"):
            SharedStudy(read(path, **changes), folder)
    path.write_text(SPEC.replace("t_max: 40", "t_max: 60"))
    with pytest.raises(UserError, match="another set of runs"):
        SharedStudy(read(path), folder)


# --- Looking ---


def test_the_report_shows_what_matters(path, capsys):
    """Only the learning rate makes a difference."""
    folder = Path("results/mine")
    space = {"lr": {"float": [1e-4, 1.0], "log": True}, "gamma": {"float": [0.5, 0.99]}}
    shared = SharedStudy(read(path, trials=1, space=space), folder)
    values = {parameter.key: parameter.values for parameter in shared.search.space}
    draw = np.random.default_rng(0)
    for lr, gamma in zip(10 ** draw.uniform(-4, 0, 60), draw.uniform(0.5, 0.99, 60), strict=True):
        params = {"lr": lr, "gamma": gamma}
        made = create_trial(params=params, distributions=values, value=-abs(np.log10(lr) + 2))
        shared.study.add_trial(made)
    shared.close()
    file = write_report(folder, folder / "report")
    text = file.read_text()
    shares = dict(re.findall(r"^\| (lr|gamma) \| (\d\.\d+) \|$", text, re.M))
    assert float(shares["lr"]) > 0.7 > 0.3 > float(shares["gamma"])
    assert float(shares["lr"]) + float(shares["gamma"]) == pytest.approx(1, abs=0.002)
    names = re.findall(r"\((\w+\.png)\)", text)
    assert names == ["history.png", "importance.png", "parallel.png"]
    for name in names:
        with Image.open(file.parent / name) as picture:
            assert picture.width > 800
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, "not an empty page"
    best = load_study(folder).best_trial
    assert f"The best one is trial {best.number} with {best.value:.6g}" in text
    assert main(["report", str(folder), "--out", "elsewhere"]) == 0
    assert Path("elsewhere/report.md").read_text() == text
    assert main(["status", str(path)]) == 0
    out = capsys.readouterr().out
    assert "mine: 60 trials: 60 complete" in out
    rows = re.findall(r"^ +(\d+) +complete", out, re.M)
    assert int(rows[0]) == best.number
    assert len(rows) == 10
    assert main(["status", str(path), "--all"]) == 0
    assert len(re.findall(r"^ +(\d+) +complete", capsys.readouterr().out, re.M)) == 60


def test_a_report_needs_a_complete_trial(path):
    study_ = SharedStudy(read(path), Path("results/mine"))
    study_.ask()
    with pytest.raises(UserError, match=r"no trial of .* is complete: 1 trials: 1 running"):
        main(["report", str(path)])
    study_.close()


def test_the_example_of_the_guide_is_valid(path):
    guide = (ROOT / "docs" / "guide" / "search.md").read_text()
    path.write_text(re.search(r"```yaml\n(.*?)```", guide, re.DOTALL)[1])
    search = read_search(spec.read(path))
    assert search.pruner.kind == "median"
    assert len(search.jobs({"lr": 0.1})) == 2
    # What the guide says of defaults.
    short = _search(path, {"trials": 1, "space": {"lr": [0.1]}})
    assert (short.last, short.heartbeat, short.maximize, short.storage) == (5, 20, True, "")
    assert (short.sampler.kind, short.sampler.seed, short.sampler.startup_trials) == ("tpe", 0, 10)
    pruner = short.pruner
    assert (pruner.kind, pruner.startup_trials, pruner.first_evaluation) == ("none", 5, 1)
    assert pruner.reduction_factor == 3

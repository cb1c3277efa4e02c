"""Runs from Python: like the command line's, several in one process, interrupted, continued."""

import json
import logging
import os
import random
import re
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import sacred
import torch

import learners
import main as main_module
from api import Run
from isolation import REGISTRIES
from training import Training
from utils.errors import ConfigError, Diverged, RunFailure, UserError

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "use_cuda": False, "seed": 5, "runner": "episode", "batch_size_run": 1,
    "batch_size": 4, "buffer_size": 20, "rnn_hidden_dim": 8,
    "mixing_embed_dim": 4, "hypernet_embed": 8, "t_max": 360, "test_interval": 100,
    "test_nepisode": 2, "log_interval": 100, "runner_log_interval": 60, "learner_log_interval": 60,
    "save_model_interval": 100, "keep_checkpoints": 10, "epsilon_anneal_time": 300,
}  # fmt: skip
ENV = {"episode_limit": 20}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def make(algorithm="qmix", env="predator_prey", **keys):
    return Run(algorithm, env, **{**KEYS, "env_args": ENV, **keys})


def metrics(run):
    return (run.folder / "metrics.jsonl").read_bytes()


def record(run):
    return json.loads((run.folder / "run.json").read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """metrics.jsonl of the run that the others are compared with."""
    run = make(local_results_path=str(tmp_path_factory.mktemp("whole")))
    run.train()
    return metrics(run)


def when(monkeypatch, t_env, act):
    """`act` happens once, before the first collection at or after step `t_env`."""
    collect, done = Training._collect_and_learn, []

    def acting(training):
        if training.runner.t_env >= t_env and not done:
            done.append(True)
            act()
        collect(training)

    monkeypatch.setattr(Training, "_collect_and_learn", acting)


# --- The same as the command line ---


@pytest.mark.parametrize("runner", ["episode", "parallel", "vector"])
def test_a_run_is_that_of_the_command_line(runner, tmp_path):
    keys = {"runner": runner, "batch_size_run": 1 if runner == "episode" else 2}
    run = make(**keys)
    result = run.train()
    assert run.folder == Path("results/sacred/qmix/predator_prey/1").absolute()
    settings = [f"{key}={value}" for key, value in {**KEYS, **keys}.items()]
    words = ["--config=qmix", "--env-config=predator_prey", "with", "env_args.episode_limit=20"]
    assert main_module.main([*words, *settings]) == 0
    theirs = run.folder.parent / "2"
    for name in ("metrics.jsonl", "info.json", "config.json"):
        assert (run.folder / name).read_bytes() == (theirs / name).read_bytes(), name
    assert {file.name for file in run.folder.iterdir()} == {file.name for file in theirs.iterdir()}
    assert (record(run)["status"], record(run)["result"]) == ("COMPLETED", result)
    assert run.config == json.loads((theirs / "config.json").read_text())
    assert run.train() == result  # nothing is left to do
    assert "resumed" not in record(run)


def test_metrics_and_evaluation(tmp_path):
    run = make(runner="vector", batch_size_run=4)
    before = run.evaluate(3)
    assert run.folder is None
    assert not list(tmp_path.iterdir())
    result = run.train()
    series = run.metrics("test_return_mean")
    assert series.t.dtype == np.int64
    assert (np.diff(series.t) > 0).all()
    assert (series.t[0], series.values[-1]) == (0, result)
    assert run.metrics("return_mean").values.dtype == np.float64
    with pytest.raises(UserError, match=r"'test_return' so far; did you mean 'test_return_\w+'"):
        run.metrics("test_return")
    means = run.evaluate(8)
    assert means == run.evaluate(8)
    assert before.keys() == means.keys() > {"test_return_mean", "test_ep_length_mean"}
    path = run.folder / "checkpoints"
    alone = make(
        runner="vector", batch_size_run=4, evaluate=True, checkpoint_path=path, test_nepisode=8
    )
    assert alone.train() == means["test_return_mean"]
    assert metrics(run).count(b"test_returns") == len(series.t)


# --- Settings ---


def test_settings_have_their_types():
    run = Run(
        "qmix",
        "predator_prey",
        settings={"env_args.penalty": -0.5, "label": "007", "t_max": 1},
        t_max=2e3,
        lr=np.float32(0.5),
        env_args={"episode_limit": 7},
        local_results_path=Path("elsewhere"),
        checkpoint_buffer=False,
    )
    config = run.config
    assert (config["t_max"], config["label"], config["lr"]) == (2000, "007", 0.5)
    assert config["env_args"]["penalty"], config["env_args"]["episode_limit"] == (-0.5, 7)
    assert config["local_results_path"] == "elsewhere"
    assert config["checkpoint_buffer"] is False
    assert config["env_args"]["seed"] == config["seed"]
    config["env_args"].clear()
    assert run.config["env_args"]


@pytest.mark.parametrize(
    ("names", "keys", "message"),
    [
        (("qmxi", "predator_prey"), {}, "unknown algorithm 'qmxi'; did you mean 'qmix'?"),
        (("qmix", "predator_prey"), {"lrr": 1}, "unknown key 'lrr'; did you mean 'lr'?"),
        (("qmix", "predator_prey"), {"batch_size": "x"}, "batch_size must be an int, got 'x'"),
        (("qmix", "predator_prey"), {"batch_size": -8}, "batch_size must be at least 1, got -8"),
        (("qmix", "predator_prey"), {"resume": "auto", "observe": False}, "resume goes on with"),
    ],
)
def test_mistakes_are_refused_at_once(names, keys, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        Run(*names, **keys)


def test_mistakes_that_show_later_leave_nothing(tmp_path):
    run = make(env_args={"episode_limit": 20, "n_predators": -3})
    for act in (run.train, lambda: run.evaluate(2), lambda: run.learner):
        with pytest.raises(UserError):
            act()
        assert not list(tmp_path.iterdir())
        assert run.folder is None
    good = make()
    for call in (lambda: good.train(0), lambda: good.evaluate(0)):
        with pytest.raises(ConfigError, match="must be at least 1, got 0"):
            call()
    with pytest.raises(UserError, match="train it first"):
        good.save()


def test_nothing_is_kept_unobserved(tmp_path):
    with make(observe=False) as run:
        run.train(100)
        run.train()
        assert run.metrics("return_mean").t[-1] > 300
        folder = run.folder
        assert folder.is_dir()
    assert not folder.exists()
    assert not list(tmp_path.iterdir())


# --- Several in one process ---


def test_in_turn_as_alone(whole):
    others = {"algorithm": "iql_ns", "runner": "vector", "batch_size_run": 2, "seed": 6}
    alone = make(**others)
    alone.train()
    runs = [make(), make(**others)]
    for _ in range(3):
        for run in runs:
            torch.manual_seed(0)
            run.train(steps=80)
            run.evaluate(2)
            run.save()
    assert record(runs[0])["status"] == "INTERRUPTED"
    for run in runs:
        run.train()
    assert metrics(runs[0]) == whole
    assert metrics(runs[1]) == metrics(alone)
    info = [json.loads((run.folder / "info.json").read_text()) for run in (alone, runs[1])]
    assert info[0] == info[1]
    assert (record(runs[1])["status"], len(record(runs[1])["resumed"])) == ("COMPLETED", 3)


def state_of_the_process():
    root = logging.getLogger()
    return {
        "random": (random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
        "torch": (torch.get_rng_state().tolist(), torch.get_num_threads()),
        "logging": (list(root.handlers), root.level),
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)],
        "registries": [dict(registry) for registry in REGISTRIES],
        "streams": (sys.stdout, sys.stderr, sys.excepthook),
        "sacred": dict(sacred.SETTINGS),
    }


def test_the_process_is_left_as_it_was():
    torch.set_num_threads(2)
    try:
        before = state_of_the_process()
        run = make(plugins=[str(ROOT / "tests" / "plugins" / "pymarl_vdn_copy.py")])
        with pytest.raises(ConfigError, match="no such file"):
            run.train()
        run = make(acting_threads=1, learner_threads=1)
        for act in (lambda: run.train(100), lambda: run.evaluate(2), run.save, run.train):
            act()
            assert state_of_the_process() == before
        assert run.learner is run.learner
        assert state_of_the_process() == before
    finally:
        torch.set_num_threads(1)


def test_plugins_are_known_to_their_runs_alone():
    Path("my_rule.py").write_text(
        "from learners import register\n"
        "from learners.q_learner import QLearner\n"
        "@register('chosen_name')\n"
        "class MyRule(QLearner):\n"
        "    pass\n"
    )
    keys = {"plugins": ["my_rule.py"], "learner": "chosen_name", "t_max": 40}
    for _ in range(2):  # a module is imported only once
        run = make(**keys)
        run.train()
        assert type(run.learner).__name__ == "MyRule"
        assert not {"chosen_name", "MyRule"} & set(learners.REGISTRY)
    with pytest.raises(UserError, match="unknown learner 'chosen_name'"):
        make(learner="chosen_name").train()


def test_in_another_thread(whole):
    run = make()
    thread = threading.Thread(target=run.train)
    thread.start()
    thread.join()
    assert metrics(run) == whole


def test_plain_lines_where_there_is_no_terminal(capsys):
    run = make()
    run.train()
    lines = [line for line in capsys.readouterr().err.splitlines() if "steps/s" in line]
    assert len(lines) == 4
    assert re.search(r"\] t_env 360/360 \(100%\) \| .* test return ", lines[-1])


# --- Interrupted and continued ---


def test_ctrl_c_ends_with_a_checkpoint_and_the_run_goes_on(monkeypatch, whole):
    when(monkeypatch, 150, lambda: signal.raise_signal(signal.SIGINT))
    run = make(save_model_interval=10_000)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert record(run)["status"] == "INTERRUPTED"
    assert (run.folder / "checkpoints" / str(run.t_env) / "state.pt").is_file()
    assert 150 < run.t_env < 200
    run.train()
    assert metrics(run) == whole


def test_a_handler_of_the_caller_may_let_it_go_on(monkeypatch):
    when(monkeypatch, 150, lambda: os.kill(os.getpid(), signal.SIGTERM))
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        make().train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


def test_ctrl_c_in_an_evaluation(monkeypatch, whole):
    run, evaluate = make(save_model=False), Training._evaluate

    def interrupted(training):
        check, calls = training._check_stop, []

        def at_the_second_episode():
            calls.append(True)
            if len(calls) == 2:
                signal.raise_signal(signal.SIGINT)
            check()

        if training.runner.t_env > 150:
            monkeypatch.setattr(Training, "_evaluate", evaluate)
            training._check_stop = at_the_second_episode
        evaluate(training)

    monkeypatch.setattr(Training, "_evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    del run._session.training._check_stop
    run.train()
    assert metrics(run) == whole


@pytest.mark.parametrize("error", [Diverged("NaN"), RunFailure("worker 3"), KeyboardInterrupt()])
def test_after_an_error_it_goes_on_from_the_newest_checkpoint(monkeypatch, whole, error):
    def fail():
        raise error

    when(monkeypatch, 250, fail)
    run = make()
    with pytest.raises(type(error)):
        run.train()
    assert record(run)["status"] == "INTERRUPTED" if error.args == () else "FAILED"
    run.train()
    assert metrics(run) == whole


def test_after_an_error_without_a_checkpoint(monkeypatch):
    def fail():
        raise Diverged("NaN")

    when(monkeypatch, 150, fail)
    run = make(save_model=False)
    with pytest.raises(Diverged):
        run.train()
    with pytest.raises(UserError, match=r"no checkpoint in .*/1 to go on from"):
        run.train()


def test_resume(whole):
    first = make(save_model=False)
    first.train(150)
    with pytest.raises(UserError, match="no readable checkpoint"):
        Run.resume(first.folder)
    path = first.save()
    first.train(100)
    first.close()
    written = metrics(first)
    for source in (first.folder, path):
        second = Run.resume(str(source), label="again")
        assert (second.folder, second.config["label"]) == (first.folder, "again")
        assert second.t_env == int(path.name)
        second.evaluate(2)
        assert metrics(second) == written  # nothing is cut off before it goes on
    second.train()
    assert metrics(second) == whole
    longer = Run.resume(first.folder, t_max="400", save_model=True)
    longer.train()
    assert metrics(longer).startswith(whole[:-1000])
    assert longer.t_env >= 400
    assert longer.folder == first.folder


def test_resume_refuses(tmp_path):
    run = make(t_max=40)
    run.train()
    with pytest.raises(UserError, match=r"no run folder \(no config.json\)"):
        Run.resume(tmp_path)
    with pytest.raises(ConfigError, match="unknown key 'tmax'; did you mean 't_max'"):
        Run.resume(run.folder, tmax=3)
    with pytest.raises(ConfigError, match="t_max must be at least 1, got -3"):
        Run.resume(run.folder, t_max=-3)
    with pytest.raises(UserError, match="was started with other values of lr"):
        Run.resume(run.folder, lr=0.1)


def test_a_closed_run_goes_on_from_its_checkpoint(whole):
    run = make()
    run.train(150)
    run.close()
    run.close()
    run.train()
    assert metrics(run) == whole


# --- The documentation ---


def test_the_page_about_it(monkeypatch, capsys):
    """All examples of docs/api.md, with shorter runs."""
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    code = "".join(blocks)
    for steps, fewer in (("20_000", "1_600"), ("30_000", "2_400")):
        assert steps in code
        code = code.replace(steps, fewer)
    exec(compile(code, "docs/api.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1600 ")
    assert lines[-2:] == ["True", "2400"]

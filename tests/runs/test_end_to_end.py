"""Whole runs through the command line: resuming, determinism, evaluation, broken workers, bad
input.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
# A run of a few seconds in which everything happens: ragged logs, many updates, target updates,
# several evaluations.
SMALL = [
    *(
        "--config=qmix",
        "--env-config=predator_prey",
        "with",
        "use_cuda=False",
        "env_args.episode_limit=20",
    ),
    *(
        "batch_size=4",
        "buffer_size=50",
        "rnn_hidden_dim=8",
        "mixing_embed_dim=4",
        "hypernet_embed=8",
        "t_max=3000",
    ),
    *("test_interval=700", "test_nepisode=4", "log_interval=500", "runner_log_interval=300"),
    *("learner_log_interval=300", "target_update_interval=20", "epsilon_anneal_time=2000"),
]
RUNNERS = {
    "episode": ["batch_size_run=1"],
    "parallel": ["batch_size_run=2"],
    "vector": ["batch_size_run=3"],
}


def command(results, *settings):
    return [
        sys.executable,
        str(ROOT / "src/main.py"),
        *SMALL,
        f"local_results_path={results}",
        *settings,
    ]


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def finish(results, *settings, code=0, timeout=120):
    done = subprocess.run(
        command(results, *settings),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def run_dir(results, number=1):
    return results / "sacred" / "qmix" / "predator_prey" / str(number)


def metrics(results, number=1):
    return (run_dir(results, number) / "metrics.jsonl").read_bytes()


def points(results, key):
    lines = [json.loads(line) for line in metrics(results).splitlines()]
    return [(line["t"], line["value"]) for line in lines if line["key"] == key]


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def reached(results, t):
    path = run_dir(results) / "metrics.jsonl"
    return path.exists() and any(
        json.loads(line)["t"] >= t for line in path.read_bytes().splitlines(True)[:-1]
    )


def children_of(pid):
    """Process ids of everything below a process."""
    below, todo = set(), [pid]
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    while todo:
        for child in parents.get(todo.pop(), []):
            below.add(child)
            todo.append(child)
    return below


def workers_of(pid):
    """The environment workers below a process: the leaves of its process tree that run our
    worker.
    """
    return {
        child
        for child in children_of(pid)
        if not children_of(child) and "resource_tracker" not in cmdline(child)
    }


def cmdline(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """One run per runner, made when first asked for."""
    made = {}

    def get(runner):
        if runner not in made:
            results = tmp_path_factory.mktemp("whole") / "results"
            finish(results, "seed=1", f"runner={runner}", *RUNNERS[runner])
            made[runner] = results
        return made[runner]

    return get


@pytest.mark.parametrize(
    "runner",
    [one if one == "vector" else pytest.param(one, marks=pytest.mark.slow) for one in RUNNERS],
)
def test_a_run_interrupted_by_sigterm_and_resumed_writes_the_same_metrics(
    runner, uninterrupted, tmp_path
):
    results = tmp_path / "results"
    settings = ["seed=1", f"runner={runner}", *RUNNERS[runner]]
    process = subprocess.Popen(
        command(results, *settings), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: reached(results, 1000))
    below = children_of(process.pid)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert not any(alive(pid) for pid in below)
    assert json.loads((run_dir(results) / "run.json").read_text())["status"] == "INTERRUPTED"
    assert len(metrics(results)) < len(metrics(uninterrupted(runner)))
    finish(results, *settings, "resume=auto")
    assert metrics(results) == metrics(uninterrupted(runner))
    assert [path.name for path in run_dir(results).parent.iterdir()] == ["1"]
    assert json.loads((run_dir(results) / "run.json").read_text())["status"] == "COMPLETED"
    info = json.loads((run_dir(results) / "info.json").read_text())
    assert info == json.loads((run_dir(uninterrupted(runner)) / "info.json").read_text())


def test_equal_seeds_give_equal_runs_and_other_seeds_others(uninterrupted, tmp_path):
    results = tmp_path / "results"
    settings = ["runner=vector", *RUNNERS["vector"]]
    finish(results, "seed=1", *settings)
    finish(results, "seed=2", *settings)
    assert metrics(results, 1) == metrics(uninterrupted("vector"))
    assert metrics(results, 2) != metrics(results, 1)


def test_metrics_are_those_of_pymarl_and_evaluations_keep_every_episode(uninterrupted):
    results = uninterrupted("vector")
    evaluations = points(results, "test_return_mean")
    assert [t for t, _ in evaluations] == [0, 720, 1440, 2160, 2880, 3000]
    lists = points(results, "test_returns")
    assert [len(values) for _, values in lists] == [3] * 6
    for (t, mean), (t_list, values) in zip(evaluations, lists, strict=True):
        assert t == t_list
        assert mean == pytest.approx(sum(values) / len(values))
    info = json.loads((run_dir(results) / "info.json").read_text())
    assert info["test_return_mean_T"] == [t for t, _ in evaluations]
    assert info["test_return_mean"] == [value for _, value in evaluations]
    for key in ("return_mean", "ep_length_mean", "epsilon", "loss_td", "grad_norm", "episode"):
        assert len(points(results, key)) > 2, key
    assert points(results, "epsilon")[-1][1] == pytest.approx(0.05)


def test_a_torn_checkpoint_is_skipped_and_old_ones_are_pruned_to_their_models(tmp_path):
    results = tmp_path / "results"
    settings = ["seed=4", "runner=vector", *RUNNERS["vector"], "save_model_interval=600"]
    finish(results, *settings)
    folder = run_dir(results) / "checkpoints"
    steps = sorted(int(path.name) for path in folder.iterdir())
    assert steps == [600, 1200, 1800, 2400, 3000]
    full = [step for step in steps if (folder / str(step) / "state.pt").exists()]
    assert full == [2400, 3000]
    for step in steps:
        names = {path.name for path in (folder / str(step)).iterdir()}
        assert {"agent.th", "mixer.th", "opt.th"} <= names
    before = metrics(results)
    newest = folder / "3000" / "state.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    again = finish(results, *settings, f"resume={run_dir(results)}")
    assert "cannot be read" in again.stdout + again.stderr
    assert metrics(results) == before


def test_resume_refuses_another_configuration(uninterrupted):
    results = uninterrupted("vector")
    done = finish(
        results,
        "seed=1",
        "runner=vector",
        *RUNNERS["vector"],
        "gamma=0.9",
        f"resume={run_dir(results)}",
        code=2,
    )
    assert re.fullmatch(r"error: .*other values of gamma.*\n", done.stderr)


def test_evaluate_loads_models_and_reports_their_returns(uninterrupted, tmp_path):
    results = tmp_path / "results"
    checkpoints = run_dir(uninterrupted("vector")) / "checkpoints"
    done = finish(
        results, "seed=7", "runner=vector", "batch_size_run=5", "test_nepisode=10", "evaluate=True",
        "render=True",
        f"checkpoint_path={checkpoints}",
    )  # fmt: skip
    ((t, values),) = points(results, "test_returns")
    assert (t, len(values)) == (3000, 10)
    assert "test_return_mean" in done.stdout + done.stderr
    assert (run_dir(results) / "evaluation.gif").stat().st_size > 1000
    assert points(results, "return_mean") == []
    weights = torch.load(checkpoints / "3000" / "agent.th", weights_only=True)
    assert weights["fc2.weight"].shape == (5, 8)


def test_a_killed_worker_is_replaced_counted_and_training_goes_on(tmp_path):
    results = tmp_path / "results"
    settings = [
        "seed=1",
        "runner=parallel",
        "batch_size_run=2",
        "env_timeout=20",
        "test_interval=100000",
    ]
    process = subprocess.Popen(
        command(results, *settings), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: reached(results, 300))
    victim = min(workers_of(process.pid))
    os.kill(victim, signal.SIGKILL)
    below = children_of(process.pid)
    _, errors = process.communicate(timeout=90)
    assert process.returncode == 0, errors
    assert points(results, "env_restarts")[-1][1] >= 1
    assert points(results, "return_mean")[-1][0] >= 2000
    assert not any(alive(pid) for pid in below)


def test_workers_that_die_again_and_again_end_the_run_with_the_cause(tmp_path):
    results = tmp_path / "results"
    settings = [
        "seed=1",
        "runner=parallel",
        "batch_size_run=2",
        "max_env_restarts=1",
        "t_max=10000000",
    ]
    process = subprocess.Popen(
        command(results, *settings), env=environment(), stderr=subprocess.PIPE, text=True
    )
    wait_for(lambda: reached(results, 300))
    seen = set()
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        for pid in workers_of(process.pid):
            seen.add(pid)
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 1, errors
    assert "signal 9" in errors
    assert json.loads((run_dir(results) / "run.json").read_text())["status"] == "FAILED"
    assert (run_dir(results) / "checkpoints").is_dir(), errors
    assert not any(alive(pid) for pid in seen)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("batch_sise=3", "batch_size"),
        ("batch_size=abc", "int"),
        ("batch_size=-4", "batch_size"),
        ("env_args.penalty=-1", "penalty"),
        ("mixer=qmixx", "qmix"),
        ("learner=q_lerner", "q_learner"),
        ("plugins=[no_such_module]", "no_such_module"),
        ("buffer_size=2000000000", "lower buffer_size"),
        ("common_reward=False", "common_reward"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(setting, said, tmp_path):
    results = tmp_path / "results"
    done = finish(results, "seed=1", "runner=vector", "batch_size_run=2", setting, code=2)
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not results.exists()


def test_an_unknown_map_is_one_line(tmp_path):
    results = tmp_path / "results"
    arguments = [
        sys.executable,
        str(ROOT / "src/main.py"),
        "--config=iql",
        "--env-config=matrix_game",
        "with",
    ]
    done = subprocess.run(
        [*arguments, "env_args.map_name=climbin", f"local_results_path={results}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "climbing" in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr

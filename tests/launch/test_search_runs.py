"""Searches that train: processes that are killed or told to end, and what is found."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import spec
from launch.search.spec import read_search
from launch.search.study import counts, load_study

ROOT = Path(__file__).resolve().parents[2]
MAIN = ROOT / "src" / "main.py"
SPEC = """# QMIX in two steps
methods: {QMIX: qmix}
tasks:
  two steps: {environment: matrix_game, settings: {env_args.map_name: two_step}}
seeds: [1]
settings:
  runner: vector
  batch_size_run: 4
  t_max: 800
  test_interval: 80
  test_nepisode: 4
  log_interval: 80
  save_model_interval: 80
  epsilon_anneal_time: 400
  buffer_size: 200
  use_cuda: false
metrics: {test_return_mean: Return}
search:
  trials: 12
  last: 3
  space:
    lr: {float: [0.0001, 0.05], log: true}
    td_lambda: {float: [0.0, 1.0], step: 0.2}
    batch_size: [8, 16]
"""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.yaml"
    path.write_text(SPEC)
    return path


def start(*words):
    command = [sys.executable, str(MAIN), "search", "mine.yaml", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, text=True, **pipes)


def metrics(folder):
    return max(Path(folder).glob("**/metrics.jsonl")).read_bytes()


def wait_for(condition, process):
    deadline = time.monotonic() + 200
    while not (found := condition()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return found


def checkpoints(pattern="*"):
    """Of the runs that are at work."""
    return [
        folder
        for folder in Path("results/mine/trials").glob(f"{pattern}/runs/*")
        if list(folder.glob("sacred/*/*/*/checkpoints/[0-9]*/state.pt"))
        and '"end"' not in (folder / "events.jsonl").read_text()
    ]


def test_twelve_trials_of_two_processes_of_which_one_is_killed(path):
    killed = start("--jobs", "1")
    (run,) = wait_for(checkpoints, killed)
    other = start("--jobs", "2")
    # The process dies, and the run with it: nothing is written any more.
    killed.kill()
    pid = json.loads((run / "events.jsonl").read_text().splitlines()[0])["pid"]
    os.kill(pid, signal.SIGKILL)
    killed.wait()
    out, _ = other.communicate(timeout=400)
    assert other.returncode == 0, out
    assert "12 trials: 12 complete; best: trial" in out

    trials = load_study(Path("results/mine")).get_trials()
    assert counts(trials) == {"complete": 12}
    assert [trial.number for trial in trials if trial.state.name == "FAIL"] == [0]
    (again,) = (trial for trial in trials if trial.system_attrs.get("failed_trial") == 0)
    assert again.params == trials[0].params
    assert (run / "events.jsonl").read_text().count('"start"') == 2
    assert len(list(Path("results/mine/trials").iterdir())) == 12

    # The run that was killed has the metrics of one that never was.
    search = read_search(spec.read(path))
    (job,) = search.jobs({**again.params, "td_lambda": round(again.params["td_lambda"], 1)})
    subprocess.run(job.command(Path("apart").absolute()), check=True, capture_output=True)
    assert metrics(run) == metrics("apart")

    # The best settings train what the best trial trained.
    best = load_study(Path("results/mine")).best_trial
    command = re.search(r"python src/main.py (--config=\S*best.yaml .*)", out)[1]
    words = [sys.executable, str(MAIN), *shlex.split(command), "local_results_path=best"]
    subprocess.run(words, check=True, capture_output=True)
    folder = Path("results/mine/trials", best.user_attrs["folder"])
    assert metrics("best") == metrics(folder)
    assert Path("results/mine/report/report.md").exists()


def test_a_search_is_ended_and_goes_on(path):
    text = SPEC.replace("trials: 12", "trials: 2").replace("seeds: [1]", "seeds: [1, 2]")
    path.write_text(text)
    first = start("--jobs", "2")
    wait_for(lambda: len(checkpoints("0000")) == 2, first)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert "ended by SIGINT; the same command goes on" in out
    trials = load_study(Path("results/mine")).get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "WAITING"]
    assert list(Path("results/mine/processes").iterdir()) == []

    second = start("--jobs", "2")
    out, _ = second.communicate(timeout=200)
    assert second.returncode == 0, out
    assert "2 trials: 2 complete" in out
    runs = sorted(Path("results/mine/trials/0000/runs").iterdir())
    search = read_search(spec.read(path))
    jobs = search.jobs({**trials[0].params, "td_lambda": round(trials[0].params["td_lambda"], 1)})
    for run, job in zip(runs, jobs, strict=True):
        assert (run / "events.jsonl").read_text().count('"start"') == 2
        place = Path("apart", str(job.settings["seed"])).absolute()
        subprocess.run(job.command(place), check=True, capture_output=True)
        assert metrics(run) == metrics(place)

    # Nothing is left to do.
    third = start()
    out, _ = third.communicate(timeout=60)
    assert third.returncode == 0
    assert "trial 3:" not in out


def test_the_figure_of_a_trial_is_what_its_runs_logged(path):
    """One value by hand, from the files; and a mistake has exit code 2."""
    path.write_text(SPEC.replace("trials: 12", "trials: 1").replace("[1]", "[1, 2]", 1))
    out, _ = (process := start("--jobs", "2")).communicate(timeout=200)
    assert process.returncode == 0, out
    (trial,) = load_study(Path("results/mine")).get_trials()
    finals = []
    for file in Path("results/mine/trials/0000").glob("runs/*/sacred/*/*/*/metrics.jsonl"):
        entries = [json.loads(line) for line in file.read_text().splitlines()]
        values = [entry["value"] for entry in entries if entry["key"] == "test_return_mean"]
        finals.append(sum(values[-3:]) / 3)
    assert len(finals) == 2
    assert trial.value == pytest.approx(sum(finals) / 2)
    path.write_text(SPEC.replace("lr: {float", "rl: {float"))
    out, _ = (process := start()).communicate(timeout=60)
    assert process.returncode == 2
    assert re.fullmatch(r"error: mine: search\.space\.rl: unknown key 'rl'; .*\n", out)

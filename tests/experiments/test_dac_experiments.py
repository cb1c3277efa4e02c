"""DAC's experiments: small versions that a broken learner fails, and the experiments' own
numbers.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from experiments import ROOT, dac_matrix_game, switching_wind
from experiments.comparison import compare, finished_cells
from experiments.spec import load

from analysis.runs import Run, Series
from launch.jobs import finished_runs
from launch.local import run_jobs
from launch.spec import Paper
from utils.config import build_config


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_contexts_agree_with_the_winds():
    scores = []
    for seed in (1, 2, 3, 4, 5):
        episode = switching_wind.walk(seed)
        labels = switching_wind.learn_contexts(episode, k=1, m=3, seed=seed)
        scores.append(switching_wind.agreement(labels, episode.modes))
    assert np.median(scores) >= 0.9, scores


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_dac_solves_its_matrix_game_and_knows_its_values(tmp_path):
    methods = ("DAC", "IQL", "hysteretic, beta = 0.01")
    experiment = load("dac_matrix_game").select(methods=methods, seeds=(1, 2))
    run_jobs(experiment.jobs(), tmp_path)
    runs = finished_cells(experiment, finished_runs(tmp_path))["matrix game"]
    for values in map(dac_matrix_game.values_of, runs["DAC"]):
        assert values.greedy == (0, 0)
        assert values.final == 8.0
        assert values.phi_error <= 0.3
    final = {
        label: [run.metrics[dac_matrix_game.METRIC].values[-1] for run in group]
        for label, group in runs.items()
    }
    assert max(final["IQL"]) <= 6.0
    assert min(final["hysteretic, beta = 0.01"]) == 8.0


def test_agreement():
    a = np.array([0, 0, 1, 1, 2, 2])
    assert switching_wind.agreement(a, np.array([2, 2, 0, 0, 1, 1])) == pytest.approx(1.0)
    assert switching_wind.agreement(a, np.array([0, 1, 0, 1, 0, 1])) == pytest.approx(0.0)
    assert switching_wind.agreement(np.zeros(4, int), np.zeros(4, int)) == 0.0
    # H(a) = ln 2 in both, I = ln 2 - H(1/4) = 0.693147 - 0.562335
    half = switching_wind.agreement(
        np.array([0, 0, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 0, 1, 1, 1])
    )
    assert half == pytest.approx((np.log(2) - 0.562335) / np.log(2), abs=1e-5)


def test_a_walk_is_one_of_the_wind():
    episode = switching_wind.walk(3)
    assert len(episode.actions) == 60
    assert episode.positions[0] == 0.0
    assert sorted(set(episode.modes.tolist())) == [0, 1, 2]
    wind = np.diff(episode.positions) - episode.actions
    for mode, mean in enumerate((0.0, -1.5, 1.5)):
        assert abs(wind[episode.modes == mode].mean() - mean) < 0.3
    obs, actions, rewards, after = (x.numpy()[0] for x in switching_wind.walk(3).transitions())
    assert obs.shape == (60, 1)
    assert obs.mean() == pytest.approx(0.0, abs=1e-5)
    assert np.allclose(actions[:, 0], episode.actions)
    assert np.allclose(after[:, 0], np.diff(episode.positions), atol=1e-5)
    assert not rewards.any()


def test_values_of_a_run():
    """Agent 1: context 0 is the column of a1, context 1 that of a3; agent 2 knows a2's row only."""
    q = np.zeros((2, 2, 3))
    q[0, 0], q[0, 1] = [8, -12, -12], [-12, 0, 6.5]
    q[1, 0] = q[1, 1] = [-12, 6, 0]
    values = dac_matrix_game.Values(1, q, 8.0)
    assert values.phi.tolist() == [[8, 0, 6.5], [-12, 6, 0]]
    assert values.greedy == (0, 1)
    assert values.phi_error == 20.0
    assert values.rows_missed(0).tolist() == [0.0, 6.5, 0.5]
    assert values.rows_missed(1).tolist() == [20.0, 0.0, 6.0]
    table = dac_matrix_game.values_table([values])
    assert "| 1 | (a1, a2) | 8 | 20.00 | 6.50 | 20.00 |" in table
    assert "| 1 | a3 | **6.50** | -12.00 | 6.50 |" in table


def test_every_run_is_a_valid_configuration():
    experiments = [load(name) for name in ("dac_predator_prey", "dac_sweep")]
    for job in (job for experiment in experiments for job in experiment.jobs()):
        config = build_config(job.algorithm, job.environment, job.updates())
        assert config["epsilon_anneal_time"] == 1500000
        assert not config["share_params"]
        if job.algorithm == "dac":
            assert (config["dac_k"], config["dac_m"]) == (
                5 if job.settings["env_args.penalty"] == 1.0 else 10,
                10,
            )
            assert config["dac_head"] == "hyper_net"


def test_no_run_passes_for_one_of_another_variant():
    """Variants name what they differ in, and all name the same."""
    ablations = load("dac_ablations").select(seeds=(1,))
    cells = [(label, jobs[0]) for row in ablations.cells().values() for label, jobs in row.items()]
    named = [(job.algorithm, tuple(job.settings.items())) for _, job in cells]
    assert len(set(named)) == len(named) - 3  # the default stands in all four panels
    assert len({tuple(job.settings) for _, job in cells}) == 1


def test_comparison_table(tmp_path):
    def run(seed, values):
        series = Series(np.arange(len(values)) * 100, np.array(values, dtype=float))
        return Run(
            tmp_path / str(seed),
            {"name": "dac", "env": "e", "seed": seed},
            "COMPLETED",
            {"m": series},
        )

    cells = {
        "P = 1": {
            "DAC": [run(2, [0, 0, 1, 1, 1, 1, 1]), run(1, [9, 9, 2, 2, 2, 2, 2])],
            "IQL": [run(1, [5, 5])],
        }
    }
    table = compare(cells, "m", tmp_path / "out", "M").splitlines()
    assert table[2].startswith("| P = 1 | DAC | 1 2 | 2.00 1.00 | 1.50 | ")
    assert table[3].startswith("| P = 1 | IQL | 1 | 5.00 | 5.00 | - | 100 |")
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    paper = Paper("Somebody, table 1", {"DAC": {"P = 1": 2.5}})
    table = compare(cells, "m", tmp_path / "out", "M", paper).splitlines()
    assert [line.split(" | ")[-1] for line in table[2:4]] == ["2.5 |", "- |"]
    assert table[-1] == "Paper: Somebody, table 1."


@pytest.mark.slow
def test_a_terminated_experiment_ends_its_runs(tmp_path):
    program = (
        "from pathlib import Path; import experiments; from launch.local import Job, run_jobs; "
        "run_jobs([Job('iql', 'predator_prey', {'t_max': 10**7, 'use_cuda': False, 'seed': 1})], "
        "Path('results'), 1)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    experiment = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, env=environment)
    metrics = tmp_path / "results/sacred/iql/predator_prey/1/metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    experiment.terminate()
    assert experiment.wait(60) == 143
    record = json.loads((metrics.parent / "run.json").read_text())
    assert record["status"] == "INTERRUPTED"
    assert list((metrics.parent / "checkpoints").iterdir())


def test_a_mistake_is_one_line(tmp_path):
    options = ["--t-max", "250", "--only", "MAAC", "--seeds", "1", "--results", str(tmp_path)]
    command = [sys.executable, "-m", "experiments", "run", "f2a2", *options]
    command += ["with", "updates_per_step=0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: updates_per_step must be at least 1, got 0 (maac rover_tower "
    )
    assert done.stderr.count("\n") == 1

"""The shifting payoff: what S2Q follows and QMIX and OW-QMIX do not, on few seeds; and the
experiment's own numbers.
"""

import numpy as np
import pytest
import torch
from experiments import shifting_payoff as experiment
from experiments.comparison import finished_cells
from experiments.spec import load

from analysis.runs import Run, Series
from launch.jobs import finished_runs
from launch.local import run_jobs
from utils.config import build_config


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_s2q_follows_the_optimum_and_the_others_do_not(tmp_path):
    labels = ("QMIX", "OW-QMIX", "S2Q, T = 1")
    part = load("shifting_payoff").select(methods=labels, seeds=(1, 2, 3))
    run_jobs(part.jobs(), tmp_path)
    runs = finished_cells(part, finished_runs(tmp_path))[experiment.TASK]
    qmix, ow_qmix, s2q = (
        [experiment.outcome(label, run) for run in runs[label]] for label in labels
    )
    assert all(outcome.right_before and outcome.right_after for outcome in s2q)
    for others in (qmix, ow_qmix):
        assert sum(outcome.right_after for outcome in others) <= 1
    assert not any(outcome.right_before for outcome in qmix)
    assert sum(outcome.greedy_before[1:] == ["BB", "CC"] for outcome in s2q) >= 2
    shares = np.mean([outcome.executed for outcome in s2q], axis=0)
    alone = np.mean([outcome.executed for outcome in ow_qmix], axis=0)
    for u in (1, 2):  # (B, B) and (C, C) are visited far more often than by independent exploration
        assert shares[u, u] > 10 * max(alone[u, u], 0.05**2 / 9)


def test_best_joint_actions():
    assert experiment.ranked(0, 3) == ["AA", "BB", "CC"]
    assert experiment.ranked(1, 3) == ["CC", "AA", "BB"]


def test_every_run_is_a_valid_configuration():
    names = ("shifting_payoff", "s2q_ablations", "s2q_ablations_shifting")
    jobs = [job for name in names for job in load(name).select(seeds=(1,)).jobs()]
    for job in jobs:
        config = build_config(job.algorithm, job.environment, job.updates())
        for key, value in job.settings.items():
            found = config
            for part in key.split("."):
                found = found[part]
            assert found == value, (job, key)
    ablations = {"s2q_oracle", "s2q_independent", "s2q_no_wtd", "s2q_no_soft", "s2q_random"}
    assert {job.algorithm for job in jobs} == {"qmix", "ow_qmix", "s2q"} | ablations


def test_executed_joint_actions_are_those_of_the_newest_episodes(tmp_path, monkeypatch):
    """A ring of 5 episodes whose next place is 2: the newest are those at 1, 0 and 4."""
    joint = [(0, 0), (1, 2), (0, 1), (2, 2), (1, 2)]
    actions = torch.tensor(joint, dtype=torch.uint8).view(5, 1, 2, 1)
    buffer = {"transition_data": {"actions": actions}, "buffer_index": 2}
    monkeypatch.setattr(experiment, "read_checkpoint", lambda path: ({}, buffer))
    run = Run(tmp_path, {}, "COMPLETED", {})
    shares = experiment.executed_joint_actions(run, 7, episodes=3)
    expected = np.zeros((3, 3))
    expected[0, 0], expected[1, 2] = 1 / 3, 2 / 3
    assert np.allclose(shares, expected)


def test_outcome_and_summary(tmp_path, monkeypatch):
    greedy = {experiment.SWITCH: ["AA", "BB", "CC"], experiment.T_MAX: ["CC", "BB", "AA"]}
    monkeypatch.setattr(experiment, "greedy_joint_actions", lambda run, step: greedy[step])
    monkeypatch.setattr(experiment, "executed_joint_actions", lambda *_: np.diag([0.7, 0.2, 0.05]))
    t = np.array([0, experiment.SWITCH - 1, experiment.SWITCH, experiment.T_MAX])
    series = Series(t, np.array([0.0, 8.0, 6.0, 8.0]))
    found = experiment.outcome(
        "S2Q", Run(tmp_path, {"seed": 4}, "COMPLETED", {"test_return_mean": series})
    )
    assert (found.seed, found.value_before, found.value_after) == (4, 8.0, 8.0)
    assert found.right_before
    assert found.right_after
    text = experiment.summary([found])
    assert "| S2Q | 1 | 1 of 1 | 1 of 1 | 8.00 | 8.00 |" in text
    assert "| S2Q | before | 1 of 1 | 1 of 1 | 1 of 1 | AA/BB/CC |" in text
    assert "| S2Q | after | 1 of 1 | 0 of 1 | 0 of 1 | CC/BB/AA |" in text
    assert "| S2Q | 70.00 | 20.00 | 5.00 | 5.00 |" in text
    experiment.write_runs([found], tmp_path / "runs.csv")
    lines = (tmp_path / "runs.csv").read_text().splitlines()
    assert lines[1].startswith("S2Q,4,8.0,8.0,AA BB CC,CC BB AA,0.7000,0.0000")

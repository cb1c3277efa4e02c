"""Learning checks that a broken learner, mixer, runner or environment fails: minutes, marked slow,
run by CI too.
"""

import importlib.util
import json

import numpy as np
import pytest
from experiments.spec import load

from launch.jobs import Job
from launch.local import run_jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

# Uniform exploration: what a learner ends at is what its function class and loss make of all joint
# actions.
MATRIX = {
    "runner": "vector", "batch_size_run": 16, "batch_size": 64, "epsilon_finish": 1.0,
    "t_max": 12000,
    "test_interval": 2000, "test_nepisode": 4, "save_model": False, "use_cuda": False,
}  # fmt: skip
# Short hunts, and as many updates as episodes.
HUNT = {
    "runner": "vector", "batch_size_run": 8, "env_args.episode_limit": 50, "batch_size": 32,
    "updates_per_collection": 8, "target_update_interval": 80, "epsilon_anneal_time": 20000,
    "t_max": 60000,
    "test_interval": 4000, "optimizer": "adam", "lr": 0.001, "save_model": False, "use_cuda": False,
    "seed": 1,
}  # fmt: skip

# A guide and an actor with three goals.
HINT = {
    "runner": "vector", "batch_size_run": 8, "env_args.n_actors": 1, "env_args.n_goals": 3,
    "batch_size": 32, "updates_per_collection": 4, "lr": 0.002, "target_update_interval": 80,
    "epsilon_anneal_time": 3000, "t_max": 4800, "test_interval": 600, "test_nepisode": 40,
    "save_model": False, "use_cuda": False, "seed": 1,
}  # fmt: skip


def final(run_dir, metric="test_return_mean", last=1):
    """Mean of a figure over the last evaluations."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return float(np.mean([line["value"] for line in lines if line["key"] == metric][-last:]))


def play(tmp_path, algorithm, map_name, seeds, **settings):
    """Final returns of an algorithm on a matrix game, one per seed."""
    settings = {**MATRIX, "env_args.map_name": map_name, **settings}
    jobs = [Job(algorithm, "matrix_game", {**settings, "seed": seed}) for seed in seeds]
    return [final(run) for run in run_jobs(jobs, tmp_path)]


@pytest.mark.parametrize("algorithm", ["iql", "vdn", "qmix"])
def test_monotone_and_independent_learners_miss_the_climbing_games_optimum(algorithm, tmp_path):
    returns = play(tmp_path, algorithm, "climbing", range(5))
    assert max(returns) <= 6.0, returns


def test_ow_qmix_finds_the_climbing_games_optimum(tmp_path):
    returns = play(tmp_path, "ow_qmix", "climbing", range(5), w=0.1)
    assert sum(value == 8.0 for value in returns) >= 4, returns


def test_two_step_game_separates_qmix_from_vdn(tmp_path):
    # Rashid et al. 2018, section 5: 8 needs a mixing that depends on the state, the sum settles for
    # 7.
    assert play(tmp_path, "qmix", "two_step", range(2), td_lambda=0.0) == [8.0, 8.0]
    assert play(tmp_path, "vdn", "two_step", range(2), td_lambda=0.0) == [7.0, 7.0]


def test_iql_and_vdn_learn_predator_prey(tmp_path):
    runs = run_jobs(
        [Job(algorithm, "predator_prey", HUNT) for algorithm in ("iql", "vdn")], tmp_path
    )
    for run in runs:
        # A random policy catches the prey 0.5 times in 50 steps.
        assert final(run, last=3) >= 4.0, run


def test_pqn_vdn_learns_simulated_3m(tmp_path):
    """Without replay and target networks."""
    settings = {
        "env_args.map_name": "3m", "t_max": 100000, "test_interval": 10000, "save_model": False,
        "use_cuda": False, "seed": 1,
    }  # fmt: skip
    (run,) = run_jobs([Job("pqn_vdn", "sc2sim", settings)], tmp_path)
    assert final(run, "test_battle_won_mean", last=3) >= 0.7


@pytest.mark.parametrize("algorithm", ["ia2c", "maa2c", "vdac_sum", "vdac_mix"])
def test_a2c_learns_simulated_3m(algorithm, tmp_path):
    settings = {
        "runner": "vector", "env_args.map_name": "3m", "t_max": 40000, "test_interval": 5000,
        "lr": 0.001, "save_model": False, "use_cuda": False, "seed": 1,
    }  # fmt: skip
    (run,) = run_jobs([Job(algorithm, "sc2sim", settings)], tmp_path)
    assert final(run, "test_battle_won_mean", last=3) >= 0.6


def test_hpn_qmix_learns_simulated_3m(tmp_path):
    settings = {
        "runner": "vector", "env_args.map_name": "3m", "t_max": 30000, "test_interval": 5000,
        "test_nepisode": 32, "epsilon_anneal_time": 20000, "save_model": False, "use_cuda": False,
        "seed": 1,
    }  # fmt: skip
    (run,) = run_jobs([Job("hpn_qmix", "sc2sim", settings)], tmp_path)
    assert final(run, "test_battle_won_mean", last=2) >= 0.6


def test_qmix_learns_simulated_3m(tmp_path):
    demo = load("demo").select(
        tasks=["3m"], seeds=(1, 2), settings={"t_max": 40000, "save_model": False}
    )
    runs = run_jobs(demo.jobs(), tmp_path)
    # Random play wins nothing, SMAC's heuristic nine of ten battles.
    assert np.mean([final(run, "test_battle_won_mean", last=4) for run in runs]) >= 0.7


def test_f2a2_learns_simulated_3m(tmp_path):
    """Policies that nobody else sees, critics that agree, models of the others: it wins more
    battles than it loses.
    """
    settings = {"t_max": 110000, "save_model": False}
    experiment = load("f2a2_starcraft").select(["F2A2-COMA"], ["3m"], [1], settings)
    (run,) = run_jobs(experiment.jobs(), tmp_path)
    assert final(run, "test_battle_won_mean", last=4) >= 0.5


@pytest.mark.skipif(importlib.util.find_spec("magent2") is None, reason="magent2 is not installed")
def test_f2a2_isac_learns_to_fight(tmp_path):
    """64 agents that begin by killing nobody, against 64 who walk up to them and never miss."""
    settings = {
        "env_args.n_agents": 64, "env_args.opponents": "scripted", "env_args.time_limit": 100,
        "batch_size_run": 4,
        "batch_size": 16, "buffer_size": 96, "steps_per_update": 100, "updates_per_step": 35,
        "t_max": 8000,
        "test_interval": 8000, "test_nepisode": 8, "test_greedy": True, "save_model": False,
        "use_cuda": False,
        "seed": 1,
    }  # fmt: skip
    (run,) = run_jobs([Job("f2a2_isac", "battle", settings)], tmp_path)
    assert final(run, "test_dead_enemies_mean") >= 5.0


def test_decentralised_learners_catch_the_prey_where_hunting_alone_costs_nothing(tmp_path):
    hunt = {**HUNT, "scenario": "predator_prey", "epsilon_anneal_time": 20000}
    (run,) = run_jobs([Job("dac", "predator_prey", hunt)], tmp_path)
    assert final(run, last=3) >= 2.0


@pytest.mark.parametrize("algorithm", ["fullcomm", "qmix_comm", "maic", "ndq", "masia", "t2mac"])
def test_agents_that_talk_take_the_hint(algorithm, tmp_path):
    (run,) = run_jobs([Job(algorithm, "hint", HINT)], tmp_path)
    assert final(run, last=2) >= 4.5


def test_agents_that_cannot_talk_guess(tmp_path):
    """One goal in three, 5 times: 1.67, with a standard error of 0.12 over 80 episodes."""
    (run,) = run_jobs([Job("qmix", "hint", HINT)], tmp_path)
    assert final(run, last=2) <= 2.2

"""Whole runs of F2A2 and its baselines: resumed ones equal uninterrupted ones, and they learn."""

import json

import pytest
import torch
from experiments import f2a2_parameters
from experiments.spec import load
from f2a2_fixtures import RECURRENT_RUNS, RUNS, SMALL_RUN
from run_fixtures import StopAt, finish, start_run
from transition_fixtures import train_run

from utils.checkpoints import FREE_KEYS
from utils.config import build_config, check_config
from utils.observers import Interrupted


def start(algorithm, run_dir, *settings):
    """A run in this process, without Sacred."""
    return start_run(algorithm, "rover_tower", run_dir, [*SMALL_RUN, *settings])


def newest(run_dir):
    return max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))


CASES = [*RUNS.items(), *RECURRENT_RUNS.items()]


@pytest.mark.parametrize(
    ("algorithm", "settings"), CASES, ids=[f"{n}-{name}" for n, (name, _) in enumerate(CASES)]
)
def test_resumed_run_equals_the_uninterrupted_one(algorithm, settings, tmp_path):
    whole = start(algorithm, tmp_path / "whole", *settings)
    finish(whole)
    first = start(algorithm, tmp_path / "parts", *settings)
    first.stop = StopAt(first.runner, 100)
    with pytest.raises(Interrupted):
        finish(first)
    second = start(algorithm, tmp_path / "parts", *settings)
    second.load(newest(tmp_path / "parts"))
    finish(second)
    mine, theirs = (
        (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("parts", "whole")
    )
    assert mine == theirs
    keys = {json.loads(line)["key"] for line in theirs}
    assert {"policy_entropy", "td_error_abs", "loss_policy"} <= keys
    if "moa_hidden_dim=6" in settings:
        assert {"moa_accuracy", "moa_best_constant"} <= keys


def test_evaluation_of_saved_models(tmp_path):
    trained = start("f2a2_sac", tmp_path / "trained", *RUNS["f2a2_sac"])
    finish(trained)
    other = start("f2a2_sac", tmp_path / "other", *RUNS["f2a2_sac"], "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    for name in ("params", "critic_params"):
        for mine, theirs in zip(
            getattr(other.learner, name), getattr(trained.learner, name), strict=True
        ):
            assert torch.equal(mine, theirs)
    assert other.evaluate_only() == other.last_test_return
    other.close()
    other.logger.close()


@pytest.mark.parametrize("algorithm", ["f2a2_sac", "f2a2_ddpg", "f2a2_coma"])
def test_learns_a_matrix_game(algorithm, tmp_path):
    """Two agents, of four joint actions one pays: the policies find it."""
    on_policy = algorithm == "f2a2_coma"
    run = train_run(
        tmp_path, algorithm, "matrix_game", "env_args.map_name=custom",
        "env_args.payoff=[[0, 0], [0, 1]]",
        "t_max=2400", "batch_size_run=20", f"batch_size={20 if on_policy else 128}",
        "buffer_size=3000",
        "updates_per_collection=5", "common_reward=True", "lr=0.003", "test_interval=100000",
        "test_nepisode=20",
        "critic_hidden_dim=16", "policy_hidden_dim=16", "target_tau=0.05", "moa=False",
        "warmup_episodes=0",
        "recent_transitions=0", "transition_history=0",
    )  # fmt: skip
    assert run.last_test_return == 1.0


def test_models_learn_what_the_others_do(tmp_path):
    """Policies that have become predictable are predicted: better than by always guessing the most
    frequent action.
    """
    run = train_run(
        tmp_path, "f2a2_ddpg", "matrix_game", "env_args.map_name=two_step", "t_max=2400",
        "batch_size_run=20",
        "batch_size=64", "buffer_size=3000", "updates_per_collection=1", "common_reward=True",
        "lr=0.01",
        "test_interval=100000", "test_nepisode=20", "critic_hidden_dim=16", "policy_hidden_dim=16",
        "joint=False",
        "moa_trajectories=20", "moa_character_batch=5", "moa_trajectory_steps=2",
        "moa_hidden_dim=8",
        "moa_prediction_dim=16", "warmup_episodes=20", "recent_transitions=200",
        "transition_history=1",
        "learner_log_interval=1",
    )  # fmt: skip
    accuracy, constant = (
        run.logger.stats[key][-1][1] for key in ("moa_accuracy", "moa_best_constant")
    )
    assert accuracy > 0.6
    assert accuracy >= constant - 0.02


# -- experiments -----------------------------------------------------------------------------------
ON_POLICY = ("f2a2_coma", "coma", "ma_ac")
TASKS = {"rover_tower", "treasure_collection"}
MAPS = {"3m", "8m", "2s3z"}
VARIANTS = {
    "whole", "without joint objective", "without models of others", "no edges", "ring + 40%",
    "never", "N(20, 10)",
}  # fmt: skip
INSTANTIATIONS = {
    "F2A2-SAC", "MAAC", "F2A2-DDPG", "MADDPG", "F2A2-TD3", "F2A2-COMA", "COMA", "MA-AC",
}  # fmt: skip
RECURRENT = {"F2A2-SAC", "F2A2-COMA", "COMA", "MA-AC"}
EXPERIMENTS = {
    "f2a2": (TASKS, INSTANTIATIONS),
    "f2a2_128": (TASKS, INSTANTIATIONS),
    "f2a2_treasure": (TASKS, INSTANTIATIONS),
    "f2a2_variants": (TASKS, VARIANTS),
    "f2a2_variants_128": (TASKS, VARIANTS),
    "f2a2_starcraft": (MAPS, RECURRENT),
    "f2a2_starcraft_500k": (MAPS, RECURRENT),
    "f2a2_variants_starcraft": (MAPS, VARIANTS),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_have_valid_settings(name):
    cells = load(name).select(seeds=(1, 2)).cells()
    tasks, labels = EXPERIMENTS[name]
    assert set(cells) == tasks
    assert {label for groups in cells.values() for label in groups} == labels
    jobs = [job for groups in cells.values() for runs in groups.values() for job in runs]
    assert len({str(job) for job in jobs}) == len(jobs)
    small, often = name.endswith(("_128", "_treasure")), name == "f2a2_treasure"
    for job in jobs:
        replays = job.algorithm not in ON_POLICY and tasks == TASKS
        assert job.settings.get("batch_size") == 128 or not (small and replays)
        rhythm = [job.settings.get(key) for key in ("steps_per_update", "updates_per_step")]
        assert (rhythm == [100, 4]) == (often and replays)
        config = build_config(job.algorithm, job.environment, job.updates())
        check_config(config)
        for key, value in job.settings.items():
            found = (
                config["env_args"][key.removeprefix("env_args.")]
                if key.startswith("env_args.")
                else config[key]
            )
            assert found == value, key


def test_a_longer_experiment_takes_up_a_shorter_one():
    """Nothing differs that a run cannot be continued with."""
    long = load("f2a2").job("rover_tower", "F2A2-SAC", 1).settings
    shorter = load("f2a2").select(settings={"t_max": 250000})
    short = shorter.job("rover_tower", "F2A2-SAC", 1).settings
    differing = {key for key in short if short[key] != long[key]}
    assert short.keys() == long.keys()
    assert "t_max" in differing
    assert differing <= FREE_KEYS


def test_counted_parameters_are_those_that_are_sent(tmp_path):
    """The table's numbers, times neighbours and updates, are what the channel has counted."""
    for algorithm in ("f2a2_sac", "ma_ac"):
        training = start(algorithm, tmp_path / algorithm, *RUNS[algorithm], "topology=full",
                         "topology_extra_edges=0.0",
                         "consensus_interval=1.0", "consensus_interval_std=0.0")  # fmt: skip
        finish(training)
        learner = training.learner
        settings = {"env_args.n_pairs": 2, "critic_hidden_dim": 8, "policy_hidden_dim": 8}
        numbers = f2a2_parameters.transmitted(algorithm, "rover_tower", **settings)
        for name, number in zip(("critic", "policies"), numbers, strict=True):
            if number:
                assert (
                    learner.channel.sent(name).numbers.tolist()
                    == [3 * learner.updates * number] * 4
                )


def test_table_of_parameters(tmp_path):
    f2a2_parameters.main(["--maps", "3m", "--results", str(tmp_path)])
    table = (tmp_path / "parameters.md").read_text()
    assert "| rover_tower | MA-AC | 36,741 | 18,949 | 55,690 | 1.00 |" in table
    assert "| 3m | F2A2-SAC | 98,560 | 0 | 98,560 |" in table

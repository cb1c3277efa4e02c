"""Whole runs of S2Q: every algorithm trains, a resumed run equals an uninterrupted one, evaluation
of saved models.
"""

import json

import pytest
import torch
from run_fixtures import assert_goes_on, finish, start_run

from utils.config import list_configs

SMALL = [
    *(
        "runner=vector",
        "batch_size_run=4",
        "batch_size=4",
        "buffer_size=20",
        "env_args.episode_limit=6",
        "seed=3",
    ),
    *(
        "rnn_hidden_dim=8",
        "mixing_embed_dim=4",
        "hypernet_embed=8",
        "encoder_hidden_dim=8",
        "latent_dim=4",
    ),
    *(
        "use_cuda=False",
        "epsilon_anneal_time=200",
        "target_update_interval=10",
        "test_interval=72",
        "test_nepisode=4",
    ),
    *("learner_log_interval=1", "runner_log_interval=1", "save_model_interval=100000", "t_max=240"),
]
CENTRAL = ["central_rnn_hidden_dim=8", "central_mixing_embed_dim=16"]


def start(algorithm, run_dir, *settings):
    """A run in this process, without Sacred."""
    small = [*SMALL, *(CENTRAL if algorithm not in ("s2q_vdn", "s2q_qplex") else []), *settings]
    return start_run(algorithm, "predator_prey", run_dir, small)


@pytest.mark.parametrize(
    "algorithm", [name for name in list_configs("algs") if name.startswith("s2q")]
)
def test_every_algorithm_trains(algorithm, tmp_path):
    training = start(algorithm, tmp_path)
    before = [param.detach().clone() for param in training.learner.params]
    assert finish(training) is not None
    moved = [not torch.equal(a, b) for a, b in zip(before, training.learner.params, strict=True)]
    assert all(moved)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"test_return_mean", "loss_td", "choice_loss", "state_loss", "grad_norm"} <= {
        line["key"] for line in lines
    }


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [
        ("s2q", []),
        ("s2q_comm", ["encoder_type=rnn"]),
        ("s2q_oracle", ["s2q_k=1"]),
        ("s2q_qplex", ["s2q_comm=True"]),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one(algorithm, settings, tmp_path):
    finish(start(algorithm, tmp_path / "whole", *settings))
    assert_goes_on(lambda run_dir: start(algorithm, run_dir, *settings), tmp_path, stop_at=100)


@pytest.mark.parametrize("algorithm", ["s2q", "s2q_comm"])
def test_evaluation_of_saved_models(algorithm, tmp_path):
    trained = start(algorithm, tmp_path / "trained")
    finish(trained)
    other = start(algorithm, tmp_path / "other", "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    for mine, theirs in zip(other.learner.params, trained.learner.params, strict=True):
        assert torch.equal(mine, theirs)
    result = other.evaluate_only()
    assert result == other.last_test_return
    other.close()
    other.logger.close()

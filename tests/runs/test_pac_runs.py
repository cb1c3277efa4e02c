"""Whole runs of PAC: they train, a resumed run equals an uninterrupted one, saved models act."""

import torch
from run_fixtures import assert_goes_on, finish, start_run

SETTINGS = [
    *("runner=vector", "batch_size_run=4", "batch_size=4", "buffer_size=20", "seed=3"),
    *("rnn_hidden_dim=8", "mixing_embed_dim=4", "hypernet_embed=8", "use_cuda=False"),
    *("central_rnn_hidden_dim=8", "central_mixing_embed_dim=8", "ndq_hidden_dim=8"),
    *("epsilon_anneal_time=200", "target_update_interval=10", "test_interval=40"),
    *("test_nepisode=4", "learner_log_interval=1", "runner_log_interval=1", "t_max=160"),
    *("save_model_interval=100000", "ndq_message_dim=2"),
]


def start(run_dir, *settings):
    return start_run("pac", "hint", run_dir, [*SETTINGS, *settings])


def test_resumed_run_equals_the_uninterrupted_one(tmp_path):
    whole = start(tmp_path / "whole")
    params = [
        *whole.learner.actor_params,
        *whole.learner.params,
        *whole.learner.temperature.parameters(),
    ]
    before = [param.detach().clone() for param in params]
    assert finish(whole) is not None
    assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))
    assert_goes_on(start, tmp_path, stop_at=80)


def test_evaluation_of_saved_models(tmp_path):
    trained = start(tmp_path / "trained", "t_max=60")
    finish(trained)
    other = start(tmp_path / "other", "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    for mine, theirs in (
        (other.learner.params, trained.learner.params),
        (other.learner.actor_params, trained.learner.actor_params),
    ):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert other.evaluate_only() == other.last_test_return
    other.close()
    other.logger.close()

"""Whole runs of baselines: all networks train, and a resumed run equals an uninterrupted one."""

import pytest
import torch
from run_fixtures import assert_goes_on, finish, start_run

ALGORITHMS = ["riskq", "dop", "fop"]
SETTINGS = [
    *("env_args.episode_limit=8", "runner=vector", "batch_size_run=4", "batch_size=4"),
    *("buffer_size=20", "seed=3", "rnn_hidden_dim=8", "use_cuda=False"),
    *("epsilon_anneal_time=200", "target_update_interval=10", "test_interval=40"),
    *("test_nepisode=4", "learner_log_interval=1", "runner_log_interval=1", "t_max=256"),
    "save_model_interval=100000",
]
OWN = {
    "riskq": ["n_quantiles=4"],
    "dop": ["critic_hidden_dim=8", "latest_episodes=4", "hard_target_interval=20"],
    "fop": ["critic_hidden_dim=8", "warmup_episodes=8", "hard_target_interval=20"],
}


def start(algorithm, run_dir, *settings):
    own = OWN.get(algorithm, [])
    return start_run(algorithm, "predator_prey", run_dir, [*SETTINGS, *own, *settings])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resumed_run_equals_the_uninterrupted_one(algorithm, tmp_path):
    whole = start(algorithm, tmp_path / "whole")
    learner = whole.learner
    networks = [learner.mac.agent, *learner.modules.values()]
    params = [param for network in networks for param in network.parameters()]
    before = [param.detach().clone() for param in params]
    assert finish(whole) is not None
    assert not any(torch.equal(*pair) for pair in zip(before, params, strict=True))
    assert_goes_on(lambda run_dir: start(algorithm, run_dir), tmp_path, stop_at=120)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_evaluation_of_saved_models(algorithm, tmp_path):
    trained = start(algorithm, tmp_path / "trained", "t_max=100")
    finish(trained)
    other = start(algorithm, tmp_path / "other", "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    pairs = zip(other.learner.mac.parameters(), trained.learner.mac.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)
    assert other.evaluate_only() == other.last_test_return
    other.close()
    other.logger.close()

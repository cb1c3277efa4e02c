"""Whole runs of HAPPO and its relatives: a resumed run equals an uninterrupted one."""

import json

import pytest
from run_fixtures import assert_goes_on, finish, start_run

SMALL = [
    *("seed=3", "runner=vector", "use_cuda=False", "batch_size_run=4", "env_args.episode_limit=6"),
    *("test_interval=60", "test_nepisode=4", "learner_log_interval=1"),
    "save_model_interval=100000",
]
ON_POLICY = ["t_max=240", "batch_size=4", "buffer_size=4"]
# name -> configuration, environment, settings
RUNS = {
    "happo": (
        "happo",
        "spread",
        [*ON_POLICY, "rnn_hidden_dim=8", "critic_hidden_dim=8", "ppo_epochs=2"],
    ),
    "hatrpo": ("hatrpo", "spread", [*ON_POLICY, "rnn_hidden_dim=8", "critic_hidden_dim=8"]),
    "mat": ("mat", "spread", [*ON_POLICY, "mat_embed_dim=8", "ppo_epochs=2", "ppo_minibatches=2"]),
    "hasac": (
        "hasac",
        "spread",
        [
            *("t_max=240", "batch_size=16", "buffer_size=40", "steps_per_update=24"),
            *("updates_per_step=2", "critic_hidden_dim=8", "policy_hidden_dim=8"),
            "tune_alpha=True",
        ],
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_equals_the_uninterrupted_one(name, tmp_path):
    algorithm, env, settings = RUNS[name]

    def start(run_dir):
        return start_run(algorithm, env, run_dir, [*SMALL, *settings])

    finish(start(tmp_path / "whole"))
    assert_goes_on(start, tmp_path, 100)
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    assert {"test_return_mean", "policy_entropy", "loss_policy", "loss_value"} <= keys

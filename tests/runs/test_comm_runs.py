"""Whole runs of agents that talk: they train, a resumed run equals an uninterrupted one, what was
said is counted.
"""

import json

import pytest
import torch
from comm_fixtures import SMALL
from run_fixtures import assert_goes_on, finish, start_run

from utils.config import list_configs, load_file
from utils.config_files import CONFIG_DIR

TALKING = [
    name
    for name in list_configs("algs")
    if load_file(CONFIG_DIR / "algs" / f"{name}.yaml").get("mac") == "comm_mac"
]
SETTINGS = [
    *("runner=vector", "batch_size_run=4", "batch_size=4", "buffer_size=20", "seed=3"),
    *("rnn_hidden_dim=8", "mixing_embed_dim=4", "hypernet_embed=8", "use_cuda=False"),
    *("epsilon_anneal_time=200", "target_update_interval=10", "test_interval=40"),
    *("test_nepisode=4", "learner_log_interval=1", "runner_log_interval=1", "t_max=160"),
    "save_model_interval=100000",
]


def start(algorithm, run_dir, *settings):
    sizes = SMALL.get(algorithm, {}) | ({"cama_parts": [4, 4]} if algorithm == "cama" else {})
    small = [f"{key}={value}" for key, value in sizes.items()]
    return start_run(algorithm, "hint", run_dir, [*SETTINGS, *small, *settings])


def points(run_dir, key):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["key"] == key]


def test_these_algorithms_talk():
    assert {"fullcomm", "qmix_comm", "maic", "ndq", "masia", "t2mac", "cama"} <= set(TALKING)


@pytest.mark.parametrize("algorithm", TALKING)
def test_resumed_run_equals_the_uninterrupted_one(algorithm, tmp_path):
    whole = start(algorithm, tmp_path / "whole")
    before = [param.detach().clone() for param in whole.learner.params]
    assert finish(whole) is not None
    moved = [not torch.equal(a, b) for a, b in zip(before, whole.learner.params, strict=True)]
    assert all(moved)
    sent = points(tmp_path / "whole", "numbers_sent_mean")
    assert len(sent) > 3
    assert min(sent) > 0
    assert len(points(tmp_path / "whole", "test_numbers_sent_mean")) > 3

    assert_goes_on(lambda run_dir: start(algorithm, run_dir), tmp_path, stop_at=80)


@pytest.mark.parametrize("algorithm", ["masia", "maic"])
def test_evaluation_of_saved_models(algorithm, tmp_path):
    trained = start(algorithm, tmp_path / "trained", "t_max=60")
    finish(trained)
    other = start(algorithm, tmp_path / "other", "seed=4")
    other.load_models(tmp_path / "trained" / "checkpoints", 0)
    for mine, theirs in zip(other.learner.params, trained.learner.params, strict=True):
        assert torch.equal(mine, theirs)
    assert other.evaluate_only() == other.last_test_return
    other.close()
    other.logger.close()


@pytest.mark.parametrize(
    ("algorithm", "size", "settings"), [("fullcomm", 8, []), ("s2q_comm", 8, ["s2q_select=zero"])]
)
def test_what_was_said_is_logged(algorithm, size, settings, tmp_path):
    """3 agents, each to 2 others: 8 entries of an observation, or a hidden state of 8."""
    finish(start(algorithm, tmp_path, "t_max=40", *settings))
    for key in ("numbers_sent_mean", "test_numbers_sent_mean"):
        assert set(points(tmp_path, key)) == {6.0 * size}


def test_agents_that_do_not_talk_log_nothing(tmp_path):
    finish(start("s2q", tmp_path, "t_max=40"))
    assert points(tmp_path, "return_mean")
    assert points(tmp_path, "numbers_sent_mean") == []

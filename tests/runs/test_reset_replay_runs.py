"""Whole runs of MARR: how often it learns and resets, and that a resumed run equals an
uninterrupted one.
"""

import json

import pytest
import torch
from run_fixtures import assert_goes_on, finish, start_run

from utils.config import CONFIG_DIR, load_file

SETTINGS = [
    *("runner=vector", "batch_size_run=4", "batch_size=4", "buffer_size=20", "seed=3"),
    *("rnn_hidden_dim=8", "mixing_embed_dim=4", "hypernet_embed=8", "use_cuda=False"),
    *("epsilon_anneal_time=200", "target_update_interval=10", "test_interval=40"),
    *("test_nepisode=4", "learner_log_interval=1", "runner_log_interval=1", "t_max=160"),
    *("save_model_interval=100000", "updates_per_collection=3", "reset_interval=9"),
]


def start(run_dir, *settings, algorithm="marr"):
    return start_run(algorithm, "hint", run_dir, [*SETTINGS, *settings])


@pytest.mark.parametrize("towards", ["initial", "fresh"])
def test_resumed_run_equals_the_uninterrupted_one(towards, tmp_path):
    """160 steps are 8 rounds of 4 episodes. Resets after 12, 24 (the run stopped after 16) and not
    since.
    """
    whole = start(tmp_path / "whole", f"reset_towards={towards}")
    resets, updates = [], []
    reset, train = whole.learner.resets.reset, whole.learner.train

    def noting_reset():
        resets.append((whole.episode, len(updates)))
        reset()

    def noting_train(batch, *args, **kwargs):
        updates.append(whole.episode)
        return train(batch, *args, **kwargs)

    whole.learner.resets.reset, whole.learner.train = noting_reset, noting_train
    assert finish(whole) is not None
    assert updates == [4 * n for n in range(1, 9) for _ in range(3)]
    # After the first update of the round in which they are due.
    assert resets == [(12, 7), (24, 16)]
    assert_goes_on(lambda run_dir: start(run_dir, f"reset_towards={towards}"), tmp_path, stop_at=80)


def losses(run_dir):
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line["value"] for line in lines if line["key"] == "loss_td"]


def test_without_its_parts_it_is_qmix(tmp_path):
    """Replay ratio 1, no resets, no scaling; each part alone changes the run."""
    same = ["updates_per_collection=1", "reset_interval=0", "amplitude_scaling=0"]
    weights, logged = [], []
    runs = [
        ("qmix", ["updates_per_collection=1", "reset_interval=0"]),
        ("marr", same),
        ("marr", [*same, "reset_interval=9"]),
        ("marr", [*same, "amplitude_scaling=0.2"]),
    ]
    for i, (algorithm, settings) in enumerate(runs):
        run = start(tmp_path / str(i), *settings, algorithm=algorithm)
        finish(run)
        weights.append(torch.cat([param.flatten() for param in run.learner.params]))
        logged.append(losses(tmp_path / str(i)))
    assert torch.equal(weights[0], weights[1])
    assert logged[0] == logged[1]
    for other in (2, 3):
        assert logged[0] != logged[other]
        assert not torch.equal(weights[0], weights[other])
    assert logged[2][:3] == logged[0][:3]  # until the first reset
    assert logged[3][0] != logged[0][0]


def test_the_papers_settings():
    marr, qmix = (load_file(CONFIG_DIR / "algs" / f"{name}.yaml") for name in ("marr", "qmix"))
    assert {key: value for key, value in marr.items() if qmix.get(key) != value} == {
        "updates_per_collection": 50,
        "batch_size": 32,
        "amplitude_scaling": 0.2,
        "reset_interval": 2000,
        "reset_keep": 0.8,
        "reset_towards": "initial",
    }

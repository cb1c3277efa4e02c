"""The benchmarks' reference computes what the learner computes; nothing here is timed."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_fixtures import Log, gradients

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import gate
from benchmarks.common import Ratio, Table, make_args, make_batch, make_learner
from benchmarks.learner_update import episode_lengths
from benchmarks.reference import QMIX, EpisodeBatch, dense_batch

FULL, RAGGED = (7, 7, 7, 7, 7), (4, 7, 2, 6, 4)


def both(lengths, terminated, **overrides):
    """One update of the learner and of the reference, from the same weights on the same batch."""
    args = make_args(
        n_agents=3, n_actions=4, obs_shape=5, state_shape=6, rnn_hidden_dim=8, mixing_embed_dim=6,
        hypernet_embed=7,
        learner_log_interval=1, **overrides,
    )  # fmt: skip
    learner = make_learner(args)
    learner.logger = Log()
    batch = make_batch(args, lengths, 7, terminated)
    reference = QMIX(args, learner)
    theirs = reference.train(dense_batch(batch)).item()
    learner.train(batch, 0, 0)
    return learner, reference, learner.logger.stats["loss_td"][0][0], theirs


@pytest.mark.parametrize("grad_norm_clip", [10.0, 0.01])
@pytest.mark.parametrize("td_lambda_pymarl", [False, True])
@pytest.mark.parametrize(("lengths", "terminated"), [(FULL, False), (FULL, True), (RAGGED, True)])
def test_reference_has_the_learners_loss_and_gradients(
    lengths, terminated, td_lambda_pymarl, grad_norm_clip
):
    learner, reference, ours, theirs = both(
        lengths, terminated, td_lambda_pymarl=td_lambda_pymarl, grad_norm_clip=grad_norm_clip
    )
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert ours > 0.1
    mine = gradients(learner)
    for name, network in (("agent", reference.mac.agent), ("mixer", reference.mixer)):
        for key, param in network.named_parameters():
            assert torch.allclose(mine.pop(f"{name}.{key}"), param.grad, rtol=1e-4, atol=1e-6), key
    assert not mine


def test_only_the_right_truncation_tells_them_apart():
    """A truncated episode shorter than the batch: PyMARL's recursion loses its bootstrap value."""
    _, _, ours, theirs = both(RAGGED, False)
    assert ours != pytest.approx(theirs, rel=1e-3)


@pytest.mark.parametrize(("episodes", "steps"), [(32, 60), (128, 150)])
def test_spread_lengths(episodes, steps):
    lengths = episode_lengths("spread", episodes, steps)
    assert lengths.shape == (episodes,)
    assert lengths.max() == steps
    assert lengths.min() >= 2
    assert 0.38 <= lengths.mean() / steps <= 0.43
    assert np.diff(lengths).min() < 0 < np.diff(lengths).max()  # not sorted


def test_pymarls_batch_takes_what_pymarls_takes():
    assert EpisodeBatch(make_args(), 1, 1).nbytes_per_step() == 3501


def test_written_tables(tmp_path):
    table = Table("name", "A title", ("what", "time [ms]"), note="a note")
    table.add("update, [b]old", 1.5)
    text = table.write(tmp_path)
    assert "| what           | time [ms] |\n" in text
    assert "| update, [b]old |       1.5 |\n" in text
    assert text.startswith("## A title\n")
    assert text.endswith("a note\n")
    with open(tmp_path / "name.csv", newline="") as file:
        assert list(csv.reader(file)) == [["what", "time [ms]"], ["update, [b]old", "1.5"]]


# -- beside the last release -----------------------------------------------------------------------


def ratio(value):
    return Ratio(value * 10, 10.0, value, value * 0.9, value * 1.1)


def test_what_a_changed_ratio_is_called():
    assert gate.verdict(1.0, None) == "new"
    assert gate.verdict(1.09, 1.0) == gate.verdict(0.91, 1.0) == "as before"
    assert gate.verdict(1.2, 1.0) == "SLOWER: 1.20 times the release's time"
    assert gate.verdict(0.5, 1.0) == "faster: 0.50 times the release's time"


def test_the_baseline_is_kept_and_compared(tmp_path):
    path = tmp_path / "baseline.json"
    assert gate.read_baseline(path)["ratios"] == {}
    gate.write_baseline({"a": ratio(2.0), "gone": ratio(1.0)}, path)
    baseline = gate.read_baseline(path)
    assert baseline["ratios"] == {"a": 2.0, "gone": 1.0}
    assert baseline["version"].count(".") == 2
    table = gate.table_of({"a": ratio(3.0), "b": ratio(1.0)}, baseline)
    assert [row[-1] for row in table.rows] == ["SLOWER: 1.50 times the release's time", "new"]
    assert [row[-2] for row in table.rows] == ["2.00", "-"]
    assert "No longer measured: gone." in table.note


def test_the_kept_baseline_has_what_is_measured():
    ratios = gate.read_baseline()["ratios"]
    assert set(ratios) == set(gate.MEASUREMENTS)
    assert all(value > 0 for value in ratios.values())

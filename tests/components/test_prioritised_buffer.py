"""Prioritised replay against plain loops, and whole runs with it that go on bit for bit."""

import numpy as np
import pytest
import torch
from learner_fixtures import make_args, make_batch
from run_fixtures import StopAt, finish, start_run

from assembly import build_buffer, build_learner
from components.episode_buffer import PrioritizedReplayBuffer
from utils.config import build_config
from utils.errors import ConfigError, UserError
from utils.observers import Interrupted

FLOOR = 1e-6


def make_buffer(n=5, **settings):
    """A buffer of 8 with the first `n` episodes of a batch, and that batch."""
    options = {"per_alpha": 0.7, "per_beta": 0.4, "t_max": 1000, "buffer_size": 8, **settings}
    args = make_args("qmix", use_per=True, seed=3, buffer_cpu_only=True, **options)
    lengths, ended = [7, 4, 2, 5, 6, 3, 7, 2][:n], [True] * n
    batch = make_batch(args, lengths, ended)
    args.episode_limit = batch.max_seq_length - 1
    buffer = build_buffer(args, None)
    assert isinstance(buffer, PrioritizedReplayBuffer)
    buffer.insert_episode_batch(batch)
    return buffer, batch, args


def slow_draws(priorities, alpha, uniform):
    """Where each of the stratified draws falls, by adding up one priority after the other."""
    shares = [p**alpha for p in priorities]
    found = []
    for i, u in enumerate(uniform):
        rest, k = (i + u) / len(uniform) * sum(shares), 0
        while rest >= shares[k] and k < len(shares) - 1:
            rest -= shares[k]
            k += 1
        found.append(k)
    return found


def test_draws_and_weights_equal_the_loop():
    buffer, batch, _args = make_buffer()
    priorities = [0.5, 3.0, 0.01, 1.0, 2.0]
    buffer.update_priorities(np.arange(5), priorities)
    for t, beta in ((0, 0.4), (500, 0.7), (1000, 1.0), (2000, 1.0)):
        state = buffer.rng.bit_generator.state
        uniform = np.random.default_rng(0)
        uniform.bit_generator.state = state
        drawn, episodes, weights = buffer.sample(4, t)
        assert episodes.tolist() == slow_draws(priorities, 0.7, uniform.random(4))
        total = sum(p**0.7 for p in priorities)
        ratios = [(5 * p**0.7 / total) ** -beta for p in priorities]
        assert weights == pytest.approx([ratios[k] / max(ratios) for k in episodes])
        for row, k in enumerate(episodes):
            n = int(batch.lengths()[k])
            assert torch.equal(drawn["obs"][row, :n], batch["obs"][k, :n])
            assert int(drawn.lengths()[row]) == n


def test_episodes_are_drawn_in_proportion_to_their_priorities():
    buffer, _, _ = make_buffer()
    priorities = np.array([0.5, 3.0, 0.1, 1.0, 2.0])
    buffer.update_priorities(np.arange(5), priorities)
    counts = np.zeros(5)
    for _ in range(3000):
        counts += np.bincount(buffer.sample(1, 0)[1], minlength=5)
    assert counts / counts.sum() == pytest.approx(
        priorities**0.7 / (priorities**0.7).sum(), abs=0.03
    )


def test_without_an_exponent_all_are_equal():
    buffer, _, _ = make_buffer(per_alpha=0.0)
    buffer.update_priorities(np.arange(5), [0.5, 3.0, 0.01, 1.0, 2.0])
    _, episodes, weights = buffer.sample(5, 0)
    assert episodes.tolist() == [0, 1, 2, 3, 4]  # one from each fifth
    assert weights.tolist() == [1.0] * 5


def test_new_episodes_have_the_largest_priority_and_old_ones_are_forgotten():
    buffer, batch, _ = make_buffer()
    buffer.update_priorities(np.array([1, 3]), [0.25, 4.0])
    buffer.insert_episode_batch(batch)  # to 5, 6, 7, 0, 1
    expected = [4.0, 4.0, 1.0, 4.0, 1.0, 4.0, 4.0, 4.0]
    assert buffer.priorities == pytest.approx(np.array(expected) ** 0.7)


def test_priorities_by_return():
    buffer, batch, _ = make_buffer(return_priority=True)
    n = batch.lengths()
    returns = [float(batch["reward"][k, : n[k] - 1].sum()) for k in range(5)]
    low, high = np.inf, -np.inf
    for drawn in ([0, 2], [1, 2, 4], [3]):
        buffer.update_priorities(np.array(drawn), [float("nan")] * len(drawn))
        low, high = (
            min([low, *(returns[k] for k in drawn)]),
            max([high, *(returns[k] for k in drawn)]),
        )
        scaled = [(returns[k] - low) / (high - low + 1e-5) + FLOOR for k in drawn]
        assert buffer.priorities[drawn] == pytest.approx(np.array(scaled) ** 0.7)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_priority_is_a_number_above_0(bad):
    buffer, _, _ = make_buffer()
    with pytest.raises(ValueError, match="priorities must be greater than 0 and finite"):
        buffer.update_priorities(np.array([0, 1]), [1.0, bad])


@pytest.mark.parametrize("by_return", [False, True])
def test_state(by_return):
    buffer, batch, _ = make_buffer(return_priority=by_return)
    buffer.update_priorities(np.array([1, 3]), [0.25, 4.0])
    other = make_buffer(n=1, return_priority=by_return)[0]
    other.load_state_dict(buffer.state_dict())
    for one in (buffer, other):
        one.insert_episode_batch(batch)
    for t in (0, 10):
        mine, theirs = buffer.sample(4, t), other.sample(4, t)
        assert torch.equal(mine[0]["obs"], theirs[0]["obs"])
        assert np.array_equal(mine[1], theirs[1])
        assert np.array_equal(mine[2], theirs[2])
        for one, drawn in ((buffer, mine), (other, theirs)):
            one.update_priorities(drawn[1], np.arange(4) + 0.5)
    with pytest.raises(UserError, match="no priorities: set use_per=False"):
        other.load_state_dict(
            {key: x for key, x in buffer.state_dict().items() if key != "priorities"}
        )


# -- runs ------------------------------------------------------------------------------------------

SMALL = [
    *("runner=vector", "batch_size_run=4", "batch_size=4", "buffer_size=12", "seed=3"),
    *("env_args.episode_limit=6", "rnn_hidden_dim=8", "test_interval=72", "test_nepisode=4"),
    *("use_cuda=False", "epsilon_anneal_time=200", "target_update_interval=10", "t_max=240"),
    *("learner_log_interval=1", "runner_log_interval=1", "use_per=True"),
]


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [("qmix", []), ("qmix", ["return_priority=True"]), ("iql_ns", []), ("dac", []), ("s2q", [])],
    ids=str,
)
def test_a_resumed_run_equals_the_uninterrupted_one(algorithm, settings, tmp_path):
    def start(folder):
        return start_run(algorithm, "predator_prey", tmp_path / folder, [*SMALL, *settings])

    whole = start("whole")
    finish(whole)
    assert len(set(whole.buffer.priorities)) > 1
    half = start("parts")
    half.stop = StopAt(half.runner, 100)
    with pytest.raises(Interrupted):
        finish(half)
    rest = start("parts")
    torch.manual_seed(99)
    rest.load(tmp_path / "parts" / "checkpoints" / str(half.runner.t_env))
    finish(rest)
    first, second = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert first.read_bytes() == second.read_bytes()
    assert np.array_equal(whole.buffer.priorities, rest.buffer.priorities)


def test_errors_are_one_line():
    with pytest.raises(ConfigError, match="use_per draws whole episodes: set replay=episodes"):
        build_config("maac", "spread", ["use_per=True"])
    args = make_args("mappo", use_per=True)
    with pytest.raises(ConfigError, match="does not weight episodes"):
        build_learner(args, None)

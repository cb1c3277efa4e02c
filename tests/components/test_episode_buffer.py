"""EpisodeBatch and ReplayBuffer: PyMARL's interface, compact storage, sampling."""

import numpy as np
import pytest
import torch

from components import episode_buffer
from components.episode_buffer import EpisodeBatch, ReplayBuffer
from components.transforms import OneHot
from utils.errors import UserError

A, U, O, S, T = 6, 14, 78, 140, 5


def scheme(n_rewards=1):
    return {
        "state": {"vshape": S},
        "obs": {"vshape": O, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (U,), "group": "agents", "dtype": torch.uint8},
        "reward": {"vshape": (n_rewards,)},
        "terminated": {"vshape": (1,), "dtype": torch.uint8},
        "truncated": {"vshape": (1,), "dtype": torch.uint8},
    }


GROUPS = {"agents": A}
PREPROCESS = {"actions": ("actions_onehot", [OneHot(out_dim=U)])}


def make_batch(lengths, seed=0, n_rewards=1):
    """Episodes of `lengths` transitions with random content."""
    gen = torch.Generator().manual_seed(seed)
    batch = EpisodeBatch(scheme(n_rewards), GROUPS, len(lengths), T, preprocess=PREPROCESS)
    for b, length in enumerate(lengths):
        for t in range(length + 1):
            batch.update(
                {
                    "state": torch.randn(S, generator=gen),
                    "obs": torch.randn(A, O, generator=gen),
                    "avail_actions": torch.ones(A, U),
                    "actions": torch.randint(U, (A, 1), generator=gen),
                    "reward": torch.randn(n_rewards, generator=gen),
                    "terminated": [t == length - 1],
                },
                bs=b,
                ts=t,
            )
    return batch


def test_actions_are_stored_in_a_byte_and_read_as_int64():
    batch = make_batch([2, 3])
    assert batch.stored("actions").dtype == torch.uint8
    assert batch["actions"].dtype == torch.int64
    assert batch["obs"].dtype == torch.float32
    assert batch["terminated"].dtype == torch.uint8


def test_onehot_is_derived_and_follows_later_writes():
    batch = make_batch([2, 3])
    onehot = batch["actions_onehot"]
    assert onehot.shape == (2, T, A, U)
    for b in range(2):
        for t in range(T):
            for a in range(A):
                expected = [0.0] * U
                expected[int(batch["actions"][b, t, a, 0])] = 1.0
                assert onehot[b, t, a].tolist() == expected
    batch.update({"actions": torch.full((A, 1), 7)}, bs=0, ts=1)
    assert (batch["actions_onehot"][0, 1].argmax(-1) == 7).all()
    assert "actions_onehot" not in batch.data.transition_data


def test_int16_is_used_where_a_byte_is_too_small():
    wide = {"actions": ("actions_onehot", [OneHot(out_dim=300)])}
    batch = EpisodeBatch(scheme(), GROUPS, 1, T, preprocess=wide)
    batch.update({"actions": torch.full((A, 1), 299)}, bs=0, ts=0)
    assert batch.stored("actions").dtype == torch.int16
    assert (batch["actions"][0, 0] == 299).all()


def test_indexing_by_slices_lists_and_names_as_in_pymarl():
    batch = make_batch([2, 3, 4])
    part = batch[1:, :2]
    assert (part.batch_size, part.max_seq_length) == (2, 2)
    assert torch.equal(part["obs"], batch["obs"][1:, :2])
    picked = batch[[2, 0]]
    assert torch.equal(picked["state"], batch["state"][[2, 0]])
    both = batch[[2, 0], [0, 3]]
    assert torch.equal(both["state"], batch["state"][[2, 0]][:, [0, 3]])
    assert batch[-1]["obs"].shape[0] == 1
    assert torch.equal(batch[-1]["obs"], batch["obs"][2:3])
    named = batch["obs", "actions_onehot"]
    assert torch.equal(named["actions_onehot"], batch["actions_onehot"])
    with pytest.raises(KeyError, match="state"):
        named["state"]
    # A slice is a view: PyMARL's runners write through it.
    part.update({"reward": [[5.0], [6.0]]}, ts=0)
    assert batch["reward"][1:, 0, 0].tolist() == [5.0, 6.0]


def test_max_t_filled_lengths_and_steps():
    batch = make_batch([2, 3, 1])
    assert int(batch.max_t_filled()) == 4
    assert batch.lengths().tolist() == [3, 4, 2]
    assert batch.steps().sizes == [3, 3, 2, 1]
    batch.update({"reward": [[1.0]]}, bs=2, ts=2)
    assert batch.steps().sizes == [3, 3, 3, 1]


def test_update_refuses_unknown_names_and_wrong_shapes():
    batch = make_batch([2])
    with pytest.raises(KeyError, match="velocity"):
        batch.update({"velocity": [1.0]})
    with pytest.raises(ValueError, match="obs"):
        batch.update({"obs": torch.zeros(A, O + 1)}, bs=0, ts=0)


def test_bytes_per_step_are_at_most_three_quarters_of_pymarls():
    # PyMARL2 stores 3,501 bytes per step of 6h_vs_8z (these shapes).
    full = EpisodeBatch(scheme(), GROUPS, 10, T, preprocess=PREPROCESS)
    assert full.nbytes() == sum(
        v.numel() * v.element_size() for v in full.data.transition_data.values()
    )
    assert full.nbytes() / (10 * T) <= 0.75 * 3501
    half = ReplayBuffer(scheme(), GROUPS, 10, T, preprocess=PREPROCESS, dtype=torch.float16)
    assert half.nbytes() / (10 * T) <= 0.4 * 3501


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_ring_keeps_the_newest_episodes_and_samples_them_whole(dtype):
    buffer = ReplayBuffer(scheme(), GROUPS, 5, T, preprocess=PREPROCESS, seed=3, dtype=dtype)
    assert not buffer.can_sample(1)
    batches = [make_batch([1, 2], 0), make_batch([3, 4], 1), make_batch([2, 1], 2)]
    for batch in batches:
        buffer.insert_episode_batch(batch)
    assert (buffer.episodes_in_buffer, buffer.buffer_index) == (5, 1)
    # Slot 0 was overwritten by the last inserted episode.
    expected = [(2, 1), (0, 1), (1, 0), (1, 1), (2, 0)]
    sample = buffer.sample(5)
    assert sample["obs"].dtype == torch.float32
    assert sample.max_seq_length == 5
    found = set()
    for row in range(5):
        for source, index in expected:
            original = batches[source]["obs"][index].to(dtype).float()
            if torch.equal(sample["obs"][row], original):
                found.add((source, index))
                assert torch.equal(sample["actions"][row], batches[source]["actions"][index])
                assert torch.equal(sample["filled"][row], batches[source]["filled"][index])
    assert found == set(expected)
    latest = buffer.sample_latest(2)
    assert torch.equal(latest["actions"], batches[2]["actions"][:, : latest.max_seq_length])
    both = buffer.sample_beside_latest(5, 2)
    steps = latest.max_seq_length
    assert torch.equal(both["actions"][:2, :steps], latest["actions"])
    lengths = both.lengths().tolist()
    assert lengths[:2] == latest.lengths().tolist()
    assert sorted(lengths[2:]) == sorted(sample.lengths().tolist())  # each of the five once
    for draw in (buffer.sample, lambda n: buffer.sample_beside_latest(n, 2)):
        with pytest.raises(ValueError, match="6 of 5"):
            draw(6)
    with pytest.raises(ValueError, match="6 of 5"):
        buffer.sample_beside_latest(2, 6)


def test_stale_steps_of_a_longer_episode_are_cleared():
    buffer = ReplayBuffer(scheme(), GROUPS, 1, T, preprocess=PREPROCESS)
    buffer.insert_episode_batch(make_batch([4]))
    buffer.insert_episode_batch(make_batch([1])[:, :2])
    assert buffer.sample(1).max_seq_length == 2
    assert buffer["filled"].sum() == 2


def test_sampling_is_uniform_and_seeded():
    buffer = ReplayBuffer(scheme(), GROUPS, 6, T, seed=1)
    buffer.insert_episode_batch(EpisodeBatch(scheme(), GROUPS, 6, T))
    buffer.stored("state")[:, 0, 0] = torch.arange(6.0)
    buffer.episode_lengths[:] = 1
    counts = np.zeros(6)
    for _ in range(600):
        drawn = buffer.sample(2)["state"][:, 0, 0].int().tolist()
        assert len(set(drawn)) == 2
        counts[drawn] += 1
    # Binomial(600, 1/3): mean 200, standard deviation 11.5.
    assert np.abs(counts - 200).max() < 5 * 11.5
    twins = [ReplayBuffer(scheme(), GROUPS, 6, T, seed=9) for _ in range(2)]
    for twin in twins:
        twin.insert_episode_batch(make_batch([1, 2, 3, 4, 1, 2]))
    assert torch.equal(twins[0].sample(3)["obs"], twins[1].sample(3)["obs"])


def test_single_transitions_are_uniform_over_steps_and_carry_their_successor():
    buffer = ReplayBuffer(scheme(n_rewards=A), GROUPS, 4, T, preprocess=PREPROCESS, seed=0)
    batch = make_batch([1, 4, 2], n_rewards=A)
    buffer.insert_episode_batch(batch)
    assert buffer.n_transitions() == 7
    drawn = buffer.sample_transitions(7000)
    assert drawn["reward"].shape == (7000, A)
    assert drawn["actions"].dtype == torch.int64
    counts = {}
    for b, length in enumerate([1, 4, 2]):
        for t in range(length):
            hits = (drawn["state"] == batch["state"][b, t]).all(1)
            counts[b, t] = int(hits.sum())
            assert torch.equal(drawn["next_obs"][hits][0], batch["obs"][b, t + 1])
            assert torch.equal(drawn["actions"][hits][0], batch["actions"][b, t, :, 0])
            assert torch.equal(drawn["terminated"][hits][0], batch["terminated"][b, t].float())
    assert sum(counts.values()) == 7000
    # Each of the 7 transitions: mean 1000, standard deviation 29.
    assert max(abs(n - 1000) for n in counts.values()) < 5 * 29.3


def test_transitions_know_the_moments_of_all_stored_rewards():
    """Also where old episodes were overwritten, whatever lies behind an episode's end, and after a
    checkpoint.
    """
    buffer = ReplayBuffer(scheme(n_rewards=A), GROUPS, 4, T, preprocess=PREPROCESS, seed=0)
    lengths = [[1, 4, 2], [3, 2]]
    batches = [make_batch(some, seed, n_rewards=A) for seed, some in enumerate(lengths)]
    for batch in batches:
        batch.stored("reward")[:, -1] = 1e3
        buffer.insert_episode_batch(batch)
    # Four episodes fit: the last two of the first batch and both of the second.
    kept = [(batches[0], 1, 4), (batches[0], 2, 2), (batches[1], 0, 3), (batches[1], 1, 2)]
    rewards = np.array(
        [batch["reward"][b, t].tolist() for batch, b, length in kept for t in range(length)]
    )
    twin = ReplayBuffer(scheme(n_rewards=A), GROUPS, 4, T, preprocess=PREPROCESS, seed=1)
    twin.load_state_dict(buffer.state_dict())
    for drawn in (buffer.sample_transitions(50), twin.sample_transitions(50)):
        np.testing.assert_allclose(drawn.reward_mean, rewards.mean(0), rtol=1e-5)
        np.testing.assert_allclose(drawn.reward_std, rewards.std(0), rtol=1e-5)
        expected = (drawn["reward"].numpy() - rewards.mean(0)) / rewards.std(0)
        np.testing.assert_allclose(drawn.standardised_rewards(), expected, rtol=1e-4, atol=1e-5)


def test_a_history_is_what_came_before_in_the_episode():
    """Against a loop over the drawn transitions; the newest transitions come from the newest
    episodes, in order.
    """
    buffer = ReplayBuffer(scheme(n_rewards=A), GROUPS, 3, T, preprocess=PREPROCESS, seed=0)
    batches = [make_batch([1, 4, 2], 0, n_rewards=A), make_batch([3], 1, n_rewards=A)]
    for batch in batches:
        buffer.insert_episode_batch(batch)
    drawn = buffer.sample_transitions(300, history=3, recent=5)
    kept = [(batches[0], 1), (batches[0], 2), (batches[1], 0)]

    def check(transitions, n):
        state = transitions["state"][n]
        batch, b = next(
            (batch, b) for batch, b in kept if (batch["state"][b] == state).all(1).any()
        )
        t = int((batch["state"][b] == state).all(1).nonzero()[0])
        for h in range(3):
            before = t - 3 + h
            assert transitions["past_filled"][n, h] == (before >= 0)
            obs, actions = batch["obs"][b, before], batch["actions"][b, before, :, 0]
            assert torch.equal(
                transitions["past_obs"][n, h], obs if before >= 0 else torch.zeros_like(obs)
            )
            assert torch.equal(
                transitions["past_actions"][n, h],
                actions if before >= 0 else torch.zeros_like(actions),
            )
        return b, t

    for n in range(300):
        check(drawn, n)
    assert drawn.recent.size == 5
    assert [check(drawn.recent, n) for n in range(5)] == [(2, 0), (2, 1), (0, 0), (0, 1), (0, 2)]
    assert buffer.sample_transitions(3, recent=50).recent.size == 9


def test_constant_rewards_are_standardised_to_zero():
    buffer = ReplayBuffer(scheme(n_rewards=A), GROUPS, 4, T, preprocess=PREPROCESS, seed=0)
    batch = make_batch([3, 2], n_rewards=A)
    batch.stored("reward").fill_(-0.1)
    buffer.insert_episode_batch(batch)
    assert buffer.sample_transitions(5).standardised_rewards().abs().max() < 1e-3


def test_a_buffer_that_cannot_fit_is_a_clear_error_before_it_is_allocated(monkeypatch):
    monkeypatch.setattr(episode_buffer, "_free_memory", lambda device: 10_000)
    with pytest.raises(UserError, match="lower buffer_size"):
        ReplayBuffer(scheme(), GROUPS, 100, T)


def test_state_dict_restores_content_position_and_random_stream():
    buffer = ReplayBuffer(scheme(), GROUPS, 5, T, preprocess=PREPROCESS, seed=4)
    for seed in range(3):
        buffer.insert_episode_batch(make_batch([2, 3], seed))
    buffer.sample(2)
    state = buffer.state_dict()
    assert state["transition_data"]["obs"].shape[:2] == (5, 4)
    other = ReplayBuffer(scheme(), GROUPS, 5, T, preprocess=PREPROCESS, seed=99)
    other.load_state_dict(state)
    for _ in range(3):
        a, b = buffer.sample(3), other.sample(3)
        for key in ("obs", "actions", "reward", "filled", "terminated"):
            assert torch.equal(a[key], b[key])
    for each in (buffer, other):
        each.insert_episode_batch(make_batch([1], 7))
    assert torch.equal(buffer["obs"], other["obs"])
    with pytest.raises(UserError, match="buffer_size is 3"):
        ReplayBuffer(scheme(), GROUPS, 3, T, preprocess=PREPROCESS).load_state_dict(state)

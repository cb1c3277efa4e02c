"""Random amplitude scaling: one number for each episode, and nothing else is touched."""

import numpy as np
import pytest
import torch
from learner_fixtures import make_args, make_batch

from components.augmentation import AmplitudeScaling
from components.episode_buffer import ReplayBuffer
from utils.config import build_config
from utils.errors import ConfigError


def filled_buffer(args, dtype=torch.float32):
    batch = make_batch(args)
    buffer = ReplayBuffer(
        {key: spec for key, spec in batch.scheme.items() if key != "actions_onehot"},
        batch.groups,
        batch.batch_size,
        batch.max_seq_length,
        preprocess=batch.preprocess,
        dtype=dtype,
    )
    buffer.insert_episode_batch(batch)
    return buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_each_episode_is_scaled_as_a_whole(dtype):
    """All that is stored, drawn at once: the case in which a view would change the buffer."""
    buffer = filled_buffer(make_args(), dtype)
    stored = {key: value.clone() for key, value in buffer.data.transition_data.items()}
    plain, scaled = buffer.sample_latest(5), buffer.sample_latest(5)
    scaled["obs"]  # what was derived before is forgotten
    AmplitudeScaling(0.2, seed=3)(scaled)
    z = 1.0 + 0.2 * np.random.default_rng(3).uniform(-1.0, 1.0, 5)
    assert len(set(z)) == 5
    for b in range(5):
        for t in range(plain.max_seq_length):
            for key in ("obs", "state"):
                wanted = plain[key][b, t] * float(z[b])
                assert torch.allclose(scaled[key][b, t], wanted, rtol=1e-6)
    for key in ("actions", "actions_onehot", "avail_actions", "reward", "terminated", "filled"):
        assert torch.equal(scaled[key], plain[key])
    for key, value in stored.items():
        assert torch.equal(buffer.data.transition_data[key], value)


def test_numbers_fill_the_range():
    scaling, drawn = AmplitudeScaling(0.2, seed=0), []
    for _ in range(200):
        batch = make_batch(make_args())
        before = batch["state"][:, 0, 0].clone()
        scaling(batch)
        drawn += (batch["state"][:, 0, 0] / before).tolist()
    assert 0.8 <= min(drawn) < 0.81
    assert 1.19 < max(drawn) <= 1.2
    assert np.mean(drawn) == pytest.approx(1.0, abs=0.02)


def test_what_cannot_be_scaled():
    with pytest.raises(ConfigError, match="amplitude_scaling changes replayed episodes"):
        build_config("maac", "spread", ["amplitude_scaling=0.2"])
    with pytest.raises(ConfigError, match="amplitude_scaling must be at least 0 and less than 1"):
        build_config("qmix", "spread", ["amplitude_scaling=1"])

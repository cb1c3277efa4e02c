"""Changes to training batches that make more of the same episodes."""

from __future__ import annotations

import numpy as np
import torch

from components.episode_buffer import EpisodeBatch


class AmplitudeScaling:
    """Random amplitude scaling: what is seen in an episode, larger or smaller as a whole (Laskin et
    al. 2020; in MARR, Yang et al. 2024, of multi-agent episodes).

    One number z ~ U(1 - width, 1 + width) for each episode multiplies its observations and states
    at all steps. Actions, rewards and whatever else is stored stay as they are.

    Args:
        width: how far z may be from 1.
        seed: of the draws.

    Attributes:
        rng: their generator, part of a checkpoint.
    """

    SCALED = ("obs", "state")

    def __init__(self, width: float, seed: int) -> None:
        self.width = width
        self.rng = np.random.default_rng(seed)

    def __call__(self, batch: EpisodeBatch) -> None:
        """Scales a batch in place: one that shares no memory with the replay buffer, as those that
        it samples.
        """
        z = 1.0 + self.width * self.rng.uniform(-1.0, 1.0, batch.batch_size)
        for key in self.SCALED:
            stored = batch.stored(key)
            factors = torch.from_numpy(z).to(stored)
            stored.mul_(factors.view(-1, *[1] * (stored.dim() - 1)))
        batch.changed(*self.SCALED)

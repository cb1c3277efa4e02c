"""QMIX's update: this project's learner against PyMARL2-style stepping, on the CPU and on a GPU."""

from __future__ import annotations

import numpy as np
import torch

from benchmarks.common import Table, in_turn, make_args, make_batch, make_learner
from benchmarks.reference import QMIX, dense_batch

# (episodes, steps) -> what PyMARL2 itself was measured to take on one thread of a 2-core x86 machine [ms].
PYMARL2 = {(32, 60): "89", (128, 60): "274", (128, 150): "697", (32, 150): "-"}
TARGETS = {"full": 1.0, "spread": 0.5}


def episode_lengths(kind: str, episodes: int, steps: int) -> np.ndarray:
    """Filled steps of every episode: all `steps` ("full"), or spread as in training ("spread").

    Spread: `steps` times Beta(2, 3), whose mean is 0.4, at its (i + 0.5) / n quantiles, at least 2, the longest exactly
    `steps`; in random order.
    """
    if kind == "full":
        return np.full(episodes, steps)
    from scipy.stats import beta

    lengths = np.ceil(steps * beta(2, 3).ppf((np.arange(episodes) + 0.5) / episodes)).astype(int)
    lengths[-1] = steps
    return np.random.default_rng(0).permutation(lengths.clip(2, steps))


def compare(episodes: int, steps: int, kind: str, repetitions: int, device: str = "cpu"):
    """Time of one `train` on a batch that nobody has looked at before."""
    args = make_args(device=device)
    learner = make_learner(args)
    reference = QMIX(args, learner)
    batch = make_batch(args, episode_lengths(kind, episodes, steps), steps, terminated=kind == "spread")
    dense = dense_batch(batch)

    def ours():
        fresh = batch[:]  # the same data without anything derived from it
        return lambda: learner.train(fresh, 0, 0)

    def theirs():
        return lambda: reference.train(dense)

    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    return in_turn(ours, theirs, repetitions, synchronise=synchronise)

"""Independent random streams from the one `seed` of a run."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


def derive_seed(seed: int, role: str, index: int = 0) -> int:
    """A seed for one stream: equal for equal arguments, unrelated for others.

    Args:
        seed: the run's seed.
        role: what the stream is for, e.g. "train_env".
        index: which one of its role, e.g. the number of the environment.

    Returns:
        An int in [0, 2**31).
    """
    entropy = np.random.SeedSequence([seed, zlib.crc32(role.encode()), index])
    return int(entropy.generate_state(1)[0] >> 1)


def seed_globals(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators (torch's is the one networks and
    selectors use).
    """
    import torch

    random.seed(seed)
    # Plug-ins written for PyMARL draw from the global generator.
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def get_global_rng_state() -> dict[str, Any]:
    """The state of all global generators, as plain values and tensors that
    `torch.load(weights_only=True)` accepts.
    """
    import torch

    state = np.random.get_state()  # noqa: NPY002
    assert isinstance(state, tuple)
    name, keys, *rest = state
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_global_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `get_global_rng_state`."""
    import torch

    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def isolated_global_rng(seed: int) -> Iterator[None]:
    """Runs a block on global generators seeded with `seed` and then restores them as if nothing had
    been drawn.
    """
    state = get_global_rng_state()
    try:
        seed_globals(seed)
        yield
    finally:
        set_global_rng_state(state)

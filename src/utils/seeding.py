"""Independent random streams from the one `seed` of a run."""

from __future__ import annotations

import random
import zlib
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
    """Seeds Python's, NumPy's and torch's global generators (torch's is the one networks and selectors use)."""
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - plug-ins written for PyMARL draw from the global generator
    torch.manual_seed(seed)


def get_global_rng_state() -> dict[str, Any]:
    """The state of all global generators, as plain values and tensors that `torch.load(weights_only=True)` accepts."""
    import torch

    version, keys, gauss = random.getstate()
    name, mt, pos, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    state = {
        "python": [version, list(keys), gauss],
        "numpy": [name, torch.from_numpy(mt.astype(np.int64)), int(pos), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    return state


def set_global_rng_state(state: dict[str, Any]) -> None:
    """Inverse of `get_global_rng_state`."""
    import torch

    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    name, mt, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, mt.numpy().astype(np.uint32), pos, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])

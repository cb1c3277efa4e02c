"""What trained agents think of a matrix game with one state and three actions for each of two
agents.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from analysis.runs import Run
from assembly import build_mac, describe_env, new_batch
from components.episode_buffer import EpisodeBatch


def load_controller(run: Run, step: int) -> tuple[Any, EpisodeBatch]:
    """The controller in a run's checkpoint, in the one state of the game, and a batch that holds
    this state.
    """
    args = SimpleNamespace(**run.config)
    args.device = "cpu"
    sizes = {"n_agents": 2, "n_actions": 3, "obs_shape": 1, "state_shape": 1, "episode_limit": 1}
    describe_env(args, sizes)
    batch = new_batch(args, n_steps=2)
    batch.update(
        {"state": np.ones((1, 1)), "obs": np.ones((1, 2, 1)), "avail_actions": np.ones((1, 2, 3))},
        ts=0,
    )
    mac = build_mac(args)
    mac.load_models(str(run.path / "checkpoints" / str(step)))
    mac.init_hidden(1)
    return mac, batch

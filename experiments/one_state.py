"""What trained agents think of a matrix game with one state and three actions for each of two
agents.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from analysis.runs import Run
from components.episode_buffer import EpisodeBatch
from controllers import REGISTRY as CONTROLLERS


def load_controller(run: Run, step: int) -> tuple[Any, EpisodeBatch]:
    """The controller in a run's checkpoint, in the one state of the game, and a batch that holds
    this state.
    """
    sizes = {
        "n_agents": 2,
        "n_actions": 3,
        "obs_shape": 1,
        "state_shape": 1,
        "episode_limit": 1,
        "device": "cpu",
    }
    args = SimpleNamespace(**(dict(run.config) | sizes))
    scheme = {
        "state": {"vshape": 1},
        "obs": {"vshape": 1, "group": "agents"},
        "actions": {"vshape": (1,), "group": "agents", "dtype": torch.long},
        "avail_actions": {"vshape": (3,), "group": "agents", "dtype": torch.uint8},
    }
    groups = {"agents": 2}
    batch = EpisodeBatch(scheme, groups, 1, 2)
    batch.update(
        {"state": np.ones((1, 1)), "obs": np.ones((1, 2, 1)), "avail_actions": np.ones((1, 2, 3))},
        ts=0,
    )
    mac = CONTROLLERS[args.mac](scheme, groups, args)
    mac.load_models(str(run.path / "checkpoints" / str(step)))
    mac.init_hidden(1)
    return mac, batch

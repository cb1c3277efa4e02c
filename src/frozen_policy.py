"""A trained policy that only acts: the battle's opponents (`envs.magent_battle`)."""

from __future__ import annotations

import json
import math
import multiprocessing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from assembly import build_mac, describe_env, new_batch
from utils.checkpoints import find_models
from utils.config_files import CONFIG_DIR, read_file
from utils.errors import ConfigError, UserError
from utils.seeding import isolated_global_rng


class FrozenPolicy:
    """The greedy actions of a policy that this project trained, e.g. by IQL.

    It takes all agents of a team through its controller as in training.

    Args:
        path: a run's folder (its newest checkpoint) or the folder of one checkpoint.
        n_agents: of the team.
        obs_size: entries of an observation.
        n_actions: of each agent.

    Raises:
        ConfigError: no checkpoint there, or not one that fits this team.
    """

    def __init__(self, path: str, n_agents: int, obs_size: int, n_actions: int) -> None:
        if multiprocessing.parent_process() is not None:
            torch.set_num_threads(1)  # a worker among many
        run, folder = find_models(Path(path), f"env_args.opponent_path '{path}'")
        # Keys that are newer than the run are as they were without them.
        defaults = read_file(CONFIG_DIR / "default.yaml")
        args = SimpleNamespace(**defaults | json.loads((run / "config.json").read_text()))
        args.device = "cpu"
        sizes = {"n_agents": n_agents, "n_actions": n_actions, "obs_shape": obs_size}
        of_each = {"obs_sizes": (obs_size,) * n_agents, "action_sizes": (n_actions,) * n_agents}
        # Who only acts sees no state and no end of an episode.
        describe_env(args, {**sizes, **of_each, "state_shape": 1, "episode_limit": 1})
        self._n_actions = n_actions
        # the step before and this one: a controller reads no others
        self._batch = new_batch(args, n_steps=2)
        try:
            with isolated_global_rng(0):
                self._mac = build_mac(args)
            self._mac.load_models(str(folder))
        except (AttributeError, OSError, RuntimeError, UserError) as error:
            raise ConfigError(
                f"battle: the opponents in {folder} do not fit a team of {n_agents} agents (for "
                "another number than in training they need share_params=True and "
                f"obs_agent_id=False): {' '.join(str(error).split())}"
            ) from error
        self.reset()

    def reset(self) -> None:
        """An episode begins."""
        self._first = True
        self._mac.init_hidden(1)

    def act(self, obs: np.ndarray, alive: np.ndarray) -> np.ndarray:
        """Actions int [A], 0 for the dead, for observations [A, O] in which theirs are zero; alive:
        bool [A].
        """
        avail = np.ones((1, len(alive), self._n_actions), dtype=np.uint8)
        avail[0, ~alive, 1:] = 0
        t = 0 if self._first else 1
        self._batch.update({"obs": obs[None], "avail_actions": avail}, ts=t)
        with torch.no_grad():
            values = self._mac.forward(self._batch, t, test_mode=True)[0]
        values = values.masked_fill(torch.as_tensor(avail[0] == 0), -math.inf)
        actions = values.argmax(-1)
        self._batch.update({"actions": actions[None, :, None]}, ts=0)
        self._first = False
        return actions.numpy()

"""SMAC's own environment (https://github.com/oxwhirl/smac) in its place."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np

from envs.multiagentenv import Actions, MultiAgentEnv
from envs.starcraft.game.env import load_client
from utils.errors import MissingPackage

INSTALL = "pip install git+https://github.com/oxwhirl/smac.git"


def load_smac() -> type:
    """SMAC's class.

    Raises:
        MissingPackage: the package is not installed, cannot be imported, or is PyPI's package of
            the same name.
    """
    if importlib.util.find_spec("smac") is None:
        raise MissingPackage(
            f"engine: smac needs oxwhirl's package: {INSTALL}, or use engine: game"
        )
    try:
        return importlib.import_module("smac.env").StarCraft2Env
    except ModuleNotFoundError as error:
        if error.name == "smac.env":
            raise MissingPackage(
                "the installed package smac is PyPI's hyper-parameter optimiser, not StarCraft's: "
                f"pip uninstall smac && {INSTALL}"
            ) from None
        raise MissingPackage(f"smac cannot be imported ({error}): {INSTALL}") from error
    except Exception as error:
        reason = " ".join(str(error).split())
        raise MissingPackage(
            f"smac cannot be imported ({type(error).__name__}: {reason}): {INSTALL}"
        ) from error


class SmacEnv(MultiAgentEnv):
    """oxwhirl's `StarCraft2Env`, which launches and restarts its game by itself.

    After a lost connection it says that the episode has ended, with nothing in info: here that is
    `env_error`. Its games end with this process, as ours do: pysc2 launches them through
    `client.LeashedLinux`.

    Args:
        seed: SMAC can only be seeded when it is made.
        map_name, game_version: as SMAC understands them.
        game_timeout, start_interval: mean nothing to SMAC.
        env_args: SMAC's others.

    Raises:
        MissingPackage, UserError: SMAC, pysc2, the game or the map is not there.
    """

    def __init__(
        self,
        seed: int,
        map_name: str = "3m",
        game_version: str | None = None,
        game_timeout: float = 0.0,
        start_interval: float = 0.0,
        **env_args: Any,
    ) -> None:
        smac = load_smac()
        load_client().find_game(map_name, game_version)
        self.env = smac(map_name=map_name, game_version=game_version, seed=seed, **env_args)
        self.n_agents = self.env.n_agents
        self.episode_limit = self.env.episode_limit

    def step(self, actions: Actions) -> tuple[float, bool, dict[str, Any]]:
        reward, terminated, info = self.env.step(actions)
        if terminated and not info:
            return 0.0, True, {"env_error": True}
        return reward, terminated, info

    def reset(self) -> Any:
        return self.env.reset()

    def get_obs(self) -> list[np.ndarray]:
        return self.env.get_obs()

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        return self.env.get_obs_agent(agent_id)

    def get_obs_size(self) -> int:
        # one less than the vectors have where the time step is part of them
        return self.env.get_obs_size() + int(self.env.obs_timestep_number)

    def get_state(self) -> np.ndarray:
        return self.env.get_state()

    def get_state_size(self) -> int:
        if self.env.obs_instead_of_state:
            return self.get_obs_size() * self.n_agents
        return self.env.get_state_size()

    def get_avail_actions(self) -> list[Sequence[int]]:
        return self.env.get_avail_actions()

    def get_avail_agent_actions(self, agent_id: int) -> Sequence[int]:
        return self.env.get_avail_agent_actions(agent_id)

    def get_total_actions(self) -> int:
        return self.env.get_total_actions()

    def get_env_info(self) -> dict[str, Any]:
        return {**self.env.get_env_info(), **super().get_env_info()}

    def get_stats(self) -> dict[str, float]:
        return self.env.get_stats()

    def render(self) -> None:
        self.env.render()

    def save_replay(self) -> None:
        self.env.save_replay()

    def close(self) -> None:
        self.env.close()

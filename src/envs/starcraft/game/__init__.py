"""The real StarCraft II: `--env-config=sc2`. Needs pysc2, and for engine "smac" the package of that
name.
"""

from __future__ import annotations

from typing import Any

from envs.multiagentenv import MultiAgentEnv
from envs.starcraft.game.env import StarCraft2Env
from envs.starcraft.game.smac_env import SmacEnv
from envs.starcraft.options import SC2Options, takes
from utils.errors import ConfigError
from utils.registry import nearest

__all__ = ["SmacEnv", "StarCraft2Env", "make_env"]

ENGINES = {"game": StarCraft2Env, "smac": SmacEnv}


@takes(SC2Options)
def make_env(seed: int, engine: str = "game", **env_args: Any) -> MultiAgentEnv:
    """One environment on the real game.

    Args:
        seed: see `StarCraft2Env`.
        engine: "game" (this project's) or "smac" (oxwhirl's package).
        env_args: see `options.SC2Options`.

    Raises:
        ConfigError: an unknown engine; what the environments raise.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}' of sc2; {nearest(engine, ENGINES)}")
    return ENGINES[engine](seed=seed, **env_args)

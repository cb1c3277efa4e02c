"""The real StarCraft II: `--env-config=sc2`. Needs pysc2, and for engine "smac" the package of that
name.
"""

from __future__ import annotations

import inspect
from typing import Any

from envs.multiagentenv import MultiAgentEnv
from envs.starcraft.game.env import StarCraft2Env
from envs.starcraft.game.smac_env import SmacEnv
from envs.starcraft.interface import Options
from utils.errors import ConfigError
from utils.registry import nearest

__all__ = ["SmacEnv", "StarCraft2Env", "make_env"]

ENGINES = {"game": StarCraft2Env, "smac": SmacEnv}


def make_env(engine: str = "game", **env_args: Any) -> MultiAgentEnv:
    """One environment on the real game.

    Args:
        engine: "game" (this project's) or "smac" (oxwhirl's package).
        env_args: see `StarCraft2Env` and `interface.Options`.

    Raises:
        ConfigError: an unknown engine; what the environments raise.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}' of sc2; {nearest(engine, ENGINES)}")
    return ENGINES[engine](**env_args)


def _signature() -> inspect.Signature:
    """All arguments by name: `env_args` are checked against it."""
    parts = (make_env, StarCraft2Env, Options)
    parameters = [p for part in parts for p in inspect.signature(part).parameters.values()]
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in parameters if p.kind != p.VAR_KEYWORD]
    return inspect.Signature(named)


make_env.__signature__ = _signature()

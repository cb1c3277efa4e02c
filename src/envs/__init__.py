"""Environments by name.

`REGISTRY[name](**env_args)` gives one environment with PyMARL's interface, `VECTOR_REGISTRY[name](n_envs, **env_args)` many
at once; `make_vector_env` is how a run gets its environments. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec, SingleEnv, VectorEnv
from utils.errors import ConfigError
from utils.registry import Registry, nearest
from utils.seeding import derive_seed

__all__ = [
    "REGISTRY",
    "VECTOR_REGISTRY",
    "EnvSpec",
    "MultiAgentEnv",
    "SingleEnv",
    "VectorEnv",
    "make_vector_env",
    "register",
    "register_vector",
]

BACKENDS = ("native", "serial", "subproc")

REGISTRY = Registry("environment")
VECTOR_REGISTRY = Registry("batched environment")
register = REGISTRY.register

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lazy:
    """A class that is imported when it is first called."""

    module: str
    name: str

    def load(self) -> type:
        """The class itself."""
        return getattr(importlib.import_module(self.module), self.name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - an instance of whatever the class is
        return self.load()(*args, **kwargs)


@dataclass(frozen=True)
class Single:
    """Makes one environment with PyMARL's interface out of a batched one."""

    vector_env: Callable[..., VectorEnv]

    def __call__(self, **env_args: Any) -> SingleEnv:  # noqa: ANN401
        return SingleEnv(self.vector_env(1, **env_args))


def register_vector(name: str) -> Callable[[Callable[..., VectorEnv]], Callable[..., VectorEnv]]:
    """Class decorator for a `VectorEnv`: `@register_vector("my_env")`; it is then in `REGISTRY` too, as `SingleEnv`.

    Raises:
        ValueError: another environment already has this name.
    """

    def add(vector_env: Callable[..., VectorEnv]) -> Callable[..., VectorEnv]:
        VECTOR_REGISTRY.register(name)(vector_env)
        if REGISTRY.get(name) != Single(vector_env):
            REGISTRY.register(name)(Single(vector_env))
        return vector_env

    return add


register_vector("matrix_game")(Lazy("envs.matrix_game", "MatrixGame"))
register_vector("predator_prey")(Lazy("envs.predator_prey", "PredatorPrey"))
register_vector("switching_wind")(Lazy("envs.switching_wind", "SwitchingWind"))
register("gymma")(Lazy("envs.gymma", "GymmaEnv"))

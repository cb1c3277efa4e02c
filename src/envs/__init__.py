"""Environments by name.

`REGISTRY[name](**env_args)` gives one environment with PyMARL's interface,
`VECTOR_REGISTRY[name](n_envs, **env_args)` many at once; `make_vector_env` is how a run gets its
environments. Nothing is imported before it is asked for.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec, SingleEnv, VectorEnv, warm_up
from utils.errors import ConfigError
from utils.ranges import check_ranges
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

BACKENDS = ("native", "serial", "subproc", "ray")

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.load()(*args, **kwargs)


@dataclass(frozen=True)
class Single:
    """Makes one environment with PyMARL's interface out of a batched one."""

    vector_env: Callable[..., VectorEnv]

    def __call__(self, **env_args: Any) -> SingleEnv:
        return SingleEnv(self.vector_env(1, **env_args))


def register_vector(name: str) -> Callable[[Callable[..., VectorEnv]], Callable[..., VectorEnv]]:
    """Class decorator for a `VectorEnv`: `@register_vector("my_env")`; it is then in `REGISTRY`
    too, as `SingleEnv`.

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
register_vector("hint")(Lazy("envs.hint", "Hint"))
register_vector("sc2sim")(Lazy("envs.starcraft.env", "SC2Sim"))
register_vector("sc2sim_v2")(Lazy("envs.starcraft.v2", "SC2SimV2"))
register_vector("spread")(Lazy("envs.particle.spread", "Spread"))
register_vector("rover_tower")(Lazy("envs.particle.rover_tower", "RoverTower"))
register_vector("treasure_collection")(
    Lazy("envs.particle.treasure_collection", "TreasureCollection")
)
register_vector("lbf")(Lazy("envs.lbf.env", "LevelBasedForaging"))
register_vector("rware")(Lazy("envs.rware.env", "RobotWarehouse"))
register_vector("smax")(Lazy("envs.smax", "Smax"))
register_vector("vmas")(Lazy("envs.vmas", "Vmas"))
register("overcooked")(Lazy("envs.overcooked", "Overcooked"))
register("gymma")(Lazy("envs.gymma", "GymmaEnv"))
register("battle")(Lazy("envs.magent_battle", "BattleEnv"))
register("sc2")(Lazy("envs.starcraft.game", "make_env"))
register("sc2v2")(Lazy("envs.starcraft.upstream", "SC2V2Env"))
register("sc2hard")(Lazy("envs.starcraft.upstream", "SC2HardEnv"))
register("gfootball")(Lazy("envs.gfootball.env", "FootballEnv"))


def make_vector_env(
    name: str,
    env_args: dict[str, Any],
    n_envs: int,
    seed: int,
    backend: str,
    role: str,
    worker_setup: Callable[[], None] | None = None,
    env_timeout: float = 120.0,
    max_env_restarts: int = 5,
    ray: Mapping[str, Any] | None = None,
    optional_args: Collection[str] = (),
) -> VectorEnv:
    """B environments side by side.

    Args:
        name: a key of `REGISTRY`.
        env_args: the environment's arguments; `seed` is set here: environment b draws from a stream
            that depends on `seed`, `role` and b, not on `n_envs`.
        n_envs: B.
        seed: of the run.
        backend: "native" (batched; where the environment is not, "serial" with a line in the log),
            "serial" (in this process), "subproc" (a process each) or "ray" (a process each, on the
            nodes of a Ray cluster).
        role: the stream, e.g. "train_env" or "test_env".
        worker_setup: what worker processes do first, e.g. load the plug-ins that this process has
            loaded already; pickled by name.
        env_timeout: s, how long a worker process may take for one answer.
        max_env_restarts: more failures of one environment in a row than this raise `EnvFailure`.
        ray: for "ray": `address`, `envs_per_actor`, `resources` and `patience` of `RayVectorEnv`.
        optional_args: entries of `env_args` that an environment which does not know them does not
            get, with a line in the log.

    Raises:
        UserError: an unknown environment or argument, a value out of range.
        EnvFailure: the environments cannot be started.
    """
    factory = REGISTRY[name]
    if backend not in BACKENDS:
        raise ConfigError(f"unknown environment backend '{backend}'; {nearest(backend, BACKENDS)}")
    if n_envs < 1:
        raise ConfigError(f"the number of environments is {n_envs}, must be at least 1")
    if env_timeout <= 0:
        raise ConfigError(f"env_timeout is {env_timeout}, must be above 0 (seconds)")
    if max_env_restarts < 0:
        raise ConfigError(f"max_env_restarts is {max_env_restarts}, must not be negative")
    env_args = _known_args(name, factory, env_args, optional_args)
    _check_env_args(name, factory, env_args)
    if backend == "native" and name not in VECTOR_REGISTRY:
        _log.info(
            "environment '%s' is not batched: its %d copies are stepped one after the other",
            name,
            n_envs,
        )
        backend = "serial"
    if backend == "native":
        return VECTOR_REGISTRY[name](n_envs, **{**env_args, "seed": derive_seed(seed, role)})
    if backend == "serial":
        from envs.serial import SerialVectorEnv

        return SerialVectorEnv(factory, env_args, n_envs, seed, role, max_env_restarts)
    if name in VECTOR_REGISTRY:
        _log.info(
            "environment '%s' is natively batched: runner=vector needs no worker processes and is "
            "faster",
            name,
        )
    options = (factory, env_args, n_envs, seed, role, max_env_restarts, worker_setup, env_timeout)
    if backend == "ray":
        from envs.remote import RayVectorEnv

        return RayVectorEnv(*options, **(ray or {}))
    from envs.subproc import SubprocVectorEnv

    if name in VECTOR_REGISTRY:
        warm_up(VECTOR_REGISTRY[name], env_args)
    return SubprocVectorEnv(*options)


def _maker(factory: Callable[..., Any]) -> Callable[..., Any]:
    factory = factory.vector_env if isinstance(factory, Single) else factory
    return factory.load() if isinstance(factory, Lazy) else factory


def _known_args(
    name: str,
    factory: Callable[..., Any],
    env_args: dict[str, Any],
    optional: Collection[str],
) -> dict[str, Any]:
    """`env_args` without those of the `optional` ones that the environment does not know."""
    if not optional:
        return env_args
    parameters = inspect.signature(_maker(factory)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return env_args
    unknown = [key for key in env_args if key in optional and key not in parameters]
    for key in unknown:
        _log.warning(
            "environment '%s' has no argument env_args.%s: it does not get it; %s",
            name,
            key,
            nearest(key, set(parameters) - {"n_envs", "seed"}),
        )
    return {key: value for key, value in env_args.items() if key not in unknown}


def _check_env_args(name: str, factory: Callable[..., Any], env_args: dict[str, Any]) -> None:
    """Raises `ConfigError` for an argument that the environment does not know, one that it needs
    and lacks, or a value out of its `ranges` (environments from elsewhere may have none).
    """
    given = {**env_args, "seed": 0}
    if isinstance(factory, Single):
        given["n_envs"] = 1
    maker = _maker(factory)
    signature = inspect.signature(maker)
    try:
        signature.bind(**given)
    except TypeError as error:
        known = {
            p.name
            for p in signature.parameters.values()
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        }
        for key in sorted(set(given) - known):
            hint = nearest(key, known - {"n_envs", "seed"})
            raise ConfigError(
                f"environment '{name}' has no argument env_args.{key}; {hint}"
            ) from None
        raise ConfigError(f"environment '{name}': env_args: {error}") from None
    check_ranges(env_args, getattr(maker, "ranges", {}), "env_args.")

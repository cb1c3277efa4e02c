"""SMACv2 and SMAC-Hard on the real game: the packages themselves (Ellis et al. 2023; Deng et al.
2024), seeded.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from envs.multiagentenv import Actions
from envs.starcraft.facts import scenario, scenario_names
from envs.starcraft.game.env import load_client
from envs.starcraft.game.smac_env import SmacEnv
from envs.starcraft.options import (
    CAPABILITIES,
    TEAMS,
    HardOptions,
    SC2V2Options,
    defaults_of,
    ranges_of,
    takes,
)
from utils.errors import ConfigError, MissingPackage, UserError
from utils.registry import nearest
from utils.seeding import derive_seed

INSTALL = "pip install -r requirements-sc2v2.txt"
OURS = ("module", "kwargs")  # options that are not the package's
# SMACv2's maps by race; the teams' sizes are not the map's
V2_MAPS = {"T": "10gen_terran", "P": "10gen_protoss", "Z": "10gen_zerg"}


def load(name: str, module: str, instead: str) -> ModuleType:
    """The package's module.

    Args:
        name: of the environment, for messages.
        instead: what else there is.

    Raises:
        MissingPackage: it is not installed, or cannot be imported.
        UserError: StarCraft II is not there.
    """
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(f"{name} needs the package {package}: {INSTALL}; {instead}")
    load_client()  # launches games so that none outlives its process
    try:
        found = importlib.import_module(module)
    except Exception as error:  # it may fail in any way, protobuf's among them
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise MissingPackage(
            f"{module} cannot be imported ({reason}): {INSTALL}; {instead}"
        ) from error
    folder = Path(os.environ.get("SC2PATH", "~/StarCraftII")).expanduser()
    if not any(folder.glob("Versions/Base*/SC2_x64")):
        raise UserError(
            f"StarCraft II is not in {folder} (SC2PATH): bash install_sc2.sh installs it; {instead}"
        )
    return found


class Randomness:
    """Makes everything that a package draws outside of the game depend on a seed.

    SMACv2 draws teams and places from numpy Generators that its distributions make for themselves,
    without a seed, and shuffles teams with Python's global generator. All Generators that the
    package's objects hold are seeded here, each by its place; Python's and NumPy's global
    generators are the environment's own while its code runs, and put back afterwards.

    Args:
        root: the package's environment.
        package: its objects are looked into, others are not.
        seed: of it all.
    """

    def __init__(self, root: Any, package: str, seed: int) -> None:
        for path, generator in find_generators(root, package).items():
            bits = generator.bit_generator
            bits.state = type(bits)(derive_seed(seed, f"upstream{path}")).state
        self._python = random.Random(derive_seed(seed, "python")).getstate()
        self._numpy = np.random.RandomState(derive_seed(seed, "numpy")).get_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Runs a block on the environment's own global generators."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def find_generators(root: Any, package: str) -> dict[str, np.random.Generator]:
    """All numpy Generators in the attributes of the package's objects, and in their lists and
    mappings, by path.
    """
    found: dict[str, np.random.Generator] = {}
    seen: set[int] = set()

    def look(path: str, value: Any) -> None:
        if id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, np.random.Generator):
            found[path] = value
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                look(f"{path}.{key}", entry)
        elif isinstance(value, (list, tuple)):
            for i, entry in enumerate(value):
                look(f"{path}.{i}", entry)
        elif type(value).__module__.partition(".")[0] == package and hasattr(value, "__dict__"):
            look(path, vars(value))

    look("", root)
    return found


class UpstreamEnv(SmacEnv):
    """A package with SMAC's interface: seeded, and a lost game is `env_error`, as in `SmacEnv`.

    The random state cannot be saved: a real game cannot be rewound.

    Args:
        name: of the environment, for messages.
        make: the package's class.
        parameters_of: the class whose arguments count, where `make` takes any.
        seed: of the game, the teams and the places.
        options: its arguments. One that the installed version does not have is left out if it is
            at its default.

    Raises:
        ConfigError: an argument that the installed version does not have.
    """

    def __init__(
        self,
        name: str,
        make: type,
        parameters_of: type,
        seed: int,
        options: HardOptions,
    ) -> None:
        parameters = inspect.signature(parameters_of).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        defaults, given, kwargs = defaults_of(type(options)), {}, options.kwargs or {}
        for key, value in vars(options).items():
            if key in OURS:
                continue
            if anything or key in parameters:
                given[key] = value
            elif value != defaults[key]:
                raise ConfigError(
                    f"{name}: the installed {make.__module__} has no argument {key}: leave it as "
                    "it was"
                )
        for key in kwargs:
            if not (anything or key in parameters):
                raise ConfigError(
                    f"{name}: env_args.kwargs has '{key}', which the installed version does not "
                    "take"
                )
        # not SmacEnv's __init__, which makes SMAC's own environment
        self.env = make(**{**given, **kwargs, "seed": seed})
        self.n_agents = self.env.n_agents
        self.episode_limit = self.env.episode_limit
        self._randomness = Randomness(self.env, make.__module__.partition(".")[0], seed)

    def reset(self) -> Any:
        with self._randomness.active():
            return super().reset()

    def step(self, actions: Actions) -> tuple[float, bool, dict[str, Any]]:
        with self._randomness.active():
            return super().step(actions)

    def get_obs(self) -> list[np.ndarray]:
        # with prob_obs_enemy below 1, SMACv2 draws while it builds observations
        with self._randomness.active():
            return super().get_obs()

    def get_obs_agent(self, agent_id: int) -> np.ndarray:
        with self._randomness.active():
            return super().get_obs_agent(agent_id)

    def get_state(self) -> np.ndarray:
        with self._randomness.active():
            return super().get_state()


class SC2V2Env(UpstreamEnv):
    """SMACv2's own `StarCraftCapabilityEnvWrapper`.

    Args:
        seed: of the game, the teams and the places.
        options: see `options.SC2V2Options`. `map_name` is a scenario, e.g. "terran_5_vs_5", which
            says what is drawn, or one of the package's maps, e.g. "10gen_terran", and then
            `capability_config` says it all.

    Raises:
        ConfigError: an unknown scenario, an argument that the installed version does not have, a
            value out of range.
        MissingPackage, UserError: SMACv2, pysc2 or the game is not there.
    """

    ranges = ranges_of(SC2V2Options)

    @takes(SC2V2Options)
    def __init__(self, seed: int, **options: Any) -> None:
        given = SC2V2Options(**options)
        map_name, config = capabilities(given.map_name, given.capability_config or {})
        found = load(
            "sc2v2", given.module, "--env-config=sc2sim_v2 simulates its scenarios without"
        )
        super().__init__(
            "sc2v2",
            found.StarCraftCapabilityEnvWrapper,
            found.StarCraft2Env,
            seed,
            replace(given, map_name=map_name, capability_config=config),
        )


class SC2HardEnv(UpstreamEnv):
    """SMAC-Hard's own `StarCraft2Env`: SMAC's maps against scripts that it draws.

    Args:
        seed: of the game and the scripts.
        options: see `options.HardOptions`.

    Raises:
        ConfigError: an argument that the installed version does not have, a value out of range.
        MissingPackage, UserError: SMAC-Hard, pysc2 or the game is not there.
    """

    ranges = ranges_of(HardOptions)

    @takes(HardOptions)
    def __init__(self, seed: int, **options: Any) -> None:
        given = HardOptions(**options)
        instead = "--env-config=sc2sim with env_args.opponents=mixture simulates its scripts"
        found = load("sc2hard", given.module, instead)
        super().__init__("sc2hard", found.StarCraft2Env, found.StarCraft2Env, seed, given)


def capabilities(map_name: str, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The package's map, and its `capability_config` for a scenario with what `config` changes in
    it.

    Raises:
        ConfigError: `map_name` is no scenario, and `config` does not say how large the teams are.
    """
    if map_name not in scenario_names():
        if "n_units" not in config or "n_enemies" not in config:
            raise ConfigError(
                f"sc2v2: unknown scenario '{map_name}'; {nearest(map_name, scenario_names())} "
                "(one of SMACv2's maps needs a whole capability_config)"
            )
        return map_name, deepcopy(dict(config))
    given = scenario(map_name)
    whole: dict[str, Any] = {
        "n_units": given.n_agents,
        "n_enemies": given.n_enemies,
        "team_gen": {
            "dist_type": TEAMS,
            "unit_types": [unit.lower() for unit in given.units],
            "weights": list(given.weights),
            "exception_unit_types": [unit.lower() for unit in given.not_whole_team],
            "observe": True,
        },
        "start_positions": dict(CAPABILITIES["start_positions"]),
    }
    for key, value in config.items():
        old = whole.get(key)
        whole[key] = (
            {**old, **value}
            if isinstance(old, dict) and isinstance(value, Mapping)
            else deepcopy(value)
        )
    return V2_MAPS[given.race], whole

"""SMACv2's scenarios (Ellis et al. 2023) in the simulator: teams and places are drawn anew in every
episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.starcraft.env import Simulation
from envs.starcraft.facts import (
    SHOOT_RANGE,
    SIGHT_RANGE,
    UNIT_INDEX,
    UNIT_NAMES,
    V2_SHOOT_RANGE,
    V2_SHOOT_RANGE_FLOOR,
    V2_SIGHT_RANGE,
    Scenario,
    scenario,
)
from envs.starcraft.options import (
    CAPABILITIES,
    EITHER,
    FIELD_SIDE,
    REFLECT,
    SURROUND,
    TEAMS,
    SimulatorV2Options,
    ranges_of,
    takes,
)
from utils.errors import ConfigError
from utils.registry import nearest

SIDE = float(FIELD_SIDE)
# agents of a reflected start stand up to here in x, the enemies beside their images from
# ENEMIES_FROM
AGENTS_REACH = 15.0
ENEMIES_FROM = 16.0
CENTRE = SIDE / 2
DIAGONALS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
CLEARANCE = 2.0  # groups that surround the agents keep this far from the centre, in x and in y


@dataclass(frozen=True)
class Draw:
    """How an episode's units and their places are drawn.

    Args:
        n_agents, n_enemies: A, E.
        units: type indices to draw from; weights: their chances, summing to 1.
        exceptions: types of which no whole team consists.
        surround: chance that the enemies surround the agents; else they are reflected.
    """

    n_agents: int
    n_enemies: int
    units: tuple[int, ...]
    weights: tuple[float, ...]
    exceptions: tuple[int, ...]
    surround: float

    def __call__(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Types (int64 [A + E]) and creation points (float64 [A + E, 2]), agents first,
        unsorted.
        """
        agents = self._team(rng, self.n_agents)
        extra = self.n_enemies - self.n_agents
        enemies = (
            np.concatenate([agents, self._team(rng, extra)])
            if extra > 0
            else agents[: self.n_enemies]
        )
        places = self._surrounded(rng) if rng.random() < self.surround else self._reflected(rng)
        return np.concatenate([agents, enemies]), places

    def _team(self, rng: np.random.Generator, n: int) -> np.ndarray:
        while True:
            team = np.array(self.units, dtype=np.int64)[
                rng.choice(len(self.units), size=n, p=self.weights)
            ]
            if team[0] not in self.exceptions or (team != team[0]).any():
                return team

    def _reflected(self, rng: np.random.Generator) -> np.ndarray:
        agents = rng.uniform((0.0, 0.0), (AGENTS_REACH, SIDE), (self.n_agents, 2))
        images = agents[: self.n_enemies].copy()
        images[:, 0] = SIDE - images[:, 0]
        extra = rng.uniform(
            (ENEMIES_FROM, 0.0), (SIDE, SIDE), (max(self.n_enemies - self.n_agents, 0), 2)
        )
        return np.concatenate([agents, images, extra])

    def _surrounded(self, rng: np.random.Generator) -> np.ndarray:
        groups = int(rng.integers(1, len(DIAGONALS) + 1))
        diagonals = DIAGONALS[rng.permutation(len(DIAGONALS))[:groups]]
        inwards = rng.random((groups, 1))
        places = CENTRE + diagonals * (inwards * CLEARANCE + (1 - inwards) * CENTRE)
        members = rng.multinomial(self.n_enemies, np.full(groups, 1 / groups))
        agents = np.full((self.n_agents, 2), CENTRE)
        return np.concatenate([agents, np.repeat(places, members, axis=0)])


class SC2SimV2(Simulation):
    """B simulated battles of one of SMACv2's scenarios.

    Each enemy attacks the closest agent until that is dead, then the next (chosen once per step:
    half a game second with the default step_mul). What scales battle b's rewards is its first team,
    so a win may return more or less than reward_scale_rate, as in SMACv2.

    Args:
        n_envs, seed: see `SC2Sim`.
        options: see `options.SimulatorV2Options`.

    Raises:
        ConfigError: an unknown scenario, a value out of range.
    """

    ranges = ranges_of(SimulatorV2Options)

    @takes(SimulatorV2Options)
    def __init__(self, n_envs: int, seed: int | None = None, **options: Any) -> None:
        given = SimulatorV2Options(**options)
        of_name = scenario(given.map_name)
        self.draw = make_draw(of_name, given.capability_config)
        ranges = _unit_ranges() if given.use_unit_ranges else {}
        super().__init__(
            n_envs,
            seed,
            of_name.map_info(self.draw.n_agents, self.draw.n_enemies),
            given,
            base="hunt",
            engine={"draw": self.draw},
            **ranges,
        )


def _unit_ranges() -> dict[str, np.ndarray]:
    """Sight and shooting range by the agent's type, float64 [types]."""
    shoot = _by_type(V2_SHOOT_RANGE, SHOOT_RANGE)
    return {
        "sight": _by_type(V2_SIGHT_RANGE, SIGHT_RANGE),
        "shoot": np.maximum(shoot, V2_SHOOT_RANGE_FLOOR),
    }


def _by_type(ranges: Mapping[str, float], default: float) -> np.ndarray:
    return np.array([ranges.get(name, default) for name in UNIT_NAMES], dtype=np.float64)


def make_draw(given: Scenario, config: Mapping[str, Any]) -> Draw:
    """The scenario's way to draw episodes, with what SMACv2's `capability_config` changes, see
    `CAPABILITIES`.

    Raises:
        ConfigError: an unknown key or distribution, an impossible team.
    """
    whole = _keys("capability_config", config, CAPABILITIES)
    teams = _keys("team_gen", whole["team_gen"], CAPABILITIES["team_gen"])
    places = _keys("start_positions", whole["start_positions"], CAPABILITIES["start_positions"])

    if teams["dist_type"] != TEAMS:
        raise ConfigError(f"team_gen.dist_type is {teams['dist_type']!r}, there is only {TEAMS}")
    units = _units("unit_types", teams["unit_types"], given) or given.units
    weights = teams["weights"]
    if weights is None:
        weights = [given.weights[given.units.index(unit)] for unit in units]
    numbers = [
        w
        for w in weights
        if not isinstance(w, bool) and isinstance(w, (int, float)) and 0 <= w < np.inf
    ]
    if len(numbers) != len(units) or len(weights) != len(units) or sum(numbers) <= 0:
        raise ConfigError(
            f"team_gen.weights are {list(weights)}: one number from 0 for each of "
            f"{', '.join(units)}"
        )
    exceptions = given.not_whole_team
    if teams["exception_unit_types"] is not None:
        exceptions = _units("exception_unit_types", teams["exception_unit_types"], given)
    if not any(w > 0 for unit, w in zip(units, numbers, strict=True) if unit not in exceptions):
        raise ConfigError(
            f"team_gen: no team can be drawn: only {', '.join(exceptions)} have weight"
        )

    kind = places["dist_type"]
    chances = {SURROUND: 1.0, REFLECT: 0.0, EITHER: places["p"]}
    if kind not in chances:
        raise ConfigError(
            f"start_positions.dist_type: unknown '{kind}'; {nearest(str(kind), tuple(chances))}"
        )
    return Draw(
        n_agents=whole["n_units"] or given.n_agents,
        n_enemies=whole["n_enemies"] or given.n_enemies,
        units=tuple(UNIT_INDEX[unit] for unit in units),
        weights=tuple(w / sum(numbers) for w in numbers),
        exceptions=tuple(UNIT_INDEX[unit] for unit in exceptions),
        surround=float(chances[kind]),
    )


def _keys(where: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all known keys, as given or, where that is None, by default."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"sc2sim_v2: {where} is {given!r}, must be a mapping with {', '.join(defaults)}"
        )
    for key in given:
        if key not in defaults:
            raise ConfigError(
                f"sc2sim_v2: {where} has no key '{key}'; {nearest(str(key), tuple(defaults))}"
            )
    return {**defaults, **{key: value for key, value in given.items() if value is not None}}


def _units(key: str, given: Any, of: Scenario) -> tuple[str, ...]:
    """Names of unit types, SMACv2's in small letters too; () for None."""
    if given is None:
        return ()
    known = {unit.lower(): unit for unit in of.units}
    for name in given:
        if str(name).lower() not in known:
            raise ConfigError(
                f"team_gen.{key}: '{name}' is not in {of.name}; {nearest(str(name), tuple(known))}"
            )
    return tuple(known[str(name).lower()] for name in given)

"""SMACv2's scenarios (Ellis et al. 2023) in the simulator: teams and places are drawn anew in every
episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.starcraft.env import DIFFICULTY, Simulation, check_difficulty
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
from envs.starcraft.interface import V2Options
from utils.errors import ConfigError
from utils.registry import nearest

SIDE = 32.0  # of the field
# agents of a reflected start stand up to here in x, the enemies beside their images from
# ENEMIES_FROM
AGENTS_REACH = 15.0
ENEMIES_FROM = 16.0
CENTRE = SIDE / 2
DIAGONALS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
CLEARANCE = 2.0  # groups that surround the agents keep this far from the centre, in x and in y

TEAMS = "weighted_teams"
SURROUND, REFLECT, EITHER = "surround", "reflect_position", "surrounded_and_reflect"
# SMACv2's description of what is drawn; None: as the scenario says
CAPABILITIES: Mapping[str, Any] = {
    "n_units": None,
    "n_enemies": None,
    "team_gen": {
        "dist_type": TEAMS,
        "unit_types": None,
        "weights": None,
        "exception_unit_types": None,
    },
    "start_positions": {"dist_type": EITHER, "p": 0.5, "map_x": int(SIDE), "map_y": int(SIDE)},
}


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
        n_envs: B.
        seed: battle b's course depends on it, on b and on the actions only.
        map_name: one of `facts.scenario_names()`, e.g. "zerg_10_vs_11".
        capability_config: SMACv2's description of teams and places, see config/envs/sc2sim_v2.yaml.
        use_unit_ranges: sight and shooting range by the agent's type; else 9 and 6.
        opponents, opponent_weights: who plays the enemies, see `opponents.Opponents`. difficulty,
            the others: see `Simulation`, `interface.V2Options` and config/envs/sc2sim_v2.yaml.

    Raises:
        ConfigError: an unknown scenario, a value out of range.
    """

    def __init__(
        self,
        n_envs: int,
        seed: int | None = None,
        map_name: str = "terran_5_vs_5",
        capability_config: Mapping[str, Any] = CAPABILITIES,
        use_unit_ranges: bool = True,
        difficulty: str = DIFFICULTY,
        step_mul: int = 8,
        move_amount: float = 2.0,
        continuing_episode: bool = False,
        conic_fov: bool = False,
        prob_obs_enemy: float = 1.0,
        action_mask: bool = True,
        obs_all_health: bool = True,
        obs_own_health: bool = True,
        obs_own_pos: bool = True,
        obs_last_action: bool = False,
        obs_pathing_grid: bool = False,
        obs_terrain_height: bool = False,
        obs_timestep_number: bool = False,
        obs_instead_of_state: bool = False,
        state_last_action: bool = True,
        state_timestep_number: bool = False,
        reward_sparse: bool = False,
        reward_only_positive: bool = True,
        reward_death_value: float = 10.0,
        reward_win: float = 200.0,
        reward_defeat: float = 0.0,
        reward_negative_scale: float = 0.5,
        reward_scale: bool = True,
        reward_scale_rate: float = 20.0,
        heuristic_ai: bool = False,
        heuristic_rest: bool = False,
        opponents: str = "hunt",
        opponent_weights: dict[str, float] | None = None,
        replay_dir: str = "results/replays",
        replay_prefix: str = "",
        threads: int = 1,
    ) -> None:
        check_difficulty("sc2sim_v2", difficulty)
        if not isinstance(use_unit_ranges, bool):
            raise ConfigError(
                f"sc2sim_v2: use_unit_ranges is {use_unit_ranges!r}, must be True or False"
            )
        options = V2Options(
            action_mask=action_mask,
            conic_fov=conic_fov,
            continuing_episode=continuing_episode,
            heuristic_ai=heuristic_ai,
            heuristic_rest=heuristic_rest,
            move_amount=move_amount,
            obs_all_health=obs_all_health,
            obs_instead_of_state=obs_instead_of_state,
            obs_last_action=obs_last_action,
            obs_own_health=obs_own_health,
            obs_own_pos=obs_own_pos,
            obs_pathing_grid=obs_pathing_grid,
            obs_terrain_height=obs_terrain_height,
            obs_timestep_number=obs_timestep_number,
            prob_obs_enemy=prob_obs_enemy,
            reward_death_value=reward_death_value,
            reward_defeat=reward_defeat,
            reward_negative_scale=reward_negative_scale,
            reward_only_positive=reward_only_positive,
            reward_scale=reward_scale,
            reward_scale_rate=reward_scale_rate,
            reward_sparse=reward_sparse,
            reward_win=reward_win,
            state_last_action=state_last_action,
            state_timestep_number=state_timestep_number,
        )
        given = scenario(map_name)
        self.draw = make_draw(given, capability_config)
        super().__init__(
            n_envs,
            seed,
            given.map_info(self.draw.n_agents, self.draw.n_enemies),
            options,
            base="hunt",
            opponents=opponents,
            opponent_weights=opponent_weights,
            step_mul=step_mul,
            replay_dir=replay_dir,
            replay_prefix=replay_prefix,
            threads=threads,
            engine={"draw": self.draw},
            sight=_by_type(V2_SIGHT_RANGE, SIGHT_RANGE) if use_unit_ranges else None,
            shoot=np.maximum(_by_type(V2_SHOOT_RANGE, SHOOT_RANGE), V2_SHOOT_RANGE_FLOOR)
            if use_unit_ranges
            else None,
        )


def _by_type(ranges: Mapping[str, float], default: float) -> np.ndarray:
    return np.array([ranges.get(name, default) for name in UNIT_NAMES], dtype=np.float64)


def make_draw(given: Scenario, config: Mapping[str, Any]) -> Draw:
    """The scenario's way to draw episodes, with what SMACv2's `capability_config` changes, see
    `CAPABILITIES`.

    Raises:
        ConfigError: an unknown key or distribution, an impossible team, a value out of range.
    """
    whole = _keys("capability_config", config, CAPABILITIES)
    teams = _keys("team_gen", whole["team_gen"], CAPABILITIES["team_gen"])
    places = _keys("start_positions", whole["start_positions"], CAPABILITIES["start_positions"])

    sizes = []
    for key, default in (("n_units", given.n_agents), ("n_enemies", given.n_enemies)):
        size = default if whole[key] is None else whole[key]
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(
                f"capability_config.{key} is {size!r}, must be a whole number of at least 1"
            )
        sizes.append(size)

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

    kind, p = places["dist_type"], places["p"]
    chances = {SURROUND: 1.0, REFLECT: 0.0, EITHER: p}
    if kind not in chances:
        raise ConfigError(
            f"start_positions.dist_type: unknown '{kind}'; {nearest(str(kind), tuple(chances))}"
        )
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ConfigError(f"start_positions.p is {p!r}, must be a number from 0 to 1")
    for key in ("map_x", "map_y"):
        if places[key] != SIDE:
            raise ConfigError(
                f"start_positions.{key} is {places[key]!r}, the field is {SIDE:.0f} cells wide and "
                "high"
            )
    return Draw(
        n_agents=sizes[0],
        n_enemies=sizes[1],
        units=tuple(UNIT_INDEX[unit] for unit in units),
        weights=tuple(w / sum(numbers) for w in numbers),
        exceptions=tuple(UNIT_INDEX[unit] for unit in exceptions),
        surround=float(chances[kind]),
    )


def _keys(where: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all known keys, as given or by default."""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"sc2sim_v2: {where} is {given!r}, must be a mapping with {', '.join(defaults)}"
        )
    for key in given:
        if key not in defaults:
            raise ConfigError(
                f"sc2sim_v2: {where} has no key '{key}'; {nearest(str(key), tuple(defaults))}"
            )
    return {**defaults, **given}


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

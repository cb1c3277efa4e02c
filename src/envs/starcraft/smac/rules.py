"""What the compiled rules read: options and map as numbers, tables by unit type, and who looks
where; with the geometry that orders and observations share.
"""

# ruff: noqa: ANN001, ANN201 -- numba infers the types of the kernels
from __future__ import annotations

from collections import namedtuple
from collections.abc import Mapping
from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from envs.starcraft.facts import (
    MAX_COOLDOWN,
    MAX_SHIELD,
    N_ACTIONS_NO_ATTACK,
    SHOOT_RANGE,
    SIGHT_RANGE,
    UNIT_INDEX,
    UNIT_NAMES,
    MapInfo,
)
from envs.starcraft.options import Options, V2Options, defaults_of, rule_types

NO_OP, STOP, NORTH, SOUTH, EAST, WEST = range(N_ACTIONS_NO_ATTACK)
N_MOVES = 4
UNKNOWN_ACTION = -1  # the last action before the first one
# SMACv2's cone of view: looks to N_LOOKS directions, counter-clockwise from the east; half of its
# angle
N_LOOKS = 12
LOOK_X = np.cos(2 * np.pi * np.arange(N_LOOKS) / N_LOOKS)
LOOK_Y = np.sin(2 * np.pi * np.arange(N_LOOKS) / N_LOOKS)
CONE_COS = float(np.cos(np.pi / N_LOOKS))
DX = np.array([0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
DY = np.array([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
MARAUDER, MEDIVAC = (UNIT_INDEX[name] for name in ("Marauder", "Medivac"))


class _MapRules(NamedTuple):
    """What the kernels need to know of the map."""

    n_agents: int
    n_enemies: int
    limit: int
    first_attack: int  # number of the first attack (or heal) action
    heals: bool
    cuts_rewards: bool
    map_x: float
    map_y: float
    playable_x: float
    playable_y: float
    agent_shields: bool
    enemy_shields: bool
    type_bits: int


# the map's rules and all options that are switches or numbers; one signature for all maps
Rules = namedtuple("Rules", (*_MapRules._fields, *rule_types()))  # type: ignore[misc]


class Tables(NamedTuple):
    """By unit type: ranges of an agent (float64), divisors of agents and enemies (float64), type
    bits (int64); and the map's grids.
    """

    sight: np.ndarray
    shoot: np.ndarray
    max_cooldown: np.ndarray
    agent_shield: np.ndarray
    enemy_shield: np.ndarray
    agent_bit: np.ndarray
    enemy_bit: np.ndarray
    pathing: np.ndarray
    height: np.ndarray


class Views(NamedTuple):
    """SMACv2's limits of view: the direction that each agent looks to (int64 [B, A]); who found
    each enemy (int64 [B, E], -1: nobody yet); the battle's draw for what follows from chance
    (uint64 [B]).
    """

    look: np.ndarray
    finder: np.ndarray
    draw: np.ndarray


def make_rules(info: MapInfo, options: Options) -> Any:
    """`Rules` of a map under options; SMACv2's are off where `options` are SMAC's."""
    given = {**defaults_of(V2Options), **vars(options)}
    of_map = _MapRules(
        n_agents=info.n_agents,
        n_enemies=info.n_enemies,
        limit=info.limit,
        first_attack=N_ACTIONS_NO_ATTACK + (N_LOOKS if given["conic_fov"] else 0),
        heals=info.heals,
        cuts_rewards=isinstance(options, V2Options),
        map_x=float(info.map_size[0]),
        map_y=float(info.map_size[1]),
        playable_x=float(info.playable_size[0]),
        playable_y=float(info.playable_size[1]),
        agent_shields=info.agent_race == "P",
        enemy_shields=info.enemy_race == "P",
        type_bits=info.unit_type_bits,
    )
    # each of one type whatever the user wrote: a kernel has one signature
    return Rules._make((*of_map, *(kind(given[key]) for key, kind in rule_types().items())))


def make_tables(info: MapInfo, sight: np.ndarray | None, shoot: np.ndarray | None) -> Tables:
    """`Tables` of a map; sight, shoot: an agent's ranges by unit type, float64 [types]; None: 9 and
    6 for all.
    """
    return Tables(
        sight=_ranges(sight, SIGHT_RANGE),
        shoot=_ranges(shoot, SHOOT_RANGE),
        max_cooldown=_by_type(MAX_COOLDOWN, 0.0, info.normalise_as),
        # only Protoss types have a divisor, and only they are divided
        agent_shield=_by_type(MAX_SHIELD, 1.0, info.normalise_as),
        enemy_shield=_by_type(MAX_SHIELD, 1.0, {}),
        agent_bit=_by_type(info.agent_bits, -1, {}).astype(np.int64),
        enemy_bit=_by_type(info.enemy_bits, -1, {}).astype(np.int64),
        pathing=np.array(info.pathing, dtype=np.bool_),
        height=np.array(info.height, dtype=np.float64),
    )


def _by_type(values: Mapping[str, float], default: float, instead: Mapping[str, str]) -> np.ndarray:
    return np.array(
        [values.get(instead.get(name, name), default) for name in UNIT_NAMES], dtype=np.float64
    )


def _ranges(given: np.ndarray | None, default: float) -> np.ndarray:
    if given is None:
        return np.full(len(UNIT_NAMES), default)
    if given.shape != (len(UNIT_NAMES),):
        raise ValueError(
            f"ranges by unit type are {list(given.shape)}, must be [{len(UNIT_NAMES)}]"
        )
    return np.ascontiguousarray(given, dtype=np.float64)


@njit(inline="always")
def in_cone(b, a, dx, dy, distance, views):
    """Whether agent a looks to where (dx, dy), `distance` away, is from it."""
    look = views.look[b, a]
    # what is at the very border is inside, whatever the rounding
    return dx * LOOK_X[look] + dy * LOOK_Y[look] >= CONE_COS * distance - 1e-9


@njit(inline="always")
def in_reach(b, a, i, rules, tables, units, views):
    """Whether agent a may attack (heal) unit i: near enough and, with a cone of view, in the
    cone.
    """
    dx, dy = units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a]
    distance = sqrt(dx * dx + dy * dy)
    near = distance <= tables.shoot[units.type[b, a]]
    return near and (not rules.conic_fov or in_cone(b, a, dx, dy, distance, views))

"""What the compiled code knows of a battle, as rows of two arrays per battle, and small helpers on
them.

In all compiled functions f, k, c are `State.floats[b]`, `State.ints[b]` and `State.counters[b]`,
and u, v, w units.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from envs.starcraft.battle import Units
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.pathing import INNER

EPS = 1e-6

# Rows of the float64 state [B, FLOATS, N]
X = 0
Y = 1
HEALTH = 2
SHIELD = 3
ENERGY = 4
COOLDOWN = 5
HEALTH_MAX = 6
SHIELD_MAX = 7
ENERGY_MAX = 8
RADIUS = 9
SEPARATION = 10
SPEED = 11
WIND_UP = 12  # loops until the hit of the attack that has been started
BACKSWING = 13  # loops in which it does not follow its target
QUIET = 14  # loops until the shield comes back
ORDER_X = 15
ORDER_Y = 16
LEASH_X = 17  # where it acquired its target
LEASH_Y = 18
GOAL_X = 19  # this loop's wish: towards there, so far
GOAL_Y = 20
GOAL_STEP = 21
OLD_X = 22
OLD_Y = 23
CALLED = 24  # loops until it may call for help again
TAKEN = 25  # all damage so far
RESTORED = 26  # all health and shield regained so far
FLOATS = 27

# Rows of the int64 state [B, INTS, N]
TYPE = 0
BODY = 1
ALIVE = 2
ORDER = 3
SUBJECT = 4  # of the order
TARGET = 5  # acquired by itself (enemy, or friend to heal)
AIM = 6  # victim of the attack under way
WEAPON = 7
STARTED = 8  # loop in which that attack began
MOVES = 9  # wants to move in this loop
FIRM = 10  # attacks or heals: others go around it
SIDE = 11  # on which side it goes around others, -1 right, 1 left
LAST_TURN = 12  # how far it turned from its way in the last loop
STALLED = 13  # loops without much progress although it moves
HIT_BY = 14
OWN_WILL = 15  # acquires targets by itself (the enemies); an agent waits for orders
HUNTS = 16  # takes the nearest agent when its order is done
HEALED = 17  # loop of the last heal
LIVING = 18  # indices of the living units
NEARBY = 19  # scratch
SLOT = 20  # scratch
INTS = 21

# Counters per battle: int64 [B, COUNTERS]
LOOP = 0
N_EVENTS = 1
N_LIVING = 2
RESTLESS = 3
COUNTERS = 4

# Columns of the hits under way: int64 [B, MAX_PENDING N, EVENT_COLUMNS]
DUE = 0
SOURCE = 1
VICTIM = 2
EVENT_WEAPON = 3
EVENT_COLUMNS = 4

Array = np.ndarray


class State(NamedTuple):
    """What else is known of B battles: rows and columns as above.

    floats: float64 [B, FLOATS, N]. ints: int64 [B, INTS, N]. counters: int64 [B, COUNTERS]. events:
    int64 [B, MAX_PENDING N, EVENT_COLUMNS]. rng: uint64 [B], state of each battle's generator,
    never 0.
    """

    floats: Array
    ints: Array
    counters: Array
    events: Array
    rng: Array


class Shots(NamedTuple):
    """What a unit needs to attack: the hits under way, battle b's random numbers, and whether the
    game's random loops are added to attack periods.
    """

    events: Array
    rng: Array
    b: int
    jitter: bool


@njit(**INNER)
def random_number(rng: Array, b: int) -> float:
    """Next number of battle b's generator (xorshift64*, Vigna 2016), in [0, 1)."""
    state = rng[b]
    state ^= state >> np.uint64(12)
    state ^= state << np.uint64(25)
    state ^= state >> np.uint64(27)
    rng[b] = state
    return ((state * np.uint64(2685821657736338717)) >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(**INNER)
def gap_between(f: Array, u: int, v: int) -> float:
    """Distance of two units from edge to edge."""
    dx, dy = f[X, v] - f[X, u], f[Y, v] - f[Y, u]
    return math.sqrt(dx * dx + dy * dy) - f[RADIUS, u] - f[RADIUS, v]


@njit(**INNER)
def is_living(k: Array, v: int) -> bool:
    return 0 <= v < k.shape[1] and k[ALIVE, v] == 1


@njit(**INNER)
def list_living(k: Array, c: Array) -> None:
    n = 0
    for u in range(k.shape[1]):
        if k[ALIVE, u] == 1:
            k[LIVING, n] = u
            n += 1
    c[N_LIVING] = n


@njit(**INNER)
def other_side(u: int, v: int, n_agents: int) -> bool:
    return (u < n_agents) != (v < n_agents)


@njit(**INNER)
def load(units: Units, b: int, f: Array, k: Array, c: Array, tables: t.Tables) -> None:
    """Takes a battle's units from the shared arrays, where others may have changed them."""
    for u in range(k.shape[1]):
        kind = units.type[b, u]
        k[TYPE, u] = kind
        k[BODY, u] = int(tables.unit[kind, t.BODY])
        k[ALIVE, u] = 1 if units.alive[b, u] else 0
        f[X, u] = units.x[b, u]
        f[Y, u] = units.y[b, u]
        f[HEALTH, u] = units.health[b, u]
        f[SHIELD, u] = units.shield[b, u]
        f[ENERGY, u] = units.energy[b, u]
        f[COOLDOWN, u] = units.cooldown[b, u]
        f[HEALTH_MAX, u] = units.health_max[b, u]
        f[SHIELD_MAX, u] = units.shield_max[b, u]
        f[ENERGY_MAX, u] = units.energy_max[b, u]
        f[RADIUS, u] = tables.unit[kind, t.RADIUS]
        f[SEPARATION, u] = tables.unit[kind, t.SEPARATION]
        f[SPEED, u] = tables.unit[kind, t.SPEED]
    list_living(k, c)
    c[RESTLESS] = 1


@njit(**INNER)
def store(units: Units, b: int, f: Array, k: Array) -> None:
    """Puts what changes in a battle into the shared arrays."""
    for u in range(k.shape[1]):
        units.alive[b, u] = k[ALIVE, u] == 1
        units.x[b, u] = f[X, u]
        units.y[b, u] = f[Y, u]
        units.health[b, u] = f[HEALTH, u]
        units.shield[b, u] = f[SHIELD, u]
        units.energy[b, u] = f[ENERGY, u]
        units.cooldown[b, u] = f[COOLDOWN, u]

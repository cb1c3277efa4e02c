"""The units of a new units."""

from __future__ import annotations

import numpy as np
from numba import njit

from envs.starcraft.battle import ORDER_ATTACK, Units
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.movement import push_apart
from envs.starcraft.sim.pathing import INNER, Ground, is_open, nearest_open_point
from envs.starcraft.sim.state import (
    AIM,
    ALIVE,
    BODY,
    HEALED,
    HIT_BY,
    HUNTS,
    ORDER,
    ORDER_X,
    ORDER_Y,
    OWN_WILL,
    RESTLESS,
    SEPARATION,
    SLOT,
    SPEED,
    SUBJECT,
    TARGET,
    TYPE,
    Array,
    X,
    Y,
    list_living,
    load,
    random_number,
)

# Rounds of pushing new units apart.
SPAWN_PUSHES = 20
# New units stand this much farther apart than touching.
SPAWN_GAP = 1.03


@njit(**INNER)
def _place(
    f: Array,
    k: Array,
    c: Array,
    rng: Array,
    b: int,
    kinds: Array,
    points: Array,
    offsets: Array,
    spread: float,
    n_agents: int,
    ground: Ground,
    tables: t.Tables,
) -> None:
    """Puts the units of all creation calls, in their order, each at the free place nearest to its
    point.

    Places are tried on a square lattice around the point with two steps to a body, the nearest
    first; enemies' lattices are the mirror image in x. The units' rows are still in creation order.
    """
    for i in range(kinds.shape[0]):
        kind = kinds[i]
        k[TYPE, i] = kind
        k[BODY, i] = int(tables.unit[kind, t.BODY])
        k[ALIVE, i] = 1
        f[SEPARATION, i] = tables.unit[kind, t.SEPARATION]
        f[SPEED, i] = tables.unit[kind, t.SPEED]
        bit = int(tables.unit[kind, t.CROSSES])
        x0, y0 = points[i, 0], points[i, 1]
        if not is_open(ground.open, bit, x0, y0):
            x0, y0 = nearest_open_point(ground, x0, y0)
        step = f[SEPARATION, i] * SPAWN_GAP
        mirror = 1.0 if i < n_agents else -1.0
        x, y = x0, y0
        for m in range(offsets.shape[0]):
            new_x, new_y = x0 + mirror * offsets[m, 0] * step, y0 + offsets[m, 1] * step
            if not is_open(ground.open, bit, new_x, new_y):
                continue
            free = True
            for j in range(i):
                if k[BODY, j] != k[BODY, i]:
                    continue
                dx, dy = new_x - f[X, j], new_y - f[Y, j]
                reach = (f[SEPARATION, i] + f[SEPARATION, j]) * (0.5 + 0.5 * SPAWN_GAP)
                if dx * dx + dy * dy < reach * reach:
                    free = False
                    break
            if free:
                x, y = new_x, new_y
                break
        f[X, i] = x
        f[Y, i] = y
    for i in range(kinds.shape[0]):
        bit = int(tables.unit[kinds[i], t.CROSSES])
        x = f[X, i] + spread * (2.0 * random_number(rng, b) - 1.0)
        y = f[Y, i] + spread * (2.0 * random_number(rng, b) - 1.0)
        if is_open(ground.open, bit, x, y):
            f[X, i] = x
            f[Y, i] = y
    list_living(k, c)
    for _ in range(SPAWN_PUSHES):
        push_apart(f, k, c, n_agents, ground, tables)
        if c[RESTLESS] == 0:
            break


@njit(**INNER)
def _number_agents(f: Array, k: Array, n_agents: int) -> None:
    """Row SLOT: creation index of every unit; agents sorted by (type, x, y) as SMAC numbers
    them.
    """
    for u in range(k.shape[1]):
        k[SLOT, u] = u
    for u in range(1, n_agents):
        i = k[SLOT, u]
        w = u
        while w > 0:
            j = k[SLOT, w - 1]
            if (k[TYPE, j], f[X, j], f[Y, j]) <= (k[TYPE, i], f[X, i], f[Y, i]):
                break
            k[SLOT, w] = j
            w -= 1
        k[SLOT, w] = i


@njit(**INNER)
def create_units(
    units: Units,
    b: int,
    f: Array,
    k: Array,
    c: Array,
    rng: Array,
    kinds: Array,
    points: Array,
    offsets: Array,
    spread: float,
    enemy_order: Array,
    n_agents: int,
    ground: Ground,
    tables: t.Tables,
) -> None:
    f[:] = 0.0
    k[:] = 0
    c[:] = 0
    _place(f, k, c, rng, b, kinds, points, offsets, spread, n_agents, ground, tables)
    _number_agents(f, k, n_agents)
    for u in range(k.shape[1]):
        i = k[SLOT, u]
        kind = kinds[i]
        units.type[b, u] = kind
        units.alive[b, u] = True
        units.x[b, u] = f[X, i]
        units.y[b, u] = f[Y, i]
        units.health[b, u] = units.health_max[b, u] = tables.unit[kind, t.HEALTH_FULL]
        units.shield[b, u] = units.shield_max[b, u] = tables.unit[kind, t.SHIELD_FULL]
        units.energy_max[b, u] = tables.unit[kind, t.ENERGY_FULL]
        units.energy[b, u] = tables.unit[kind, t.ENERGY_START]
        units.cooldown[b, u] = 0.0
    f[:] = 0.0
    k[:] = 0
    load(units, b, f, k, c, tables)
    centre_x, centre_y = np.mean(f[X, n_agents:]), np.mean(f[Y, n_agents:])
    for u in range(k.shape[1]):
        k[SUBJECT, u] = k[TARGET, u] = k[AIM, u] = k[HIT_BY, u] = k[HEALED, u] = -1
        if u >= n_agents:
            k[OWN_WILL, u] = 1
            if int(enemy_order[0]) == ORDER_ATTACK:
                k[HUNTS, u] = 1
            else:
                k[ORDER, u] = int(enemy_order[0])
            # a group sent to a point keeps its formation
            f[ORDER_X, u] = enemy_order[1] + f[X, u] - centre_x
            f[ORDER_Y, u] = enemy_order[2] + f[Y, u] - centre_y

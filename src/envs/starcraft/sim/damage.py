"""Hits, splash and death."""

from __future__ import annotations

import math

from numba import njit

from envs.starcraft.battle import ORDER_NONE
from envs.starcraft.facts import MIN_DAMAGE
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.pathing import INNER
from envs.starcraft.sim.state import (
    ALIVE,
    DUE,
    EPS,
    EVENT_COLUMNS,
    EVENT_WEAPON,
    HEALTH,
    HIT_BY,
    LIVING,
    LOOP,
    N_EVENTS,
    N_LIVING,
    ORDER,
    QUIET,
    RADIUS,
    SHIELD,
    SOURCE,
    TAKEN,
    TYPE,
    VICTIM,
    Array,
    X,
    Y,
    list_living,
    other_side,
)


@njit(**INNER)
def _hurt(f: Array, k: Array, source: int, v: int, weapon: int, tables: t.Tables) -> None:
    """One hit: shields first, without armour; what is beyond them goes on to the health, less its
    armour.
    """
    kind = k[TYPE, v]
    left = max(MIN_DAMAGE, tables.damage[k[TYPE, source], weapon, kind])
    k[HIT_BY, v] = source
    f[QUIET, v] = tables.unit[kind, t.SHIELD_DELAY]
    by_shield = min(left, f[SHIELD, v])
    f[SHIELD, v] -= by_shield
    f[TAKEN, v] += by_shield
    left -= by_shield
    if left > 0.0:
        by_health = min(max(MIN_DAMAGE, left - tables.unit[kind, t.ARMOUR]), f[HEALTH, v])
        f[HEALTH, v] -= by_health
        f[TAKEN, v] += by_health


@njit(**INNER)
def _splashed(f: Array, source: int, victim: int, v: int, splash: int, weapon: Array) -> bool:
    """Whether a hit on `victim` also reaches v (which is another enemy of the source)."""
    dx, dy = f[X, victim] - f[X, source], f[Y, victim] - f[Y, source]
    distance = math.sqrt(dx * dx + dy * dy)
    if distance > EPS:
        dx /= distance
        dy /= distance
    else:
        dx, dy = 1.0, 0.0
    reach = weapon[t.SPLASH_RADIUS] + f[RADIUS, v]
    if splash == t.SPLASH_LINE:
        # the nearest of evenly spaced small circles on a line across the line of fire
        from_x, from_y = f[X, v] - f[X, victim], f[Y, v] - f[Y, victim]
        half = weapon[t.SPLASH_LENGTH] / 2.0
        spacing = weapon[t.SPLASH_LENGTH] / (weapon[t.SPLASH_POINTS] - 1.0)
        across = from_y * dx - from_x * dy
        along = from_x * dx + from_y * dy
        across -= min(max(round(across / spacing) * spacing, -half), half)
        return across * across + along * along <= reach * reach
    from_x, from_y = f[X, v] - f[X, source], f[Y, v] - f[Y, source]
    distance = math.sqrt(from_x * from_x + from_y * from_y)
    return distance <= reach and from_x * dx + from_y * dy >= weapon[t.SPLASH_COS] * distance - EPS


@njit(**INNER)
def land_hits(f: Array, k: Array, c: Array, events: Array, n_agents: int, tables: t.Tables) -> bool:
    """The hits that are due, all in one go; the others stay in the list."""
    kept = 0
    for i in range(c[N_EVENTS]):
        event = events[i]
        if event[DUE] > c[LOOP]:
            if kept != i:
                for column in range(EVENT_COLUMNS):
                    events[kept, column] = event[column]
            kept += 1
            continue
        source, victim, chosen = event[SOURCE], event[VICTIM], event[EVENT_WEAPON]
        kind = k[TYPE, source]
        weapon = tables.weapon[kind, chosen]
        # a missile flies on when its owner dies, a second blow does not fall
        if k[ALIVE, victim] == 0 or (weapon[t.MISSILE] == 0.0 and k[ALIVE, source] == 0):
            continue
        splash = int(weapon[t.SPLASH])
        if splash != t.NO_SPLASH:
            for j in range(c[N_LIVING]):
                v = k[LIVING, j]
                if v == victim or not other_side(source, v, n_agents):
                    continue
                if tables.damage[kind, chosen, k[TYPE, v]] >= 0.0 and _splashed(
                    f, source, victim, v, splash, weapon
                ):
                    _hurt(f, k, source, v, chosen, tables)
        _hurt(f, k, source, victim, chosen, tables)
    landed = kept != c[N_EVENTS]
    c[N_EVENTS] = kept
    return landed


@njit(**INNER)
def bury(f: Array, k: Array, c: Array, n_agents: int, tables: t.Tables) -> bool:
    """Units without health die; banelings among them burst, which may kill more. Friends take no
    harm from a burst.
    """
    anyone = False
    again = True
    while again:
        again = False
        for i in range(c[N_LIVING]):
            u = k[LIVING, i]
            if k[ALIVE, u] == 0 or f[HEALTH, u] > 0.0:
                continue
            k[ALIVE, u] = 0
            k[ORDER, u] = ORDER_NONE
            f[HEALTH, u] = 0.0
            anyone = True
            kind = k[TYPE, u]
            if tables.unit[kind, t.BURSTS] == 0.0:
                continue
            reach = tables.weapon[kind, 0, t.SPLASH_RADIUS]
            for j in range(c[N_LIVING]):
                v = k[LIVING, j]
                if (
                    k[ALIVE, v] == 0
                    or not other_side(u, v, n_agents)
                    or tables.damage[kind, 0, k[TYPE, v]] < 0.0
                ):
                    continue
                dx, dy = f[X, v] - f[X, u], f[Y, v] - f[Y, u]
                if math.sqrt(dx * dx + dy * dy) <= reach + f[RADIUS, v]:
                    _hurt(f, k, u, v, 0, tables)
                    again = again or f[HEALTH, v] <= 0.0
    if anyone:
        list_living(k, c)
    return anyone

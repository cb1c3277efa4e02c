"""Whom units with a will of their own take on: the enemies, which no one gives orders after the
first.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from envs.starcraft.battle import ORDER_ATTACK, ORDER_MOVE, ORDER_NONE
from envs.starcraft.facts import HELP_PERIOD, HELP_RADIUS, LEASH_RADIUS
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.pathing import INNER
from envs.starcraft.sim.state import (
    AIM,
    ALIVE,
    CALLED,
    ENERGY,
    EPS,
    HEALTH,
    HEALTH_MAX,
    HIT_BY,
    HUNTS,
    LEASH_X,
    LEASH_Y,
    LIVING,
    LOOP,
    N_LIVING,
    ORDER,
    OWN_WILL,
    SUBJECT,
    TARGET,
    TYPE,
    Array,
    X,
    Y,
    gap_between,
    is_living,
    other_side,
)

# A unit on its way to a target looks this often (loops) for one that its weapon reaches at once,
# and more seldom for one that is merely nearer. The game's own periods are not known: with these,
# SMAC's heuristic wins about as often as it does in the game (2s3z, 10m_vs_11m, 5m_vs_6m); looking
# for the nearest all the time makes the enemies too strong.
REACH_PERIOD = 4
NEARER_PERIOD = 32


@njit(**INNER)
def _scan(
    f: Array,
    k: Array,
    u: int,
    first: int,
    last: int,
    n_living: int,
    everywhere: bool,
    tables: t.Tables,
) -> int:
    """The unit of range(first, last) that u takes on: those that can strike back at it first, then
    the nearest.
    """
    kind = k[TYPE, u]
    best, best_gap, best_armed = -1, np.inf, False
    for i in range(n_living):
        v = k[LIVING, i]
        if v < first or v >= last:
            continue
        weapon = tables.weapon_for[kind, k[TYPE, v]]
        if weapon < 0:
            continue
        gap = gap_between(f, u, v)
        if not everywhere and gap > tables.weapon[kind, weapon, t.SCAN]:
            continue
        armed = tables.weapon_for[k[TYPE, v], kind] >= 0
        if best < 0 or (armed and not best_armed) or (armed == best_armed and gap < best_gap):
            best, best_gap, best_armed = v, gap, armed
    return best


@njit(**INNER)
def _acquire(f: Array, k: Array, u: int, v: int) -> None:
    k[TARGET, u] = v
    f[LEASH_X, u] = f[X, u]
    f[LEASH_Y, u] = f[Y, u]


@njit(**INNER)
def look_around(f: Array, k: Array, c: Array, u: int, n_agents: int, tables: t.Tables) -> None:
    """Target of a unit with a will of its own: kept until it dies or leads beyond the leash; on the
    way to it another may be taken instead, see `REACH_PERIOD`.
    """
    first, last = (n_agents, k.shape[1]) if u < n_agents else (0, n_agents)
    if k[HUNTS, u] == 1 and not is_living(k, k[SUBJECT, u]):
        k[SUBJECT, u] = _scan(f, k, u, first, last, c[N_LIVING], True, tables)
        k[ORDER, u] = ORDER_ATTACK if k[SUBJECT, u] >= 0 else ORDER_NONE
    if k[ORDER, u] == ORDER_ATTACK or k[ORDER, u] == ORDER_MOVE:
        return
    target = k[TARGET, u]
    if target >= 0:
        away_x, away_y = f[X, u] - f[LEASH_X, u], f[Y, u] - f[LEASH_Y, u]
        if k[ALIVE, target] == 0 or away_x * away_x + away_y * away_y > LEASH_RADIUS * LEASH_RADIUS:
            k[TARGET, u] = target = -1
    if target >= 0:
        if k[AIM, u] >= 0 or (c[LOOP] + u) % REACH_PERIOD != 0:
            return
        if _reaches(f, k, u, target, tables):
            return
    best = _scan(f, k, u, first, last, c[N_LIVING], False, tables)
    if best < 0 or best == target:
        return
    if target < 0 or (c[LOOP] + u) % NEARER_PERIOD == 0 or _reaches(f, k, u, best, tables):
        _acquire(f, k, u, best)


@njit(**INNER)
def _reaches(f: Array, k: Array, u: int, v: int, tables: t.Tables) -> bool:
    """Whether u can hit v from where it stands."""
    kind = k[TYPE, u]
    return (
        gap_between(f, u, v)
        <= tables.weapon[kind, tables.weapon_for[kind, k[TYPE, v]], t.RANGE] + EPS
    )


@njit(**INNER)
def look_for_patient(f: Array, k: Array, c: Array, u: int, n_agents: int, tables: t.Tables) -> None:
    """Autocast of a medivac: the friend with the lowest fraction of health, then the nearest; one
    healer each.
    """
    kind = k[TYPE, u]
    target = k[TARGET, u]
    if is_living(k, target) and f[HEALTH, target] < f[HEALTH_MAX, target] and f[ENERGY, u] > 0.0:
        return
    k[TARGET, u] = -1
    if f[ENERGY, u] < tables.unit[kind, t.HEAL_MIN_ENERGY]:
        return
    best, best_fraction, best_gap = -1, np.inf, np.inf
    for i in range(c[N_LIVING]):
        v = k[LIVING, i]
        if v == u or other_side(u, v, n_agents) or f[HEALTH, v] >= f[HEALTH_MAX, v]:
            continue
        if tables.heals[kind, k[TYPE, v]] == 0:
            continue
        gap = gap_between(f, u, v)
        if gap > tables.unit[kind, t.HEAL_SEARCH]:
            continue
        taken = False
        for j in range(c[N_LIVING]):
            other = k[LIVING, j]
            if (
                other != u
                and k[TARGET, other] == v
                and tables.unit[k[TYPE, other], t.HEAL_RATE] > 0.0
            ):
                taken = True
        fraction = f[HEALTH, v] / f[HEALTH_MAX, v]
        if not taken and (
            fraction < best_fraction or (fraction == best_fraction and gap < best_gap)
        ):
            best, best_fraction, best_gap = v, fraction, gap
    k[TARGET, u] = best


@njit(**INNER)
def respond(f: Array, k: Array, c: Array, n_agents: int, tables: t.Tables) -> None:
    """Units with a will of their own turn on who hit them, and call friends near them who have
    nothing to do.
    """
    for i in range(c[N_LIVING]):
        v = k[LIVING, i]
        source = k[HIT_BY, v]
        k[HIT_BY, v] = -1
        if source < 0 or k[OWN_WILL, v] == 0 or k[ALIVE, source] == 0:
            continue
        calls = f[CALLED, v] <= 0.0
        if calls:
            f[CALLED, v] = HELP_PERIOD
        for j in range(c[N_LIVING]):
            u = k[LIVING, j]
            if u != v and (not calls or other_side(u, v, n_agents) or k[OWN_WILL, u] == 0):
                continue
            if k[TARGET, u] >= 0 or k[ORDER, u] == ORDER_ATTACK or k[ORDER, u] == ORDER_MOVE:
                continue
            if tables.weapon_for[k[TYPE, u], k[TYPE, source]] < 0:
                continue
            dx, dy = f[X, u] - f[X, v], f[Y, u] - f[Y, v]
            if dx * dx + dy * dy <= HELP_RADIUS * HELP_RADIUS:
                _acquire(f, k, u, source)

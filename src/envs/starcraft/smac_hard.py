"""SMAC-Hard's opponents (Deng et al. 2024): scripts written for single maps, and which of them each
map has. Written from the benchmark's description and files of April 2025.

Distances are between centres of units; a group's centre is the mean of its living units' places.
Fractions of health leave shields out. Among equals the first in the order of units counts.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- numba infers the types of the kernels
from __future__ import annotations

from collections.abc import Mapping
from math import cos, pi, sin, sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from envs.compiled import kernel
from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_ATTACK_MOVE,
    ORDER_HEAL,
    ORDER_MOVE,
)
from envs.starcraft.facts import UNIT_INDEX
from envs.starcraft.options import HARD_SCRIPTS, SCRIPTS

FIRST = SCRIPTS.index(HARD_SCRIPTS[0])
(
    RUSH,
    LINE_MIDDLE,
    LINE_WEAKEST,
    WALL_WEAKEST,
    WALL_CENTRE,
    WALL_SWEEP,
    MEDIC_WEAKEST,
    MEDIC_NEAREST,
    RETREAT,
    ZEALOTS_FIRST,
    LATE_RETREAT,
    DENSEST,
    MARCH_NEAREST,
    ENCIRCLE,
    GATHER,
    TWO_GROUPS,
    AMBUSH,
    CRESCENT,
    CORNERS,
    WEAKER_MARINE,
    WEAKER_STALKER,
) = range(FIRST, len(SCRIPTS))

# What is drawn from on each map, each script with the same chance.
POOLS: Mapping[str, tuple[str, ...]] = {
    "3m": ("line_middle", "rush"),
    **dict.fromkeys(
        ("8m", "5m_vs_6m", "8m_vs_9m", "10m_vs_11m"), ("line_middle", "line_weakest", "rush")
    ),
    **dict.fromkeys(("25m", "27m_vs_30m"), ("wall_weakest", "wall_centre", "wall_sweep", "rush")),
    **dict.fromkeys(("MMM", "MMM2"), ("medic_weakest", "medic_nearest", "rush")),
    "2s3z": ("retreat", "zealots_first", "rush"),
    "3s5z": ("retreat", "late_retreat", "rush"),
    "3s5z_vs_3s6z": ("retreat", "rush"),
    "1c3s5z": ("densest", "rush"),
    **dict.fromkeys(("3s_vs_3z", "3s_vs_4z", "3s_vs_5z"), ("nearest", "encircle", "rush")),
    "6h_vs_8z": ("nearest", "march_nearest"),
    "corridor": ("gather", "two_groups", "rush"),
    "so_many_baneling": ("ambush", "rush"),
    "bane_vs_bane": ("crescent", "rush"),
    "2c_vs_64zg": ("corners", "rush"),
    "2m_vs_1z": ("weaker_marine", "rush"),
    "2s_vs_1sc": ("weaker_stalker", "rush"),
}
# Where "rush" sends all units; None: it orders nothing.
_START = (9.0, 16.0)
RUSH_POINTS: Mapping[str, tuple[float, float] | None] = {
    **dict.fromkeys(POOLS, _START),
    "bane_vs_bane": (16.0, 8.0),
    "so_many_baneling": (4.5, 4.5),
    "corridor": (4.0, 4.0),
    **dict.fromkeys(("2c_vs_64zg", "2m_vs_1z", "2s_vs_1sc")),
}

# Scripts' own constants, in cells and steps.
BASE = (23.0, 16.0)  # where the enemies start on most maps
FORM_UP = 5  # steps for taking places
LINE_X = 25.0
Q = 4 * sqrt(3)
# "encircle": by number of zealots and stage, offsets from the anchor
SLOTS = np.zeros((6, 3, 5, 2))
SLOTS[3, :, :3] = np.array(
    [
        [(0, 0), (0, -4), (0, 4)],
        [(0, 0), (-8, -8), (-8, 8)],
        [(0, 0), (-8 - Q, -4), (-8 - Q, 4)],
    ],
    float,
)
SLOTS[4, :, :4] = np.array(
    [
        [(0, 2), (0, 4), (0, -4), (0, -2)],
        [(Q - 8, 4), (-8, 8), (-8, -8), (Q - 8, -4)],
        [(Q - 8, 4), (-8 - Q, 4), (-8 - Q, -4), (Q - 8, -4)],
    ],
    float,
)
SLOTS[5] = np.array(
    [
        [(0, 0), (0, 4), (0, -4), (0, 2), (0, -2)],
        [(0, 0), (-8, 8), (-8, -8), (Q - 8, 4), (Q - 8, -4)],
        [(0, 0), (-8 - Q, 4), (-8 - Q, -4), (Q - 8, 4), (Q - 8, -4)],
    ],
    float,
)
STAGES = 3
# "ambush": the groups' homes; a group has as many banelings, the last one the rest
HOMES = np.array([(19, 27), (23, 23), (27, 19), (23, 31), (27, 27), (31, 23), (31, 31)], float)
PER_HOME = 5
BURST = 35.0  # what a baneling counts for, in planning
# "corners": upper left, upper right, lower left, lower right; first, then while they wait
FAR = np.array([(3.5, 14), (26.5, 14), (3.5, 6), (26.5, 6)], float)
WAIT = np.array([(2, 16.5), (28, 16.5), (2.5, 10), (27.5, 10)], float)

MARINE = UNIT_INDEX["Marine"]
MARAUDER = UNIT_INDEX["Marauder"]
MEDIVAC = UNIT_INDEX["Medivac"]
STALKER = UNIT_INDEX["Stalker"]
ZEALOT = UNIT_INDEX["Zealot"]
COLOSSUS = UNIT_INDEX["Colossus"]
BANELING = UNIT_INDEX["Baneling"]
ZERGLING = UNIT_INDEX["Zergling"]
ANY = -1


class Memory(NamedTuple):
    """What scripts remember of an episode.

    step, stage: int64 [B], steps ordered so far, and what a script has reached. group: int64 [B,
    N]. ratio: float64 [B, N], health in the step before, as a part of the maximum.
    """

    step: np.ndarray
    stage: np.ndarray
    group: np.ndarray
    ratio: np.ndarray

    @classmethod
    def of(cls, n_envs: int, n_units: int) -> Memory:
        """For B battles of N units; nothing has begun."""
        return cls(
            np.zeros(n_envs, dtype=np.int64),
            np.zeros(n_envs, dtype=np.int64),
            np.zeros((n_envs, n_units), dtype=np.int64),
            np.ones((n_envs, n_units)),
        )

    def clear(self, mask: np.ndarray) -> None:
        """New episodes in `mask` (bool [B])."""
        self.step[mask] = self.stage[mask] = 0
        self.group[mask] = -1
        self.ratio[mask] = 1.0


class Orders(NamedTuple):
    """Of all units, [B, N]: code (int8), target (int64), x, y (float64)."""

    code: np.ndarray
    target: np.ndarray
    x: np.ndarray
    y: np.ndarray


# orders of unit u of battle b


@njit
def _attack(o, b, u, v):
    if v >= 0:
        o.code[b, u] = ORDER_ATTACK
        o.target[b, u] = v


@njit
def _go(o, b, u, code, x, y):
    o.code[b, u] = code
    o.x[b, u] = x
    o.y[b, u] = y


@njit
def _move(o, b, u, x, y):
    _go(o, b, u, ORDER_MOVE, x, y)


@njit
def _march(o, b, u, x, y):
    _go(o, b, u, ORDER_ATTACK_MOVE, x, y)


# questions about the living units of range(first, last)


@njit
def _is(units, b, u, kind):
    return units.alive[b, u] and (kind == ANY or units.type[b, u] == kind)


@njit
def _apart(units, b, u, x, y):
    """Distance of unit u from a point."""
    dx, dy = units.x[b, u] - x, units.y[b, u] - y
    return sqrt(dx * dx + dy * dy)


@njit
def _ratio(units, b, u):
    return units.health[b, u] / units.health_max[b, u]


@njit
def _count(units, b, first, last, kind):
    n = 0
    for u in range(first, last):
        n += _is(units, b, u, kind)
    return n


@njit
def _centre(units, b, first, last, kind, other):
    """Mean place of the units of two types, and their number; nan where there are none."""
    x, y, n = 0.0, 0.0, 0
    for u in range(first, last):
        if _is(units, b, u, kind) or _is(units, b, u, other):
            x += units.x[b, u]
            y += units.y[b, u]
            n += 1
    return (x / n, y / n, n) if n > 0 else (np.nan, np.nan, 0)


@njit
def _group_centre(units, b, first, last, group, g):
    x, y, n = 0.0, 0.0, 0
    for u in range(first, last):
        if units.alive[b, u] and group[b, u] == g:
            x += units.x[b, u]
            y += units.y[b, u]
            n += 1
    return (x / n, y / n, n) if n > 0 else (np.nan, np.nan, 0)


@njit
def _next(units, b, x, y, first, last, kind, distance, last_one):
    """The nearest unit that comes after `last_one` at `distance` in the order of distance, and its
    own distance; (-1, inf) if none. After (-1, -1) comes the nearest of all.
    """
    best, shortest = -1, np.inf
    for v in range(first, last):
        if not _is(units, b, v, kind):
            continue
        d = _apart(units, b, v, x, y)
        if (d > distance or (d == distance and v > last_one)) and d < shortest:
            best, shortest = v, d
    return best, shortest


@njit
def _nearest(units, b, x, y, first, last, kind):
    return _next(units, b, x, y, first, last, kind, -1.0, -1)


@njit
def _weakest_of_nearest(units, b, x, y, first, last, kind, n, shields):
    """The unit with the least health (and shield) of the n nearest, -1: none."""
    best, fewest = -1, np.inf
    v, distance = -1, -1.0
    for _ in range(n):
        v, distance = _next(units, b, x, y, first, last, kind, distance, v)
        if v < 0:
            break
        points = units.health[b, v] + (units.shield[b, v] if shields else 0.0)
        if points < fewest:
            best, fewest = v, points
    return best


@njit
def _densest(units, b, first, last, kind, radius):
    """The unit with the most units within `radius`, itself included, -1: none."""
    best, most = -1, 0
    for v in range(first, last):
        if not _is(units, b, v, kind):
            continue
        n = 0
        for w in range(first, last):
            n += (
                _is(units, b, w, kind)
                and _apart(units, b, w, units.x[b, v], units.y[b, v]) <= radius
            )
        if n > most:
            best, most = v, n
    return best


@njit
def _overrun(units, b, a):
    """Whether few agents are left: less than 4, or more than 2 of them nearly dead."""
    weak = 0
    for v in range(a):
        weak += units.alive[b, v] and _ratio(units, b, v) < 0.2
    return _count(units, b, 0, a, ANY) < 4 or weak > 2


# the scripts: a agents, n units, t steps before


@njit
def _line(units, b, a, n, t, o, memory, weakest):
    """Marines form a line, walk up to the agents and shoot at one of them together; who is badly
    hurt and is hit steps back.
    """
    if t < FORM_UP:
        size, i = _count(units, b, a, n, ANY), 0
        for u in range(a, n):
            if units.alive[b, u]:
                _move(o, b, u, LINE_X, 16.0 + i - size / 2)
                i += 1
    else:
        x, y, _ = _centre(units, b, a, n, ANY, ANY)
        if memory.stage[b] == 0:
            _, distance = _nearest(units, b, x, y, 0, a, ANY)
            memory.stage[b] = distance <= 8.0
        target, least = -1, np.inf
        for v in range(a):
            value = units.health[b, v] if weakest else abs(units.x[b, v] - x)
            if units.alive[b, v] and value < least:
                target, least = v, value
        for u in range(a, n):
            if not units.alive[b, u]:
                continue
            ratio = _ratio(units, b, u)
            if memory.stage[b] == 0:
                _move(o, b, u, units.x[b, u] - 1.0, units.y[b, u])
            elif ratio < 0.3 and ratio != memory.ratio[b, u]:
                _move(o, b, u, units.x[b, u] + 1.0, units.y[b, u])
            else:
                _attack(o, b, u, target)
    for u in range(a, n):
        if units.alive[b, u]:
            memory.ratio[b, u] = _ratio(units, b, u)


@njit
def _wall(units, b, a, n, t, o, plan):
    """Marines form a line in the order of their places, and fight whenever agents are near."""
    if t < FORM_UP:
        size = _count(units, b, a, n, ANY)
        for u in range(a, n):
            if not units.alive[b, u]:
                continue
            i = 0
            for w in range(a, n):
                lower = units.y[b, w] < units.y[b, u] or (units.y[b, w] == units.y[b, u] and w < u)
                i += units.alive[b, w] and lower
            _move(o, b, u, LINE_X, 16.0 + 0.65 * (i - size / 2))
        return
    x, y, _ = _centre(units, b, a, n, ANY, ANY)
    _, distance = _nearest(units, b, x, y, 0, a, ANY)
    agents_x, agents_y, _ = _centre(units, b, 0, a, ANY, ANY)
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        if distance > 9.0:
            _move(o, b, u, units.x[b, u] - 2.0, units.y[b, u])
        elif plan == WALL_CENTRE:
            _march(o, b, u, agents_x, agents_y)
        else:
            v = _weakest_of_nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY, 5, False)
            if plan == WALL_WEAKEST:
                _attack(o, b, u, v)
            elif v >= 0:
                _march(o, b, u, units.x[b, v], units.y[b, v])


@njit
def _medivac(units, b, a, n, u, x, y, o, heals):
    """It goes for the fighter who is hurt worst, or else beside the group."""
    worst, least = -1, 1.0
    for w in range(a, n):
        fighter = _is(units, b, w, MARINE) or _is(units, b, w, MARAUDER)
        if fighter and _ratio(units, b, w) < least:
            worst, least = w, _ratio(units, b, w)
    if worst < 0:
        _move(o, b, u, x + 1.0, y)
    elif heals:
        o.code[b, u] = ORDER_HEAL
        o.target[b, u] = worst


@njit
def _medic(units, b, a, n, t, o, memory, nearest, heals):
    """Marauders walk before the marines, and a medivac behind."""
    if t <= FORM_UP:
        x, y, _ = _centre(units, b, a, n, MARINE, MARAUDER)
        marines, marauders = _count(units, b, a, n, MARINE), _count(units, b, a, n, MARAUDER)
        if nearest and marauders < 2:
            return
        i, j = 0, 0
        for u in range(a, n):
            if _is(units, b, u, MARAUDER):
                if not nearest:
                    _move(o, b, u, x - 2.0, units.y[b, u])
                elif j < 2:
                    _move(o, b, u, x - 2.0, y - 1.0 + 2.0 * j)
                j += 1
            elif _is(units, b, u, MARINE):
                _move(o, b, u, x, units.y[b, u] + (i - marines / 2 if nearest else 0.0))
                i += 1
            elif units.alive[b, u]:
                _move(o, b, u, x + 1.0, units.y[b, u])
        return
    x, y, _ = _centre(units, b, a, n, ANY, ANY)
    if memory.stage[b] == 0:
        some, all_of_them = False, True
        for u in range(a, n):
            if _is(units, b, u, MARAUDER):
                _, distance = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
                some = some or distance <= 8.0
                all_of_them = all_of_them and distance <= 8.0
        memory.stage[b] = some if nearest else all_of_them
    if memory.stage[b] == 0:
        for u in range(a, n):
            if units.alive[b, u]:
                _move(o, b, u, units.x[b, u] - 1.0, units.y[b, u])
        return
    target = -1
    for kind in (MARINE, MARAUDER, ANY):
        if target < 0:
            target = _weakest_of_nearest(units, b, x, y, 0, a, kind, 3, True)
    front, _, marines = _centre(units, b, a, n, MARINE, MARINE)
    front = (front if marines > 0 else x) - 2.0
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        own_x, own_y = units.x[b, u], units.y[b, u]
        if units.type[b, u] == MARINE:
            v, _ = _nearest(units, b, own_x, own_y, 0, a, ANY)
            _attack(o, b, u, v if nearest else target)
        elif units.type[b, u] == MARAUDER:
            if own_x >= front:
                _move(o, b, u, front, own_y)
            elif nearest:
                v, d = _nearest(units, b, own_x, own_y, 0, a, MARINE)
                w, e = _nearest(units, b, own_x, own_y, 0, a, MARAUDER)
                _attack(o, b, u, v if d < e or (d == e and v < w) else w)
            else:
                _attack(o, b, u, target)
        else:
            _medivac(units, b, a, n, u, x, y, o, heals)


@njit
def _attack_or_retreat(o, b, u, v, units, distance, below):
    """Attacks v from afar, or near while its health is not below a part of the maximum."""
    if distance <= 6.0 and _ratio(units, b, u) < below:
        _move(o, b, u, BASE[0], BASE[1])
    else:
        _attack(o, b, u, v)


@njit
def _gateway(units, b, a, n, t, o, plan):
    """Stalkers and zealots, of which the wounded go back."""
    agents_x, agents_y, _ = _centre(units, b, 0, a, ANY, ANY)
    overrun = _overrun(units, b, a)
    few = _count(units, b, a, n, STALKER) < 3
    x, y, _ = _centre(units, b, a, n, ANY, ANY)
    near, _ = _nearest(units, b, x, y, 0, a, ANY)
    first, _ = _nearest(units, b, x, y, 0, a, ZEALOT)
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        v, distance = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
        stalker = units.type[b, u] == STALKER
        if plan == RETREAT:
            if overrun:
                _march(o, b, u, agents_x, agents_y)
            else:
                # zealots' own bound of distance is so small that they never go back
                _attack_or_retreat(o, b, u, v, units, distance, 0.5 if stalker else -1.0)
        elif plan == ZEALOTS_FIRST:
            if _ratio(units, b, u) < 0.5:
                _move(o, b, u, BASE[0], BASE[1])
            else:
                _attack(o, b, u, first if stalker and first >= 0 else near)
        elif not stalker:
            _attack_or_retreat(o, b, u, v, units, distance, 0.5)
        elif not few:
            _attack_or_retreat(o, b, u, v, units, distance, 0.7)
        elif t < 100:
            _attack_or_retreat(o, b, u, v, units, distance, 2.0)
        elif overrun:
            if distance < 6.0:
                _attack(o, b, u, v)
            else:
                _move(o, b, u, agents_x, agents_y)
        elif t % 50 == 0 and distance < 6.0:
            _move(o, b, u, BASE[0], BASE[1])


@njit
def _simple(units, b, a, n, o, plan, rush):
    """Scripts in which every unit decides for itself, in every step anew."""
    dense = _densest(units, b, 0, a, ANY, 3.0) if plan == DENSEST else -1
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        if plan == RUSH:
            if rush[2] > 0:
                _march(o, b, u, rush[0], rush[1])
            continue
        v, _ = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
        if plan == DENSEST:
            _attack(o, b, u, dense if units.type[b, u] == COLOSSUS else v)
        elif v >= 0:
            _march(o, b, u, units.x[b, v], units.y[b, v])


@njit
def _choose_roster(units, b, a, n, group):
    """Who takes which slot of "encircle": the outermost zealots and one more, in their order. A
    zealot that is outermost in two directions has two slots, and another one has none.
    """
    east = north = south = west = a
    for u in range(a, n):
        east = u if units.x[b, u] > units.x[b, east] else east
        west = u if units.x[b, u] < units.x[b, west] else west
        north = u if units.y[b, u] > units.y[b, north] else north
        south = u if units.y[b, u] < units.y[b, south] else south
    size = n - a
    slot, other = 0, False
    for u in range(a, n):
        times = int(u == east) + int(u == south)
        times += int(u == north) if size > 3 else 0
        times += int(u == west) if size > 4 else 0
        if times == 0 and not other:
            times, other = 1, True
        for _ in range(times):
            if slot < size:
                group[b, a + slot] = u
                slot += 1


@njit
def _focus(units, b, a, n):
    """The point around which zealots gather: the stalkers' centre, or the one nearest to them."""
    x, y, _ = _centre(units, b, 0, a, ANY, ANY)
    for v in range(a):
        if units.alive[b, v] and _apart(units, b, v, x, y) > 3.0:
            own_x, own_y, _ = _centre(units, b, a, n, ANY, ANY)
            w, _ = _nearest(units, b, own_x, own_y, 0, a, ANY)
            return units.x[b, w], units.y[b, w]
    return x, y


@njit
def _encircle(units, b, a, n, t, o, memory):
    """Zealots walk around the stalkers in three stages, at a distance, and then fall on them."""
    if t == 0:
        _choose_roster(units, b, a, n, memory.group)
    for u in range(a, n):
        if units.alive[b, u]:
            _, distance = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
            if distance < 6.5:
                memory.stage[b] = STAGES
    focus_x, focus_y = _focus(units, b, a, n)
    size = n - a
    if size == 4:
        from_x, from_y, _ = _centre(units, b, a, n, ANY, ANY)
    else:
        from_x, from_y = 0.0, 0.0
        for u in range(n - 1, a - 1, -1):
            if units.alive[b, u]:
                from_x, from_y = units.x[b, u], units.y[b, u]
    dx, dy = from_x - focus_x, from_y - focus_y
    distance = sqrt(dx * dx + dy * dy)
    while memory.stage[b] < STAGES:
        stage = memory.stage[b]
        away = 8.0 if stage > 0 else max(13.0, distance)
        scale = away / distance if distance > 0.0 else 0.0
        arrived = True
        for i in range(size):
            u = memory.group[b, a + i]
            if u < 0 or not units.alive[b, u]:
                continue
            x = focus_x + dx * scale + SLOTS[size, stage, i, 0]
            y = focus_y + dy * scale + SLOTS[size, stage, i, 1]
            arrived = arrived and _apart(units, b, u, x, y) <= 1.0
            _move(o, b, u, x, y)
        if not arrived:
            return
        memory.stage[b] += 1
    for u in range(a, n):
        if units.alive[b, u]:
            v, _ = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
            _attack(o, b, u, v)


@njit
def _corridor(units, b, a, n, t, o, memory, plan):
    """Zerglings against zealots: all to the zealots' centre, or round them in two groups first."""
    agents_x, agents_y, _ = _centre(units, b, 0, a, ANY, ANY)
    if plan == GATHER:
        x, y, _ = _centre(units, b, a, n, ANY, ANY)
        far = sqrt((x - agents_x) ** 2 + (y - agents_y) ** 2) > 3.0
        for u in range(a, n):
            if not units.alive[b, u]:
                continue
            if far:
                _move(o, b, u, agents_x, agents_y)
                continue
            v, _ = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
            if v >= 0:
                _march(o, b, u, units.x[b, v], units.y[b, v])
        return
    if t == 0:
        for u in range(a, n):
            x, y = units.x[b, u], units.y[b, u]
            memory.group[b, u] = 0 if x > 28.25 or (x > 27.5 and y < 27.8) else 1
    x0, y0, _ = _group_centre(units, b, a, n, memory.group, 0)
    x1, y1, _ = _group_centre(units, b, a, n, memory.group, 1)
    for v in range(a):
        # comparisons with an empty group's nan are False
        if units.alive[b, v] and (
            (units.x[b, v] > x0 and units.y[b, v] > y1)
            or _apart(units, b, v, x0, y0) < 6.0
            or _apart(units, b, v, x1, y1) < 6.0
        ):
            memory.stage[b] = 1
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        if t < 13 and memory.stage[b] == 0:
            first = memory.group[b, u] == 0
            _move(o, b, u, 15.0 if first else 22.0, 22.0 if first else 15.0)
        else:
            v = _weakest_of_nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY, 2, False)
            _attack(o, b, u, v)


@njit
def _free_group(units, b, a, n, group, free, x, y):
    """The group of the set `free` (bits) whose centre is nearest to a point, -1: none."""
    best, shortest = -1, np.inf
    for g in range(HOMES.shape[0]):
        if free & (1 << g):
            cx, cy, _ = _group_centre(units, b, a, n, group, g)
            distance = sqrt((cx - x) ** 2 + (cy - y) ** 2)
            if distance < shortest:
                best, shortest = g, distance
    return best


@njit
def _join_another(units, b, a, n, group, u):
    """Puts baneling u into the nearest other group of 1 to 4, or else into an empty one, with
    which it moves in this step already if that group's turn is still to come.
    """
    best, shortest, empty = -1, np.inf, -1
    for g in range(HOMES.shape[0]):
        if g == group[b, u]:
            continue
        x, y, size = _group_centre(units, b, a, n, group, g)
        if size == 0:
            empty = g if empty < 0 else empty
        elif size < PER_HOME and _apart(units, b, u, x, y) < shortest:
            best, shortest = g, _apart(units, b, u, x, y)
    if best >= 0 or empty >= 0:
        group[b, u] = best if best >= 0 else empty


@njit
def _burst(units, b, a, n, o, group, g, v, w):
    """Group g goes for zealots v and w (or v alone: w = v), with as many banelings as it takes."""
    x = (units.x[b, v] + units.x[b, w]) / 2
    y = (units.y[b, v] + units.y[b, w]) / 2
    left_v = units.health[b, v] + units.shield[b, v]
    left_w = units.health[b, w] + units.shield[b, w]
    for u in range(a, n):
        if not units.alive[b, u] or group[b, u] != g:
            continue
        if left_v < 0 and left_w < 0:
            _join_another(units, b, a, n, group, u)
            continue
        near_v = _apart(units, b, u, units.x[b, v], units.y[b, v]) < 2.0
        near_w = _apart(units, b, u, units.x[b, w], units.y[b, w]) < 2.0
        if near_v and near_w:
            _attack(o, b, u, v)
            left_v -= BURST
            left_w -= BURST
        else:
            _move(o, b, u, x, y)


@njit
def _ambush(units, b, a, n, t, o, memory):
    """Banelings wait in groups that close in; each group falls on a pair of zealots that stand
    close together, and in the end on single ones.
    """
    group = memory.group
    if t == 0:
        for g in range(HOMES.shape[0] - 1):
            for _ in range(PER_HOME):
                best, shortest = -1, np.inf
                for u in range(a, n):
                    d = _apart(units, b, u, HOMES[g, 0], HOMES[g, 1])
                    if units.alive[b, u] and group[b, u] < 0 and d < shortest:
                        best, shortest = u, d
                if best >= 0:
                    group[b, best] = g
        for u in range(a, n):
            if group[b, u] < 0:
                group[b, u] = HOMES.shape[0] - 1
    steps = 0 if t < FORM_UP else (t - FORM_UP) // 2
    free = 0
    for u in range(a, n):
        if units.alive[b, u]:
            free |= 1 << group[b, u]
    final = False
    if t >= FORM_UP:
        least = np.inf
        for v in range(a):
            if units.alive[b, v]:
                least = min(least, units.x[b, v], units.y[b, v])
        final = 19 - steps <= least or 19 - steps < 2
        paired = 0
        while True:
            first, second, shortest = -1, -1, 2.0
            for v in range(a):
                if not units.alive[b, v] or paired & (1 << v):
                    continue
                for w in range(v + 1, a):
                    d = _apart(units, b, w, units.x[b, v], units.y[b, v])
                    if units.alive[b, w] and not paired & (1 << w) and d < shortest:
                        first, second, shortest = v, w, d
            if first < 0:
                break
            paired |= (1 << first) | (1 << second)
            x = (units.x[b, first] + units.x[b, second]) / 2
            y = (units.y[b, first] + units.y[b, second]) / 2
            g = _free_group(units, b, a, n, group, free, x, y)
            if g >= 0:
                free &= ~(1 << g)
                _burst(units, b, a, n, o, group, g, first, second)
        for v in range(a):
            if final and units.alive[b, v] and not paired & (1 << v):
                g = _free_group(units, b, a, n, group, free, units.x[b, v], units.y[b, v])
                if g >= 0:
                    free &= ~(1 << g)
                    _burst(units, b, a, n, o, group, g, v, v)
    if not final:
        for u in range(a, n):
            g = group[b, u]
            if units.alive[b, u] and free & (1 << g):
                _move(o, b, u, HOMES[g, 0] - steps, HOMES[g, 1] - steps)


@njit
def _crescent(units, b, a, n, t, o):
    """Banelings go where zerglings stand closest together; zerglings form a half circle first."""
    dense = _densest(units, b, 0, a, ZERGLING, 2.0)
    if dense < 0:
        dense = _densest(units, b, 0, a, ANY, 2.0)
    size, i = _count(units, b, a, n, ZERGLING), 0
    for u in range(a, n):
        if _is(units, b, u, BANELING):
            _attack(o, b, u, dense)
        elif units.alive[b, u] and t < 10:
            angle = pi * i / size
            _move(o, b, u, 16.0 + 10.0 * cos(angle), 21.0 + 10.0 * sin(angle))
            i += 1
        elif units.alive[b, u]:
            v, _ = _nearest(units, b, units.x[b, u], units.y[b, u], 0, a, ANY)
            _attack(o, b, u, v)


@njit
def _change_level(units, b, a, n, group, source, goal, how_many):
    """The lowest units of one group join another."""
    for _ in range(how_many):
        lowest, y = -1, np.inf
        for u in range(a, n):
            if units.alive[b, u] and group[b, u] == source and units.y[b, u] < y:
                lowest, y = u, units.y[b, u]
        if lowest < 0:
            return
        group[b, lowest] = goal


@njit
def _corners(units, b, a, n, t, o, memory):
    """Zerglings in four corners, two up and two down a cliff, which wait for colossi on their
    level; each side keeps about twice as many up as down.
    """
    group = memory.group
    if t == 0:
        for u in range(a, n):
            x, y = units.x[b, u], units.y[b, u]
            if (x < 15.6 and y > 7.9) or (x < 16.3 and y > 10.1):
                group[b, u] = 0
            elif (x > 16.3 and y > 7.9) or y > 8.6:
                group[b, u] = 1
            elif (x > 15.6 and y < 7.2) or x > 16.3:
                group[b, u] = 3
            else:
                group[b, u] = 2
    for side in range(2):
        _, _, up = _group_centre(units, b, a, n, group, side)
        _, _, down = _group_centre(units, b, a, n, group, side + 2)
        if up > 2 * down + 2:
            _change_level(units, b, a, n, group, side, side + 2, (up - 2 * down - 1) // 2)
            break
        if up < 2 * down - 2:
            _change_level(units, b, a, n, group, side + 2, side, (2 * down - 1 - up) // 2)
            break
    for g in range(4):
        x, y, size = _group_centre(units, b, a, n, group, g)
        if size == 0:
            continue
        target, shortest = -1, np.inf
        for v in range(a):
            level = units.y[b, v] > 11.9 if g < 2 else units.y[b, v] < 12.1
            distance = _apart(units, b, v, x, y)
            if units.alive[b, v] and level and distance < shortest:
                target, shortest = v, distance
        for u in range(a, n):
            if not units.alive[b, u] or group[b, u] != g:
                continue
            if t < 10:
                _move(o, b, u, FAR[g, 0], FAR[g, 1])
            elif target >= 0:
                _attack(o, b, u, target)
            else:
                _move(o, b, u, WAIT[g, 0], WAIT[g, 1])


@njit
def _weaker(units, b, a, n, o, plan):
    """One enemy: it attacks the agent with less health, or else the nearer one. A spine crawler
    does so with two stalkers alive, of those in its reach.
    """
    crawler = plan == WEAKER_STALKER
    if crawler and _count(units, b, 0, a, ANY) < 2:
        return
    for u in range(a, n):
        if not units.alive[b, u]:
            continue
        target, shortest = -1, np.inf
        for v in range(a):
            distance = _apart(units, b, v, units.x[b, u], units.y[b, u])
            if not units.alive[b, v] or (crawler and distance >= 8.7):
                continue
            if (
                target < 0
                or units.health[b, v] < units.health[b, target]
                or (units.health[b, v] == units.health[b, target] and distance < shortest)
            ):
                target, shortest = v, distance
        _attack(o, b, u, target)


@kernel
def command(first, end, mask, n_agents, script, units, heals, rush, memory, orders):
    """Writes the enemies' orders of battles in `mask` that play one of these scripts; who is told
    nothing must have ORDER_NONE before.

    Args:
        first, end: range of battles.
        mask: bool [B].
        script: int64 [B], position in `SCRIPTS`.
        heals: whether an attack order of a medivac on a friend heals it; else it is refused.
        rush: float64 [3], see `RUSH_POINTS`: x, y, and whether there is one.
        memory, orders: are changed.
    """
    a, n, o = n_agents, units.x.shape[1], orders
    for b in range(first, end):
        plan = script[b]
        if not mask[b] or plan < FIRST:
            continue
        t = memory.step[b]
        memory.step[b] += 1
        if _count(units, b, 0, a, ANY) == 0 or _count(units, b, a, n, ANY) == 0:
            continue
        if plan in (RUSH, DENSEST, MARCH_NEAREST):
            _simple(units, b, a, n, o, plan, rush)
        elif plan in (LINE_MIDDLE, LINE_WEAKEST):
            _line(units, b, a, n, t, o, memory, plan == LINE_WEAKEST)
        elif plan in (WALL_WEAKEST, WALL_CENTRE, WALL_SWEEP):
            _wall(units, b, a, n, t, o, plan)
        elif plan in (MEDIC_WEAKEST, MEDIC_NEAREST):
            _medic(units, b, a, n, t, o, memory, plan == MEDIC_NEAREST, heals)
        elif plan in (RETREAT, ZEALOTS_FIRST, LATE_RETREAT):
            _gateway(units, b, a, n, t, o, plan)
        elif plan == ENCIRCLE:
            _encircle(units, b, a, n, t, o, memory)
        elif plan in (GATHER, TWO_GROUPS):
            _corridor(units, b, a, n, t, o, memory, plan)
        elif plan == AMBUSH:
            _ambush(units, b, a, n, t, o, memory)
        elif plan == CRESCENT:
            _crescent(units, b, a, n, t, o)
        elif plan == CORNERS:
            _corners(units, b, a, n, t, o, memory)
        else:
            _weaker(units, b, a, n, o, plan)

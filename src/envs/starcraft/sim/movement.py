"""Ways around other bodies, and bodies pushed apart."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from envs.starcraft.sim import tables as t
from envs.starcraft.sim.pathing import INNER, OPEN_TO_GROUND, Ground, is_open, slide, waypoint
from envs.starcraft.sim.state import (
    BODY,
    EPS,
    FIRM,
    GOAL_STEP,
    GOAL_X,
    GOAL_Y,
    LAST_TURN,
    LIVING,
    MOVES,
    N_LIVING,
    NEARBY,
    OLD_X,
    OLD_Y,
    RESTLESS,
    SEPARATION,
    SIDE,
    SPEED,
    STALLED,
    TYPE,
    Array,
    X,
    Y,
    other_side,
)

# Directions tried around a body in the way: multiples of this angle, up to TURNS of them on a side.
TURN = math.pi / 8
TURNS = 6
_COS = np.cos(np.arange(TURNS + 1) * TURN)
_SIN = np.sin(np.arange(TURNS + 1) * TURN)
# A unit that makes less than this part of its step is stalled.
SLOW = 0.3
# Golden angle, to part two bodies at the very same point.
_GOLDEN = 2.399963229728653


@njit(**INNER)
def _in_the_way(f: Array, k: Array, u: int, x: float, y: float, n_near: int) -> bool:
    """Whether at (x, y) unit u would be inside, and deeper than now, one of the bodies listed near
    it.
    """
    for i in range(n_near):
        w = k[NEARBY, i]
        dx, dy = x - f[X, w], y - f[Y, w]
        distance2 = dx * dx + dy * dy
        reach = (f[SEPARATION, u] + f[SEPARATION, w]) * 0.999
        if distance2 < reach * reach:
            dx, dy = f[X, u] - f[X, w], f[Y, u] - f[Y, w]
            if distance2 < dx * dx + dy * dy:
                return True
    return False


@njit(**INNER)
def move(
    f: Array, k: Array, c: Array, u: int, n_agents: int, ground: Ground, tables: t.Tables
) -> None:
    """One loop of u's way to its goal: straight, or turned to one side as far as bodies that stand
    in it demand.
    """
    kind = k[TYPE, u]
    x, y = f[X, u], f[Y, u]
    goal_x, goal_y = f[GOAL_X, u], f[GOAL_Y, u]
    bit = int(tables.unit[kind, t.CROSSES])
    if bit == OPEN_TO_GROUND:
        goal_x, goal_y = waypoint(ground, x, y, goal_x, goal_y)
    dx, dy = goal_x - x, goal_y - y
    distance = math.sqrt(dx * dx + dy * dy)
    if distance < EPS:
        return
    step = min(f[GOAL_STEP, u], distance)
    dx *= step / distance
    dy *= step / distance

    n_near = 0
    nearest, nearest2 = -1, np.inf
    for i in range(c[N_LIVING]):
        w = k[LIVING, i]
        if w == u or k[BODY, w] != k[BODY, u]:
            continue
        stands = k[STALLED, w] > 1 if k[MOVES, w] == 1 else other_side(u, w, n_agents)
        if k[FIRM, w] == 0 and not stands:
            continue
        reach = f[SEPARATION, u] + f[SEPARATION, w] + step
        away_x, away_y = f[X, w] - x, f[Y, w] - y
        distance2 = away_x * away_x + away_y * away_y
        if distance2 < reach * reach:
            k[NEARBY, n_near] = w
            n_near += 1
            if distance2 < nearest2:
                nearest, nearest2 = w, distance2
    if n_near == 0:
        k[SIDE, u] = 0
        f[X, u], f[Y, u] = slide(ground.open, bit, x, y, dx, dy)
        return

    side = k[SIDE, u]
    turn = max(0, k[LAST_TURN, u] - 1)
    if side == 0:
        # away from the centre of what stands in the way
        across = dx * (f[Y, nearest] - y) - dy * (f[X, nearest] - x)
        side = -1 if across > 0.0 or (across == 0.0 and u % 2 == 0) else 1
        turn = 0
    # it turns back to its way only little by little, else it would be caught between two bodies
    for _ in range(2):
        while turn <= TURNS:
            cos, sin = _COS[turn], side * _SIN[turn]
            new_x, new_y = x + dx * cos - dy * sin, y + dx * sin + dy * cos
            if is_open(ground.open, bit, new_x, new_y) and not _in_the_way(
                f, k, u, new_x, new_y, n_near
            ):
                f[X, u], f[Y, u] = new_x, new_y
                k[SIDE, u] = side
                k[LAST_TURN, u] = turn
                return
            turn += 1
        side = -side
        turn = 1


@njit(**INNER)
def _push(
    f: Array, k: Array, u: int, dx: float, dy: float, ground: Ground, tables: t.Tables
) -> None:
    bit = int(tables.unit[k[TYPE, u], t.CROSSES])
    f[X, u], f[Y, u] = slide(ground.open, bit, f[X, u], f[Y, u], dx, dy)


@njit(**INNER)
def push_apart(
    f: Array, k: Array, c: Array, n_agents: int, ground: Ground, tables: t.Tables
) -> float:
    """Parts overlapping bodies: units that attack and buildings stay, and enemies do not push who
    stands.

    Returns the largest overlap that it met, as a part of the two bodies.
    """
    c[RESTLESS] = 0
    worst = 0.0
    n = c[N_LIVING]
    for i in range(n):
        u = k[LIVING, i]
        for j in range(i + 1, n):
            w = k[LIVING, j]
            reach = f[SEPARATION, u] + f[SEPARATION, w]
            dx = f[X, w] - f[X, u]
            if dx >= reach or dx <= -reach:
                continue
            dy = f[Y, w] - f[Y, u]
            distance2 = dx * dx + dy * dy
            if distance2 >= reach * reach or k[BODY, u] != k[BODY, w]:
                continue
            distance = math.sqrt(distance2)
            overlap = reach - distance
            if overlap < EPS:
                continue
            c[RESTLESS] = 1
            worst = max(worst, overlap / reach)
            if distance > EPS:
                dx /= distance
                dy /= distance
            else:
                angle = _GOLDEN * (u + w)
                dx, dy = math.cos(angle), math.sin(angle)
            stays_u, stays_w = k[FIRM, u] == 1, k[FIRM, w] == 1
            if (
                not stays_u
                and not stays_w
                and k[MOVES, u] != k[MOVES, w]
                and other_side(u, w, n_agents)
            ):
                stays_u, stays_w = k[MOVES, u] == 0, k[MOVES, w] == 0
            if stays_u == stays_w:
                stays_u, stays_w = f[SPEED, u] <= 0.0, f[SPEED, w] <= 0.0
            share = 0.5 if stays_u == stays_w else 0.0 if stays_u else 1.0
            _push(f, k, u, -dx * overlap * share, -dy * overlap * share, ground, tables)
            _push(
                f, k, w, dx * overlap * (1.0 - share), dy * overlap * (1.0 - share), ground, tables
            )
    return worst


@njit(**INNER)
def count_stall(f: Array, k: Array, u: int) -> None:
    dx, dy = f[X, u] - f[OLD_X, u], f[Y, u] - f[OLD_Y, u]
    slow = SLOW * f[GOAL_STEP, u]
    k[STALLED, u] = k[STALLED, u] + 1 if dx * dx + dy * dy < slow * slow else 0

"""Ways around walls: what of a terrain can be walked, and shortest ways between its cells, computed
once.

A unit's centre stays in open cells. Cell c = 32 i + j covers x in [i, i + 1), y in [j, j + 1).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

SIZE = 32
CELLS = SIZE * SIZE
# bits of `Ground.open`
OPEN_TO_GROUND = 1
OPEN_TO_CLIFF_WALKERS = 2
# Thickest wall (cells) that counts as a cliff between two levels rather than as the edge of the
# field.
CLIFF_WIDTH = 2
# A unit that is sent into a wall stops this far from it; numbers smaller than the map are kept off
# its edge by it too.
MARGIN = 1e-3
_DIAGONAL = math.sqrt(2.0)

# For functions that are called from compiled code only. They allocate nothing, and counting
# references to the arrays that they pass on would take four times as long as the rest of their
# work.
INNER: dict[str, Any] = {"nogil": True, "forceinline": True, "_nrt": False}


class Ground(NamedTuple):
    """A terrain as the compiled code reads it.

    open: uint8 [1024], bits OPEN_TO_GROUND and OPEN_TO_CLIFF_WALKERS. simple: int64 [1], 1 where
    every way is a straight line along which a unit slides at the walls. nearest: int16 [1024], the
    open cell nearest to each cell. ahead, next: int16 [1024, 1024] (goal cell, own cell): the
    farthest cell on the shortest way whose centre is seen from the own cell's centre, and the
    neighbour on it; -1 without a way. One element where `simple`.
    """

    open: np.ndarray
    simple: np.ndarray
    nearest: np.ndarray
    ahead: np.ndarray
    next: np.ndarray


def make_ground(pathing: np.ndarray) -> Ground:
    """The tables for a pathing grid (bool [32, 32] as [x, y]); cached, about 1 s for a maze."""
    return _make_ground(np.ascontiguousarray(pathing, dtype=np.bool_).tobytes())


@cache
def _make_ground(cells: bytes) -> Ground:
    walkable = np.frombuffer(cells, dtype=np.bool_).reshape(SIZE, SIZE)
    flags = walkable.astype(np.uint8) * OPEN_TO_GROUND
    flags |= (walkable | _cliffs(walkable)).astype(np.uint8) * OPEN_TO_CLIFF_WALKERS
    flags = np.ascontiguousarray(flags.reshape(-1))
    simple = bool(_is_simple(flags))
    shape = (1, 1) if simple else (CELLS, CELLS)
    ahead, following = np.full(shape, -1, dtype=np.int16), np.full(shape, -1, dtype=np.int16)
    if not simple:
        _fill_ways(flags, ahead, following)
    ground = Ground(flags, np.array([int(simple)]), _nearest_open(walkable), ahead, following)
    for array in ground:
        array.flags.writeable = False
    return ground


def _cliffs(walkable: np.ndarray) -> np.ndarray:
    """Blocked cells with walkable ground on two opposite sides, at most `CLIFF_WIDTH` blocked cells
    apart.
    """

    def near(grid: np.ndarray) -> np.ndarray:
        found = np.zeros_like(grid)
        for k in range(1, CLIFF_WIDTH + 1):
            found[k:] |= grid[:-k]
        return found

    def between(grid: np.ndarray) -> np.ndarray:
        before, after = near(grid), near(grid[::-1])[::-1]
        return before & after

    return ~walkable & (between(walkable) | between(walkable.T).T)


def _nearest_open(walkable: np.ndarray) -> np.ndarray:
    cells = np.argwhere(walkable)
    nearest = np.zeros(CELLS, dtype=np.int16)
    for cell in range(CELLS):
        distance = ((cells - (cell // SIZE, cell % SIZE)) ** 2).sum(axis=1)
        nearest[cell] = cells[distance.argmin()] @ (SIZE, 1)
    return nearest


@njit(**INNER)
def cell_of(x: float, y: float) -> int:
    """The cell of a point inside the map."""
    return int(x) * SIZE + int(y)


@njit(**INNER)
def is_open(opened: np.ndarray, bit: int, x: float, y: float) -> bool:
    """Whether a unit's centre may be at (x, y); `bit` 0: inside the map is enough."""
    if x < 0.0 or y < 0.0 or x >= SIZE or y >= SIZE:
        return False
    return bit == 0 or (opened[cell_of(x, y)] & bit) != 0


@njit(**INNER)
def slide(
    opened: np.ndarray, bit: int, x: float, y: float, dx: float, dy: float
) -> tuple[float, float]:
    """Where (x, y) gets by moving (dx, dy): into open cells only, along a wall where one is in the
    way.
    """
    if is_open(opened, bit, x + dx, y + dy):
        return x + dx, y + dy
    if is_open(opened, bit, x + dx, y):
        return x + dx, y
    if is_open(opened, bit, x, y + dy):
        return x, y + dy
    return x, y


@njit(**INNER)
def sees(opened: np.ndarray, x0: float, y0: float, x1: float, y1: float) -> bool:
    """Whether the straight line between two points stays in cells open to ground units (grid walk,
    Amanatides-Woo).
    """
    i, j = int(x0), int(y0)
    goal_i, goal_j = int(x1), int(y1)
    dx, dy = x1 - x0, y1 - y0
    step_i = 1 if dx > 0 else -1
    step_j = 1 if dy > 0 else -1
    across_i = abs(1.0 / dx) if dx != 0.0 else np.inf
    across_j = abs(1.0 / dy) if dy != 0.0 else np.inf
    until_i = ((i + 1 - x0) if dx > 0 else (x0 - i)) * across_i if dx != 0.0 else np.inf
    until_j = ((j + 1 - y0) if dy > 0 else (y0 - j)) * across_j if dy != 0.0 else np.inf
    for _ in range(2 * SIZE + 2):
        if i < 0 or j < 0 or i >= SIZE or j >= SIZE or (opened[i * SIZE + j] & OPEN_TO_GROUND) == 0:
            return False
        if i == goal_i and j == goal_j:
            return True
        if until_i < until_j:
            i += step_i
            until_i += across_i
        else:
            j += step_j
            until_j += across_j
    return False


@njit(cache=True, nogil=True)
def _is_simple(opened: np.ndarray) -> bool:
    for start in range(CELLS):
        if not opened[start] & OPEN_TO_GROUND:
            continue
        for goal in range(CELLS):
            if not opened[goal] & OPEN_TO_GROUND:
                continue
            x, y = start // SIZE + 0.5, start % SIZE + 0.5
            goal_x, goal_y = goal // SIZE + 0.5, goal % SIZE + 0.5
            if sees(opened, x, y, goal_x, goal_y):
                continue
            arrived = False
            for _ in range(8 * SIZE):
                dx, dy = goal_x - x, goal_y - y
                distance = math.sqrt(dx * dx + dy * dy)
                if distance < 0.5:
                    arrived = True
                    break
                new_x, new_y = slide(
                    opened, OPEN_TO_GROUND, x, y, dx / distance * 0.25, dy / distance * 0.25
                )
                if abs(new_x - x) + abs(new_y - y) < 0.01:
                    break
                x, y = new_x, new_y
            if not arrived:
                return False
    return True


@njit(cache=True, nogil=True)
def _fill_ways(opened: np.ndarray, ahead: np.ndarray, following: np.ndarray) -> None:
    """Dijkstra from every goal cell over the 8 neighbours (no corner is cut), then the farthest
    cell in sight.
    """
    length = np.empty(CELLS)
    done = np.empty(CELLS, dtype=np.bool_)
    heap = np.empty(8 * CELLS, dtype=np.int64)
    for goal in range(CELLS):
        if not opened[goal] & OPEN_TO_GROUND:
            continue
        length[:] = np.inf
        done[:] = False
        length[goal] = 0.0
        following[goal, goal] = goal
        heap[0] = goal
        n_heap = 1
        while n_heap > 0:
            best = 0
            for k in range(1, n_heap):
                if length[heap[k]] < length[heap[best]]:
                    best = k
            cell = heap[best]
            n_heap -= 1
            heap[best] = heap[n_heap]
            if done[cell]:
                continue
            done[cell] = True
            i, j = cell // SIZE, cell % SIZE
            for di in range(-1, 2):
                for dj in range(-1, 2):
                    ni, nj = i + di, j + dj
                    if ni < 0 or nj < 0 or ni >= SIZE or nj >= SIZE:
                        continue
                    neighbour = ni * SIZE + nj
                    if done[neighbour] or not opened[neighbour] & OPEN_TO_GROUND:
                        continue
                    if (
                        not opened[ni * SIZE + j] & OPEN_TO_GROUND
                        or not opened[i * SIZE + nj] & OPEN_TO_GROUND
                    ):
                        continue
                    along = length[cell] + (_DIAGONAL if di != 0 and dj != 0 else 1.0)
                    if along < length[neighbour] - 1e-9:
                        length[neighbour] = along
                        following[goal, neighbour] = cell
                        heap[n_heap] = neighbour
                        n_heap += 1
        for cell in range(CELLS):
            if following[goal, cell] < 0:
                continue
            seen = following[goal, cell]
            for _ in range(CELLS):
                beyond = following[goal, seen]
                if beyond == seen or not sees(
                    opened,
                    cell // SIZE + 0.5,
                    cell % SIZE + 0.5,
                    beyond // SIZE + 0.5,
                    beyond % SIZE + 0.5,
                ):
                    break
                seen = beyond
            ahead[goal, cell] = seen


@njit(**INNER)
def nearest_open_point(ground: Ground, x: float, y: float) -> tuple[float, float]:
    """The point itself, moved into the map, or the nearest point of the nearest cell that is open
    to ground units.
    """
    x, y = min(max(x, MARGIN), SIZE - MARGIN), min(max(y, MARGIN), SIZE - MARGIN)
    cell = cell_of(x, y)
    if not ground.open[cell] & OPEN_TO_GROUND:
        i, j = ground.nearest[cell] // SIZE, ground.nearest[cell] % SIZE
        x, y = min(max(x, i + MARGIN), i + 1 - MARGIN), min(max(y, j + MARGIN), j + 1 - MARGIN)
    return x, y


@njit(**INNER)
def waypoint(
    ground: Ground, x: float, y: float, goal_x: float, goal_y: float
) -> tuple[float, float]:
    """The point that a ground unit at (x, y) heads for on its way to the goal: in a straight line,
    without a wall.

    A goal that cannot be stood on is replaced by the nearest point of the nearest open cell; where
    no way leads, the unit's own place is returned.
    """
    goal_x, goal_y = nearest_open_point(ground, goal_x, goal_y)
    if ground.simple[0] or sees(ground.open, x, y, goal_x, goal_y):
        return goal_x, goal_y
    goal, own = cell_of(goal_x, goal_y), cell_of(x, y)
    cell = int(ground.ahead[goal, own])
    if cell < 0:
        return x, y
    if not sees(ground.open, x, y, cell // SIZE + 0.5, cell % SIZE + 0.5):
        cell = int(ground.next[goal, own])
    return cell // SIZE + 0.5, cell % SIZE + 0.5

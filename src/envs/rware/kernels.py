"""All compiled code of the warehouse, with its constants: who may go, steps, observations.

It is in one file because numba's cache notices a change in the file of a compiled function only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

NOOP, FORWARD, LEFT, RIGHT, TOGGLE_LOAD = range(5)
N_ACTIONS = 5
UP, DOWN, TO_LEFT, TO_RIGHT = range(4)  # directions
N_DIRECTIONS = 4
DX = np.array([0, 0, -1, 1])
DY = np.array([-1, 1, 0, 0])
TURN_LEFT = np.array([TO_LEFT, TO_RIGHT, DOWN, UP])
TURN_RIGHT = np.array([TO_RIGHT, TO_LEFT, UP, DOWN])
NOTHING = -1
OWN_SIZE = 8  # entries of an observation: x, y, loaded, direction, on a highway
CELL_SIZE = 7  # for each cell in range: robot, its direction, shelf, whether it is requested
RETURN_REWARD = 0.5  # for putting back a delivered shelf, two_stage only


class Warehouses(NamedTuple):
    """B warehouses.

    Args:
        x, y, direction: int64 [B, A], of the robots.
        cargo: int64 [B, A], the number of the shelf that a robot carries, or NOTHING.
        delivered: bool [B, A], whether a robot's cargo was delivered.
        shelf_x, shelf_y: int64 [B, N].
        requested: bool [B, N].
        robot_at, shelf_at: int64 [B, H, W], which one is in a cell, or NOTHING.
    """

    x: np.ndarray
    y: np.ndarray
    direction: np.ndarray
    cargo: np.ndarray
    delivered: np.ndarray
    shelf_x: np.ndarray
    shelf_y: np.ndarray
    requested: np.ndarray
    robot_at: np.ndarray
    shelf_at: np.ndarray


class Plans(NamedTuple):
    """What the robots are about to do.

    Args:
        action: int64 [B, A].
        target_x, target_y: int64 [B, A], the cell that a robot is in after the step, if it may go.
        may_go: bool [B, A].
        tied: bool [B], whether the choice between robots is still open, see `decide`.
    """

    action: np.ndarray
    target_x: np.ndarray
    target_y: np.ndarray
    may_go: np.ndarray
    tied: np.ndarray


class Rules(NamedTuple):
    """What does not change; see `RobotWarehouse`.

    Args:
        highways: bool [H, W].
        goals: int64 [G, 2], x and y.
    """

    highways: np.ndarray
    goals: np.ndarray
    sensor_range: int
    two_stage: bool
    normalised_coordinates: bool


# who may go


@njit(cache=True)
def _aim(b: int, actions: np.ndarray, houses: Warehouses, plans: Plans) -> None:
    """Targets of all robots of one warehouse. One with a shelf does not try to enter the cell of
    another shelf, unless a robot carries that one.
    """
    height, width = houses.robot_at.shape[1:]
    for i in range(actions.shape[1]):
        x, y, action = houses.x[b, i], houses.y[b, i], actions[b, i]
        to_x, to_y = x, y
        if action == FORWARD:
            direction = houses.direction[b, i]
            to_x = min(max(x + DX[direction], 0), width - 1)
            to_y = min(max(y + DY[direction], 0), height - 1)
            moves = to_x != x or to_y != y
            if moves and houses.cargo[b, i] != NOTHING and houses.shelf_at[b, to_y, to_x] >= 0:
                other = houses.robot_at[b, to_y, to_x]
                if other == NOTHING or houses.cargo[b, other] == NOTHING:
                    to_x, to_y, action = x, y, NOOP
        plans.action[b, i] = action
        plans.target_x[b, i], plans.target_y[b, i] = to_x, to_y


@njit(cache=True)
def _follow(b: int, houses: Warehouses, plans: Plans, ahead: np.ndarray) -> None:
    """Writes who is in each robot's target: `ahead` int64 [A], itself if it stays, or NOTHING."""
    for i in range(len(ahead)):
        ahead[i] = houses.robot_at[b, plans.target_y[b, i], plans.target_x[b, i]]


@njit(cache=True)
def _measure(ahead: np.ndarray, waiting: np.ndarray) -> None:
    """Writes how many robots stand in the longest queue behind each: `waiting` int64 [A].

    Those in a circle are not counted.
    """
    n = len(ahead)
    waiting[:] = 0
    for i in range(n):
        length, at = 0, i
        while ahead[at] != NOTHING and ahead[at] != at and length < n:
            at = ahead[at]
            length += 1
            waiting[at] = max(waiting[at], length)


@njit(cache=True)
def _circle(i: int, ahead: np.ndarray) -> int:
    """How many robots are in the circle that robot i is part of; 0: it is in none."""
    at = i
    for length in range(1, len(ahead) + 1):
        at = ahead[at]
        if at == NOTHING:
            return 0
        if at == i:
            return length
    return 0


@njit(cache=True)
def decide(numbers: np.ndarray, actions: np.ndarray, houses: Warehouses, plans: Plans) -> None:
    """Plans of the warehouses in `numbers` (int64 [R]).

    Who stays may. In a circle of three or more all go, and two cannot change places. Of all who
    want an empty cell that one goes who has the longest queue behind it, then the one with the
    longest queue of those who want its cell, and so on. Nobody else goes. Where two queues are
    equally long, `tied` is set and the choice among the robots before an empty cell is left open.

    Args:
        actions: int64 [B, A].
    """
    n = actions.shape[1]
    ahead, waiting = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
    for b in numbers:
        _aim(b, actions, houses, plans)
        _follow(b, houses, plans, ahead)
        _measure(ahead, waiting)
        plans.tied[b] = False
        for i in range(n):
            circle = _circle(i, ahead)
            plans.may_go[b, i] = circle == 1 or circle >= 3
        for i in range(n):
            if ahead[i] == NOTHING and _is_first(i, b, waiting, plans):
                _let_go(i, b, ahead, waiting, plans)


@njit(cache=True)
def _is_first(i: int, b: int, waiting: np.ndarray, plans: Plans) -> bool:
    """Whether nobody with robot i's target has a longer queue; equal ones mark a tie."""
    for other in range(len(waiting)):
        same_column = plans.target_x[b, other] == plans.target_x[b, i]
        if other != i and same_column and plans.target_y[b, other] == plans.target_y[b, i]:
            if waiting[other] > waiting[i]:
                return False
            if waiting[other] == waiting[i]:
                plans.tied[b] = True
    return True


@njit(cache=True)
def _let_go(i: int, b: int, ahead: np.ndarray, waiting: np.ndarray, plans: Plans) -> None:
    """Robot i goes, and the longest queue behind it; equal ones mark a tie."""
    while i != NOTHING:
        plans.may_go[b, i] = True
        follower = NOTHING
        for other in range(len(ahead)):
            if ahead[other] == i:
                if follower == NOTHING or waiting[other] > waiting[follower]:
                    follower = other
                elif waiting[other] == waiting[follower]:
                    plans.tied[b] = True
        i = follower


# steps


@njit(cache=True)
def _act(b: int, houses: Warehouses, rules: Rules, plans: Plans, rewards: np.ndarray) -> None:
    """Turns, loads and unloads; empties the cells that are left."""
    for i in range(len(rewards)):
        x, y, action = houses.x[b, i], houses.y[b, i], plans.action[b, i]
        if action == FORWARD and plans.may_go[b, i]:
            houses.robot_at[b, y, x] = NOTHING
            if houses.cargo[b, i] != NOTHING:
                houses.shelf_at[b, y, x] = NOTHING
        elif action == LEFT:
            houses.direction[b, i] = TURN_LEFT[houses.direction[b, i]]
        elif action == RIGHT:
            houses.direction[b, i] = TURN_RIGHT[houses.direction[b, i]]
        elif action == TOGGLE_LOAD and houses.cargo[b, i] == NOTHING:
            houses.cargo[b, i] = houses.shelf_at[b, y, x]
        elif action == TOGGLE_LOAD and not rules.highways[y, x]:
            houses.cargo[b, i] = NOTHING
            if houses.delivered[b, i] and rules.two_stage:
                rewards[i] += RETURN_REWARD
            houses.delivered[b, i] = False


@njit(cache=True)
def _arrive(b: int, houses: Warehouses, plans: Plans) -> None:
    """Brings everybody who goes, and its cargo, into the new cell."""
    for i in range(plans.action.shape[1]):
        if plans.action[b, i] == FORWARD and plans.may_go[b, i]:
            x, y, cargo = plans.target_x[b, i], plans.target_y[b, i], houses.cargo[b, i]
            houses.x[b, i], houses.y[b, i] = x, y
            houses.robot_at[b, y, x] = i
            if cargo != NOTHING:
                houses.shelf_x[b, cargo], houses.shelf_y[b, cargo] = x, y
                houses.shelf_at[b, y, x] = cargo


@njit(cache=True)
def carry_out(
    numbers: np.ndarray,
    houses: Warehouses,
    rules: Rules,
    plans: Plans,
    rewards: np.ndarray,
    arrived: np.ndarray,
) -> None:
    """The warehouses in `numbers` (int64 [R]) do as planned.

    Args:
        rewards: float64 [B, A], written to; without those for deliveries.
        arrived: bool [B], written to: whether a requested shelf is at a goal.
    """
    for b in numbers:
        rewards[b] = 0.0
        _act(b, houses, rules, plans, rewards[b])
        _arrive(b, houses, plans)
        arrived[b] = False
        for goal in range(len(rules.goals)):
            shelf = houses.shelf_at[b, rules.goals[goal, 1], rules.goals[goal, 0]]
            if shelf != NOTHING and houses.requested[b, shelf]:
                arrived[b] = True


# observations


@njit(cache=True)
def _look(i: int, b: int, houses: Warehouses, rules: Rules, row: np.ndarray) -> None:
    """What robot i sees: itself, then the cells in range row by row, its own one included.

    A cell without a robot, or beyond the walls, has direction "up" (rware 2.0 has it so).
    """
    height, width = rules.highways.shape
    x, y = houses.x[b, i], houses.y[b, i]
    row[:] = 0.0
    row[0], row[1] = x, y
    if rules.normalised_coordinates:
        row[0], row[1] = x / (width - 1), y / (height - 1)
    row[2] = houses.cargo[b, i] != NOTHING
    row[3 + houses.direction[b, i]] = 1.0
    row[3 + N_DIRECTIONS] = rules.highways[y, x]
    to = OWN_SIZE
    for cell_y in range(y - rules.sensor_range, y + rules.sensor_range + 1):
        for cell_x in range(x - rules.sensor_range, x + rules.sensor_range + 1):
            robot, shelf = NOTHING, NOTHING
            if 0 <= cell_x < width and 0 <= cell_y < height:
                robot, shelf = (
                    houses.robot_at[b, cell_y, cell_x],
                    houses.shelf_at[b, cell_y, cell_x],
                )
            row[to] = robot != NOTHING
            row[to + 1 + (UP if robot == NOTHING else houses.direction[b, robot])] = 1.0
            if shelf != NOTHING:
                row[to + 1 + N_DIRECTIONS] = 1.0
                row[to + 2 + N_DIRECTIONS] = houses.requested[b, shelf]
            to += CELL_SIZE


@njit(cache=True)
def observe(
    numbers: np.ndarray, houses: Warehouses, rules: Rules, obs: np.ndarray, state: np.ndarray
) -> None:
    """Writes what the warehouses in `numbers` (int64 [R]) look like.

    Args:
        obs: float32 [B, A, O].
        state: float32 [B, A * O], all observations one after the other.
    """
    n, size = obs.shape[1:]
    for b in numbers:
        for i in range(n):
            _look(i, b, houses, rules, obs[b, i])
            state[b, i * size : (i + 1) * size] = obs[b, i]

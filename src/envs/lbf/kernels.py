"""All compiled code of Level-Based Foraging, with its constants: starts, steps, observations.

It is in one file because numba's cache notices a change in the file of a compiled function only.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

NONE, NORTH, SOUTH, WEST, EAST, LOAD = range(6)
N_ACTIONS = 6
# by action: the change of row and column; the neighbours of a cell are those of NORTH to EAST
MOVES = np.array([[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
MAX_ATTEMPTS = 1000  # to place one player, or all food of a field
STRONGEST_TEAM = 3  # without an upper limit, food is at most as strong as so many weakest players
N_LAYERS = 3  # of an observation as a grid: players, food, accessible cells
N_COUNTS = 3  # foods loaded, failed attempts, whether the field is empty


class Fields(NamedTuple):
    """B fields.

    Args:
        positions: int64 [B, A, 2], row and column of every player.
        levels: int64 [B, A].
        foods: int64 [B, F, 2], row and column of every food, in the order of the rows.
        food_levels: int64 [B, F]; 0: it was loaded, or found no place at the start.
        spawned: int64 [B], the sum of the food levels at the start.
    """

    positions: np.ndarray
    levels: np.ndarray
    foods: np.ndarray
    food_levels: np.ndarray
    spawned: np.ndarray


class Rules(NamedTuple):
    """What does not change; see `LevelBasedForaging`.

    Args:
        player_low, player_high: int64 [A], bounds of levels, both included; players draw one each.
        food_low, food_high: int64 [F], likewise; a high of 0: by the players' levels.
    """

    rows: int
    cols: int
    sight: int
    player_low: np.ndarray
    player_high: np.ndarray
    food_low: np.ndarray
    food_high: np.ndarray
    force_coop: bool
    penalty: float
    normalize_reward: bool
    grid_observation: bool
    observe_agent_levels: bool
    action_mask: bool


class Shown(NamedTuple):
    """The contract's arrays: obs float32 [B, A, O], state float32 [B, A * O], avail_actions uint8
    [B, A, U].
    """

    obs: np.ndarray
    state: np.ndarray
    avail_actions: np.ndarray


@njit(cache=True)
def _food_at(foods: np.ndarray, food_levels: np.ndarray, row: int, col: int) -> int:
    """The number of the food in a cell; -1: there is none."""
    for food in range(len(foods)):
        if food_levels[food] > 0 and foods[food, 0] == row and foods[food, 1] == col:
            return food
    return -1


@njit(cache=True)
def _food_beside(foods: np.ndarray, food_levels: np.ndarray, row: int, col: int) -> int:
    """The number of the food next to a cell (there is at most one, see `_has_room`); -1: none."""
    for food in range(len(foods)):
        apart = abs(foods[food, 0] - row) + abs(foods[food, 1] - col)
        if food_levels[food] > 0 and apart == 1:
            return food
    return -1


@njit(cache=True)
def _is_valid(
    action: int, position: np.ndarray, foods: np.ndarray, food_levels: np.ndarray, rules: Rules
) -> bool:
    """Whether a player may do this: walk onto the field and not into food, load next to food."""
    if action == NONE:
        return True
    row, col = position[0] + MOVES[action, 0], position[1] + MOVES[action, 1]
    if action == LOAD:
        return _food_beside(foods, food_levels, row, col) >= 0
    inside = 0 <= row < rules.rows and 0 <= col < rules.cols
    return inside and _food_at(foods, food_levels, row, col) < 0


# the start of an episode


@njit(cache=True)
def _is_free(positions: np.ndarray, n_placed: int, row: int, col: int) -> bool:
    """Whether none of the first `n_placed` players stands in the cell."""
    for player in range(n_placed):
        if positions[player, 0] == row and positions[player, 1] == col:
            return False
    return True


@njit(cache=True)
def _has_room(foods: np.ndarray, n_placed: int, row: int, col: int) -> bool:
    """Whether no food is in the eight cells around, nor two steps away in the row or column: no
    cell is next to two foods.
    """
    for food in range(n_placed):
        rows_apart, cols_apart = abs(foods[food, 0] - row), abs(foods[food, 1] - col)
        if max(rows_apart, cols_apart) <= 1:
            return False
        if min(rows_apart, cols_apart) == 0 and max(rows_apart, cols_apart) <= 2:
            return False
    return True


@njit(cache=True)
def _place_players(
    rng: np.random.Generator, positions: np.ndarray, levels: np.ndarray, rules: Rules
) -> None:
    """Draws levels and places, player after player; the bounds of levels are shuffled first."""
    n_players = len(positions)
    shuffled = rng.permutation(n_players)
    for player in range(n_players):
        for _ in range(MAX_ATTEMPTS):
            row, col = int(rng.integers(0, rules.rows)), int(rng.integers(0, rules.cols))
            if _is_free(positions, player, row, col):
                positions[player, 0], positions[player, 1] = row, col
                low, high = rules.player_low[shuffled[player]], rules.player_high[shuffled[player]]
                levels[player] = rng.integers(low, high + 1)
                break


@njit(cache=True)
def _place_foods(
    rng: np.random.Generator,
    positions: np.ndarray,
    levels: np.ndarray,
    foods: np.ndarray,
    food_levels: np.ndarray,
    rules: Rules,
) -> None:
    """Draws levels and places of the foods, none at the edge; fewer if they find no room."""
    n_foods = len(foods)
    strongest = np.sort(levels)[:STRONGEST_TEAM].sum()
    shuffled = rng.permutation(n_foods)
    food_levels[:] = 0
    placed = 0
    for _ in range(MAX_ATTEMPTS):
        if placed == n_foods:
            break
        row = int(rng.integers(1, rules.rows - 1))
        col = int(rng.integers(1, rules.cols - 1))
        if not (_has_room(foods, placed, row, col) and _is_free(positions, len(levels), row, col)):
            continue
        high = rules.food_high[shuffled[placed]]
        if high == 0:
            high = strongest
        low = high if rules.force_coop else rules.food_low[shuffled[placed]]
        foods[placed, 0], foods[placed, 1] = row, col
        food_levels[placed] = high if low == high else rng.integers(low, high + 1)
        placed += 1


@njit(cache=True)
def _sort_foods(foods: np.ndarray, food_levels: np.ndarray) -> None:
    """Brings the foods into the order in which observations list them: by row, then by column."""
    for last in range(1, len(foods)):
        for at in range(last, 0, -1):
            before = at - 1
            ordered = foods[before, 0] < foods[at, 0] or (
                foods[before, 0] == foods[at, 0] and foods[before, 1] <= foods[at, 1]
            )
            if ordered:
                break
            for axis in range(2):
                foods[before, axis], foods[at, axis] = foods[at, axis], foods[before, axis]
            food_levels[before], food_levels[at] = food_levels[at], food_levels[before]


@njit(cache=True)
def begin(
    rng: np.random.Generator, b: int, fields: Fields, rules: Rules, counts: np.ndarray, shown: Shown
) -> None:
    """Starts an episode on field b; draws from `rng` in lbforaging's order."""
    _place_players(rng, fields.positions[b], fields.levels[b], rules)
    _place_foods(
        rng,
        fields.positions[b],
        fields.levels[b],
        fields.foods[b],
        fields.food_levels[b],
        rules,
    )
    _sort_foods(fields.foods[b], fields.food_levels[b])
    fields.spawned[b] = fields.food_levels[b].sum()
    counts[:, b] = 0.0
    _show(b, fields, rules, shown)


# steps


@njit(cache=True)
def _walk(positions: np.ndarray, actions: np.ndarray, targets: np.ndarray) -> None:
    """Moves everybody who is alone in wanting a cell; who stands still wants its own.

    Args:
        actions: int64 [A], valid ones.
        targets: int64 [A, 2], scratch.
    """
    n_players = len(positions)
    for player in range(n_players):
        for axis in range(2):
            targets[player, axis] = positions[player, axis] + MOVES[actions[player], axis]
    for player in range(n_players):
        alone = True
        for other in range(n_players):
            same_row = targets[other, 0] == targets[player, 0]
            if other != player and same_row and targets[other, 1] == targets[player, 1]:
                alone = False
        if alone:
            positions[player, 0], positions[player, 1] = targets[player, 0], targets[player, 1]


@njit(cache=True)
def _load(
    b: int,
    actions: np.ndarray,
    fields: Fields,
    rules: Rules,
    rewards: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Everybody who loads tries the food beside it, together with all others who load that one.

    Args:
        actions: int64 [A], valid ones.
        rewards: float64 [A], zeros; written to.
    """
    positions, levels = fields.positions[b], fields.levels[b]
    foods, food_levels = fields.foods[b], fields.food_levels[b]
    for food in range(len(foods)):
        if food_levels[food] == 0:
            continue
        team = 0
        for player in range(len(levels)):
            if actions[player] == LOAD and _is_beside(positions[player], foods[food]):
                team += levels[player]
        if team == 0:
            continue
        failed = team < food_levels[food]
        counts[1 if failed else 0, b] += 1
        for player in range(len(levels)):
            if actions[player] == LOAD and _is_beside(positions[player], foods[food]):
                if failed:
                    rewards[player] -= rules.penalty
                else:
                    rewards[player] = float(levels[player] * food_levels[food])
                    if rules.normalize_reward:
                        rewards[player] /= float(team * fields.spawned[b])
        if not failed:
            food_levels[food] = 0


@njit(cache=True)
def _is_beside(position: np.ndarray, food: np.ndarray) -> bool:
    return abs(position[0] - food[0]) + abs(position[1] - food[1]) == 1


@njit(cache=True)
def step(
    numbers: np.ndarray,
    actions: np.ndarray,
    fields: Fields,
    rules: Rules,
    rewards: np.ndarray,
    counts: np.ndarray,
    shown: Shown,
) -> None:
    """One step of the fields in `numbers` (int64 [R]); what is not valid becomes NONE.

    Args:
        actions: int64 [B, A].
        rewards: float64 [B, A], written to.
        counts: float64 [N_COUNTS, B], added to; the last one is set.
    """
    n_players = actions.shape[1]
    valid = np.empty(n_players, dtype=np.int64)
    targets = np.empty((n_players, 2), dtype=np.int64)
    for b in numbers:
        for player in range(n_players):
            action = actions[b, player]
            fine = _is_valid(
                action, fields.positions[b, player], fields.foods[b], fields.food_levels[b], rules
            )
            valid[player] = action if fine else NONE
            rewards[b, player] = 0.0
        _walk(fields.positions[b], valid, targets)
        _load(b, valid, fields, rules, rewards[b], counts)
        counts[2, b] = fields.food_levels[b].sum() == 0
        _show(b, fields, rules, shown)


# observations


@njit(cache=True)
def _list_view(player: int, b: int, fields: Fields, rules: Rules, row: np.ndarray) -> None:
    """Foods in view as (row, column, level), then players likewise, the own one first.

    Places count from the upper left corner of what is in view, which the edge of the field cuts
    off. The view of players does not end where that of food does: it has its full width even where
    the edge cuts off its other side (lbforaging 2.0 has it so).
    """
    positions, levels = fields.positions[b], fields.levels[b]
    foods, food_levels = fields.foods[b], fields.food_levels[b]
    sight = rules.sight
    top = max(positions[player, 0] - sight, 0)
    left = max(positions[player, 1] - sight, 0)
    to = 0
    for food in range(len(foods)):
        y, x = foods[food, 0], foods[food, 1]
        in_view = top <= y <= positions[player, 0] + sight
        if food_levels[food] > 0 and in_view and left <= x <= positions[player, 1] + sight:
            row[to], row[to + 1], row[to + 2] = y - top, x - left, food_levels[food]
            to += 3
    while to < 3 * len(foods):
        row[to], row[to + 1], row[to + 2] = -1, -1, 0
        to += 3
    size = 3 if rules.observe_agent_levels else 2
    for turn in range(len(levels)):
        other = player if turn == 0 else turn - 1 if turn <= player else turn
        y, x = positions[other, 0] - top, positions[other, 1] - left
        if 0 <= y <= 2 * sight and 0 <= x <= 2 * sight:
            row[to], row[to + 1] = y, x
            if rules.observe_agent_levels:
                row[to + 2] = levels[other]
            to += size
    while to < len(row):
        row[to], row[to + 1] = -1, -1
        if rules.observe_agent_levels:
            row[to + 2] = 0
        to += size


@njit(cache=True)
def _grid_view(player: int, b: int, fields: Fields, rules: Rules, row: np.ndarray) -> None:
    """Three layers of the square around the player: levels of players (the last one of a cell),
    levels of food, and whether a cell of the field is empty.
    """
    positions, foods = fields.positions[b], fields.foods[b]
    width = 2 * rules.sight + 1
    layers = row.reshape(N_LAYERS, width, width)
    top = positions[player, 0] - rules.sight
    left = positions[player, 1] - rules.sight
    for y in range(width):
        for x in range(width):
            inside = 0 <= top + y < rules.rows and 0 <= left + x < rules.cols
            layers[0, y, x], layers[1, y, x], layers[2, y, x] = 0.0, 0.0, inside
    for other in range(len(positions)):
        y, x = positions[other, 0] - top, positions[other, 1] - left
        if 0 <= y < width and 0 <= x < width:
            level = fields.levels[b, other] if rules.observe_agent_levels else 1
            layers[0, y, x], layers[2, y, x] = level, 0.0
    for food in range(len(foods)):
        y, x = foods[food, 0] - top, foods[food, 1] - left
        if fields.food_levels[b, food] > 0 and 0 <= y < width and 0 <= x < width:
            layers[1, y, x], layers[2, y, x] = fields.food_levels[b, food], 0.0


@njit(cache=True)
def _show(b: int, fields: Fields, rules: Rules, shown: Shown) -> None:
    """Writes what field b looks like; the state is all observations one after the other."""
    n_players, size = shown.obs.shape[1:]
    for player in range(n_players):
        if rules.grid_observation:
            _grid_view(player, b, fields, rules, shown.obs[b, player])
        else:
            _list_view(player, b, fields, rules, shown.obs[b, player])
        shown.state[b, player * size : (player + 1) * size] = shown.obs[b, player]
        if rules.action_mask:
            for action in range(N_ACTIONS):
                shown.avail_actions[b, player, action] = _is_valid(
                    action,
                    fields.positions[b, player],
                    fields.foods[b],
                    fields.food_levels[b],
                    rules,
                )

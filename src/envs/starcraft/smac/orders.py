"""From actions to orders, and which actions there are (Samvelyan et al. 2019, section 4)."""

# ruff: noqa: ANN001, ANN201, ANN202 -- numba infers the types of the kernels
from __future__ import annotations

from math import hypot

from numba import njit

from envs.compiled import kernel
from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_MOVE, ORDER_NONE, ORDER_STOP
from envs.starcraft.facts import N_ACTIONS_NO_ATTACK
from envs.starcraft.smac.rules import (
    DX,
    DY,
    EAST,
    MARAUDER,
    MEDIVAC,
    NO_OP,
    NORTH,
    SOUTH,
    STOP,
    WEST,
    in_reach,
)

# kernels: (first battle, end, ...); all arrays are of all battles


@njit(inline="always")
def _is_goal(b, a, i, healer, units):
    """Whether scripted agent a may go for unit i."""
    if not units.alive[b, i]:
        return False
    if healer:
        hurt = units.health[b, i] != units.health_max[b, i]
        return units.type[b, i] != MEDIVAC and hurt
    return units.type[b, a] != MARAUDER or units.type[b, i] != MEDIVAC


@njit(inline="always")
def _nearest_goal(b, a, offset, count, healer, rules, units):
    """The nearest of units `offset` to `offset + count - 1` that agent a may go for, counted from
    `offset`; -1: none.
    """
    goal = -1
    nearest = hypot(rules.playable_x, rules.playable_y)
    for k in range(count):
        i = offset + k
        if _is_goal(b, a, i, healer, units):
            distance = hypot(units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a])
            if distance < nearest:
                nearest = distance
                goal = k
    return goal


@njit(inline="always")
def _way_to(b, a, i, units):
    """The move action that brings agent a nearer to unit i."""
    dx, dy = units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a]
    if abs(dx) > abs(dy):
        return EAST if dx > 0 else WEST
    return NORTH if dy > 0 else SOUTH


@njit(inline="always")
def _move(b, a, action, rules, units, order, target_x, target_y):
    order[b, a] = ORDER_MOVE
    target_x[b, a] = units.x[b, a] + rules.move_amount * DX[action]
    target_y[b, a] = units.y[b, a] + rules.move_amount * DY[action]


@kernel
def give_orders(
    first, end, mask, rules, tables, units, views, actions, executed, last_action, order, target,
    target_x, target_y
):  # fmt: skip
    """Orders (codes of `battle`) and targets [B, A] of `actions` [B, A], which are remembered."""
    for b in range(first, end):
        if not mask[b]:
            continue
        for a in range(rules.n_agents):
            action = actions[b, a]
            executed[b, a] = action
            last_action[b, a] = action
            if action == NO_OP:
                order[b, a] = ORDER_NONE
            elif action == STOP:
                order[b, a] = ORDER_STOP
            elif action < N_ACTIONS_NO_ATTACK:
                _move(b, a, action, rules, units, order, target_x, target_y)
            elif action < rules.first_attack:
                views.look[b, a] = action - N_ACTIONS_NO_ATTACK
                order[b, a] = ORDER_NONE
            else:
                healer = rules.heals and units.type[b, a] == MEDIVAC
                i = action - rules.first_attack + (0 if healer else rules.n_agents)
                order[b, a] = ORDER_HEAL if healer else ORDER_ATTACK
                target[b, a] = i
                if not rules.action_mask and not in_reach(b, a, i, rules, tables, units, views):
                    order[b, a] = ORDER_NONE


@kernel
def heuristic(
    first, end, mask, rules, units, avail, chosen, executed, order, target, target_x, target_y
):  # fmt: skip
    """Orders of SMAC's scripted agents: each goes for its nearest enemy (healers: hurt agent) until
    that is dead (healed); `chosen` [B, A] keeps it.
    """
    n_agents = rules.n_agents
    for b in range(first, end):
        if not mask[b]:
            continue
        for a in range(n_agents):
            executed[b, a] = NO_OP
            order[b, a] = ORDER_NONE
            if not units.alive[b, a]:
                continue
            healer = rules.heals and units.type[b, a] == MEDIVAC
            offset, count = (0, n_agents) if healer else (n_agents, rules.n_enemies)
            goal = chosen[b, a]
            if goal >= 0:
                i = offset + goal
                healed = healer and units.health[b, i] == units.health_max[b, i]
                if not units.alive[b, i] or healed:
                    goal = -1
            if goal < 0:
                goal = _nearest_goal(b, a, offset, count, healer, rules, units)
            chosen[b, a] = goal
            if goal < 0:
                continue
            i = offset + goal
            action = rules.first_attack + goal
            if rules.heuristic_rest and avail[b, a, action] == 0:
                action = _way_to(b, a, i, units)
                _move(b, a, action, rules, units, order, target_x, target_y)
            else:
                order[b, a] = ORDER_HEAL if healer else ORDER_ATTACK
                target[b, a] = i
            executed[b, a] = action


@njit(inline="always")
def available(b, a, rules, tables, units, views, row):
    """Fills one agent's mask, `row` [U]."""
    row[:] = 0
    if not units.alive[b, a]:
        row[NO_OP] = 1
        return
    row[STOP] = 1
    x, y = units.x[b, a], units.y[b, a]
    half = rules.move_amount / 2
    for action in range(NORTH, N_ACTIONS_NO_ATTACK):
        # towards zero, so that -0.5 is still in cell 0
        cell_x = int(x + half * DX[action])
        cell_y = int(y + half * DY[action])
        if (
            0 <= cell_x < rules.map_x
            and 0 <= cell_y < rules.map_y
            and tables.pathing[cell_x, cell_y]
        ):
            row[action] = 1
    for action in range(N_ACTIONS_NO_ATTACK, rules.first_attack):
        row[action] = 1
    healer = rules.heals and units.type[b, a] == MEDIVAC
    offset, count = (0, rules.n_agents) if healer else (rules.n_agents, rules.n_enemies)
    for k in range(count):
        i = offset + k
        if not units.alive[b, i] or (healer and units.type[b, i] == MEDIVAC):
            continue
        if not rules.action_mask or in_reach(b, a, i, rules, tables, units, views):
            row[rules.first_attack + k] = 1

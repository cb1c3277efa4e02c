"""What agents see and what the state tells (Samvelyan et al. 2019, section 4)."""

# ruff: noqa: ANN001, ANN201, ANN202 -- numba infers the types of the kernels
from __future__ import annotations

from math import sqrt
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from envs.compiled import kernel
from envs.starcraft.facts import MapInfo
from envs.starcraft.smac.orders import available
from envs.starcraft.smac.rules import (
    LOOK_X,
    LOOK_Y,
    MEDIVAC,
    N_MOVES,
    NORTH,
    in_cone,
)

N_PATHING = 8
N_HEIGHT = 9
# where pathing (the first 8) and height are looked up, in move amounts
AROUND = np.array(
    [[0, 2], [0, -2], [2, 0], [-2, 0], [1, 1], [-1, -1], [1, -1], [-1, 1], [0, 0]], dtype=np.float64
)


class Sizes(NamedTuple):
    """Entries of the move features, of one enemy's, of one ally's and of the own features, as SMAC
    reports them.
    """

    move: int
    enemy: int
    ally: int
    own: int


def part_sizes(info: MapInfo, rules: Any, n_actions: int) -> Sizes:
    """The parts of an observation."""
    bits = info.unit_type_bits
    ally = 4 + bits + rules.obs_all_health * (1 + rules.agent_shields)
    own = bits + rules.obs_own_health * (1 + rules.agent_shields) + rules.obs_timestep_number
    return Sizes(
        move=N_MOVES + N_PATHING * rules.obs_pathing_grid + N_HEIGHT * rules.obs_terrain_height,
        enemy=4 + bits + rules.obs_all_health * (1 + rules.enemy_shields),
        ally=ally + n_actions * rules.obs_last_action,
        own=own + 2 * rules.obs_own_pos + 2 * rules.conic_fov,
    )


def state_attributes(info: MapInfo, rules: Any) -> tuple[list[str], list[str]]:
    """What the state tells of each agent, and of each enemy, by name."""
    agent = ["health", "energy/cooldown", "rel_x", "rel_y"]
    enemy = ["health", "rel_x", "rel_y"]
    agent += ["shield"] if rules.agent_shields else []
    enemy += ["shield"] if rules.enemy_shields else []
    agent += ["fov_x", "fov_y"] if rules.conic_fov else []
    bits = [f"type_{i}" for i in range(info.unit_type_bits)]
    return agent + bits, enemy + bits


# kernels: (first battle, end, ...); all arrays are of all battles


@kernel
def observe(first, end, mask, rules, tables, units, views, steps, last_action, obs, state, avail):
    """Writes obs [B, A, O], state [B, S] and avail [B, A, U] of battles in `mask`."""
    for b in range(first, end):
        if not mask[b]:
            continue
        if rules.prob_obs_enemy < 1.0:
            _find_enemies(b, rules, tables, units, views, steps[b])
        for a in range(rules.n_agents):
            available(b, a, rules, tables, units, views, avail[b, a])
            _observe_agent(
                b, a, rules, tables, units, views, steps, last_action, avail[b, a], obs[b, a]
            )
        if rules.obs_instead_of_state:
            size = obs.shape[2]
            for a in range(rules.n_agents):
                for k in range(size):
                    state[b, a * size + k] = obs[b, a, k]
        else:
            _describe(b, rules, tables, units, views, steps, last_action, avail.shape[2], state[b])


@njit(inline="always")
def _observe_agent(b, a, rules, tables, units, views, steps, last_action, avail, out):
    """Fills one agent's observation, `out` [O]."""
    out[:] = 0.0
    if rules.obs_timestep_number:
        # the own part has a place for it that stays zero; dead agents are told the time too
        out[-1] = steps[b] / rules.limit
    if not units.alive[b, a]:
        return
    n_agents, bits = rules.n_agents, rules.type_bits
    x, y = units.x[b, a], units.y[b, a]
    sight = tables.sight[units.type[b, a]]

    for k in range(N_MOVES):
        out[k] = avail[NORTH + k]
    at = N_MOVES
    if rules.obs_pathing_grid:
        for k in range(N_PATHING):
            out[at + k] = _look_up(tables.pathing, x, y, AROUND[k], rules)
        at += N_PATHING
    if rules.obs_terrain_height:
        for k in range(N_HEIGHT):
            out[at + k] = _look_up(tables.height, x, y, AROUND[k], rules)
        at += N_HEIGHT

    width = 4 + bits
    if rules.obs_all_health:
        width += 2 if rules.enemy_shields else 1
    for k in range(rules.n_enemies):
        i = n_agents + k
        if _sees(b, a, i, sight, rules, units, views) and _may_see(b, a, k, rules, views):
            c = _put_unit(
                b, a, i, sight, rules.enemy_shields, tables.enemy_shield, rules, units, out, at
            )
            out[at] = avail[rules.first_attack + k]
            if bits > 0:
                out[c + tables.enemy_bit[units.type[b, i]]] = 1.0
        at += width

    width = 4 + bits
    if rules.obs_all_health:
        width += 2 if rules.agent_shields else 1
    if rules.obs_last_action:
        width += len(avail)
    for i in range(n_agents):
        if i == a:
            continue
        if _sees(b, a, i, sight, rules, units, views):
            c = _put_unit(
                b, a, i, sight, rules.agent_shields, tables.agent_shield, rules, units, out, at
            )
            out[at] = 1.0
            if bits > 0:
                out[c + tables.agent_bit[units.type[b, i]]] = 1.0
                c += bits
            if rules.obs_last_action and last_action[b, i] >= 0:
                out[c + last_action[b, i]] = 1.0
        at += width

    _put_own(b, a, rules, tables, units, views, out, at)


@njit(inline="always")
def _put_own(b, a, rules, tables, units, views, out, at):
    """Writes what agent a knows of itself from out[at] on."""
    if rules.obs_own_health:
        out[at] = units.health[b, a] / units.health_max[b, a]
        at += 1
        if rules.agent_shields:
            out[at] = units.shield[b, a] / tables.agent_shield[units.type[b, a]]
            at += 1
    if rules.obs_own_pos:
        out[at] = units.x[b, a] / rules.map_x
        out[at + 1] = units.y[b, a] / rules.map_y
        at += 2
    if rules.conic_fov:
        out[at] = LOOK_X[views.look[b, a]]
        out[at + 1] = LOOK_Y[views.look[b, a]]
        at += 2
    if rules.type_bits > 0:
        out[at + tables.agent_bit[units.type[b, a]]] = 1.0


@njit(inline="always")
def _sees(b, a, i, sight, rules, units, views):
    """Whether unit i is alive and in agent a's sight."""
    dx, dy = units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a]
    distance = sqrt(dx * dx + dy * dy)
    seen = units.alive[b, i] and distance < sight
    return seen and (not rules.conic_fov or in_cone(b, a, dx, dy, distance, views))


@njit(inline="always")
def _put_unit(b, a, i, sight, shields, divisors, rules, units, out, at):
    """Writes where unit i is from agent a, and its health, behind out[at]; returns the next
    place.
    """
    dx, dy = units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a]
    out[at + 1] = sqrt(dx * dx + dy * dy) / sight
    out[at + 2] = dx / sight
    out[at + 3] = dy / sight
    c = at + 4
    if rules.obs_all_health:
        out[c] = units.health[b, i] / units.health_max[b, i]
        c += 1
        if shields:
            out[c] = units.shield[b, i] / divisors[units.type[b, i]]
            c += 1
    return c


@njit(inline="always")
def _look_up(grid, x, y, offset, rules):
    """The grid's value at `offset` ([2], move amounts) from the cell of (x, y); 1 outside of the
    map.
    """
    cell_x = int(int(x) + rules.move_amount * offset[0])
    cell_y = int(int(y) + rules.move_amount * offset[1])
    if 0 <= cell_x < rules.map_x and 0 <= cell_y < rules.map_y:
        return 1.0 * grid[cell_x, cell_y]
    return 1.0


@njit(inline="always")
def _chance(draw, number):
    """Random number `number` of the stream `draw`, in [0, 1): SplitMix64 (Steele, Lea, Flood
    2014).
    """
    z = draw + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(inline="always")
def _find_enemies(b, rules, tables, units, views, step):
    """Who sees an enemy first; of several in one step, the first in an order that is drawn for the
    step.
    """
    n_agents = rules.n_agents
    for k in range(rules.n_enemies):
        if views.finder[b, k] >= 0 or not units.alive[b, n_agents + k]:
            continue
        best = 2.0
        for a in range(n_agents):
            sight = tables.sight[units.type[b, a]]
            if not (units.alive[b, a] and _sees(b, a, n_agents + k, sight, rules, units, views)):
                continue
            place = _chance(views.draw[b], (rules.n_enemies + step) * n_agents + a)
            if place < best:
                best = place
                views.finder[b, k] = a


@njit(inline="always")
def _may_see(b, a, k, rules, views):
    """Whether agent a is told of enemy k when that is in sight."""
    if rules.prob_obs_enemy >= 1.0 or views.finder[b, k] == a:
        return True
    return _chance(views.draw[b], k * rules.n_agents + a) < rules.prob_obs_enemy


@njit(inline="always")
def _describe(b, rules, tables, units, views, steps, last_action, n_actions, out):
    """Fills one battle's state, `out` [S]."""
    out[:] = 0.0
    n_agents, bits = rules.n_agents, rules.type_bits
    centre_x, centre_y = rules.map_x / 2, rules.map_y / 2
    at = 0
    for i in range(n_agents + rules.n_enemies):
        agent = i < n_agents
        shields = rules.agent_shields if agent else rules.enemy_shields
        width = (
            (4 if agent else 3)
            + (1 if shields else 0)
            + (2 if agent and rules.conic_fov else 0)
            + bits
        )
        if units.alive[b, i]:
            kind = units.type[b, i]
            out[at] = units.health[b, i] / units.health_max[b, i]
            c = at + 1
            if agent:
                medivac = rules.heals and kind == MEDIVAC
                out[c] = (
                    units.energy[b, i] if medivac else units.cooldown[b, i]
                ) / tables.max_cooldown[kind]
                c += 1
            out[c] = (units.x[b, i] - centre_x) / rules.playable_x
            out[c + 1] = (units.y[b, i] - centre_y) / rules.playable_y
            c += 2
            if shields:
                divisor = tables.agent_shield[kind] if agent else tables.enemy_shield[kind]
                out[c] = units.shield[b, i] / divisor
                c += 1
            if agent and rules.conic_fov:
                out[c] = LOOK_X[views.look[b, i]]
                out[c + 1] = LOOK_Y[views.look[b, i]]
                c += 2
            if bits > 0:
                out[c + (tables.agent_bit[kind] if agent else tables.enemy_bit[kind])] = 1.0
        at += width
    if rules.state_last_action:
        for a in range(n_agents):
            if last_action[b, a] >= 0:
                out[at + last_action[b, a]] = 1.0
            at += n_actions
    if rules.state_timestep_number:
        out[at] = steps[b] / rules.limit

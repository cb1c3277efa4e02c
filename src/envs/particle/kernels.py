"""All compiled code of the particle environments: motion, contacts, and one step of every scenario.

It is in one file, with the constants it uses, because numba's cache notices a change in the file of
a compiled function only: a function that calls one of another file would go on as before when that
one changes.
"""

# ruff: noqa: ANN001, ANN201, ANN202 -- numba infers the types

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import njit

# none, -x, +x, -y, +y
MOVES = np.array([[0.0, 0.0], [-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
N_MOVES = len(MOVES)
DT = 0.1
DAMPING = 0.25
CONTACT_FORCE = 100.0
CONTACT_MARGIN = 1e-3
# the contact force underflows to exactly zero at this many margins apart
NO_CONTACT = 746.0

# Spread
COVERED = 0.1

# Rover-Tower
ROVER_RADIUS = 0.075
LANDMARK_RADIUS = 0.04
N_SYMBOLS = 5
# compared with the squared distance, as in the original
GOAL_RADIUS = 1.5 * (ROVER_RADIUS + LANDMARK_RADIUS)
GOAL_REWARD = 10.0

# treasure collection
TREASURE_RADIUS = 0.025
AWAY = -999.0  # both coordinates of a treasure that was taken
TREASURE_BOUND = 0.95
EVENT_REWARD = 5.0
COLLISION_PENALTY = 5.0
SHAPING = 0.1
NOTHING = -1


# motion and observations


@njit(cache=True)
def distance(points, i, others, j):
    """Between points[i] and others[j], [N, 2] each."""
    x, y = points[i, 0] - others[j, 0], points[i, 1] - others[j, 1]
    return math.sqrt(x * x + y * y)


class Bodies(NamedTuple):
    """What makes N bodies move as they do.

    acceleration, mass, top_speed: [N]; top_speed is inf where there is none. reach: [N, N], the sum
    of the radii of two bodies that collide, 0 for two that do not.
    """

    acceleration: np.ndarray
    mass: np.ndarray
    top_speed: np.ndarray
    reach: np.ndarray


@njit(cache=True)
def advance(position, velocity, moves, bodies, old_velocity, push):
    """Moves the N bodies of one world, in place.

    Args:
        position, velocity: [N, 2].
        moves: integers [N], rows of `MOVES`.
        bodies: `Bodies`.
        old_velocity: whether the position moves by the velocity before the step instead of the one
            after it.
        push: [N, 2], scratch.
    """
    # here and in all kernels: single numbers, because expressions on slices take numba seconds to
    # compile
    n_bodies = len(position)
    for a in range(n_bodies):
        push[a, 0] = push[a, 1] = 0.0
    for a in range(n_bodies):
        for b in range(a + 1, n_bodies):
            if bodies.reach[a, b] <= 0.0:
                continue
            apart = distance(position, a, position, b)
            depth = (bodies.reach[a, b] - apart) / CONTACT_MARGIN
            # two bodies in one place have no direction to be pushed to
            if depth < -NO_CONTACT or apart == 0.0:
                continue
            # log(1 + exp(depth)) without overflow
            softplus = max(depth, 0.0) + math.log1p(math.exp(-abs(depth)))
            strength = CONTACT_FORCE * CONTACT_MARGIN * softplus / apart
            for axis in range(2):
                force = strength * (position[a, axis] - position[b, axis])
                push[a, axis] += force
                push[b, axis] -= force
    for a in range(n_bodies):
        squared = 0.0
        for axis in range(2):
            if old_velocity:
                position[a, axis] += velocity[a, axis] * DT
            total = bodies.acceleration[a] * MOVES[moves[a], axis] + push[a, axis] / bodies.mass[a]
            velocity[a, axis] = velocity[a, axis] * (1.0 - DAMPING) + total * DT
            squared += velocity[a, axis] * velocity[a, axis]
        excess = math.sqrt(squared) / bodies.top_speed[a]
        for axis in range(2):
            if excess > 1.0:
                velocity[a, axis] /= excess
            if not old_velocity:
                position[a, axis] += velocity[a, axis] * DT


@njit(cache=True)
def put(row, at, points, i):
    """Writes points[i] (points [N, 2]) to row[at], row[at + 1]; returns the next place."""
    row[at], row[at + 1] = points[i, 0], points[i, 1]
    return at + 2


@njit(cache=True)
def put_difference(row, at, points, i, origins, j):
    """Writes points[i] - origins[j] ([N, 2] each) to row[at], row[at + 1]; returns the next
    place.
    """
    row[at], row[at + 1] = points[i, 0] - origins[j, 0], points[i, 1] - origins[j, 1]
    return at + 2


@njit(cache=True)
def put_one_hot(row, at, size, which):
    """Writes the one-hot of `which` (negative: zeros) to row[at : at + size]; returns the next
    place.
    """
    for k in range(size):
        row[at + k] = 1.0 if k == which else 0.0
    return at + size


# Spread


@njit(cache=True)
def _spread_observe(position, velocity, landmark, obs, state):
    """One world: writes obs [A, O] and state [S]."""
    n = len(position)
    for i in range(n):
        row = obs[i]
        to = put(row, put(row, 0, velocity, i), position, i)
        for one in range(n):
            to = put_difference(row, to, landmark, one, position, i)
        for other in range(n):
            if other != i:
                to = put_difference(row, to, position, other, position, i)
        put(state, put(state, 4 * i, position, i), velocity, i)
        put(state, 4 * n + 2 * i, landmark, i)


@njit(cache=True)
def spread_observe_all(rows, positions, velocities, landmarks, obs, state):
    """The worlds in `rows` at the start of an episode."""
    for b in rows:
        _spread_observe(positions[b], velocities[b], landmarks[b], obs[b], state[b])


@njit(cache=True)
def spread_step(
    rows, actions, positions, velocities, landmarks, bodies, old_velocity, groups, self_penalty,
    rewards, counts, obs, state,
):  # fmt: skip
    """The worlds in `rows` by one step."""
    n = positions.shape[1]
    scratch = np.empty((n, 2))
    for b in rows:
        position = positions[b]
        advance(position, velocities[b], actions[b], bodies, old_velocity, scratch)
        for i in range(n):
            rewards[b, i] = -self_penalty[i]
        covered = 0
        for landmark in range(n):
            nearest_agent = np.inf
            for i in range(n):
                if groups[i] == groups[landmark]:
                    nearest_agent = min(
                        nearest_agent, distance(position, i, landmarks[b], landmark)
                    )
            covered += nearest_agent < COVERED
            for i in range(n):
                if groups[i] == groups[landmark]:
                    rewards[b, i] -= nearest_agent
        for i in range(n):
            for other in range(i + 1, n):
                if distance(position, i, position, other) < bodies.reach[i, other]:
                    rewards[b, i] -= 1.0
                    rewards[b, other] -= 1.0
                    counts[0, b] += 1.0
        counts[1, b] = covered
        _spread_observe(position, velocities[b], landmarks[b], obs[b], state[b])


# Rover-Tower


@njit(cache=True)
def _rover_tower_observe(position, velocity, tower, landmark, tower_of, goal_of, said, obs, state):
    """One world: writes obs [2P, O] and state [S]."""
    p, n_landmarks = len(position), len(landmark)
    for rover in range(p):
        pair = tower_of[rover]
        row = obs[rover]
        to = put_one_hot(row, put_one_hot(row, 0, p, pair), N_SYMBOLS, said[pair])
        put(row, put(row, to, position, rover), velocity, rover)
        row = obs[p + pair]
        put(row, put(row, put_one_hot(row, 0, p, rover), position, rover), landmark, goal_of[rover])
    to = 0
    for rover in range(p):
        to = put(state, put(state, to, position, rover), velocity, rover)
    for one in range(p):
        to = put(state, to, tower, one)
    for one in range(n_landmarks):
        to = put(state, to, landmark, one)
    for rover in range(p):
        to = put_one_hot(
            state, put_one_hot(state, to, p, tower_of[rover]), n_landmarks, goal_of[rover]
        )
    for one in range(p):
        to = put_one_hot(state, to, N_SYMBOLS, said[one])


@njit(cache=True)
def rover_tower_observe_all(
    rows, positions, velocities, towers, landmarks, tower_of, goal_of, said, obs, state
):
    """The worlds in `rows` at the start of an episode."""
    for b in rows:
        _rover_tower_observe(
            positions[b], velocities[b], towers[b], landmarks[b], tower_of[b], goal_of[b], said[b],
            obs[b], state[b],
        )  # fmt: skip


@njit(cache=True)
def rover_tower_step(
    rows, actions, positions, velocities, towers, landmarks, tower_of, goal_of, said, bodies,
    rewards, counts, obs, state,
):  # fmt: skip
    """The worlds in `rows` by one step."""
    p = positions.shape[1]
    scratch = np.empty((p, 2))
    for b in rows:
        position = positions[b]
        advance(position, velocities[b], actions[b], bodies, False, scratch)
        for tower in range(p):
            said[b, tower] = actions[b, p + tower]
        there = 0
        for rover in range(p):
            squared = distance(position, rover, landmarks[b], goal_of[b, rover]) ** 2
            reward = -squared
            if squared < GOAL_RADIUS:
                reward += GOAL_REWARD
                there += 1
            rewards[b, rover] = reward
            rewards[b, p + tower_of[b, rover]] = reward
        counts[0, b] += there
        counts[1, b] = there
        _rover_tower_observe(
            position, velocities[b], towers[b], landmarks[b], tower_of[b], goal_of[b], said[b],
            obs[b], state[b],
        )  # fmt: skip


# treasure collection


@njit(cache=True)
def _treasure_measure(position, treasure, apart, away):
    """Distances between all agents, `apart` [A, A], and from agents to treasures, `away` [A, K]."""
    n = len(position)
    for i in range(n):
        apart[i, i] = 0.0
        for other in range(i + 1, n):
            apart[i, other] = apart[other, i] = distance(position, i, position, other)
        for t in range(len(treasure)):
            away[i, t] = distance(position, i, treasure, t)


@njit(cache=True)
def _treasure_sort(order, size, keys):
    """Writes 0 to size - 1 into order[:size] so that keys[order] ascends, equal ones by number."""
    for k in range(size):
        at = k
        while at > 0 and keys[order[at - 1]] > keys[k]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = k


@njit(cache=True)
def _treasure_observe(
    position,
    velocity,
    holding,
    treasure,
    colour,
    alive,
    mask_dead,
    n_banks,
    apart,
    away,
    near,
    order,
    obs,
    state,
):
    """One world: writes obs [A, O] and state [S].

    Args:
        apart, away: see `_treasure_measure`.
        near: float [K], order: int64 [max(A, K)], scratch.
    """
    n, n_hunters, n_treasures = len(position), len(holding), len(treasure)
    for i in range(n):
        row = obs[i]
        to = put(row, put(row, 0, position, i), velocity, i)
        if i < n_hunters:
            to = put_one_hot(row, to, n_banks, holding[i])
        _treasure_sort(order, n, apart[i])
        for k in range(n):
            other = order[k]
            if other != i:
                is_bank = other >= n_hunters
                to = put(
                    row, put_difference(row, to, position, other, position, i), velocity, other
                )
                to = put_one_hot(row, to, n_banks, NOTHING if is_bank else holding[other])
                to = put_one_hot(row, to, n_banks, other - n_hunters if is_bank else NOTHING)
        for t in range(n_treasures):
            near[t] = away[i, t] if alive[t] else np.inf
        _treasure_sort(order, n_treasures, near)
        for k in range(n_treasures):
            t = order[k]
            if alive[t] or not mask_dead:
                to = put_one_hot(
                    row, put_difference(row, to, treasure, t, position, i), n_banks, colour[t]
                )
            else:
                to = put_one_hot(row, to, 2 + n_banks, NOTHING)
    to = 0
    for i in range(n):
        to = put(state, put(state, to, position, i), velocity, i)
    for i in range(n_hunters):
        to = put_one_hot(state, to, n_banks, holding[i])
    for t in range(n_treasures):
        if alive[t] or not mask_dead:
            to = put_one_hot(state, put(state, to, treasure, t), n_banks, colour[t])
        else:
            to = put_one_hot(state, to, 2 + n_banks, NOTHING)


@njit(cache=True)
def treasure_observe_all(
    rows, positions, velocities, holding, treasures, colours, alive, mask_dead, n_banks, obs, state
):
    """The worlds in `rows` at the start of an episode."""
    n, n_treasures = positions.shape[1], treasures.shape[1]
    apart, away, near = np.empty((n, n)), np.empty((n, n_treasures)), np.empty(n_treasures)
    order = np.empty(max(n, n_treasures), dtype=np.int64)
    for b in rows:
        _treasure_measure(positions[b], treasures[b], apart, away)
        _treasure_observe(
            positions[b], velocities[b], holding[b], treasures[b], colours[b], alive[b], mask_dead,
            n_banks, apart, away, near, order, obs[b], state[b],
        )  # fmt: skip


@njit(cache=True)
def _treasure_reward(position, holding, alive, mask_dead, apart, away, radius, reward):
    """One world: writes reward [A]; returns the number of pairs of hunters in contact."""
    n, n_hunters, n_treasures = len(position), len(holding), len(alive)
    events, collisions = 0, 0
    for i in range(n):
        reward[i] = 0.0
    for i in range(n_hunters):
        if holding[i] == NOTHING:
            nearest = np.inf
            for t in range(n_treasures):
                events += away[i, t] < radius[i] + TREASURE_RADIUS
                if alive[t] or not mask_dead:
                    nearest = min(nearest, away[i, t])
            if nearest < np.inf:
                reward[i] -= SHAPING * nearest
        else:
            bank = n_hunters + holding[i]
            events += apart[i, bank] < radius[i] + radius[bank]
            reward[i] -= SHAPING * apart[i, bank]
        for other in range(i + 1, n_hunters):
            if apart[i, other] < radius[i] + radius[other]:
                collisions += 1
                reward[i] -= COLLISION_PENALTY
                reward[other] -= COLLISION_PENALTY
    for bank in range(n_hunters, n):
        nearest, x, y = np.inf, 0.0, 0.0
        for i in range(n_hunters):
            x += (position[i, 0] - position[bank, 0]) / n_hunters
            y += (position[i, 1] - position[bank, 1]) / n_hunters
            if holding[i] == bank - n_hunters:
                nearest = min(nearest, apart[i, bank])
        reward[bank] -= SHAPING * (nearest if nearest < np.inf else math.sqrt(x * x + y * y))
    for i in range(n):
        reward[i] += EVENT_REWARD * events
    return collisions


@njit(cache=True)
def _treasure_exchange(
    holding, treasure, colour, alive, births, first, n_banks, apart, away, radius
):
    """One world: taking, rebirth and unloading; returns the numbers of treasures taken and
    delivered.

    Args:
        births: uniform in [0, 1), from number `first` on three for each treasure: place and colour
            if it comes back.
    """
    n_hunters = len(holding)
    taken, delivered = 0, 0
    for t in range(len(treasure)):
        if not alive[t]:
            alive[t] = True
            for axis in range(2):
                treasure[t, axis] = TREASURE_BOUND * (2.0 * births[first + 3 * t + axis] - 1.0)
            colour[t] = int(births[first + 3 * t + 2] * n_banks)
            continue
        for i in range(n_hunters):
            if holding[i] == NOTHING and away[i, t] < radius[i] + TREASURE_RADIUS:
                alive[t] = False
                treasure[t, 0] = treasure[t, 1] = AWAY
                holding[i] = colour[t]
                taken += 1
                break
    for i in range(n_hunters):
        if holding[i] != NOTHING:
            bank = n_hunters + holding[i]
            if apart[i, bank] < radius[i] + radius[bank]:
                holding[i] = NOTHING
                delivered += 1
    return taken, delivered


@njit(cache=True)
def treasure_step(
    rows, actions, time, draws, n_start, positions, velocities, holding, treasures, colours, alive,
    bodies, radius, mask_dead, n_banks, rewards, counts, obs, state,
):  # fmt: skip
    """The worlds in `rows` by one step."""
    n, n_treasures = positions.shape[1], treasures.shape[1]
    scratch = np.empty((n, 2))
    apart, away, near = np.empty((n, n)), np.empty((n, n_treasures)), np.empty(n_treasures)
    order = np.empty(max(n, n_treasures), dtype=np.int64)
    for b in rows:
        advance(positions[b], velocities[b], actions[b], bodies, False, scratch)
        _treasure_measure(positions[b], treasures[b], apart, away)
        counts[2, b] += _treasure_reward(
            positions[b], holding[b], alive[b], mask_dead, apart, away, radius, rewards[b]
        )
        _treasure_observe(
            positions[b], velocities[b], holding[b], treasures[b], colours[b], alive[b], mask_dead,
            n_banks, apart, away, near, order, obs[b], state[b],
        )  # fmt: skip
        taken, delivered = _treasure_exchange(
            holding[b], treasures[b], colours[b], alive[b], draws[b],
            n_start + 3 * n_treasures * time[b], n_banks,
            apart, away, radius,
        )  # fmt: skip
        counts[0, b] += taken
        counts[1, b] += delivered

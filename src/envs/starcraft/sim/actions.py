"""What units do: orders, attacks with wind-up and cooldown, heals, and where they want to go."""

from __future__ import annotations

import math

from numba import njit

from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_ATTACK_MOVE,
    ORDER_HEAL,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
)
from envs.starcraft.facts import ATTACK_JITTER
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.pathing import INNER
from envs.starcraft.sim.state import (
    AIM,
    ALIVE,
    BACKSWING,
    COOLDOWN,
    DUE,
    ENERGY,
    EPS,
    EVENT_WEAPON,
    FIRM,
    GOAL_STEP,
    GOAL_X,
    GOAL_Y,
    HEALED,
    HEALTH,
    HEALTH_MAX,
    LOOP,
    MOVES,
    N_EVENTS,
    ORDER,
    ORDER_X,
    ORDER_Y,
    RESTORED,
    SOURCE,
    SPEED,
    STALLED,
    STARTED,
    SUBJECT,
    TAKEN,
    TARGET,
    TYPE,
    VICTIM,
    WEAPON,
    WIND_UP,
    Array,
    Shots,
    X,
    Y,
    gap_between,
    is_living,
    other_side,
    random_number,
)

# Followers stop this much inside the range they need.
INSIDE = 0.01
# An attack-move is done this near to its point, or where a crowd around the point lets it go no
# further.
ARRIVED = 0.5
CROWD_RADIUS = 4.0
CROWD_LOOPS = 8


@njit(**INNER)
def give_order(
    f: Array,
    k: Array,
    u: int,
    order: int,
    subject: int,
    x: float,
    y: float,
    n_agents: int,
    tables: t.Tables,
) -> None:
    """A new order replaces the present one; an order that cannot be followed is refused and changes
    nothing.
    """
    if order == ORDER_NONE or k[ALIVE, u] == 0:
        return
    kind = k[TYPE, u]
    if order == ORDER_ATTACK:
        if not is_living(k, subject) or not other_side(u, subject, n_agents):
            return
        if tables.weapon_for[kind, k[TYPE, subject]] < 0:
            return
        if k[ORDER, u] == ORDER_ATTACK and k[SUBJECT, u] == subject:
            return
    elif order == ORDER_HEAL:
        if not is_living(k, subject) or subject == u or other_side(u, subject, n_agents):
            return
        if (
            tables.heals[kind, k[TYPE, subject]] == 0
            or f[HEALTH, subject] >= f[HEALTH_MAX, subject]
        ):
            return
    elif not (math.isfinite(x) and math.isfinite(y)):
        return
    # a new order cuts off the backswing, and the wind-up too unless it goes on with the same victim
    f[BACKSWING, u] = 0.0
    if order != ORDER_ATTACK or k[AIM, u] != subject:
        k[AIM, u] = -1
    k[TARGET, u] = -1
    k[STALLED, u] = 0
    k[SUBJECT, u] = subject
    f[ORDER_X, u] = x
    f[ORDER_Y, u] = y
    k[ORDER, u] = ORDER_NONE if order == ORDER_STOP else order


@njit(**INNER)
def _want(f: Array, k: Array, u: int, x: float, y: float, step: float) -> None:
    """Asks for movement towards (x, y), at most `step` in this loop."""
    if f[SPEED, u] <= 0.0:
        return
    k[MOVES, u] = 1
    f[GOAL_X, u] = x
    f[GOAL_Y, u] = y
    f[GOAL_STEP, u] = min(step, f[SPEED, u])


@njit(**INNER)
def _go_to(f: Array, k: Array, u: int) -> None:
    """Movement to the point of the order, which is done on arrival (an attack-move also in a crowd
    around it).
    """
    dx, dy = f[ORDER_X, u] - f[X, u], f[ORDER_Y, u] - f[Y, u]
    distance = math.sqrt(dx * dx + dy * dy)
    crowded = distance <= CROWD_RADIUS and k[STALLED, u] >= CROWD_LOOPS
    if distance <= EPS or (k[ORDER, u] == ORDER_ATTACK_MOVE and (distance <= ARRIVED or crowded)):
        k[ORDER, u] = ORDER_NONE
    else:
        _want(f, k, u, f[ORDER_X, u], f[ORDER_Y, u], distance)


@njit(**INNER)
def _fire(f: Array, k: Array, c: Array, u: int, v: int, shots: Shots, tables: t.Tables) -> None:
    """The damage point of u's attack on v: hits get under way, the weapon cools down."""
    kind = k[TYPE, u]
    weapon = tables.weapon[kind, k[WEAPON, u]]
    now = c[LOOP]
    hits = int(weapon[t.HITS])
    if c[N_EVENTS] + hits > shots.events.shape[0]:
        # only where someone sets cooldowns from outside: it waits for hits under way to land
        return
    k[AIM, u] = -1
    if tables.unit[kind, t.BURSTS_ON_ATTACK] > 0.0:
        f[TAKEN, u] += f[HEALTH, u]
        f[HEALTH, u] = 0.0
        return
    flight = max(0.0, gap_between(f, u, v)) / weapon[t.MISSILE] if weapon[t.MISSILE] > 0.0 else 0.0
    for hit in range(hits):
        event = shots.events[c[N_EVENTS]]
        event[DUE] = now + math.ceil(flight + hit * weapon[t.HIT_GAP] - EPS)
        event[SOURCE] = u
        event[VICTIM] = v
        event[EVENT_WEAPON] = k[WEAPON, u]
        c[N_EVENTS] += 1
    period = weapon[t.PERIOD]
    if shots.jitter:
        first, last = ATTACK_JITTER
        period += first + math.floor(random_number(shots.rng, shots.b) * (last - first + 1))
    f[COOLDOWN, u] = period - (now - k[STARTED, u])
    f[BACKSWING, u] = weapon[t.BACKSWING]


@njit(**INNER)
def _engage(f: Array, k: Array, c: Array, u: int, v: int, shots: Shots, tables: t.Tables) -> None:
    """One loop of u's attack on v: wind up and hit, wait for the weapon, or follow."""
    kind = k[TYPE, u]
    gap = gap_between(f, u, v)
    if k[AIM, u] == v:
        weapon = tables.weapon[kind, k[WEAPON, u]]
        if gap <= weapon[t.RANGE] + weapon[t.SLOP] + EPS:
            k[FIRM, u] = 1
            f[WIND_UP, u] -= 1.0
            if f[WIND_UP, u] <= EPS:
                _fire(f, k, c, u, v, shots, tables)
            return
    k[AIM, u] = -1
    chosen = tables.weapon_for[kind, k[TYPE, v]]
    close = tables.close_for[kind, k[TYPE, v]]
    if close >= 0 and (
        gap <= tables.weapon[kind, close, t.RANGE] + EPS
        or gap < tables.weapon[kind, chosen, t.MIN_RANGE]
    ):
        chosen = close
    weapon = tables.weapon[kind, chosen]
    if gap <= weapon[t.RANGE] + EPS:
        k[FIRM, u] = 1
        if f[COOLDOWN, u] <= EPS:
            k[AIM, u] = v
            k[WEAPON, u] = chosen
            k[STARTED, u] = c[LOOP]
            f[WIND_UP, u] = weapon[t.DAMAGE_POINT]
            if f[WIND_UP, u] <= EPS:
                _fire(f, k, c, u, v, shots, tables)
    elif f[BACKSWING, u] > EPS:
        k[FIRM, u] = 1
    else:
        _want(f, k, u, f[X, v], f[Y, v], gap - weapon[t.RANGE] + INSIDE)


@njit(**INNER)
def _heal(f: Array, k: Array, c: Array, u: int, v: int, tables: t.Tables) -> None:
    """One loop of u's healing of v: in range it heals, else it follows. No two healers on one
    unit.
    """
    kind = k[TYPE, u]
    gap = gap_between(f, u, v)
    reach = tables.unit[kind, t.HEAL_RANGE]
    if gap > reach + EPS:
        _want(f, k, u, f[X, v], f[Y, v], gap - reach + INSIDE)
        return
    k[FIRM, u] = 1
    if k[HEALED, v] == c[LOOP]:
        return
    k[HEALED, v] = c[LOOP]
    cost = tables.unit[kind, t.HEAL_COST]
    amount = min(
        tables.unit[kind, t.HEAL_RATE], f[HEALTH_MAX, v] - f[HEALTH, v], f[ENERGY, u] / cost
    )
    f[HEALTH, v] += amount
    f[RESTORED, v] += amount
    f[ENERGY, u] = max(0.0, f[ENERGY, u] - amount * cost)


@njit(**INNER)
def act(f: Array, k: Array, c: Array, u: int, shots: Shots, tables: t.Tables) -> None:
    """What u does in this loop: its order, or what it acquired by itself."""
    order = k[ORDER, u]
    if order == ORDER_ATTACK:
        if is_living(k, k[SUBJECT, u]):
            _engage(f, k, c, u, k[SUBJECT, u], shots, tables)
            return
        order = k[ORDER, u] = ORDER_NONE
    elif order == ORDER_HEAL:
        v = k[SUBJECT, u]
        if is_living(k, v) and f[HEALTH, v] < f[HEALTH_MAX, v]:
            _heal(f, k, c, u, v, tables)
            return
        order = k[ORDER, u] = ORDER_NONE
    if is_living(k, k[TARGET, u]) and order != ORDER_MOVE:
        if tables.unit[k[TYPE, u], t.HEAL_RATE] > 0.0:
            _heal(f, k, c, u, k[TARGET, u], tables)
        else:
            _engage(f, k, c, u, k[TARGET, u], shots, tables)
        return
    k[AIM, u] = -1
    # after its last hit it stands until the backswing is over; orders from outside have cut it off
    # already
    if order != ORDER_NONE and f[BACKSWING, u] <= EPS:
        _go_to(f, k, u)

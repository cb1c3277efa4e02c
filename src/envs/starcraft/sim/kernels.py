"""The compiled battle: `create` puts the units of new battles in place, `advance` runs game loops,
`find_targets` tells who goes for whom.

They work on ranges of battles and touch nothing but those battles, so threads may run ranges side
by side.

One game loop: (1) cooldowns, regeneration; (2) units that act by themselves look for targets; (3)
every unit starts, continues or breaks off an attack or a heal, or says where it wants to go; (4)
movement, around standing units and walls; (5) overlapping bodies are pushed apart; (6) the hits of
this loop land, all at once; (7) deaths, banelings burst; units that act by themselves answer to
whoever hit them.
"""

from __future__ import annotations

from numba import njit

from envs.compiled import kernel
from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, Units
from envs.starcraft.sim import tables as t
from envs.starcraft.sim.actions import act, give_order
from envs.starcraft.sim.creation import create_units
from envs.starcraft.sim.damage import bury, land_hits
from envs.starcraft.sim.movement import count_stall, move, push_apart
from envs.starcraft.sim.pathing import INNER, Ground
from envs.starcraft.sim.state import (
    ALIVE,
    BACKSWING,
    CALLED,
    COOLDOWN,
    ENERGY,
    ENERGY_MAX,
    FIRM,
    HEALTH,
    HEALTH_MAX,
    LIVING,
    LOOP,
    MOVES,
    N_LIVING,
    OLD_X,
    OLD_Y,
    ORDER,
    OWN_WILL,
    QUIET,
    RESTLESS,
    RESTORED,
    SHIELD,
    SHIELD_MAX,
    SPEED,
    STALLED,
    SUBJECT,
    TARGET,
    TYPE,
    Array,
    Shots,
    State,
    X,
    Y,
    is_living,
    load,
    store,
)
from envs.starcraft.sim.targets import look_around, look_for_patient, respond

# Rounds of pushing apart in one loop, while some overlap by more than this part of their bodies.
PUSHES = 4
TIGHT = 0.1


@njit(**INNER)
def _pass_time(f: Array, k: Array, u: int, tables: t.Tables) -> None:
    """Cooldowns and regeneration of one loop."""
    kind = k[TYPE, u]
    if f[COOLDOWN, u] > 0.0:
        f[COOLDOWN, u] = max(0.0, f[COOLDOWN, u] - 1.0)
    f[BACKSWING, u] -= 1.0
    f[CALLED, u] -= 1.0
    if f[HEALTH, u] < f[HEALTH_MAX, u]:
        gained = min(tables.unit[kind, t.HEALTH_REGEN], f[HEALTH_MAX, u] - f[HEALTH, u])
        f[HEALTH, u] += gained
        f[RESTORED, u] += gained
    if f[SHIELD, u] < f[SHIELD_MAX, u]:
        f[QUIET, u] -= 1.0
        if f[QUIET, u] <= 0.0:
            gained = min(tables.unit[kind, t.SHIELD_REGEN], f[SHIELD_MAX, u] - f[SHIELD, u])
            f[SHIELD, u] += gained
            f[RESTORED, u] += gained
    if f[ENERGY, u] < f[ENERGY_MAX, u]:
        f[ENERGY, u] = min(f[ENERGY_MAX, u], f[ENERGY, u] + tables.unit[kind, t.ENERGY_REGEN])


@njit(**INNER)
def _run_loop(
    f: Array,
    k: Array,
    c: Array,
    shots: Shots,
    n_agents: int,
    ground: Ground,
    tables: t.Tables,
) -> None:
    """One game loop of one battle."""
    c[LOOP] += 1
    n = c[N_LIVING]
    for i in range(n):
        u = k[LIVING, i]
        _pass_time(f, k, u, tables)
        if k[MOVES, u] == 0:
            k[STALLED, u] = 0
        k[MOVES, u] = 0
        k[FIRM, u] = 1 if f[SPEED, u] <= 0.0 else 0
        f[OLD_X, u] = f[X, u]
        f[OLD_Y, u] = f[Y, u]
    for i in range(n):
        u = k[LIVING, i]
        if k[OWN_WILL, u] == 1:
            if tables.unit[k[TYPE, u], t.HEAL_RATE] > 0.0:
                look_for_patient(f, k, c, u, n_agents, tables)
            else:
                look_around(f, k, c, u, n_agents, tables)
    moving = False
    for i in range(n):
        u = k[LIVING, i]
        act(f, k, c, u, shots, tables)
        moving = moving or k[MOVES, u] == 1
    if moving:
        for i in range(n):
            u = k[LIVING, i]
            if k[MOVES, u] == 1:
                move(f, k, c, u, n_agents, ground, tables)
    if moving or c[RESTLESS] == 1:
        for _ in range(PUSHES):
            if push_apart(f, k, c, n_agents, ground, tables) <= TIGHT:
                break
    if moving:
        for i in range(n):
            u = k[LIVING, i]
            if k[MOVES, u] == 1:
                count_stall(f, k, u)
    # events of this loop that hit nothing else still may be a baneling's own death
    landed = land_hits(f, k, c, shots.events, n_agents, tables)
    died = bury(f, k, c, n_agents, tables)
    if landed or died:
        respond(f, k, c, n_agents, tables)


@kernel
def create(
    first: int,
    end: int,
    mask: Array,
    units: Units,
    state: State,
    kinds: Array,
    points: Array,
    offsets: Array,
    spread: float,
    enemy_orders: Array,
    n_agents: int,
    ground: Ground,
    tables: t.Tables,
) -> None:
    """Puts the units of new battles in place."""
    for b in range(first, end):
        if mask[b]:
            f, k, c = state.floats[b], state.ints[b], state.counters[b]
            new = kinds[b], points[b], offsets, spread, enemy_orders[b]
            create_units(units, b, f, k, c, state.rng, *new, n_agents, ground, tables)


@kernel
def advance(
    first: int,
    end: int,
    mask: Array,
    units: Units,
    state: State,
    order: Array,
    target: Array,
    x: Array,
    y: Array,
    loops: int,
    n_agents: int,
    jitter: bool,
    ground: Ground,
    tables: t.Tables,
) -> None:
    """Gives orders ([B, A] or [B, N]) and runs game loops."""
    for b in range(first, end):
        if mask[b]:
            f, k, c = state.floats[b], state.ints[b], state.counters[b]
            shots = Shots(state.events[b], state.rng, b, jitter)
            load(units, b, f, k, c, tables)
            for u in range(order.shape[1]):
                give_order(f, k, u, order[b, u], target[b, u], x[b, u], y[b, u], n_agents, tables)
            for _ in range(loops):
                _run_loop(f, k, c, shots, n_agents, ground, tables)
            store(units, b, f, k)


@njit(**INNER)
def _target_of(k: Array, u: int) -> int:
    """Whom u attacks or heals or is on its way to; -1: nobody."""
    if k[ALIVE, u] == 0:
        return -1
    ordered = k[ORDER, u] == ORDER_ATTACK or k[ORDER, u] == ORDER_HEAL
    target = k[SUBJECT, u] if ordered and is_living(k, k[SUBJECT, u]) else k[TARGET, u]
    return target if is_living(k, target) else -1


@kernel
def find_targets(first: int, end: int, mask: Array, state: State, out: Array) -> None:
    """Writes whom every unit goes for to out [B, N]."""
    for b in range(first, end):
        if mask[b]:
            for u in range(out.shape[1]):
                out[b, u] = _target_of(state.ints[b], u)

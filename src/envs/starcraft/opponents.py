"""Who plays the enemies: the map's order and the units' own behaviour, or scripts: SMAC-Hard's for
single maps (`smac_hard`), and our own for any map.

The scripts order the living enemies before each step. In our own, medivacs follow the nearest
fighter of their side and heal by themselves ("hunt": they go where the fighters go).
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of the kernels at the end of this file
from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import numpy as np
from numba import njit

from envs.compiled import kernel
from envs.starcraft import smac_hard
from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_ATTACK_MOVE,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
    Battle,
    Workers,
)
from envs.starcraft.facts import UNIT_NAMES, MapInfo, UnitType, unit_type
from envs.starcraft.options import OWN_SCRIPTS, SCRIPTS
from envs.starcraft.sim.tables import pack
from utils.errors import ConfigError
from utils.registry import nearest

ATTACK_MOVE, HUNT, NEAREST, FOCUS_FIRE, KITE, RANDOM_TARGET = range(len(OWN_SCRIPTS))
MIXTURE = "mixture"
# Distance between centres that weak units keep from agents.
NEAR = 8.0
# A unit with at most this part of its health and shield is weak.
WEAK = 1 / 3
# How far away the point is that a unit backs off to, how much farther than the nearest agent it
# must shoot to do so between shots, and while how many loops of its cooldown are left.
BACK_OFF = 2.0
OUTRANGES = 1.0
RELOADING = 4.0


class _Types(NamedTuple):
    """By unit type: whether the first can attack the second (bool [T, T]), who heals (bool [T]),
    the longest range, edge to edge, and the radius (float64 [T]).
    """

    attacks: np.ndarray
    heals: np.ndarray
    reach: np.ndarray
    radius: np.ndarray


class Opponents:
    """The enemies' orders, by a script per battle, drawn at its start.

    Args:
        info: the map.
        battle: of B battles.
        base: what "mixture" contains on maps that SMAC-Hard does not have, beside nearest,
            focus_fire, kite and random_target: attack_move or hunt.
        choice: a script of our own, one of SMAC-Hard's for this map, or "mixture".
        weights: script -> weight in the mixture; empty: SMAC-Hard's scripts for this map with equal
            chances (or see `base`).
        heals: see `smac_hard.command`.
        threads: over battles.

    Attributes:
        script: int64 [B], position in `SCRIPTS`.
        names: the scripts that may be drawn.
        commands: whether there is ever an order to give. unled: bool [B], whether the map's own
            order does not count, after `begin`. order (int8), target (int64), target_x,
            target_y (float64): [B, N], for the engine, after `command`.

    Raises:
        ConfigError: an unknown script, weights that are no weights.
    """

    def __init__(
        self,
        info: MapInfo,
        battle: Battle,
        base: str,
        choice: str,
        weights: Mapping[str, float] | None = None,
        threads: int = 1,
        heals: bool = True,
    ) -> None:
        pool = smac_hard.POOLS.get(info.name, ()) if base == "attack_move" else ()
        own = tuple(name for name in OWN_SCRIPTS if name != "attack_move" or base == "attack_move")
        known = tuple(dict.fromkeys((*own, *pool)))
        for name in (choice, *(weights or {})):
            if name in SCRIPTS and name not in (*known, "attack_move"):
                raise ConfigError(
                    f"StarCraft: the opponents '{name}' are not written for {info.name}, which has "
                    f"{', '.join(known)}"
                )
        if choice != MIXTURE and choice not in known:
            raise ConfigError(
                f"StarCraft: unknown opponents {choice!r}; "
                f"{nearest(str(choice), (*known, MIXTURE))}"
            )
        weights = {name: one for name, one in (weights or {}).items() if one is not None}
        if weights and choice != MIXTURE:
            raise ConfigError(
                f"StarCraft: opponent_weights go with opponents: {MIXTURE}, not with {choice}"
            )
        for name in weights:
            if name not in known:
                raise ConfigError(
                    f"StarCraft: opponent_weights: unknown opponent '{name}'; "
                    f"{nearest(name, known)}"
                )
        if choice == MIXTURE:
            weights = weights or dict.fromkeys(pool or (base, *OWN_SCRIPTS[NEAREST:]), 1.0)
            if sum(weights.values()) <= 0:
                raise ConfigError(
                    "StarCraft: opponent_weights are all 0, at least one must be above"
                )
        else:
            weights = {choice: 1.0}
        self.names = tuple(name for name in SCRIPTS if weights.get(name, 0) > 0)
        chances = np.array([weights.get(name, 0) for name in SCRIPTS], dtype=np.float64)
        self._edges = np.cumsum(chances / chances.sum())[:-1]
        self.commands = self.names != ("attack_move",)
        b, n = battle.n_envs, battle.n_units
        self.n_agents = battle.n_agents
        self.script = np.full(b, SCRIPTS.index(self.names[0]), dtype=np.int64)
        self.order = np.zeros((b, n), dtype=np.int8)
        self.target = np.zeros((b, n), dtype=np.int64)
        self.target_x, self.target_y = np.zeros((b, n)), np.zeros((b, n))
        self.unled = np.zeros(b, dtype=np.bool_)
        self._hard = any(name not in OWN_SCRIPTS for name in self.names)
        self._heals = heals
        point = smac_hard.RUSH_POINTS.get(info.name)
        self._rush = np.array([*(point or (0.0, 0.0)), point is not None], dtype=np.float64)
        self._memory = smac_hard.Memory.of(b, n)
        self._chosen = np.full((b, n), -1, dtype=np.int64)
        self._rng = np.ones(b, dtype=np.uint64)
        self._units = battle.units
        self._types = _types(info.units)
        self._pathing = np.array(info.pathing, dtype=np.bool_)
        self._workers = Workers(threads, b)

    def begin(self, mask: np.ndarray, rngs: Sequence[np.random.Generator]) -> None:
        """Starts battles in `mask` (bool [B]), from one draw of `rngs[b]` each where anything is
        random.
        """
        if not self.commands:
            return
        self._chosen[mask] = -1
        self._memory.clear(mask)
        if len(self.names) > 1 or self.script[0] == RANDOM_TARGET:
            for b in np.flatnonzero(mask).tolist():
                if len(self.names) > 1:
                    self.script[b] = np.searchsorted(self._edges, rngs[b].random(), side="right")
                self._rng[b] = rngs[b].integers(1, 2**63)
        np.copyto(self.unled, self.script >= smac_hard.FIRST, where=mask)

    def command(
        self,
        mask: np.ndarray,
        order: np.ndarray,
        target: np.ndarray,
        target_x: np.ndarray,
        target_y: np.ndarray,
    ) -> None:
        """Writes the orders of all units in `mask` (bool [B]): the agents' as given ([B, A]), the
        enemies' by script.

        ORDER_NONE leaves an enemy what it was doing: attack-moving, what the map has told it.
        """
        self._workers.run(
            _command, mask, self.n_agents, self.script, self._units, self._types, self._pathing,
            self._chosen,
            self._rng, order, target, target_x, target_y, self.order, self.target, self.target_x,
            self.target_y,
        )  # fmt: skip
        if self._hard:
            self._workers.run(
                smac_hard.command, mask, self.n_agents, self.script, self._units, self._heals,
                self._rush, self._memory,
                smac_hard.Orders(self.order, self.target, self.target_x, self.target_y),
            )  # fmt: skip

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self._workers.close()


def _types(overrides: Mapping[str, UnitType]) -> _Types:
    types = [overrides.get(name, unit_type(name)) for name in UNIT_NAMES]
    return _Types(
        attacks=pack(overrides).weapon_for >= 0,
        heals=np.array([unit.heal is not None for unit in types]),
        reach=np.array(
            [max((w.range for w in unit.weapons), default=0.0) for unit in types], dtype=np.float64
        ),
        radius=np.array([unit.radius for unit in types], dtype=np.float64),
    )


# kernels: (first battle, end, ...); all arrays are of all battles


@njit(inline="always")
def _distance(units, b, u, v):
    dx, dy = units.x[b, v] - units.x[b, u], units.y[b, v] - units.y[b, u]
    return sqrt(dx * dx + dy * dy)


@njit(inline="always")
def _points(units, b, u):
    return units.health[b, u] + units.shield[b, u]


@njit(inline="always")
def _weak(units, b, u):
    return _points(units, b, u) <= WEAK * (units.health_max[b, u] + units.shield_max[b, u])


@njit
def _closest(units, b, u, n_agents, types, struck):
    """The agent closest to u that it can attack (`struck`: that can attack it), -1: none."""
    best, best_distance = -1, np.inf
    kind = units.type[b, u]
    for v in range(n_agents):
        other = units.type[b, v]
        able = types.attacks[other, kind] if struck else types.attacks[kind, other]
        if units.alive[b, v] and able:
            distance = _distance(units, b, u, v)
            if distance < best_distance:
                best, best_distance = v, distance
    return best


@njit(inline="always")
def _gap(units, b, u, v, types):
    """Distance from edge to edge."""
    return (
        _distance(units, b, u, v) - types.radius[units.type[b, u]] - types.radius[units.type[b, v]]
    )


@njit
def _weakest_in_reach(units, b, u, n_agents, types):
    """The agent with the least health and shield of those that u can hit from where it stands, -1:
    none.
    """
    best, fewest = -1, np.inf
    kind = units.type[b, u]
    for v in range(n_agents):
        able = units.alive[b, v] and types.attacks[kind, units.type[b, v]]
        if (
            able
            and _points(units, b, v) < fewest
            and _gap(units, b, u, v, types) <= types.reach[kind]
        ):
            best, fewest = v, _points(units, b, v)
    return best


@njit
def _any_agent(units, b, u, n_agents, types, rng):
    """An agent drawn from those that u can attack, -1: none."""
    kind = units.type[b, u]
    n = 0
    for v in range(n_agents):
        n += units.alive[b, v] and types.attacks[kind, units.type[b, v]]
    if n == 0:
        return -1
    # xorshift64* (Vigna 2016)
    state = rng[b]
    state ^= state >> np.uint64(12)
    state ^= state << np.uint64(25)
    state ^= state >> np.uint64(27)
    rng[b] = state
    place = int(
        ((state * np.uint64(2685821657736338717)) >> np.uint64(11)) * (1.0 / 9007199254740992.0) * n
    )
    for v in range(n_agents):
        if units.alive[b, v] and types.attacks[kind, units.type[b, v]]:
            if place == 0:
                return v
            place -= 1
    return -1


@njit
def _follow(units, b, u, first, last, types):
    """The fighter (or, among agents, anybody) of range(first, last) closest to the healer u, -1:
    none.
    """
    best, best_distance = -1, np.inf
    for v in range(first, last):
        if v == u or not units.alive[b, v] or (first > 0 and types.heals[units.type[b, v]]):
            continue
        distance = _distance(units, b, u, v)
        if distance < best_distance:
            best, best_distance = v, distance
    return best


@njit
def _keeps_away(units, b, u, v, strong, types):
    """Whether u, which kites, backs off from agent v: 1 yes, 0 no; 2: it is far enough, and
    waits.
    """
    distance = _distance(units, b, u, v)
    if _weak(units, b, u) and strong > 0:
        return 1 if distance <= NEAR else 2
    mine, its = units.type[b, u], units.type[b, v]
    gap = _gap(units, b, u, v, types)
    outranges = types.reach[mine] > types.reach[its] + OUTRANGES
    return 1 if outranges and units.cooldown[b, u] > RELOADING and gap < types.reach[mine] else 0


@kernel
def _command(
    first, end, mask, n_agents, script, units, types, pathing, chosen, rng,
    given_order, given_target, given_x, given_y, order, target, target_x, target_y,
):  # fmt: skip
    n_units = units.x.shape[1]
    for b in range(first, end):
        if not mask[b]:
            continue
        for a in range(n_agents):
            order[b, a] = given_order[b, a]
            target[b, a] = given_target[b, a]
            target_x[b, a] = given_x[b, a]
            target_y[b, a] = given_y[b, a]
        plan = script[b]
        strong = 0
        for u in range(n_agents, n_units):
            order[b, u] = ORDER_NONE
            strong += (
                units.alive[b, u] and not _weak(units, b, u) and not types.heals[units.type[b, u]]
            )
        if plan == ATTACK_MOVE or plan > RANDOM_TARGET:
            continue
        for u in range(n_agents, n_units):
            if not units.alive[b, u]:
                continue
            kind = units.type[b, u]
            if types.heals[kind]:
                v = _follow(units, b, u, 0, n_agents, types) if plan == HUNT else -1
                if plan != HUNT:
                    v = _follow(units, b, u, n_agents, n_units, types)
                if v >= 0:
                    order[b, u] = ORDER_ATTACK_MOVE
                    target_x[b, u] = units.x[b, v]
                    target_y[b, u] = units.y[b, v]
                continue
            old = chosen[b, u]
            kept = old >= 0 and units.alive[b, old]
            if plan in (HUNT, RANDOM_TARGET) and kept:
                v = old
            elif plan == RANDOM_TARGET:
                v = _any_agent(units, b, u, n_agents, types, rng)
            else:
                v = _weakest_in_reach(units, b, u, n_agents, types) if plan == FOCUS_FIRE else -1
                if v < 0:
                    v = _closest(units, b, u, n_agents, types, False)
            chosen[b, u] = v
            if plan == KITE:
                threat = _closest(units, b, u, n_agents, types, True)
                away = _keeps_away(units, b, u, threat, strong, types) if threat >= 0 else 0
                if away == 2:
                    order[b, u] = ORDER_STOP
                    continue
                if away == 1:
                    distance = _distance(units, b, u, threat)
                    scale = BACK_OFF / max(distance, 1e-9)
                    x = units.x[b, u] + (units.x[b, u] - units.x[b, threat]) * scale
                    y = units.y[b, u] + (units.y[b, u] - units.y[b, threat]) * scale
                    # with its back to a wall it fights
                    if (
                        0 <= x < pathing.shape[0]
                        and 0 <= y < pathing.shape[1]
                        and pathing[int(x), int(y)]
                    ):
                        order[b, u] = ORDER_MOVE
                        target_x[b, u] = x
                        target_y[b, u] = y
                        continue
            if v >= 0:
                order[b, u] = ORDER_ATTACK
                target[b, u] = v

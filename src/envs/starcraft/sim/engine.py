"""`Engine`: the simulator behind the arrays that it shares with SMAC's interface
(`battle.Battle`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from envs.starcraft.battle import ORDER_ATTACK, ORDER_ATTACK_MOVE, ORDER_NONE, Battle, Workers
from envs.starcraft.facts import UNIT_INDEX, EnemyOrder, MapInfo
from envs.starcraft.sim import kernels, state
from envs.starcraft.sim.pathing import make_ground
from envs.starcraft.sim.tables import MAX_PENDING, pack

# How far (cells, in x and in y) a unit may appear from its place in the layout of a creation call.
SPAWN_SPREAD = 0.05
# Game loops between the creation of the units and the first observation.
SETTLE_LOOPS = 2
# Steps of the creation lattice to each side; a step is half a body.
_LATTICE = 24


class Engine:
    """B battles on one map, advanced in game loops of 1/16 game second.

    Agents do what they are ordered and nothing else. The enemies have the map's order and acquire
    targets by themselves (SMAC's maps: Samvelyan et al. 2019, section 4). A battle's course depends
    on its own generator and orders only. Left out: acceleration, turning, cliff levels (for
    splash), the flight of the spine crawler's tentacle.

    Attributes:
        battle: the units, see `Battle`; may be changed between steps.
        targets: int64 [B, N], the unit that each attacks or heals or is on its way to, -1: none;
            after `find_targets`.
        damage_taken, restored: float64 [B, N], health and shield lost to hits, and regained, since
            the last reset.

    Args:
        info: the map.
        n_envs: B.
        threads: over the battles.
        jitter: whether the game's random loops are added to attack periods.
        spread: see `SPAWN_SPREAD`.
        settle_loops: see `SETTLE_LOOPS`.
        draw: gives a new battle's unit types (int64 [N]) and creation points (float64 [N, 2]), the
            agents first, from its generator; default: the map's own.
    """

    def __init__(
        self,
        info: MapInfo,
        n_envs: int,
        threads: int = 1,
        jitter: bool = True,
        spread: float = SPAWN_SPREAD,
        settle_loops: int = SETTLE_LOOPS,
        draw: Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.info = info
        self.battle = Battle.of_map(info, n_envs)
        self.jitter = jitter
        self.spread = spread
        self.settle_loops = settle_loops
        self._workers = Workers(threads, n_envs)
        self._tables = pack(info.units)
        self._ground = make_ground(info.pathing)
        n_units = self.battle.n_units
        self._units = self.battle.units
        self._state = state.State(
            floats=np.zeros((n_envs, state.FLOATS, n_units)),
            ints=np.zeros((n_envs, state.INTS, n_units), dtype=np.int64),
            counters=np.zeros((n_envs, state.COUNTERS), dtype=np.int64),
            events=np.zeros((n_envs, MAX_PENDING * n_units, state.EVENT_COLUMNS), dtype=np.int64),
            rng=np.zeros(n_envs, dtype=np.uint64),
        )
        self.damage_taken = self._state.floats[:, state.TAKEN]
        self.restored = self._state.floats[:, state.RESTORED]
        # what is created where, in creation order, and the enemies' order (code, x, y)
        created = [
            c.unit for c in (*info.agent_creations, *info.enemy_creations) for _ in range(c.count)
        ]
        self._kinds = np.tile(np.array([UNIT_INDEX[unit] for unit in created]), (n_envs, 1))
        self._points = np.zeros((n_envs, n_units, 2))
        self._enemy_orders = np.zeros((n_envs, 3))
        self.targets = np.full((n_envs, n_units), -1, dtype=np.int64)
        self._draw_units = draw
        self._fixed = draw is None and _is_fixed(info)
        if self._fixed:
            self._draw(range(n_envs), [np.random.default_rng(0)] * n_envs)
        self._offsets = _lattice()
        shape = (n_envs, info.n_agents)
        codes, nowhere = np.full(shape, ORDER_NONE, dtype=np.int8), np.zeros(shape)
        self._no_orders = (codes, np.zeros(shape, dtype=np.int64), nowhere, nowhere)

    def reset(self, mask: np.ndarray, rngs: Sequence[np.random.Generator]) -> None:
        """Starts new battles where `mask` is True: creates the units and runs the loops before the
        first observation.

        Args:
            mask: bool [B].
            rngs: B generators; all that is random in battle b comes from a draw from `rngs[b]`.
        """
        chosen = np.flatnonzero(mask).tolist()
        if not self._fixed:
            self._draw(chosen, rngs)
        for b in chosen:
            self._state.rng[b] = rngs[b].integers(1, 2**63)
        self._workers.run(
            kernels.create,
            mask,
            self._units,
            self._state,
            self._kinds,
            self._points,
            self._offsets,
            self.spread,
            self._enemy_orders,
            self.info.n_agents,
            self._ground,
            self._tables,
        )
        if self.settle_loops:
            self.step(*self._no_orders, mask, self.settle_loops)

    def step(
        self,
        order: np.ndarray,
        target: np.ndarray,
        tx: np.ndarray,
        ty: np.ndarray,
        mask: np.ndarray,
        loops: int = 8,
    ) -> None:
        """Gives orders and advances.

        An order stays in force until it is done or replaced; one that cannot be followed (a target
        that is dead or out of the weapon's kind, a patient in full health) is refused and changes
        nothing.

        Args:
            order: int8 [B, A] for the agents, or [B, N] for all units; codes of `battle`.
            target: int64, likewise, unit index, for ORDER_ATTACK and ORDER_HEAL.
            tx, ty: float64, likewise, for ORDER_MOVE and ORDER_ATTACK_MOVE.
            mask: bool [B], the battles to advance.
            loops: game loops.
        """
        self._workers.run(
            kernels.advance,
            mask,
            self._units,
            self._state,
            order,
            target,
            tx,
            ty,
            loops,
            self.info.n_agents,
            self.jitter,
            self._ground,
            self._tables,
        )

    def stop_enemies(self, mask: np.ndarray) -> None:
        """Takes the map's order from the enemies in `mask` (bool [B]): idle, they still take on
        who comes into their sight.
        """
        ints = self._state.ints
        for row in (state.HUNTS, state.ORDER):
            ints[mask, row, self.info.n_agents :] = 0
        for row in (state.TARGET, state.AIM, state.SUBJECT):
            ints[mask, row, self.info.n_agents :] = -1

    def find_targets(self, mask: np.ndarray) -> None:
        """Writes `targets` in `mask` (bool [B])."""
        self._workers.run(kernels.find_targets, mask, self._state, self.targets)

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self._workers.close()

    def _draw(self, chosen: Sequence[int], rngs: Sequence[np.random.Generator]) -> None:
        """Creation points and the enemies' orders of new battles."""
        for b in chosen:
            if self._draw_units is None:
                self._points[b] = np.concatenate(self.info.draw_points(rngs[b]))
            else:
                self._kinds[b], self._points[b] = self._draw_units(rngs[b])
            self._enemy_orders[b] = _draw_order(self.info.enemy_order, rngs[b])


def _is_fixed(info: MapInfo) -> bool:
    """Whether every battle of the map starts at the same points with the same order."""
    drawn = any(spawn.rectangles or len(spawn.points) > 1 for spawn in info.spawns)
    return not drawn and info.enemy_order.kind != "attack_move_segment"


def _draw_order(order: EnemyOrder, rng: np.random.Generator) -> tuple[int, float, float]:
    if order.kind == "attack_move":
        return ORDER_ATTACK_MOVE, *order.points[0]
    if order.kind == "attack_move_segment":
        (x0, y0), (x1, y1) = order.points
        along = rng.uniform()
        return ORDER_ATTACK_MOVE, x0 + along * (x1 - x0), y0 + along * (y1 - y0)
    if order.kind == "attack_agents":
        return ORDER_ATTACK, 0.0, 0.0
    if order.kind == "none":
        return ORDER_NONE, 0.0, 0.0
    raise ValueError(f"unknown kind of enemy order '{order.kind}'")


def _lattice() -> np.ndarray:
    """Places around a creation point, int64 [M, 2] in lattice steps: the nearest first, those above
    and below before those beside (of five units the first stands in the middle and four around it
    as a cross).
    """
    side = range(-_LATTICE, _LATTICE + 1)
    places = [(i, j) for i in side for j in side if i * i + j * j <= _LATTICE * _LATTICE]
    return np.array(sorted(places, key=lambda p: (p[0] ** 2 + p[1] ** 2, abs(p[0]), p)))

"""What an engine and the interface share: the units of B battles in flat arrays, and threads over
battles.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numba import typeof

from envs.starcraft.facts import UNIT_INDEX, MapInfo

ORDER_NONE = 0  # keep the present order
ORDER_STOP = 1
ORDER_MOVE = 2  # to x, y
ORDER_ATTACK = 3  # unit index
ORDER_HEAL = 4  # unit index
ORDER_ATTACK_MOVE = 5  # to x, y


class Units(NamedTuple):
    """The arrays of a `Battle`, for compiled functions."""

    type: np.ndarray
    alive: np.ndarray
    x: np.ndarray
    y: np.ndarray
    health: np.ndarray
    shield: np.ndarray
    energy: np.ndarray
    cooldown: np.ndarray
    health_max: np.ndarray
    shield_max: np.ndarray
    energy_max: np.ndarray


class Battle:
    """B battles of N units each: the agents first, in SMAC's order, then the enemies. Arrays [B,
    N], C order.

    A dead unit has health 0 and keeps its other fields.

    Attributes:
        type: int64, index in `facts.UNIT_NAMES`.
        x, y, health, shield, energy: float64.
        cooldown: float64, loops until the weapon is ready.
        health_max, shield_max, energy_max: float64.
        alive: bool.
    """

    def __init__(self, n_envs: int, n_agents: int, n_enemies: int) -> None:
        self.n_envs = n_envs
        self.n_agents = n_agents
        self.n_enemies = n_enemies
        shape = (n_envs, n_agents + n_enemies)
        self.type = np.zeros(shape, dtype=np.int64)
        self.alive = np.zeros(shape, dtype=np.bool_)
        self.x = np.zeros(shape)
        self.y = np.zeros(shape)
        self.health = np.zeros(shape)
        self.shield = np.zeros(shape)
        self.energy = np.zeros(shape)
        self.cooldown = np.zeros(shape)
        self.health_max = np.zeros(shape)
        self.shield_max = np.zeros(shape)
        self.energy_max = np.zeros(shape)

    @property
    def n_units(self) -> int:
        return self.n_agents + self.n_enemies

    @property
    def units(self) -> Units:
        """The arrays themselves, not copies."""
        return Units(*(getattr(self, name) for name in Units._fields))

    @classmethod
    def of_map(cls, info: MapInfo, n_envs: int) -> Battle:
        """Battles with the types and maxima of a map's units; nobody is alive yet."""
        battle = cls(n_envs, info.n_agents, info.n_enemies)
        for i, name in enumerate((*info.agents, *info.enemies)):
            unit = info.unit_type(name)
            battle.type[:, i] = UNIT_INDEX[name]
            battle.health_max[:, i] = unit.health
            battle.shield_max[:, i] = unit.shield
            battle.energy_max[:, i] = unit.energy_max
        return battle


class _Bound(NamedTuple):
    """A kernel as it was compiled for arguments like these.

    Numba looks at the type of every array in every tuple at each call, which takes ten times as
    long as handing them over: for one battle, as long as all that the kernels compute.

    Attributes:
        args: of the last call.
        call: what was compiled for them, which must get no others.
    """

    args: tuple[Any, ...]
    call: Callable[..., None]

    def fits(self, args: tuple[Any, ...]) -> bool:
        """Whether these are the same objects, or numbers and arrays of the same types."""
        return len(args) == len(self.args) and all(map(_alike, args, self.args))


def _alike(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (
            one.dtype == other.dtype
            and one.ndim == other.ndim
            and one.flags.c_contiguous
            and other.flags.c_contiguous
            and one.flags.writeable == other.flags.writeable
            and one.flags.aligned == other.flags.aligned
        )
    return isinstance(one, int | float)


class Workers:
    """Runs compiled kernels over ranges of battles, each in a thread: `kernel(first, end, *args)`,
    `nogil=True`.

    Battles do not see each other, so results do not depend on the number of threads.
    """

    def __init__(self, threads: int, n_envs: int) -> None:
        threads = max(1, min(threads, n_envs))
        bounds = [n_envs * i // threads for i in range(threads + 1)]
        self._ranges = list(pairwise(bounds))
        self._bound: dict[Callable[..., None], _Bound] = {}
        self._pool = (
            ThreadPoolExecutor(threads - 1, thread_name_prefix="battles") if threads > 1 else None
        )

    def run(self, kernel: Callable[..., None], *args: Any) -> None:
        """Calls `kernel` for all battles and returns when all are done."""
        bound = self._bound.get(kernel)
        call = bound.call if bound is not None and bound.fits(args) else self._bind(kernel, args)
        if self._pool is None:
            call(*self._ranges[0], *args)
            return
        pending = [self._pool.submit(call, first, end, *args) for first, end in self._ranges[1:]]
        call(*self._ranges[0], *args)
        for task in pending:
            task.result()

    def _bind(self, kernel: Callable[..., None], args: tuple[Any, ...]) -> Callable[..., None]:
        """What was compiled for these arguments; the kernel itself before it has been compiled for
        them, and where nothing is compiled (NUMBA_DISABLE_JIT).
        """
        overloads = getattr(kernel, "overloads", {})
        types = tuple(map(typeof, (*self._ranges[0], *args))) if overloads else ()
        if types not in overloads:
            return kernel
        call = overloads[types].entry_point
        self._bound[kernel] = _Bound(args, call)
        return call

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

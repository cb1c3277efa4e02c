"""One battle set by hand, for the tests of the scripts that play the enemies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, Battle
from envs.starcraft.facts import map_info
from envs.starcraft.opponents import Opponents


class Field:
    """One battle set by hand: units (name, x, y[, part of their health]), and a script."""

    def __init__(
        self,
        script: str,
        agents: list[tuple],
        enemies: list[tuple],
        terrain: str = "3m",
        heals: bool = True,
    ) -> None:
        units = [*agents, *enemies]
        info = replace(
            map_info(terrain),
            agents=tuple(unit[0] for unit in agents),
            enemies=tuple(unit[0] for unit in enemies),
        )
        self.battle = bt = Battle.of_map(info, 1)
        self.a = len(agents)
        bt.alive[:] = True
        bt.x[0], bt.y[0] = [unit[1] for unit in units], [unit[2] for unit in units]
        bt.health[:], bt.shield[:] = bt.health_max, bt.shield_max
        for i, unit in enumerate(units):
            if len(unit) > 3:
                bt.health[0, i] *= unit[3]
                bt.shield[0, i] *= unit[3]
        self.opponents = Opponents(info, bt, "attack_move", script, heals=heals)
        self.mask = np.ones(1, dtype=bool)
        self.opponents.begin(self.mask, [np.random.default_rng(0)])

    def orders(self) -> list[tuple]:
        """Of every enemy: (code,), (code, unit) or (code, x, y)."""
        a, o = self.a, self.opponents
        given = (
            np.full((1, a), 1, dtype=np.int8),
            np.full((1, a), 2),
            np.full((1, a), 3.0),
            np.full((1, a), 4.0),
        )
        o.command(self.mask, *given)
        for mine, theirs in zip((o.order, o.target, o.target_x, o.target_y), given, strict=True):
            np.testing.assert_array_equal(mine[:, :a], theirs, "the agents' orders are changed")
        out = []
        for u in range(a, self.battle.n_units):
            code = int(o.order[0, u])
            point = (round(float(o.target_x[0, u]), 6), round(float(o.target_y[0, u]), 6))
            unit = (int(o.target[0, u]),)
            out.append(
                (
                    code,
                    *(
                        unit
                        if code in (ORDER_ATTACK, ORDER_HEAL)
                        else point
                        if code in (2, 5)
                        else ()
                    ),
                )
            )
        return out

    def kill(self, *units: int) -> None:
        self.battle.alive[0, list(units)] = False
        self.battle.health[0, list(units)] = 0

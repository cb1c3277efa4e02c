"""Small battles for the tests of the StarCraft simulator."""

from dataclasses import replace

import numpy as np

from envs.starcraft.battle import ORDER_NONE, ORDER_STOP
from envs.starcraft.facts import Creation, EnemyOrder, Spawn, map_info
from envs.starcraft.sim import state
from envs.starcraft.sim.engine import Engine


def arena(agents, enemies, order=None, terrain="3s_vs_3z", passive=False):
    """One battle with units [(name, x, y)] exactly where given, no random loops, no loops before
    the first order.

    Agents must be given in SMAC's order. `order`: the enemies' attack-move point. `passive`:
    enemies wait for orders.
    """
    units = [*agents, *enemies]
    calls = [Creation(name, 1, i, True) for i, (name, _, _) in enumerate(units)]
    base = map_info(terrain)
    info = replace(
        base,
        agents=tuple(name for name, _, _ in agents),
        enemies=tuple(name for name, _, _ in enemies),
        agent_creations=tuple(calls[: len(agents)]),
        enemy_creations=tuple(calls[len(agents) :]),
        spawns=tuple(Spawn(points=((x, y),)) for _, x, y in units),
        enemy_order=EnemyOrder("attack_move", (order,)) if order else EnemyOrder("none"),
    )
    engine = Engine(info, 1, jitter=False, spread=0.0, settle_loops=0)
    engine.reset(np.ones(1, dtype=bool), [np.random.default_rng(0)])
    battle = engine.battle
    np.testing.assert_array_equal(battle.x[0], [x for _, x, _ in units])
    np.testing.assert_array_equal(battle.y[0], [y for _, _, y in units])
    if passive:
        engine._state.ints[:, state.OWN_WILL] = 0
    return engine


def run(engine, loops=1, **orders):
    """Advances one battle; `orders`: a0=(code, target) or (code, x, y) for agent 0; the others keep
    theirs.
    """
    n_agents = engine.info.n_agents
    order = np.full((1, n_agents), ORDER_NONE, dtype=np.int8)
    target = np.zeros((1, n_agents), dtype=np.int64)
    x, y = np.zeros((1, n_agents)), np.zeros((1, n_agents))
    for name, (code, *rest) in orders.items():
        agent = int(name[1:])
        order[0, agent] = code
        if len(rest) == 1:
            target[0, agent] = rest[0]
        elif code != ORDER_STOP:
            x[0, agent], y[0, agent] = rest
    engine.step(order, target, x, y, np.ones(1, dtype=bool), loops)


def losses(engine, unit, loops, **orders):
    """[(loop, damage)] that one unit takes in the next loops, counted from 1; orders are given at
    the start.
    """
    found = []
    battle = engine.battle
    for loop in range(1, loops + 1):
        before = battle.health[0, unit] + battle.shield[0, unit]
        run(engine, **(orders if loop == 1 else {}))
        lost = before - battle.health[0, unit] - battle.shield[0, unit]
        if lost > 0:
            found.append((loop, round(lost, 9)))
    return found

"""Movement, bodies, walls, and what the enemies do by themselves; invariants of random play on
every map.
"""

import numpy as np
import pytest
from sc2_sim_fixtures import arena, run

from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_HEAL,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
)
from envs.starcraft.facts import map_info, map_names
from envs.starcraft.sim import creation
from envs.starcraft.sim.engine import Engine

FAR = [("Marine", 30, 30)]
STEP = 2.25 / 16


def test_a_move_goes_on_until_it_is_done_or_replaced():
    engine = arena([("Marine", 10, 16)], FAR)
    run(engine, 8, a0=(ORDER_MOVE, 12, 16))
    assert engine.battle.x[0, 0] == pytest.approx(11.125)
    run(engine, 8)
    assert (engine.battle.x[0, 0], engine.battle.y[0, 0]) == pytest.approx((12, 16))
    run(engine, 8)
    assert engine.battle.x[0, 0] == pytest.approx(12)
    run(engine, 4, a0=(ORDER_MOVE, 12, 18))
    run(engine, 4, a0=(ORDER_STOP,))
    assert engine.battle.y[0, 0] == pytest.approx(16 + 4 * STEP)


def test_agents_do_not_fight_by_themselves():
    engine = arena([("Marine", 10, 16)], [("Marine", 14, 16)])
    run(engine, 32)
    assert engine.battle.health[0].tolist() == [27.0, 45.0]


def test_an_attack_walks_into_range_and_ends_with_the_target():
    engine = arena([("Marine", 10, 16)], [("Marine", 20, 16)], passive=True)
    run(engine, 40, a0=(ORDER_ATTACK, 1))
    gap = engine.battle.x[0, 1] - engine.battle.x[0, 0] - 0.75
    assert 4.9 < gap <= 5.0
    engine.battle.health[0, 1] = 1.0
    run(engine, 20)
    place = engine.battle.x[0, 0]
    assert not engine.battle.alive[0, 1]
    run(engine, 20)
    assert engine.battle.x[0, 0] == place


def test_enemies_walk_to_their_point_and_take_on_what_comes_near():
    engine = arena([("Marine", 16, 26)], [("Marine", 26, 16)], order=(8, 16))
    run(engine, 16)
    assert engine.battle.x[0, 1] == pytest.approx(26 - 16 * STEP)
    run(engine, 400)
    # passed out of scan range of the agent, it stands at its point, and it still looks around
    assert engine.battle.x[0, 1] == pytest.approx(8, abs=0.6)
    assert engine.battle.health[0, 0] == 45.0
    engine.battle.x[0, 0], engine.battle.y[0, 0] = (
        engine.battle.x[0, 1],
        engine.battle.y[0, 1] + 5.7,
    )
    run(engine, 2)
    assert engine.battle.health[0, 0] == 39.0


def test_enemies_prefer_what_can_strike_back_to_what_is_near():
    engine = arena([("Marine", 10, 16), ("Medivac", 13, 16)], [("Marine", 15, 16)])
    run(engine, 2)
    assert engine.battle.health[0].tolist() == [39.0, 150.0, 45.0]


def test_an_enemy_hit_from_beyond_its_scan_range_turns_on_the_attacker_and_calls_friends():
    # edge to edge 5.8: in a stalker's range, out of a zealot's scan; friends 3 and 6 behind
    agents, enemies = (
        [("Stalker", 10, 16)],
        [("Zealot", 16.9, 16), ("Zealot", 19.9, 16), ("Zealot", 22.9, 16)],
    )
    engine = arena(agents, enemies)
    run(engine, 3, a0=(ORDER_ATTACK, 1))
    assert engine.battle.x[0, 1:].tolist() == [16.9, 19.9, 22.9]
    run(engine, 3)
    assert engine.battle.x[0, 1:] == pytest.approx([16.9 - 2 * STEP, 19.9 - 2 * STEP, 22.9])


def test_a_head_on_body_is_walked_around():
    engine = arena([("Zealot", 10, 16)], [("Zealot", 13, 16)], passive=True)
    for _ in range(60):
        run(engine, 1, a0=(ORDER_MOVE, 16, 16))
        distance = np.hypot(
            engine.battle.x[0, 0] - engine.battle.x[0, 1],
            engine.battle.y[0, 0] - engine.battle.y[0, 1],
        )
        assert distance > 0.74
    assert engine.battle.x[0, 0] == pytest.approx(16)
    assert (engine.battle.x[0, 1], engine.battle.y[0, 1]) == (13, 16)


def test_flyers_and_ground_units_pass_each_other():
    engine = arena([("Medivac", 10, 16)], [("Zealot", 12, 16)], passive=True)
    for _ in range(30):
        run(engine, 1, a0=(ORDER_MOVE, 14, 16))
        assert engine.battle.y[0, 0] == 16
    assert engine.battle.x[0, 0] == pytest.approx(14)


def test_zealots_in_a_column_surround_their_target():
    zealots = [("Zealot", 4 + 0.8 * i, 16) for i in range(7)]
    engine = arena(zealots, [("Roach", 16, 16)], passive=True)
    engine.battle.health[0, 7] = engine.battle.health_max[0, 7] = 1e6
    run(engine, 160, **{f"a{i}": (ORDER_ATTACK, 7) for i in range(7)})
    # each has struck within the last period
    assert (engine.battle.cooldown[0, :7] > 0).all()
    angles = np.sort(np.arctan2(engine.battle.y[0, :7] - 16, engine.battle.x[0, :7] - 16))
    assert np.diff(angles, append=angles[0] + 2 * np.pi).max() < np.pi


@pytest.mark.parametrize(
    ("name", "start", "goal"),
    [
        ("corridor", (25.5, 14.5), (9.5, 2.5)),
        ("2c_vs_64zg", (16, 10), (16, 15)),
        ("1o_2r_vs_4r", (3, 16), (29, 16)),
    ],
)
def test_ground_units_go_around_walls(name, start, goal):
    engine = arena([("Zealot", *start)], [("Zealot", *goal)], terrain=name, passive=True)
    battle, pathing = engine.battle, engine.info.pathing
    assert pathing[int(goal[0]), int(goal[1])]
    straight = np.hypot(goal[0] - start[0], goal[1] - start[1])
    walked, place = 0.0, np.array(start)
    for _ in range(1000):
        run(engine, 1, a0=(ORDER_ATTACK, 1))
        new = np.array([battle.x[0, 0], battle.y[0, 0]])
        walked += np.hypot(*(new - place))
        place = new
        assert pathing[int(place[0]), int(place[1])]
        if battle.shield[0, 1] < 50:
            break
    assert battle.shield[0, 1] < 50
    assert walked > straight
    # a shortest way by cells is at most 8% longer than the true one
    assert walked < 1.1 * shortest_way(pathing, start, goal)


def shortest_way(pathing, start, goal):
    """Length of the shortest way over the cells' 8 neighbours, by plain relaxation."""
    length = np.full(pathing.shape, np.inf)
    length[int(start[0]), int(start[1])] = 0.0
    while True:
        padded = np.pad(length, 1, constant_values=np.inf)
        best = length.copy()
        for di in (-1, 0, 1):
            for dj in (-1, 0, 1):
                moved = padded[1 + di : 33 + di, 1 + dj : 33 + dj] + np.hypot(di, dj)
                best = np.minimum(best, moved)
        best[~pathing] = np.inf
        if np.array_equal(best, length):
            return length[int(goal[0]), int(goal[1])]
        length = best


def test_a_colossus_steps_over_the_cliff_and_not_into_the_void():
    engine = arena([("Colossus", 16, 11)], [("Zealot", 2, 8)], terrain="2c_vs_64zg", passive=True)
    run(engine, 40, a0=(ORDER_MOVE, 16, 16))
    assert (engine.battle.x[0, 0], engine.battle.y[0, 0]) == pytest.approx((16, 16))
    run(engine, 100, a0=(ORDER_MOVE, 16, 26))
    assert 19.8 < engine.battle.y[0, 0] < 20.0


def test_five_units_of_a_call_stand_in_a_cross_and_the_sides_mirror_each_other():
    info = map_info("3s_vs_5z")
    engine = Engine(info, 1, spread=0.0, settle_loops=0)
    engine.reset(np.ones(1, dtype=bool), [np.random.default_rng(0)])
    places = np.stack([engine.battle.x[0, 3:] - 23, engine.battle.y[0, 3:] - 16], axis=1)
    gap = 2 * 0.375 * creation.SPAWN_GAP
    expected = [(0, 0), (0, -gap), (0, gap), (gap, 0), (-gap, 0)]
    assert sorted(np.round(places, 9).tolist()) == sorted(np.round(expected, 9).tolist())
    engine = Engine(map_info("8m"), 1, spread=0.0, settle_loops=0)
    engine.reset(np.ones(1, dtype=bool), [np.random.default_rng(0)])
    agents = {
        (round(x - 9, 9), round(y - 16, 9))
        for x, y in zip(engine.battle.x[0, :8], engine.battle.y[0, :8], strict=True)
    }
    enemies = {
        (round(23 - x, 9), round(y - 16, 9))
        for x, y in zip(engine.battle.x[0, 8:], engine.battle.y[0, 8:], strict=True)
    }
    assert agents == enemies


@pytest.mark.parametrize("name", ["MMM2", "bane_vs_bane", "1o_2r_vs_4r"])
def test_agents_are_numbered_by_type_and_place(name):
    info = map_info(name)
    engine = Engine(info, 8)
    engine.reset(np.ones(8, dtype=bool), [np.random.default_rng(i) for i in range(8)])
    battle, n = engine.battle, info.n_agents
    for b in range(8):
        keys = [(battle.type[b, i], battle.x[b, i]) for i in range(n)]
        assert keys == sorted(keys)
        assert [
            info.unit_type(unit).index for unit in (*info.agents, *info.enemies)
        ] == battle.type[b].tolist()
    # a little different each time
    assert len(set(battle.x[:, 0])) == 8


def random_orders(battle, rngs):
    """Orders of random play: move by 2, stop, attack or heal whatever, or none at all; one
    generator per battle.
    """
    shape = (battle.n_envs, battle.n_agents)
    order, target = np.zeros(shape, dtype=np.int8), np.zeros(shape, dtype=np.int64)
    x, y = np.zeros(shape), np.zeros(shape)
    choices = [
        ORDER_NONE,
        ORDER_STOP,
        ORDER_MOVE,
        ORDER_MOVE,
        ORDER_ATTACK,
        ORDER_ATTACK,
        ORDER_ATTACK,
        ORDER_HEAL,
    ]
    for b, rng in enumerate(rngs):
        order[b] = rng.choice(choices, size=battle.n_agents)
        enemies = rng.integers(battle.n_agents, battle.n_units, size=battle.n_agents)
        friends = rng.integers(0, battle.n_agents, size=battle.n_agents)
        target[b] = np.where(order[b] == ORDER_HEAL, friends, enemies)
        angle = rng.integers(0, 4, size=battle.n_agents) * np.pi / 2
        x[b] = battle.x[b, : battle.n_agents] + 2 * np.cos(angle)
        y[b] = battle.y[b, : battle.n_agents] + 2 * np.sin(angle)
    return order, target, x, y


@pytest.mark.parametrize("name", map_names())
def test_random_play_keeps_the_laws(name):
    info, n_envs = map_info(name), 3
    engine = Engine(info, n_envs)
    battle = engine.battle
    rngs = [np.random.default_rng([7, b]) for b in range(n_envs)]
    mask = np.ones(n_envs, dtype=bool)
    engine.reset(mask, rngs)
    units = [info.unit_type(unit) for unit in (*info.agents, *info.enemies)]
    walks = np.array([not u.flying and not u.cliff_walker for u in units])
    separation = np.array([u.separation_radius for u in units])
    body = np.array([1 if u.flying else 2 if len(u.planes) == 2 else 0 for u in units])
    touch = separation[:, None] + separation[None, :]
    same = (body[:, None] == body[None, :]) & ~np.eye(len(units), dtype=bool)
    for step in range(45):
        alive, health = battle.alive.copy(), battle.health + battle.shield
        taken, restored = engine.damage_taken.copy(), engine.restored.copy()
        engine.step(*random_orders(battle, rngs), mask)
        for array in (
            battle.x,
            battle.y,
            battle.health,
            battle.shield,
            battle.energy,
            battle.cooldown,
        ):
            assert np.isfinite(array).all()
        assert not (battle.alive & ~alive).any()
        assert ((battle.health > 0) == battle.alive).all()
        for value, most in ((battle.health, battle.health_max), (battle.shield, battle.shield_max)):
            assert (value >= 0).all()
            assert (value <= most).all()
        # points go only by recorded hits and come only by recorded regeneration and healing
        change = (engine.restored - restored) - (engine.damage_taken - taken)
        np.testing.assert_allclose(battle.health + battle.shield - health, change, atol=1e-9)
        for place in (battle.x, battle.y):
            assert (place >= 0).all()
            assert (place < 32).all()
        assert info.pathing[battle.x.astype(int), battle.y.astype(int)][:, walks].all()
        if step > 2:
            dx, dy = (
                battle.x[:, :, None] - battle.x[:, None, :],
                battle.y[:, :, None] - battle.y[:, None, :],
            )
            pairs = same & battle.alive[:, :, None] & battle.alive[:, None, :]
            assert (np.hypot(dx, dy) / touch)[pairs].min(initial=1.0) > 0.6


@pytest.mark.parametrize("name", ["MMM2", "corridor", "5z_vs_1ul"])
def test_a_battle_depends_on_its_own_seed_only(name):
    """The same seeds in other numbers of battles and threads, and beside battles that stand still,
    give the same.
    """

    def play(seeds, threads, idle=()):
        engine = Engine(map_info(name), len(seeds), threads=threads)
        rngs = [np.random.default_rng(s) for s in seeds]
        mask = np.ones(len(seeds), dtype=bool)
        engine.reset(mask, rngs)
        mask[list(idle)] = False
        course = []
        for _ in range(30):
            engine.step(*random_orders(engine.battle, rngs), mask)
            b = engine.battle
            course.append(np.stack([b.x, b.y, b.health, b.shield, b.energy, b.cooldown], axis=1))
        engine.close()
        return np.stack(course, axis=1)

    seeds = [11, 12, 13, 14, 15]
    alone = [play([seed], 1)[0] for seed in seeds]
    together = play(seeds, 1)
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(play(seeds, 2), together)
    np.testing.assert_array_equal(play(seeds[::-1], 3), together[::-1])
    np.testing.assert_array_equal(play(seeds, 2, idle=[1, 3])[::2], together[::2])
    assert not np.array_equal(together[0], together[1])


def test_reset_leaves_the_other_battles_alone():
    engine = Engine(map_info("2s3z"), 3)
    rngs = [np.random.default_rng(i) for i in range(3)]
    engine.reset(np.ones(3, dtype=bool), rngs)
    for _ in range(20):
        engine.step(*random_orders(engine.battle, rngs), np.ones(3, dtype=bool))
    before, state = engine.battle.x.copy(), rngs[1].bit_generator.state
    engine.reset(np.array([True, False, True]), rngs)
    assert (engine.battle.health == engine.battle.health_max)[[0, 2]].all()
    np.testing.assert_array_equal(engine.battle.x[1], before[1])
    assert rngs[1].bit_generator.state == state

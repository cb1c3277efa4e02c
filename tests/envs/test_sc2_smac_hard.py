"""SMAC-Hard's scripts: each on states made by hand, how one is drawn, whole battles."""

from __future__ import annotations

from math import cos, pi, sin, sqrt

import numpy as np
import pytest
from sc2_script_fixtures import Field

from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_ATTACK_MOVE,
    ORDER_HEAL,
    ORDER_MOVE,
    ORDER_NONE,
    Battle,
)
from envs.starcraft.env import SC2Sim
from envs.starcraft.facts import map_info, map_names
from envs.starcraft.opponents import SCRIPTS, Opponents
from envs.starcraft.smac_hard import HOMES, POOLS, RUSH_POINTS

HIT, GO, MARCH, HEAL, REST = ORDER_ATTACK, ORDER_MOVE, ORDER_ATTACK_MOVE, ORDER_HEAL, (ORDER_NONE,)


def marines(*places: tuple) -> list[tuple]:
    return [("Marine", *place) for place in places]


def of(name: str, *places: tuple) -> list[tuple]:
    return [(name, *place) for place in places]


def after(field: Field, steps: int) -> Field:
    """The field after some steps of orders; units stay where they are."""
    for _ in range(steps):
        field.orders()
    return field


# pools


def test_every_map_of_smac_has_scripts_of_its_own():
    smac = {name for name in map_names() if map_info(name).suite == "SMAC"}
    assert set(POOLS) == set(RUSH_POINTS) == smac
    assert {name for pool in POOLS.values() for name in pool} <= set(SCRIPTS)
    assert [name for name, pool in POOLS.items() if "rush" not in pool] == ["6h_vs_8z"]


@pytest.mark.parametrize("map_name", ["3m", "27m_vs_30m", "6h_vs_8z"])
def test_scripts_are_drawn_with_equal_chances(map_name):
    info, n = map_info(map_name), 3000
    opponents = Opponents(info, Battle.of_map(info, n), "attack_move", "mixture")
    opponents.begin(np.ones(n, dtype=bool), [np.random.default_rng(b) for b in range(n)])
    pool = POOLS[map_name]
    assert set(opponents.names) == set(pool)
    p = 1 / len(pool)
    for name in pool:
        count = (opponents.script == SCRIPTS.index(name)).sum()
        assert abs(count - n * p) <= 4 * sqrt(n * p * (1 - p)), name


# the scripts


def test_rush():
    field = Field("rush", marines((9, 16)), marines((20, 12), (21, 13)))
    assert field.orders() == [(MARCH, 9, 16)] * 2
    field = Field("rush", of("Colossus", (16, 16)), of("Zergling", (16, 9)), "2c_vs_64zg")
    assert field.orders() == [REST]


def test_lines():
    agents = [("Marine", 12, 16, 0.5), ("Marine", 13, 17)]
    for script, target in (("line_middle", 1), ("line_weakest", 0)):
        field = Field(script, agents, marines((23, 15), (23, 16), (23, 17)), "8m")
        for _ in range(5):
            assert field.orders() == [(GO, 25, 14.5), (GO, 25, 15.5), (GO, 25, 16.5)]
        assert field.orders() == [(GO, 22, 15), (GO, 22, 16), (GO, 22, 17)], "10 away"
        field.battle.x[0, :2] += 3
        assert field.orders() == [(HIT, target)] * 3
        field.battle.x[0, :2] -= 3
        assert field.orders() == [(HIT, target)] * 3, "once near, they stay in battle"
        field.battle.health[0, 3] = 45 * 0.29
        assert field.orders() == [(HIT, target), (GO, 24, 16), (HIT, target)]
        assert field.orders() == [(HIT, target)] * 3, "it goes back only when it is hit"


def test_walls():
    enemies = marines((23, 17), (23, 15), (23, 16), (23, 18))
    # seen from the enemies at x = 20: five agents near, and the weakest farther away
    agents = marines((14, 16), (14, 17), (14, 15), (14, 14, 0.5), (14, 18), (10, 16, 0.2))
    centre = (80 / 6, 96 / 6)
    for script, there in (
        ("wall_weakest", [(HIT, 3)] * 4),
        ("wall_centre", [(MARCH, round(centre[0], 6), centre[1])] * 4),
        ("wall_sweep", [(MARCH, 14, 14)] * 4),
    ):
        field = Field(script, agents, enemies, "25m")
        rows = [16.0, 14.7, 15.35, 16.65]
        assert field.orders() == [(GO, 25, y) for y in rows]
        after(field, 4)
        field.battle.x[0, 6:] = 23.5
        assert field.orders() == [(GO, 21.5, y) for y in (17, 15, 16, 18)], "9.5 away"
        field.battle.x[0, 6:] = 20
        assert field.orders() == there
        field.battle.x[0, 6:] = 24
        assert field.orders() == [(GO, 22, y) for y in (17, 15, 16, 18)], "there is no latch"


def medics(script: str, heals: bool = True) -> Field:
    agents = [
        *(("Marine", 9, 16), ("Marauder", 9, 17, 0.3)),
        *(("Marine", 9, 15, 0.6), ("Medivac", 9, 16)),
    ]
    enemies = [
        *(("Marine", 22, 15), ("Marine", 22, 17)),
        *(("Marauder", 23, 14), ("Marauder", 23, 18), ("Medivac", 25, 16)),
    ]
    return Field(script, agents, enemies, "MMM", heals)


def test_medic_weakest():
    field = medics("medic_weakest")
    for _ in range(6):
        assert field.orders() == [
            *((GO, 22.5, 15), (GO, 22.5, 17)),
            *((GO, 20.5, 14), (GO, 20.5, 18), (GO, 23.5, 16)),
        ]
    forward = [(GO, 21, 15), (GO, 21, 17), (GO, 22, 14), (GO, 22, 18), (GO, 24, 16)]
    assert field.orders() == forward
    field.battle.x[0, 6] = 16  # one marauder is near, the other one is not
    assert field.orders()[4] == (GO, 24, 16)
    field.battle.x[0, 7] = 16
    # marines first, of them the one with the least health; marauders in front attack
    orders = field.orders()
    assert orders[:4] == [(HIT, 2)] * 4
    assert orders[4] == (GO, (22 + 22 + 16 + 16 + 25) / 5 + 1, 16)
    field.battle.x[0, 6] = 20
    field.kill(0, 2)
    assert field.orders()[:4] == [(HIT, 1), (HIT, 1), (GO, 20, 14), (HIT, 1)]
    field.battle.health[0, 7] *= 0.5
    assert field.orders()[4] == (HEAL, 7)
    refused = medics("medic_weakest", heals=False)
    after(refused, 6)
    refused.battle.x[0, 6:8] = 16
    refused.battle.health[0, 7] *= 0.5
    assert refused.orders()[4] == REST


def test_medic_nearest():
    field = medics("medic_nearest")
    for _ in range(6):
        assert field.orders() == [
            *((GO, 22.5, 14), (GO, 22.5, 17)),
            *((GO, 20.5, 15), (GO, 20.5, 17), (GO, 23.5, 16)),
        ]
    assert field.orders()[0] == (GO, 21, 15)
    field.battle.x[0, 6] = 16
    field.battle.x[0, 3] = 15  # a medivac in front
    assert field.orders()[:4] == [(HIT, 3), (HIT, 3), (HIT, 2), (GO, 20, 18)]
    alone = medics("medic_nearest")
    alone.kill(6)
    assert alone.orders() == [REST] * 5


def test_retreat():
    agents = of("Stalker", (10, 16), (10, 17), (10, 15), (10, 14))
    enemies = [("Stalker", 15, 16, 0.4), ("Zealot", 15, 17, 0.1), ("Stalker", 17, 16, 0.4)]
    field = Field("retreat", agents, enemies, "2s3z")
    assert field.orders() == [(GO, 23, 16), (HIT, 1), (HIT, 0)]
    field.battle.health[0, :3] *= 0.1
    assert field.orders() == [(MARCH, 10, 15.5)] * 3, "three agents are nearly dead"
    field.battle.health[0, :3] *= 10
    field.kill(3)
    assert field.orders() == [(MARCH, 10, 16)] * 3, "three agents are left"


def test_zealots_first():
    agents = [("Stalker", 12, 16), ("Zealot", 10, 16), ("Zealot", 9, 16)]
    enemies = [("Stalker", 20, 16), ("Zealot", 19, 16), ("Zealot", 19, 17, 0.4)]
    field = Field("zealots_first", agents, enemies, "2s3z")
    assert field.orders() == [(HIT, 1), (HIT, 0), (GO, 23, 16)]
    field.kill(1, 2)
    assert field.orders() == [(HIT, 0), (HIT, 0), (GO, 23, 16)]


def test_late_retreat():
    agents = of("Zealot", (10, 16), (10, 17), (10, 15), (10, 14))
    enemies = [
        *(("Stalker", 15, 16, 0.6), ("Stalker", 17, 16, 0.6), ("Stalker", 15, 15)),
        *(("Zealot", 12, 14, 0.4), ("Zealot", 17, 17, 0.4)),
    ]
    field = Field("late_retreat", agents, enemies, "3s5z")
    assert field.orders() == [(GO, 23, 16), (HIT, 0), (HIT, 2), (GO, 23, 16), (HIT, 1)]
    field.kill(4)  # two stalkers: they keep away
    assert field.orders()[1:3] == [(HIT, 0), (GO, 23, 16)]
    after(field, 98)
    assert field.orders()[1:3] == [REST, (GO, 23, 16)], "step 100"
    assert field.orders()[1:3] == [REST, REST]
    field.kill(3)
    assert field.orders()[1:3] == [(GO, 10, 16), (HIT, 2)]


def test_densest():
    agents = of("Zealot", (10, 16), (5, 16), (5, 14), (5, 18))
    field = Field("densest", agents, [("Colossus", 14, 16), ("Zealot", 13, 16)], "1c3s5z")
    assert field.orders() == [(HIT, 1), (HIT, 0)]


def test_march_nearest():
    agents = of("Hydralisk", (14, 10), (10, 10))
    field = Field("march_nearest", agents, of("Zealot", (14, 16)), "6h_vs_8z")
    assert field.orders() == [(MARCH, 14, 10)]


def test_encircle():
    agents = of("Stalker", (9, 15), (9, 16), (9, 17))
    zealots = of("Zealot", (23, 16), (24, 17), (22, 15))
    field = Field("encircle", agents, zealots, "3s_vs_3z")
    # the anchor is the first zealot, 14 away; the outermost ones are 1 (x) and 2 (y), 0 is left
    assert field.orders() == [(GO, 23, 16), (GO, 23, 12), (GO, 23, 20)]
    field.battle.x[0, 3:] = 23
    field.battle.y[0, 3:] = [16, 12.5, 19.5]
    # all are there: the next stage is 8 from the stalkers' centre
    assert field.orders() == [(GO, 17, 16), (GO, 9, 8), (GO, 9, 24)]
    field.battle.x[0, 3:], field.battle.y[0, 3:] = [17, 9, 9], [16, 8, 24]
    west = round(9 - 4 * sqrt(3), 6)
    assert field.orders() == [(GO, 17, 16), (GO, west, 12), (GO, west, 20)]
    field.battle.x[0, 3] = 15.4
    assert field.orders() == [(HIT, 1), (HIT, 0), (HIT, 2)], "one is near"
    field.battle.x[0, 3] = 25
    assert field.orders()[0] == (HIT, 1), "there is no way back"


def test_encircle_counts_who_is_outermost_twice_twice():
    agents = of("Stalker", (9, 16))
    zealots = of("Zealot", (22, 16), (23, 15), (22, 17))
    field = Field("encircle", agents, zealots, "3s_vs_3z")
    # zealot 1 is the easternmost and the southernmost: it has the slots 1 and 2
    assert field.orders() == [(GO, 22, 16), (GO, 22, 20), REST]


def test_encircle_with_five():
    agents = of("Stalker", (9, 16), (16, 16))  # more than 3 from their centre: the nearer one
    zealots = of("Zealot", (26, 16), (23, 18), (24, 14), (22.6, 15), (23, 16))
    field = Field("encircle", agents, zealots, "3s_vs_5z")
    assert field.orders() == [(GO, 29, 16 + y) for y in (0, 4, -4, 2, -2)]


def test_gather():
    agents = of("Zealot", (10, 10), (12, 10))
    field = Field("gather", agents, of("Zergling", (14, 10), (16, 10)), "corridor")
    assert field.orders() == [(GO, 11, 10)] * 2
    field.battle.x[0, 2:] = [12.5, 13]
    assert field.orders() == [(MARCH, 12, 10)] * 2


def test_two_groups():
    agents = of("Zealot", (10, 10), (11, 10, 0.5), (8, 10, 0.1))
    lings = of("Zergling", (28.5, 28), (27.6, 27.5), (27.6, 28), (27, 27))
    field = Field("two_groups", agents, lings, "corridor")
    start = [(GO, 15, 22), (GO, 15, 22), (GO, 22, 15), (GO, 22, 15)]
    for _ in range(13):
        assert field.orders() == start
    assert field.orders() == [(HIT, 1)] * 4, "the lower health of the two nearest"
    for x, y in ((29, 28), (25, 23)):  # beyond both, and near a group's centre
        field = Field("two_groups", agents, lings, "corridor")
        field.orders()
        field.battle.x[0, 0], field.battle.y[0, 0] = x, y
        assert field.orders()[3][0] == HIT
        field.battle.x[0, 0] = field.battle.y[0, 0] = 10
        assert field.orders()[3][0] == HIT


def test_ambush():
    agents = of("Zealot", (10, 12), (11, 12), (4, 12))
    places = [(x, y) for x, y in HOMES.tolist()[:6] for _ in range(5)] + [(31, 31)] * 2
    field = Field("ambush", agents, of("Baneling", *places), "so_many_baneling")
    assert field.orders() == [(GO, x, y) for x, y in places]
    after(field, 4)
    # the pair gets the nearest group, the second one; the others close in from step 7 on
    near = slice(5, 10)
    for closer in (0, 0, 1, 1):
        orders = field.orders()
        assert orders[near] == [(GO, 10.5, 12)] * 5
        assert orders[0] == (GO, 19 - closer, 27 - closer)
    field.battle.x[0, 3:][near], field.battle.y[0, 3:][near] = 10.5, 12
    # 150 points: the fifth brings both below 0 (150 - 5 * 35 = -25), so all five are needed
    assert field.orders()[near] == [(HIT, 0)] * 5
    field.battle.health[0, :2], field.battle.shield[0, :2] = 40, 0
    orders = field.orders()
    # two are enough; the others join the two in the far corner
    assert orders[near] == [(HIT, 0)] * 2 + [(GO, 29, 29)] * 3
    # in the end the single zealot gets a group, too: 19 - 15 = 4
    field = Field("ambush", agents, of("Baneling", *places), "so_many_baneling")
    after(field, 35)
    orders = field.orders()
    assert orders[near] == [(GO, 10.5, 12)] * 5
    assert sum(order == (GO, 4, 12) for order in orders) == 5
    assert sum(order == REST for order in orders) == 22


def test_crescent():
    agents = of("Zergling", (16, 11), (17, 11), (20, 5)) + of("Baneling", (16.5, 11), (16, 11))
    enemies = [*of("Baneling", (16, 24)), *of("Zergling", (16, 21), (17, 21))]
    field = Field("crescent", agents, enemies, "bane_vs_bane")
    for _ in range(10):
        angle = pi / 2
        assert field.orders() == [
            (HIT, 0),
            (GO, 26, 21),
            (GO, round(16 + 10 * cos(angle), 6), round(21 + 10 * sin(angle), 6)),
        ]
    assert field.orders() == [(HIT, 0), (HIT, 0), (HIT, 1)]
    field.kill(0, 1, 2)
    assert field.orders()[0] == (HIT, 3)


def test_corners():
    up, down = [(15, 8.5)] * 4, [(15, 7)]
    lings = of("Zergling", *up, *down, (17, 9), (17, 7))
    agents = of("Colossus", (17, 12), (15, 12.2))
    field = Field("corners", agents, lings, "2c_vs_64zg")
    # 4 up and 1 down on the left, 1 and 1 on the right: as they are
    corners = [*[(GO, 3.5, 14)] * 4, (GO, 3.5, 6), (GO, 26.5, 14), (GO, 26.5, 6)]
    for _ in range(10):
        assert field.orders() == corners
    assert field.orders() == [*[(HIT, 1)] * 4, (HIT, 0), (HIT, 0), (HIT, 0)]
    field.battle.y[0, :2] = 15
    assert field.orders()[4:] == [(GO, 2.5, 10), (HIT, 0), (GO, 27.5, 10)]
    field.battle.y[0, :2] = 5
    assert field.orders()[0] == (GO, 2, 16.5)
    # 7 up, 1 down: (7 - 2 - 1) // 2 = 2 of the lowest go down
    places = [(15, 8 + i / 10) for i in range(7)]
    field = Field("corners", agents, of("Zergling", *places, (15, 7)), "2c_vs_64zg")
    assert field.orders() == [(GO, 3.5, 6)] * 2 + [(GO, 3.5, 14)] * 5 + [(GO, 3.5, 6)]


def test_weaker_marine():
    agents = [("Marine", 13, 12), ("Marine", 19, 12, 0.5)]
    field = Field("weaker_marine", agents, of("Zealot", (14, 12)), "2m_vs_1z")
    assert field.orders() == [(HIT, 1)]
    field.battle.health[0, 1] = 45
    assert field.orders() == [(HIT, 0)]


def test_weaker_stalker():
    agents = [("Stalker", 14, 13), ("Stalker", 14, 11.2, 0.5)]
    field = Field("weaker_stalker", agents, of("SpineCrawler", (14, 20)), "2s_vs_1sc")
    assert field.orders() == [(HIT, 0)], "the other one is 8.8 away"
    field.battle.y[0, 1] = 11.4
    assert field.orders() == [(HIT, 1)]
    field.kill(1)
    assert field.orders() == [REST], "one stalker alone"


# whole battles


def play(env: SC2Sim, episodes: int) -> list:
    """Heuristic agents; of every episode who played against them, and its rewards."""
    out = []
    for _ in range(episodes):
        env.reset()
        running = np.ones(env.n_envs, dtype=bool)
        rewards = np.zeros(env.n_envs)
        while running.any():
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1), running)
            rewards += env.reward * running
            running = ~(env.terminated | env.truncated)
        out.append((env.info["opponent"].tolist(), rewards.tolist()))
    return out


def test_battles_depend_on_the_seed_and_go_on_where_they_were():
    args = {"map_name": "2s3z", "heuristic_ai": True, "opponents": "mixture"}
    with SC2Sim(4, 1, **args) as env:
        play(env, 1)
        state = env.get_rng_state()
        wanted = play(env, 2)
        assert set(np.ravel([who for who, _ in wanted])) <= {
            SCRIPTS.index(name) for name in POOLS["2s3z"]
        }
        names = {key.removeprefix("battles_game_") for key in env.get_stats() if "_game_" in key}
        assert names == set(POOLS["2s3z"])
    with SC2Sim(4, 7, threads=2, **args) as other:
        other.set_rng_state(state)
        assert play(other, 2) == wanted


@pytest.mark.parametrize(("map_name", "opponents"), [("2c_vs_64zg", "rush"), ("3m", "rush")])
def test_the_map_gives_no_order_of_its_own(map_name, opponents):
    """Enemies without orders stay; those that are sent come."""
    with SC2Sim(1, 1, map_name=map_name, opponents=opponents) as env:
        env.reset()
        a = env.battle.n_agents
        before = env.battle.x[0, a:].copy()
        env.battle.y[0, :a] += 12 if map_name == "2c_vs_64zg" else 0  # out of sight
        for _ in range(3):
            env.step(np.where(env.avail_actions[:, :, 0] == 1, 0, 1))
        moved = np.abs(env.battle.x[0, a:] - before).max()
        assert (moved > 2) == (map_name == "3m")

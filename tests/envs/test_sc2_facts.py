"""The facts of the StarCraft maps and units against values written down by hand."""

from __future__ import annotations

import numpy as np
import pytest

from envs.starcraft import facts
from envs.starcraft.battle import Battle, Workers
from envs.starcraft.facts import MapInfo, map_info, map_names, scenario, scenario_names, unit_type
from utils.errors import ConfigError

# agents, enemies, episode limit, actions, observation, state, largest unscaled return
MAPS = {
    "10m_vs_11m": (10, 11, 150, 17, 105, 243, 805),
    "1c3s5z": (9, 9, 180, 15, 162, 270, 1870),
    "1o_10b_vs_1r": (11, 1, 50, 7, 84, 148, 355),
    "1o_2r_vs_4r": (3, 4, 50, 10, 49, 68, 440),
    "25m": (25, 25, 150, 31, 250, 950, 1575),
    "27m_vs_30m": (27, 30, 180, 36, 285, 1170, 1850),
    "2c_vs_64zg": (2, 64, 400, 70, 332, 342, 3080),
    "2m_vs_1z": (2, 1, 150, 7, 16, 26, 360),
    "2s3z": (5, 5, 120, 11, 80, 120, 1020),
    "2s_vs_1sc": (2, 1, 300, 7, 17, 27, 510),
    "3m": (3, 3, 60, 9, 30, 48, 365),
    "3s5z": (8, 8, 150, 14, 128, 216, 1510),
    "3s5z_vs_3s6z": (8, 9, 170, 15, 136, 230, 1670),
    "3s_vs_3z": (3, 3, 150, 9, 36, 54, 680),
    "3s_vs_4z": (3, 4, 200, 10, 42, 61, 840),
    "3s_vs_5z": (3, 5, 250, 11, 48, 68, 1000),
    "5m_vs_6m": (5, 6, 70, 12, 55, 98, 530),
    "5z_vs_1ul": (5, 1, 150, 7, 35, 63, 810),
    "6h_vs_8z": (6, 8, 150, 14, 78, 140, 1480),
    "8m": (8, 8, 120, 14, 80, 168, 640),
    "8m_vs_9m": (8, 9, 120, 15, 85, 179, 695),
    "MMM": (10, 10, 150, 16, 160, 290, 1015),
    "MMM2": (10, 12, 180, 18, 176, 322, 1205),
    "bane_vs_bane": (24, 24, 200, 30, 336, 984, 1260),
    "bane_vs_hM": (3, 2, 30, 8, 35, 52, 450),
    "corridor": (6, 24, 400, 30, 156, 282, 1280),
    "so_many_baneling": (7, 32, 100, 38, 202, 397, 1480),
}
# actions, observation, state
SCENARIOS = {
    "protoss_5_vs_5": (11, 92, 130),
    "protoss_10_vs_10": (16, 182, 310),
    "protoss_10_vs_11": (17, 191, 327),
    "protoss_20_vs_20": (26, 362, 820),
    "protoss_20_vs_23": (29, 389, 901),
    "terran_5_vs_5": (11, 82, 120),
    "terran_10_vs_10": (16, 162, 290),
    "terran_10_vs_11": (17, 170, 306),
    "terran_20_vs_20": (26, 322, 780),
    "terran_20_vs_23": (29, 346, 858),
    "zerg_5_vs_5": (11, 82, 120),
    "zerg_10_vs_10": (16, 162, 290),
    "zerg_10_vs_11": (17, 170, 306),
    "zerg_20_vs_20": (26, 322, 780),
    "zerg_20_vs_23": (29, 346, 858),
}


def test_all_maps():
    assert set(map_names()) == set(MAPS)
    for name, expected in MAPS.items():
        info = map_info(name)
        assert (
            info.n_agents,
            info.n_enemies,
            info.limit,
            *info.sizes,
            info.max_reward,
        ) == expected, name
    assert sum(map_info(name).suite == "SMAC" for name in map_names()) == 23


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_consistent(name):
    info = map_info(name)
    assert list(info.agents) == sorted(info.agents), "agents are not in SMAC's order"
    assert set(info.agent_bits.values()) <= set(range(info.unit_type_bits))
    if info.unit_type_bits:
        assert set(info.agent_bits) == set(info.agents)
        assert set(info.enemy_bits) == set(info.enemies)
    assert info.pathing.shape == info.height.shape == (32, 32)
    assert info.pathing.dtype == bool
    points = [unit_type(unit).health + unit_type(unit).shield for unit in info.enemies]
    assert 200 + 10 * info.n_enemies + sum(points) == info.max_reward
    agents, enemies = info.draw_points(np.random.default_rng(3))
    assert agents.shape == (info.n_agents, 2)
    assert enemies.shape == (info.n_enemies, 2)
    battle = Battle.of_map(info, 2)
    types = [[facts.UNIT_NAMES[i] for i in row] for row in battle.type]
    assert types == [[*info.agents, *info.enemies]] * 2
    assert not battle.alive.any()
    # SMAC's fixed starting points are on walkable ground; 5z_vs_1ul's rectangle reaches beyond its
    # band
    if name != "5z_vs_1ul":
        assert all(info.pathing[int(x), int(y)] for x, y in (*agents, *enemies))


def test_units_by_hand():
    marine = unit_type("Marine")
    assert (marine.health, marine.shield, marine.armour, marine.radius, marine.speed) == (
        45,
        0,
        0,
        0.375,
        2.25,
    )
    assert marine.attributes == ("biological", "light")
    (rifle,) = marine.weapons
    assert (rifle.damage, rifle.range, rifle.hits, rifle.bonus) == (6, 5, 1, 0)
    assert rifle.cooldown == pytest.approx(0.8608 * 16)
    assert rifle.damage_point == pytest.approx(0.05 * 16)
    assert rifle.ground
    assert rifle.air

    zealot = unit_type("Zealot")
    assert (zealot.health, zealot.shield, zealot.armour, zealot.shield_regen) == (100, 50, 1, 2)
    assert zealot.shield_regen_delay == 160
    assert (zealot.weapons[0].damage, zealot.weapons[0].hits, zealot.weapons[0].range) == (
        8,
        2,
        0.1,
    )
    assert zealot.weapons[0].hit_delays == (0, 0.28 * 16)
    assert not zealot.weapons[0].air

    stalker = unit_type("Stalker")
    assert (stalker.health, stalker.shield, stalker.speed, stalker.game_id) == (80, 80, 2.9531, 74)
    assert (
        stalker.weapons[0].damage,
        stalker.weapons[0].bonus,
        stalker.weapons[0].bonus_attribute,
    ) == (
        10,
        4,
        "armored",
    )

    marauder = unit_type("Marauder")
    assert (marauder.weapons[0].bonus, marauder.weapons[0].range, marauder.weapons[0].cooldown) == (
        10,
        6,
        24,
    )

    medivac = unit_type("Medivac")
    assert (medivac.energy_start, medivac.energy_max, medivac.energy_regen, medivac.flying) == (
        50,
        200,
        0.5625,
        True,
    )
    assert (medivac.heal.health_per_s, medivac.heal.energy_per_health, medivac.heal.range) == (
        9,
        0.33,
        4,
    )
    assert medivac.weapons == ()

    baneling = unit_type("Baneling")
    assert (baneling.health, baneling.weapons[0].damage, baneling.weapons[0].bonus) == (30, 20, 15)
    assert (baneling.weapons[0].splash.kind, baneling.weapons[0].splash.radius) == ("circle", 2.2)
    assert baneling.suicide.on_attack
    assert baneling.suicide.on_death

    colossus = unit_type("Colossus")
    assert (colossus.health, colossus.shield, colossus.planes) == (200, 150, ("ground", "air"))
    assert colossus.cliff_walker
    lances = colossus.weapons[0]
    assert (lances.damage, lances.hits, lances.range, lances.cooldown) == (
        20,
        2,
        6,
        pytest.approx(35.2),
    )
    assert (lances.splash.kind, lances.splash.length, lances.splash.points) == ("line", 2.5, 11)

    ultralisk = unit_type("Ultralisk")
    assert (
        ultralisk.health,
        ultralisk.weapons[0].splash.kind,
        ultralisk.weapons[0].splash.arc,
    ) == (600, "arc", 180)
    assert (unit_type("SpineCrawler").speed, unit_type("SpineCrawler").weapons[0].range) == (0, 7)
    assert (unit_type("Hydralisk").health, unit_type("Hydralisk").health_regen) == (80, 0.2734)
    # of two weapons on one cooldown, only one is for structures
    assert [w.structures for w in unit_type("Reaper").weapons] == ["never", "only"]
    assert len(facts.UNIT_NAMES) == 14
    assert [unit_type(name).index for name in facts.UNIT_NAMES] == list(range(14))


def test_divisors_and_ranges_by_hand():
    divisors = {
        "Marine": 15,
        "Marauder": 25,
        "Medivac": 200,
        "Stalker": 35,
        "Zealot": 22,
        "Colossus": 24,
    }
    divisors |= {"Hydralisk": 10, "Zergling": 11, "Baneling": 1, "Roach": 15, "Overseer": 15}
    assert {name: facts.MAX_COOLDOWN[name] for name in divisors} == divisors
    assert facts.MAX_SHIELD == {"Stalker": 80, "Zealot": 50, "Colossus": 150}
    assert (
        facts.V2_SHOOT_RANGE["Zealot"],
        facts.V2_SIGHT_RANGE["Medivac"],
        facts.V2_SHOOT_RANGE_FLOOR,
    ) == (0.1, 11, 2)


def test_maps_by_hand():
    info = map_info("6h_vs_8z")
    assert (info.agents, info.enemies) == (("Hydralisk",) * 6, ("Zealot",) * 8)
    assert (info.agent_race, info.enemy_race, info.limit, info.sizes) == (
        "Z",
        "P",
        150,
        (14, 78, 140),
    )
    assert info.enemy_order.points == ((14.5998, 9.49),)
    assert map_info("2s3z").agents == ("Stalker",) * 2 + ("Zealot",) * 3
    assert map_info("2s3z").agent_bits == {"Stalker": 0, "Zealot": 1}
    assert map_info("2s3z").enemy_bits == {"Zealot": 0, "Stalker": 1}, "SMAC's reversed bits"
    mmm = map_info("MMM2")
    assert mmm.agents == ("Marauder",) * 2 + ("Marine",) * 7 + ("Medivac",)
    assert mmm.enemies == ("Marine",) * 8 + ("Marauder",) * 3 + ("Medivac",)
    assert mmm.heals
    assert not map_info("bane_vs_hM").heals
    assert [c.count for c in map_info("bane_vs_bane").agent_creations] == [20, 4]
    assert map_info("2m_vs_1z").enemy_order.kind == "attack_move_segment"
    assert map_info("2c_vs_64zg").enemy_order.kind == "attack_agents"
    assert map_info("2s_vs_1sc").enemy_order.kind == "none"
    assert map_info("5z_vs_1ul").normalise_as == {"Zealot": "Stalker"}


def test_terrain_by_hand():
    band = map_info("3m").pathing
    assert band[:, 8:24].all()
    assert band.sum() == 512
    small = map_info("6h_vs_8z").pathing  # the axes must not be swapped: x 8 to 22, y 8 to 20
    inside = np.argwhere(small)
    assert inside.min(axis=0).tolist() == [8, 8]
    assert inside.max(axis=0).tolist() == [21, 19]
    ledge = map_info("2c_vs_64zg")
    assert not ledge.pathing[4:28, 12:14].any()
    assert ledge.pathing[2, 13]
    assert ledge.height[10, 9] == 64 / 255
    assert ledge.height[10, 16] == 128 / 255
    with pytest.raises(ValueError, match="read-only"):
        small[0, 0] = True


def test_what_maps_change_of_their_units():
    roach, reaper = (map_info("1o_2r_vs_4r").unit_type(name) for name in ("Roach", "Reaper"))
    assert (
        roach.sight,
        roach.weapons[0].scan_range,
        roach.weapons[0].range,
        roach.weapons[0].cooldown,
    ) == (
        4,
        3,
        3,
        16,
    )
    assert (reaper.sight, reaper.weapons[0].range, reaper.weapons[0].scan_range) == (4, 3, 3)
    assert reaper.weapons[1] == unit_type("Reaper").weapons[1]
    bane = map_info("bane_vs_hM")
    assert [(w.damage, w.range) for w in bane.unit_type("Hydralisk").weapons] == [
        (30, 2),
        (30, 0.5),
    ]
    assert bane.unit_type("Medivac").heal.health_per_s == 7
    assert unit_type("Medivac").heal.health_per_s == 9
    assert unit_type("Roach").weapons[0].cooldown == 32


def draws(info: MapInfo, episodes: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    both = [info.draw_points(rng) for _ in range(episodes)]
    return np.array([agents for agents, _ in both]), np.array([enemies for _, enemies in both])


def test_random_starts():
    corners = {(3.5, 2.0), (3.5, 28.8598), (28.5, 28.0), (28.5, 2.0)}
    agents, enemies = draws(map_info("1o_2r_vs_4r"))
    assert {tuple(p) for p in enemies[:, 0]} == corners
    assert (enemies == enemies[:, :1]).all(), "the reapers do not start together"
    assert (agents[:, 2] == enemies[:, 0]).all(), "the overseer is not with the enemies"
    assert (agents[:, 0] == agents[:, 1]).all(), "the roaches do not start together"
    assert len(np.unique(agents[:, 0, 0])) == 300

    agents, enemies = draws(map_info("1o_10b_vs_1r"))
    assert len(np.unique(agents[:, :10])) > 5990, "banelings share points"
    assert (agents[:, 10] == enemies[:, 0]).all()
    inside = np.zeros(agents[:, :10].shape[:2], dtype=bool)
    for x0, y0, x1, y1 in [
        (0, 0, 32, 5),
        (0, 27, 32, 32),
        (26, 6, 31, 26),
        (1, 6, 6, 26),
        (12, 14, 20, 18),
    ]:
        x, y = agents[:, :10, 0], agents[:, :10, 1]
        here = (x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)
        assert 0.15 < here.mean() < 0.25, "rectangles are not equally likely"
        inside |= here
    assert inside.all()

    agents, enemies = draws(map_info("5z_vs_1ul"))
    assert (agents[:, :3] == enemies).all()
    assert (agents[:, 3] == agents[:, 4]).all()
    assert (agents[:, 2] != agents[:, 3]).all()

    # a fixed start draws nothing
    rng = np.random.default_rng(1)
    agents, enemies = map_info("3m").draw_points(rng)
    assert (agents == [9, 16]).all()
    assert (enemies == [23, 16]).all()
    assert rng.bit_generator.state == np.random.default_rng(1).bit_generator.state


def test_scenarios():
    assert {name: scenario(name).sizes for name in scenario_names()} == SCENARIOS
    terran = scenario("terran_10_vs_11")
    assert (terran.n_agents, terran.n_enemies, terran.limit) == (10, 11, 200)
    assert dict(zip(terran.units, terran.weights, strict=True)) == {
        "Marine": 0.45,
        "Marauder": 0.45,
        "Medivac": 0.1,
    }
    assert terran.bits == {"Marine": 0, "Marauder": 1, "Medivac": 2}
    assert terran.not_whole_team == ("Medivac",)
    zerg = scenario("zerg_5_vs_5")
    assert dict(zip(zerg.units, zerg.weights, strict=True)) == {
        "Zergling": 0.45,
        "Baneling": 0.1,
        "Hydralisk": 0.45,
    }
    assert scenario("protoss_20_vs_23").not_whole_team == ()


def test_unknown_names():
    with pytest.raises(ConfigError, match="6h_vs_8z"):
        map_info("6h_vs_8s")
    with pytest.raises(ConfigError, match="Marine"):
        unit_type("Marin")
    with pytest.raises(ConfigError, match="terran_5_vs_5"):
        scenario("terran_5v5")


@pytest.mark.parametrize(("threads", "n_envs"), [(1, 5), (3, 7), (4, 2)])
def test_workers_reach_every_battle_once(threads, n_envs):
    counts = np.zeros(n_envs, dtype=int)

    def kernel(first: int, end: int, step: int) -> None:
        counts[first:end] += step

    workers = Workers(threads, n_envs)
    workers.run(kernel, 2)
    assert counts.tolist() == [2] * n_envs

    def broken(first: int, end: int) -> None:
        if end == n_envs:
            raise ArithmeticError("in a thread")

    with pytest.raises(ArithmeticError):
        workers.run(broken)
    workers.close()
    workers.close()

"""Hand-computed fights: every number below follows from the unit data, to the hit point and the
game loop.
"""

import numpy as np
import pytest
from sc2_sim_fixtures import arena, losses, run

from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_MOVE, ORDER_STOP
from envs.starcraft.facts import UNIT_INDEX, map_info, map_names
from envs.starcraft.sim import state, tables


def test_marine_against_marine():
    engine = arena([("Marine", 10, 16)], [("Marine", 15, 16)])
    taken = losses(engine, 1, 99, a0=(ORDER_ATTACK, 1))
    # starts in loop 1, damage point 0.8 loops, a period of 13.77 loops ends within the 14th
    assert taken == [(2 + 14 * n, 6.0) for n in range(7)]
    assert engine.battle.health[0].tolist() == [3.0, 3.0]
    run(engine)
    # both eighth shots fall in loop 100
    assert not engine.battle.alive.any()
    assert engine.battle.health[0].tolist() == [0.0, 0.0]


def test_weapon_cooldown_is_what_is_left_of_the_period():
    engine = arena([("Marine", 10, 16)], [("Marine", 15, 16)], passive=True)
    run(engine, 2, a0=(ORDER_ATTACK, 1))
    assert engine.battle.cooldown[0, 0] == pytest.approx(13.7728 - 1)
    run(engine, 5)
    assert engine.battle.cooldown[0, 0] == pytest.approx(13.7728 - 6)


def test_zealot_against_stalker():
    engine = arena([("Zealot", 10, 16)], [("Stalker", 11.15, 16)])
    taken = losses(engine, 1, 210, a0=(ORDER_ATTACK, 1))
    # two blows of 8 in loops 1 and 6 of every 20; 80 shields without armour, then 80 health with
    # armour 1
    blows = [loop for start in range(1, 210, 20) for loop in (start, start + 5)]
    assert taken == [(loop, 8.0) for loop in blows[:10]] + [
        (loop, 7.0) for loop in blows[10:21]
    ] + [(blows[21], 3.0)]
    battle = engine.battle
    assert blows[21] == 206
    assert battle.alive[0].tolist() == [True, False]
    # the stalker: 10 without bonus (a zealot is light) in loops 4, 28, ... 196: 5 on shields, 4 on
    # health less armour 1
    assert battle.shield[0, 0] == 0.0
    assert battle.health[0, 0] == 100 - 4 * 9


@pytest.mark.parametrize(("shield", "health_left"), [(5.0, 98.0), (7.8, 99.5), (8.0, 100.0)])
def test_damage_beyond_the_shield_meets_armour_and_is_at_least_half_a_point(shield, health_left):
    engine = arena([("Zealot", 10, 16)], [("Zealot", 11, 16)], passive=True)
    # a loop's regeneration comes before its hits
    engine.battle.shield[0, 1] = shield - 0.125
    run(engine, a0=(ORDER_ATTACK, 1))
    assert engine.battle.shield[0, 1] == pytest.approx(0.0)
    assert engine.battle.health[0, 1] == pytest.approx(health_left)


@pytest.mark.parametrize(
    ("victim", "damage"), [("Stalker", 20.0), ("Marine", 10.0), ("Marauder", 19.0)]
)
def test_marauder_has_a_bonus_against_armour_and_its_grenade_flies(victim, damage):
    radius = (
        map_info("MMM").unit_type("Marauder").radius
        + {"Stalker": 0.625, "Marine": 0.375, "Marauder": 0.5625}[victim]
    )
    engine = arena([("Marauder", 10, 16)], [(victim, 10 + radius + 5, 16)], passive=True)
    # no damage point; 5 cells at 20 per second are 4 loops; the next shot is 24 loops later
    assert losses(engine, 1, 30, a0=(ORDER_ATTACK, 1)) == [(5, damage), (29, damage)]


def test_a_missile_flies_on_when_its_owner_dies():
    engine = arena([("Marauder", 10, 16)], [("Stalker", 16, 16)], passive=True)
    run(engine, a0=(ORDER_ATTACK, 1))
    engine.battle.alive[0, 0] = False
    engine.battle.health[0, 0] = 0.0
    run(engine, 8)
    assert engine.battle.shield[0, 1] == 60.0


def test_a_second_blow_does_not_fall_when_its_owner_dies():
    engine = arena([("Zealot", 10, 16)], [("Zealot", 11, 16)], passive=True)
    run(engine, a0=(ORDER_ATTACK, 1))
    engine.battle.alive[0, 0] = False
    engine.battle.health[0, 0] = 0.0
    run(engine, 8)
    assert engine.battle.shield[0, 1] == 42.0


def test_medivac_heals():
    engine = arena([("Marine", 10, 16), ("Medivac", 12, 16)], [("Marine", 30, 30)], passive=True)
    battle = engine.battle
    battle.health[0, 0] = 30.0
    run(engine, 8, a1=(ORDER_HEAL, 0))
    assert battle.health[0, 0] == pytest.approx(30 + 8 * 9 / 16)
    assert battle.energy[0, 1] == pytest.approx(50 + 8 * (0.5625 - 9 * 0.33) / 16)
    run(engine, 19)
    assert battle.health[0, 0] == 45.0
    assert battle.energy[0, 1] == pytest.approx(50 + 27 * 0.5625 / 16 - 15 * 0.33)


def test_medivac_without_energy_does_not_heal():
    engine = arena([("Marine", 10, 16), ("Medivac", 12, 16)], [("Marine", 30, 30)], passive=True)
    engine.battle.health[0, 0] = 30.0
    engine.battle.energy[0, 1] = 0.0
    run(engine, 8, a1=(ORDER_HEAL, 0))
    # only what comes back in the meantime
    assert engine.battle.health[0, 0] == pytest.approx(30 + 8 * 0.5625 / 16 / 0.33)


def test_medivac_flies_into_range_first():
    engine = arena([("Marine", 10, 16), ("Medivac", 16, 16)], [("Marine", 30, 30)], passive=True)
    engine.battle.health[0, 0] = 30.0
    # edge to edge 4.875, range 4: 6 loops at 2.75 / 16 cells
    run(engine, 6, a1=(ORDER_HEAL, 0))
    assert engine.battle.health[0, 0] == 30.0
    run(engine)
    assert engine.battle.health[0, 0] == 30 + 9 / 16


def test_one_healer_per_unit():
    engine = arena(
        [("Marine", 10, 16), ("Medivac", 10, 14), ("Medivac", 12, 16)],
        [("Marine", 30, 30)],
        passive=True,
    )
    engine.battle.health[0, 0] = 30.0
    run(engine, 8, a1=(ORDER_HEAL, 0), a2=(ORDER_HEAL, 0))
    assert engine.battle.health[0, 0] == pytest.approx(30 + 8 * 9 / 16)


def test_enemy_medivac_heals_by_itself_the_worst_first_and_agents_do_not():
    units = [("Marine", 20, 16), ("Marine", 22, 16), ("Medivac", 21, 18)]
    engine = arena([(name, x - 16, y) for name, x, y in units], units)
    battle = engine.battle
    battle.health[0] = [30, 20, 150, 30, 20, 150]
    run(engine, 8)
    assert battle.health[0].tolist() == [30, 20, 150, 30, 20 + 8 * 9 / 16, 150]


def test_a_heal_of_a_healthy_unit_is_refused_and_the_old_order_stays():
    engine = arena([("Marine", 10, 16), ("Medivac", 12, 16)], [("Marine", 30, 30)], passive=True)
    run(engine, 1, a1=(ORDER_MOVE, 12, 20))
    run(engine, 7, a1=(ORDER_HEAL, 0))
    assert engine.battle.y[0, 1] == pytest.approx(16 + 8 * 2.75 / 16)


def test_an_order_that_no_weapon_can_follow_is_refused():
    engine = arena([("Zealot", 10, 16)], [("Medivac", 11, 16)], passive=True)
    run(engine, 1, a0=(ORDER_MOVE, 10, 20))
    run(engine, 7, a0=(ORDER_ATTACK, 1))
    assert engine.battle.health[0, 1] == 150.0
    assert engine.battle.y[0, 0] == pytest.approx(16 + 8 * 2.25 / 16)


BLAST = [
    ("Zealot", 12.6, 16),
    ("Zealot", 10, 18.69),
    ("Zealot", 10, 13.25),
    ("Marauder", 8.5, 16),
    ("Medivac", 10, 16),
]


def test_baneling_bursts_on_its_victims_and_spares_friends():
    engine = arena(
        [("Baneling", 10, 16), ("Zergling", 9.2, 15)], [("Zealot", 11, 16), *BLAST], passive=True
    )
    run(engine, a0=(ORDER_ATTACK, 2))
    battle = engine.battle
    # 35 on light, 20 less armour on a marauder; reach 2.2 + 0.5 for a zealot; nothing in the air
    assert battle.alive[0].tolist() == [False, True, True, True, True, True, True, True]
    assert battle.health[0].tolist() == [0, 35, 100, 100, 100, 100, 125 - 19, 150]
    assert battle.shield[0, 2:6].tolist() == [15, 15, 15, 50]


def test_baneling_bursts_when_killed_and_so_do_those_it_kills():
    # the marine kills the first baneling; its burst kills the agents' baneling; that one's burst
    # meets the zealot
    engine = arena(
        [("Baneling", 12, 16), ("Marine", 8, 16), ("Zergling", 13, 17)],
        [("Baneling", 11, 16), ("Zealot", 14, 16), ("Zergling", 11, 17)],
        passive=True,
    )
    battle = engine.battle
    battle.health[0, 0] = 19.5
    battle.health[0, 3] = 5.5
    run(engine, 2, a1=(ORDER_ATTACK, 3))
    assert battle.alive[0].tolist() == [False, True, False, False, True, False]
    assert battle.shield[0, 4] == 15.0
    assert battle.health[0, 1] == 45.0


def test_colossus_burns_a_line_across_its_fire_twice():
    # across: half the line is 1.25, small circles of 0.15, zealots of 0.5
    zealots = [
        ("Zealot", 15, 16),
        ("Zealot", 15, 17.2),
        ("Zealot", 15, 14.11),
        ("Zealot", 15, 18),
        ("Zealot", 15.77, 16),
    ]
    engine = arena([("Colossus", 10, 16)], zealots, passive=True)
    battle = engine.battle
    run(engine, 2, a0=(ORDER_ATTACK, 1))
    assert (battle.shield[0, 1:] == 50).all()
    run(engine)
    assert battle.shield[0, 1:].tolist() == [10, 10, 10, 50, 50]
    assert (battle.health[0, 1:] == 100).all()
    # 36 loops later 20 on 10 shields and on 10 less armour, then 20 less armour
    run(engine, 35)
    assert (battle.health[0, 1:] == 100).all()
    run(engine)
    assert battle.shield[0, 1:].tolist() == [0, 0, 0, 50, 50]
    assert battle.health[0, 1:].tolist() == [72, 72, 72, 100, 100]


def test_ultralisk_cleaves_in_front_of_itself():
    angle = np.radians(80)
    marines = [
        ("Marine", 12.0, 16.0),
        ("Marine", 10 + 2.3 * np.cos(angle), 16 + 2.3 * np.sin(angle)),
        ("Marine", 10.5, 13.5),
        ("Marine", 8.5, 16.0),
        ("Marine", 13.0, 16.0),
    ]
    engine = arena([("Ultralisk", 10, 16), ("Zergling", 11.2, 17.0)], marines, passive=True)
    # reach 2 + 0.375: not the third at 2.55, not the one behind, not the last at 3; damage point
    # 5.33 loops
    run(engine, 6, a0=(ORDER_ATTACK, 2))
    assert (engine.battle.health[0, 2:] == 45).all()
    run(engine)
    assert engine.battle.health[0, 1:].tolist() == [35, 27, 27, 45, 45, 45]


def test_shields_come_back_ten_seconds_after_the_last_hit():
    engine = arena([("Marine", 10, 16)], [("Stalker", 15, 16)], passive=True)
    run(engine, 2, a0=(ORDER_ATTACK, 1))
    assert engine.battle.shield[0, 1] == 74.0
    run(engine, 159, a0=(ORDER_STOP, 0))
    assert engine.battle.shield[0, 1] == 74.0
    run(engine)
    assert engine.battle.shield[0, 1] == 74.125
    run(engine, 100)
    assert engine.battle.shield[0, 1] == 80.0


def test_zerg_heal_all_the_time_others_do_not():
    engine = arena([("Marine", 10, 16), ("Roach", 12, 16)], [("Marine", 30, 30)], passive=True)
    engine.battle.health[0, :2] = [20, 100]
    run(engine, 16)
    assert engine.battle.health[0, 0] == 20.0
    assert engine.battle.health[0, 1] == pytest.approx(100.2734)


def test_a_move_before_the_damage_point_costs_the_shot_but_no_cooldown():
    engine = arena([("Stalker", 10, 16)], [("Marine", 14, 16)], passive=True)
    run(engine, 3, a0=(ORDER_ATTACK, 1))
    run(engine, 8, a0=(ORDER_MOVE, 8, 16))
    assert engine.battle.health[0, 1] == 45.0
    assert engine.battle.cooldown[0, 0] == 0.0
    assert engine.battle.x[0, 0] == pytest.approx(10 - 8 * 2.9531 / 16)


def test_a_move_cuts_off_the_backswing():
    engine = arena([("Marine", 10, 16)], [("Marine", 14, 16)], passive=True)
    run(engine, 2, a0=(ORDER_ATTACK, 1))
    assert engine.battle.health[0, 1] == 39.0
    run(engine, 1, a0=(ORDER_MOVE, 8, 16))
    assert engine.battle.x[0, 0] == pytest.approx(10 - 2.25 / 16)


def test_a_target_that_leaves_is_followed_after_the_backswing():
    engine = arena([("Marine", 10, 16)], [("Marine", 15, 16)], passive=True)
    run(engine, 2, a0=(ORDER_ATTACK, 1))
    engine.battle.x[0, 1] = 20.0
    # shot in loop 2, backswing 12 loops
    run(engine, 11)
    assert engine.battle.x[0, 0] == 10.0
    run(engine, 2)
    assert engine.battle.x[0, 0] == pytest.approx(10 + 2 * 2.25 / 16)


def test_jitter_adds_minus_one_to_two_loops():
    engine = arena([("Marine", 10, 16)], [("Roach", 15, 16)], passive=True)
    engine.jitter = True
    engine.battle.health[0, 1] = engine.battle.health_max[0, 1] = 1e6
    shots = [loop for loop, _ in losses(engine, 1, 3000, a0=(ORDER_ATTACK, 1))]
    periods, counts = np.unique(np.diff(shots), return_counts=True)
    assert periods.tolist() == [13, 14, 15, 16]
    assert counts.min() > 0.15 * len(shots)


def test_tables_hold_every_weapon_of_every_map():
    for name in map_names():
        info = map_info(name)
        packed = tables.pack(info.units)
        for unit in info.units.values():
            assert packed.unit[unit.index, tables.SPEED] * 16 == pytest.approx(unit.speed)
            for w, weapon in enumerate(unit.weapons):
                assert packed.weapon[unit.index, w, tables.PERIOD] == weapon.cooldown
    packed = tables.pack({})
    zealot, medivac, crawler = (
        UNIT_INDEX["Zealot"],
        UNIT_INDEX["Medivac"],
        UNIT_INDEX["SpineCrawler"],
    )
    assert packed.weapon_for[zealot, medivac] == -1
    assert packed.damage[UNIT_INDEX["Baneling"], 0, crawler] == 80
    # a reaper's pistols never hit a building, its charges nothing else
    assert packed.weapon_for[UNIT_INDEX["Reaper"], crawler] == 1
    assert packed.weapon_for[UNIT_INDEX["Reaper"], zealot] == 0


def test_rows_of_the_state_fit():
    for names, count in ((("X", "RESTORED"), "FLOATS"), (("TYPE", "SLOT"), "INTS")):
        assert getattr(state, names[0]) == 0
        assert getattr(state, names[1]) < getattr(state, count)

"""Pictures of battles: what is drawn is where it should be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sc2_sim_fixtures import arena, run

from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_MOVE
from envs.starcraft.facts import UNIT_INDEX, UNIT_NAMES, map_info
from envs.starcraft.render import (
    AIMS,
    BARS,
    EMPTY,
    FOOTER,
    HEADER,
    HEALS,
    LETTERS,
    PALE,
    SIDES,
    WALL,
    WIDTH,
    Painter,
    Scene,
    View,
)

MAP = map_info("MMM")
CELL = WIDTH / 32  # pixels; MMM is as wide as the map, walkable for y in [8, 24)
TOP = 25  # upper edge of the picture: one row of wall is shown


def scene(**changes):
    """MMM with everybody in full health far away on the right, where a test does not look."""
    kinds = np.array([UNIT_INDEX[name] for name in (*MAP.agents, *MAP.enemies)])
    units = [MAP.unit_type(name) for name in (*MAP.agents, *MAP.enemies)]
    full = np.array([unit.health for unit in units])
    arrays = {
        "type": kinds,
        "x": np.full(20, 30.0),
        "y": np.full(20, 22.0),
        "health": full.copy(),
        "shield": np.zeros(20),
        "energy": np.full(20, 50.0),
        "health_max": full,
        "shield_max": np.zeros(20),
        "target": np.full(20, -1),
    }
    for name, values in changes.items():
        for unit, value in values.items():
            arrays[name][unit] = value
    return Scene(text="", **arrays)


def count(picture, colour, x, y, size=1.5):
    """Pixels of (nearly) a colour in the square of `size` cells around a point of the map."""
    column, row = x * CELL, HEADER + (TOP - y) * CELL
    half = size * CELL / 2
    part = picture[
        round(row - half) : round(row + half), round(column - half) : round(column + half)
    ].astype(int)
    return int((np.abs(part - colour).max(axis=2) <= 3).sum())


def test_units_stand_where_they_are_and_sides_differ():
    painter = Painter(MAP)
    at = {"x": {0: 5, 10: 15}, "y": {0: 10, 10: 20}}
    picture = painter.picture(scene(**at))
    assert picture.shape[1:] == (WIDTH, 3)
    assert count(picture, SIDES[0], 5, 10) > 200
    assert count(picture, SIDES[1], 15, 20) > 60
    assert count(picture, SIDES[1], 5, 10) == count(picture, SIDES[0], 15, 20) == 0
    # bodies are as large as they are: a marauder against a marine
    marine = painter.picture(scene(x={2: 5}, y={2: 10}))
    assert 0 < count(marine, SIDES[0], 5, 10, 2) < 0.75 * count(picture, SIDES[0], 5, 10, 2)
    # there are walls above and below
    assert (picture[HEADER + 5, 50] == WALL).all()
    assert (picture[-FOOTER - 5, 50] == WALL).all()
    assert (picture[HEADER + 40, 50] != WALL).any()


def test_the_dead_are_pale():
    picture = Painter(MAP).picture(scene(x={0: 5, 10: 15}, y={0: 10, 10: 20}, health={0: 0, 10: 0}))
    assert count(picture, SIDES[0], 5, 10) == count(picture, SIDES[1], 15, 20) == 0
    assert count(picture, PALE[0], 5, 10) > 10
    assert count(picture, PALE[1], 15, 20) > 10
    assert count(picture, BARS["health"], 5, 10, 3) == 0


@pytest.mark.parametrize("part", [1.0, 0.5, 0.2])
def test_bars_show_health_and_energy(part):
    full = MAP.unit_type("Medivac").health
    picture = Painter(MAP).picture(
        scene(x={9: 5}, y={9: 12}, health={9: part * full}, energy={9: 150})
    )
    green, purple, grey = (
        count(picture, c, 5, 12, 3) for c in (BARS["health"], BARS["energy"], EMPTY)
    )
    width = 1.5 * CELL * 3  # three rows of pixels
    assert green == pytest.approx(part * width, abs=10)
    assert purple == pytest.approx(0.75 * width, abs=10)
    assert grey == pytest.approx((1.25 - part) * width, abs=25)


def test_lines_go_from_attackers_to_targets():
    painter = Painter(MAP)
    places = {"x": {0: 5, 9: 5, 10: 15}, "y": {0: 10, 9: 20, 10: 10}}
    alone = painter.picture(scene(**places))
    attack = painter.picture(scene(**places, target={0: 10}))
    heal = painter.picture(scene(**places, target={9: 0}))
    answer = painter.picture(scene(**places, target={10: 0}))
    for picture, colour, x, y in (
        (attack, AIMS[0], 10, 10),
        (heal, HEALS, 5, 15),
        (answer, AIMS[1], 10, 10),
    ):
        changed = (picture != alone).any(axis=2)
        assert 100 < changed.sum() < 1000, "more than a line has changed"
        column, row = int(x * CELL), int(HEADER + (TOP - y) * CELL)
        near = np.zeros_like(changed)
        near[row - 5 : row + 5, column - 5 : column + 5] = True
        line = picture[changed & near]
        assert len(line) >= 10, "the line does not pass half way"
        # lines are thin, so their colour is mixed with the ground's: the channels keep their order
        assert (np.argsort(line, axis=1)[:, 2] == np.argmax(colour)).all()
    gone = painter.picture(scene(**places, target={0: 10}, health={0: 0}))
    np.testing.assert_array_equal(gone, painter.picture(scene(**places, health={0: 0})))


def test_targets_are_those_of_the_engine():
    everyone = np.ones(1, dtype=bool)
    engine = arena(
        [("Marine", 10, 16), ("Marine", 10, 18), ("Medivac", 9, 15)], [("Marine", 14, 16)]
    )
    engine.battle.health[0, 0] = 20
    engine.find_targets(everyone)
    assert engine.targets.tolist() == [[-1, -1, -1, -1]]
    run(engine, a0=(ORDER_ATTACK, 3), a2=(ORDER_HEAL, 0))
    engine.find_targets(everyone)
    assert engine.targets.tolist() == [[3, -1, 0, 0]], "the enemy takes the nearest by itself"
    run(engine, a0=(ORDER_MOVE, 5, 16))
    engine.find_targets(everyone)
    assert engine.targets.tolist() == [[-1, -1, 0, 0]]
    engine.battle.health[0, 0], engine.battle.alive[0, 0] = 0, False
    run(engine)
    engine.find_targets(everyone)
    assert engine.targets.tolist() == [[-1, -1, -1, 1]]
    engine.targets[:] = 7
    engine.find_targets(~everyone)
    assert (engine.targets == 7).all()


def test_the_line_of_text_and_every_letter():
    painter = Painter(MAP)
    empty, some = painter.picture(scene()), painter.picture(replace(scene(), text="step 3"))
    assert (empty[:HEADER] == 255).all()
    assert (some[:HEADER] < 128).any()
    np.testing.assert_array_equal(empty[HEADER:], some[HEADER:])
    assert (empty[-FOOTER:] < 128).any(), "there is no legend"
    assert set(LETTERS) == set(UNIT_NAMES)
    assert len(set(LETTERS.values())) == len(LETTERS)


def test_a_part_of_the_map_fills_the_picture():
    """Ten cells instead of 32: a unit is 3.2 times as wide, and stands where it should."""
    view = View(10, 20, 12, 17)
    small = Painter(MAP).picture(scene(x={0: 15}, y={0: 14}))
    large = Painter(MAP, view).picture(scene(x={0: 15}, y={0: 14}))
    assert large.shape == (HEADER + WIDTH // 2 + FOOTER, WIDTH, 3)
    blue = (large == SIDES[0]).all(axis=2)
    ratio = blue.sum() / (small == SIDES[0]).all(axis=2).sum()
    assert 3.2**2 * 0.7 < ratio < 3.2**2 * 1.6
    rows, columns = np.nonzero(blue)
    assert columns.mean() == pytest.approx(WIDTH / 2, abs=6)
    assert rows.mean() == pytest.approx(HEADER + 3 * WIDTH / 10, abs=6)


@pytest.mark.parametrize(
    ("x", "y", "view"),
    [
        ([10, 20], [12, 18], View(8, 23, 10, 21)),  # two cells on each side
        ([10.5, 19.9], [16, 16], View(8, 22, 14, 20)),  # 14 * 0.4 = 5.6: six cells high
        ([16], [9, 22], View(8, 26, 7, 25)),  # MMM has its walls below 8 and above 24
        ([0.5, 31], [16], View(0, 32, 10, 23)),  # 32 * 0.4 = 12.8
    ],
)
def test_what_a_film_shows(x, y, view):
    assert View.around(np.array(x), np.array(y), MAP) == view


@pytest.mark.parametrize("name", ["corridor", "6h_vs_8z", "2c_vs_64zg", "1o_10b_vs_1r"])
def test_any_map_fits(name):
    info = map_info(name)
    painter = Painter(info)
    n = info.n_agents + info.n_enemies
    open_x, open_y = np.nonzero(info.pathing)
    units = [info.unit_type(unit) for unit in (*info.agents, *info.enemies)]
    shown = Scene(
        type=np.array([UNIT_INDEX[unit.name] for unit in units]),
        x=np.resize(open_x[[0, -1]], n) + 0.5,
        y=np.resize(open_y[[0, -1]], n) + 0.5,
        health=np.ones(n),
        shield=np.zeros(n),
        energy=np.zeros(n),
        health_max=np.ones(n),
        shield_max=np.zeros(n),
        target=np.full(n, -1),
        text="",
    )
    picture = painter.picture(shown)
    assert picture.shape[1] == WIDTH
    assert 250 < picture.shape[0] <= WIDTH + HEADER + FOOTER + 1
    assert (picture == SIDES[0]).all(axis=2).any() or info.n_agents == 0
    assert (picture == SIDES[1]).all(axis=2).any()

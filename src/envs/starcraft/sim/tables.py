"""Unit types packed into arrays for the compiled code: `pack` and the columns of what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from envs.starcraft.facts import LOOPS_PER_SECOND, UNIT_NAMES, UnitType, Weapon, unit_type
from envs.starcraft.sim.pathing import OPEN_TO_CLIFF_WALKERS, OPEN_TO_GROUND

# Columns of `Tables.unit`. Rates and speeds are per game loop.
HEALTH_FULL = 0
SHIELD_FULL = 1
ENERGY_FULL = 2
ENERGY_START = 3
HEALTH_REGEN = 4
SHIELD_REGEN = 5
SHIELD_DELAY = 6
ENERGY_REGEN = 7
ARMOUR = 8
RADIUS = 9
SEPARATION = 10
SPEED = 11
BODY = 12  # which units it pushes apart from: those of the same body class
CROSSES = 13  # bit of `pathing.Ground.open` of the cells where it may be, 0: anywhere
HEAL_RATE = 14  # 0: no healer
HEAL_COST = 15
HEAL_RANGE = 16
HEAL_SEARCH = 17
HEAL_MIN_ENERGY = 18
BURSTS = 19  # explodes when it dies
BURSTS_ON_ATTACK = 20
UNIT_COLUMNS = 21

# Columns of `Tables.weapon`.
RANGE = 0
MIN_RANGE = 1
SLOP = 2
SCAN = 3
PERIOD = 4
DAMAGE_POINT = 5
BACKSWING = 6
HITS = 7
HIT_GAP = 8  # loops from a hit to the next of the same attack
MISSILE = 9  # cells per loop, 0: instant
SPLASH = 10
SPLASH_RADIUS = 11
SPLASH_LENGTH = 12
SPLASH_POINTS = 13
SPLASH_COS = 14  # cosine of half the arc
WEAPON_COLUMNS = 15

BODY_GROUND, BODY_AIR, BODY_ABOVE = range(3)
NO_SPLASH, SPLASH_CIRCLE, SPLASH_ARC, SPLASH_LINE = range(4)
_SPLASH = {"circle": SPLASH_CIRCLE, "arc": SPLASH_ARC, "line": SPLASH_LINE}

N_TYPES = len(UNIT_NAMES)
# A unit's hits that have been launched and not landed; an attack's last hit lands within its
# period, see `_check`.
MAX_PENDING = 4


class Tables(NamedTuple):
    """All types of a map, by index in `UNIT_NAMES`; weapons in the order of `UnitType.weapons`.

    unit: float64 [T, UNIT_COLUMNS]. weapon: float64 [T, W, WEAPON_COLUMNS].
    damage: float64 [T, W, T], of one hit before armour; -1: the weapon cannot hit that type.
    weapon_for: int64 [T, T], the weapon of the first type against the second; -1: none.
    close_for: int64 [T, T], the weapon used instead within that weapon's own range; -1: none.
    heals: int64 [T, T], 1 where the first type can heal the second.
    """

    unit: np.ndarray
    weapon: np.ndarray
    damage: np.ndarray
    weapon_for: np.ndarray
    close_for: np.ndarray
    heals: np.ndarray


def pack(overrides: Mapping[str, UnitType]) -> Tables:
    """Tables of all unit types, those in `overrides` with the values given there."""
    types = [overrides.get(name, unit_type(name)) for name in UNIT_NAMES]
    n_weapons = max(len(t.weapons) for t in types)
    tables = Tables(
        unit=np.zeros((N_TYPES, UNIT_COLUMNS)),
        weapon=np.zeros((N_TYPES, n_weapons, WEAPON_COLUMNS)),
        damage=np.full((N_TYPES, n_weapons, N_TYPES), -1.0),
        weapon_for=np.full((N_TYPES, N_TYPES), -1, dtype=np.int64),
        close_for=np.full((N_TYPES, N_TYPES), -1, dtype=np.int64),
        heals=np.zeros((N_TYPES, N_TYPES), dtype=np.int64),
    )
    for i, unit in enumerate(types):
        tables.unit[i] = _unit_row(unit)
        for w, weapon in enumerate(unit.weapons):
            _check(unit, weapon)
            tables.weapon[i, w] = _weapon_row(weapon)
        for j, victim in enumerate(types):
            able = [w for w, weapon in enumerate(unit.weapons) if _can_hit(weapon, victim)]
            for w in able:
                tables.damage[i, w, j] = _damage(unit, unit.weapons[w], victim)
            if able:
                tables.weapon_for[i, j] = able[0]
            if len(able) > 1:
                tables.close_for[i, j] = able[1]
            tables.heals[i, j] = unit.heal is not None and unit.heal.attribute in victim.attributes
    return tables


def _unit_row(unit: UnitType) -> list[float]:
    per_loop = 1.0 / LOOPS_PER_SECOND
    heal, suicide = unit.heal, unit.suicide
    # a colossus, which lies in both planes, stands above the others and walks over them
    above = "ground" in unit.planes and "air" in unit.planes
    row = {
        HEALTH_FULL: unit.health,
        SHIELD_FULL: unit.shield,
        ENERGY_FULL: unit.energy_max,
        ENERGY_START: unit.energy_start,
        HEALTH_REGEN: unit.health_regen * per_loop,
        SHIELD_REGEN: unit.shield_regen * per_loop,
        SHIELD_DELAY: unit.shield_regen_delay,
        ENERGY_REGEN: unit.energy_regen * per_loop,
        ARMOUR: unit.armour,
        RADIUS: unit.radius,
        SEPARATION: unit.separation_radius,
        SPEED: unit.speed * per_loop,
        BODY: BODY_AIR if unit.flying else BODY_ABOVE if above else BODY_GROUND,
        CROSSES: 0
        if unit.flying
        else OPEN_TO_CLIFF_WALKERS
        if unit.cliff_walker
        else OPEN_TO_GROUND,
        HEAL_RATE: heal.health_per_s * per_loop if heal else 0.0,
        HEAL_COST: heal.energy_per_health if heal else 0.0,
        HEAL_RANGE: heal.range if heal else 0.0,
        HEAL_SEARCH: heal.search_range if heal else 0.0,
        HEAL_MIN_ENERGY: heal.min_energy if heal else 0.0,
        BURSTS: float(suicide is not None and suicide.on_death),
        BURSTS_ON_ATTACK: float(suicide is not None and suicide.on_attack),
    }
    return [float(row[column]) for column in range(UNIT_COLUMNS)]


def _weapon_row(weapon: Weapon) -> list[float]:
    splash = weapon.splash
    row = {
        RANGE: weapon.range,
        MIN_RANGE: weapon.min_range,
        SLOP: weapon.range_slop,
        SCAN: max(weapon.range, weapon.scan_range),
        PERIOD: weapon.cooldown,
        DAMAGE_POINT: weapon.damage_point,
        BACKSWING: weapon.backswing,
        HITS: weapon.hits,
        HIT_GAP: weapon.hit_delays[-1] / max(1, len(weapon.hit_delays) - 1),
        MISSILE: (weapon.projectile_speed or 0.0) / LOOPS_PER_SECOND,
        SPLASH: _SPLASH[splash.kind] if splash else NO_SPLASH,
        SPLASH_RADIUS: splash.radius if splash else 0.0,
        SPLASH_LENGTH: splash.length if splash else 0.0,
        SPLASH_POINTS: splash.points if splash else 0,
        SPLASH_COS: math.cos(math.radians(splash.arc / 2)) if splash else 0.0,
    }
    return [float(row[column]) for column in range(WEAPON_COLUMNS)]


def _can_hit(weapon: Weapon, victim: UnitType) -> bool:
    structure = "structure" in victim.attributes
    if weapon.structures == ("never" if structure else "only"):
        return False
    return (weapon.ground and "ground" in victim.planes) or (weapon.air and "air" in victim.planes)


def _damage(unit: UnitType, weapon: Weapon, victim: UnitType) -> float:
    if unit.suicide is not None and "structure" in victim.attributes:
        return unit.suicide.structure_damage
    return weapon.damage + (weapon.bonus if weapon.bonus_attribute in victim.attributes else 0.0)


def _check(unit: UnitType, weapon: Weapon) -> None:
    """The compiled code keeps at most `MAX_PENDING` hits per unit: those of an attack must land
    before the next.

    Raises:
        ValueError: they would not.
    """
    flight = 0.0
    if weapon.projectile_speed:
        flight = (weapon.range + weapon.range_slop) * LOOPS_PER_SECOND / weapon.projectile_speed
    # the period may be a loop shorter (jitter), both ends are rounded up
    if weapon.hit_delays[-1] + flight + 3 > weapon.cooldown or 2 * weapon.hits > MAX_PENDING:
        raise ValueError(
            f"{unit.name}, {weapon.name}: hits of two attacks would be under way at once"
        )

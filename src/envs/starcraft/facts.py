"""What is known of the maps and units: dataclasses over the files in `data/`.

Coordinates: x to the right (east), y up (north), origin lower left, in cells. Times in game loops
(16 per game second), speeds and rates per game second, ranges from edge to edge unless said
otherwise.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from importlib import resources
from typing import Any

import numpy as np

from utils.errors import ConfigError
from utils.registry import nearest

LOOPS_PER_SECOND = 16
# The interface's own ranges, between centres, for every unit type (Samvelyan et al. 2019, section
# 4).
SIGHT_RANGE = 9.0
SHOOT_RANGE = 6.0
# The game adds a whole number of loops, uniform from the first to the second, to every attack
# period.
ATTACK_JITTER = (-1, 2)
# A unit that is hit calls friends this near for help, at most once per period (loops).
HELP_RADIUS = 4.0
HELP_PERIOD = 32
# How far a unit that acquired a target by itself follows it.
LEASH_RADIUS = 21.0
# Least damage of a hit, whatever the armour.
MIN_DAMAGE = 0.5
N_ACTIONS_NO_ATTACK = 6


@dataclass(frozen=True)
class Splash:
    """Which enemies besides the target a hit damages in full; never friends, only ground units on
    its cliff level.

    kind "circle": within `radius` of the attacker (baneling). "arc": within `radius` and `arc`
    degrees around the attacker's facing (ultralisk). "line": `points` circles of `radius` on a line
    of `length` through the target, at right angles to the line of fire, one every `step` loops
    (colossus). Radii are extended by the victim's radius. `main_delay`, `other_delay`: loops from
    the shot to the damage, of the target and of the others.
    """

    kind: str
    radius: float
    length: float = 0.0
    points: int = 0
    step: float = 0.0
    arc: float = 0.0
    main_delay: float = 0.0
    other_delay: float = 0.0


@dataclass(frozen=True)
class Weapon:
    """One weapon.

    Args:
        damage: per hit, before armour; `bonus` more on targets with `bonus_attribute`.
        hits: per attack, at `hit_delays` (loops after the damage point).
        range: edge to edge; `min_range` likewise. A started attack goes on up to `range_slop`
            beyond it.
        scan_range: an idle or attack-moving unit looks for targets within max(range, scan_range).
        cooldown: loops from one attack's start to the next. damage_point: loops from the start to
            the first hit.
        ground, air: what it reaches; structures: "also", "never" or "only".
        projectile_speed: per game second; None where the hit is instant (or its speed is not known:
            stalker).
    """

    name: str
    damage: float
    hits: int
    hit_delays: tuple[float, ...]
    bonus: float
    bonus_attribute: str | None
    range: float
    min_range: float
    range_slop: float
    scan_range: float
    cooldown: float
    damage_point: float
    backswing: float
    ground: bool
    air: bool
    structures: str
    melee: bool
    fires_moving: bool
    projectile_speed: float | None
    splash: Splash | None


@dataclass(frozen=True)
class Heal:
    """A medivac's beam: hit points per game second, energy per hit point, edge-to-edge range,
    targets with `attribute`.

    `search_range`, `min_energy`: when it heals by itself.
    """

    health_per_s: float
    energy_per_health: float
    range: float
    search_range: float
    min_energy: float
    attribute: str


@dataclass(frozen=True)
class Suicide:
    """A baneling: whether its attack kills it, whether it bursts when killed, its damage to
    structures.
    """

    on_attack: bool
    on_death: bool
    structure_damage: float


@dataclass(frozen=True)
class UnitType:
    """One type of unit; armour protects hit points only, shields have none.

    `radius` counts for ranges, `separation_radius` for bodies pushing apart, `inner_radius` is the
    part that blocks. `planes`: where weapons can hit it ("ground", "air"; the colossus is in both).
    `index`: position in `UNIT_NAMES`. `shield_regen_delay`: loops without damage before shields
    come back. `turn_rate`: degrees per game second or None.
    """

    name: str
    index: int
    game_id: int | None
    health: float
    shield: float
    energy_max: float
    energy_start: float
    energy_regen: float
    armour: float
    attributes: tuple[str, ...]
    radius: float
    separation_radius: float
    inner_radius: float
    speed: float
    flying: bool
    cliff_walker: bool
    planes: tuple[str, ...]
    sight: float
    health_regen: float
    shield_regen: float
    shield_regen_delay: float
    turn_rate: float | None
    weapons: tuple[Weapon, ...]
    heal: Heal | None
    suicide: Suicide | None


@dataclass(frozen=True)
class Spawn:
    """Where units appear: one of `points`, or a point uniform inside one of `rectangles` (x0, y0,
    x1, y1).
    """

    points: tuple[tuple[float, float], ...] = ()
    rectangles: tuple[tuple[float, float, float, float], ...] = ()

    def draw(self, rng: np.random.Generator) -> tuple[float, float]:
        """A point; draws nothing from `rng` where there is no choice."""
        if self.points:
            return (
                self.points[int(rng.integers(len(self.points)))]
                if len(self.points) > 1
                else self.points[0]
            )
        choice = int(rng.integers(len(self.rectangles))) if len(self.rectangles) > 1 else 0
        x0, y0, x1, y1 = self.rectangles[choice]
        return float(rng.uniform(x0, x1)), float(rng.uniform(y0, y1))


@dataclass(frozen=True)
class Creation:
    """One creation call of the map's script: `count` units at the map's spawn number `spawn`.

    `together`: all at the point drawn for that spawn in this episode (which other calls share);
    else a draw per unit.
    """

    unit: str
    count: int
    spawn: int
    together: bool


@dataclass(frozen=True)
class EnemyOrder:
    """The enemies' one order of an episode.

    kind "attack_move": to `points[0]`. "attack_move_segment": to a point uniform between the two
    `points`, drawn once per episode. "attack_agents": attack the agents' units, no attack-move.
    "none": stay and acquire what comes near.
    """

    kind: str
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, eq=False)
class MapInfo:
    """One map, SMAC's or SMAC-Comm's.

    Args:
        limit: of an episode, in steps.
        agent_race, enemy_race: "T", "P" or "Z"; shields are observed of Protoss sides only.
        map_type: SMAC's name of the unit set.
        agents: unit names in the order of the agents; enemies: in creation order, which is the
            order of the enemies.
        agent_creations, enemy_creations: the script's calls; spawns: where.
        unit_type_bits, agent_bits, enemy_bits: width of the one-hot type and the bit of each unit.
        unit_overrides: what the map changes of its unit types; read them through `unit_type`.
        normalise_as: agents whose cooldown and shield are divided by another type's constants.
        pathing: bool [32, 32] as [x, y]. height: float [32, 32], 0 to 1, by cliff level.
        max_reward: of an episode under SMAC's default rewards, unscaled.
        sizes: (n_actions, obs_size, state_size) under SMAC's default options.
    """

    name: str
    suite: str
    limit: int
    agent_race: str
    enemy_race: str
    map_type: str
    agents: tuple[str, ...]
    enemies: tuple[str, ...]
    agent_creations: tuple[Creation, ...]
    enemy_creations: tuple[Creation, ...]
    spawns: tuple[Spawn, ...]
    enemy_order: EnemyOrder
    unit_type_bits: int
    agent_bits: dict[str, int]
    enemy_bits: dict[str, int]
    unit_overrides: dict[str, Any]
    normalise_as: dict[str, str]
    terrain: str
    pathing: np.ndarray
    height: np.ndarray
    max_reward: float
    sizes: tuple[int, int, int]
    map_size: tuple[int, int] = (32, 32)
    playable_size: tuple[int, int] = (32, 32)

    @property
    def n_agents(self) -> int:
        return len(self.agents)

    @property
    def n_enemies(self) -> int:
        return len(self.enemies)

    @property
    def heals(self) -> bool:
        """Whether medivac agents heal instead of attacking, and the rules for the end of an episode
        mind medivacs.
        """
        return self.map_type in ("MMM", "terran_gen")

    @cached_property
    def units(self) -> dict[str, UnitType]:
        """The types on this map, the map's own values applied."""
        return {
            n: _override(unit_type(n), self.unit_overrides.get(n, {}))
            for n in {*self.agents, *self.enemies}
        }

    def unit_type(self, name: str) -> UnitType:
        """The unit type as it is on this map."""
        return self.units[name]

    def draw_points(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The creation points of one episode, in creation order, before the game pushes units
        apart.

        Returns:
            float64 [A, 2] of the agents and [E, 2] of the enemies.
        """
        shared = {c.spawn for c in (*self.agent_creations, *self.enemy_creations) if c.together}
        fixed = {i: self.spawns[i].draw(rng) for i in sorted(shared)}
        sides = [
            [
                fixed[c.spawn] if c.together else self.spawns[c.spawn].draw(rng)
                for c in calls
                for _ in range(c.count)
            ]
            for calls in (self.agent_creations, self.enemy_creations)
        ]
        return np.array(sides[0]), np.array(sides[1])


@dataclass(frozen=True)
class Scenario:
    """A SMACv2 scenario (Ellis et al. 2023): teams are drawn per episode.

    `units` with `weights`; a whole team of one of `not_whole_team` is drawn again. `bits`: type
    bits of both sides.
    """

    name: str
    race: str
    n_agents: int
    n_enemies: int
    limit: int
    map_type: str
    terrain: str
    units: tuple[str, ...]
    weights: tuple[float, ...]
    not_whole_team: tuple[str, ...]
    bits: dict[str, int]
    sizes: tuple[int, int, int]

    def map_info(self, n_agents: int, n_enemies: int) -> MapInfo:
        """A map for teams of these sizes. Units and their places are not the map's to say: they
        come from who draws the teams; the units named here only fill the places.

        `max_reward` is NaN (it depends on the first team), `sizes` are the scenario's own.
        """
        pathing, height = terrain(self.terrain)
        return MapInfo(
            name=self.name,
            suite="SMACv2",
            limit=self.limit,
            agent_race=self.race,
            enemy_race=self.race,
            map_type=self.map_type,
            agents=(self.units[0],) * n_agents,
            enemies=(self.units[0],) * n_enemies,
            agent_creations=(Creation(self.units[0], n_agents, 0, together=True),),
            enemy_creations=(Creation(self.units[0], n_enemies, 0, together=True),),
            spawns=(Spawn(points=((pathing.shape[0] / 2, pathing.shape[1] / 2),)),),
            enemy_order=EnemyOrder("none"),
            unit_type_bits=len(self.units),
            agent_bits=self.bits,
            enemy_bits=self.bits,
            unit_overrides={},
            normalise_as={},
            terrain=self.terrain,
            pathing=pathing,
            height=height,
            max_reward=float("nan"),
            sizes=self.sizes,
        )


def _read(name: str) -> dict[str, Any]:
    return json.loads((resources.files(__package__) / "data" / name).read_text(encoding="utf-8"))


_UNITS = _read("units.json")
_MAPS = _read("maps.json")

UNIT_NAMES: tuple[str, ...] = tuple(
    _UNITS["units"]
)  # alphabetical, which is SMAC's order of the agents' types
UNIT_INDEX: dict[str, int] = {name: index for index, name in enumerate(UNIT_NAMES)}
# SMAC's divisors in observation and state
MAX_COOLDOWN: dict[str, float] = {
    n: _UNITS["smac"]["max_cooldown"].get(n, _UNITS["default_max_cooldown"]) for n in UNIT_NAMES
}
MAX_SHIELD: dict[str, float] = _UNITS["smac"]["max_shield"]
# SMACv2's ranges by type (with use_unit_ranges); an agent may shoot at least at the floor
V2_SHOOT_RANGE: dict[str, float] = _UNITS["smacv2"]["shoot_range"]
V2_SIGHT_RANGE: dict[str, float] = _UNITS["smacv2"]["sight_range"]
V2_SHOOT_RANGE_FLOOR: float = _UNITS["smacv2_shoot_range_floor"]


def _weapon(raw: dict[str, Any]) -> Weapon:
    splash = Splash(**raw["splash"]) if raw["splash"] else None
    return Weapon(**{**raw, "hit_delays": tuple(raw["hit_delays"]), "splash": splash})


@cache
def unit_type(name: str) -> UnitType:
    """The unit type `name` (a key of `UNIT_NAMES`).

    Raises:
        ConfigError: there is none.
    """
    if name not in UNIT_INDEX:
        raise ConfigError(f"unknown unit type '{name}'; {nearest(name, UNIT_NAMES)}")
    raw = _UNITS["units"][name]
    return UnitType(
        **{
            **raw,
            "name": name,
            "index": UNIT_INDEX[name],
            "attributes": tuple(raw["attributes"]),
            "planes": tuple(raw["planes"]),
            "weapons": tuple(_weapon(w) for w in raw["weapons"]),
            "heal": Heal(**raw["heal"]) if raw["heal"] else None,
            "suicide": Suicide(**raw["suicide"]) if raw["suicide"] else None,
        }
    )


def _override(unit: UnitType, changes: dict[str, Any]) -> UnitType:
    plain = {key: value for key, value in changes.items() if key not in ("weapons", "heal")}
    weapons = tuple(replace(w, **changes.get("weapons", {}).get(w.name, {})) for w in unit.weapons)
    heal = replace(unit.heal, **changes["heal"]) if unit.heal and "heal" in changes else unit.heal
    return replace(unit, **plain, weapons=weapons, heal=heal)


def terrain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pathing (bool) and height (float64, 0 to 1) of a terrain, both [32, 32] as [x, y], read-only.

    Cells that a diagonal wall halves count as blocked. Height is the file's cliff level / 255:
    where the files give none, one level all over.
    """
    raw = _MAPS["terrains"][name]
    pathing = np.array([[cell == "." for cell in row] for row in raw["rows"]]).T.copy()
    legend = _MAPS["level_legend"]
    levels = raw.get("levels", ["0" * pathing.shape[0]] * pathing.shape[1])
    height = np.array([[legend[cell] for cell in row] for row in levels], dtype=np.float64).T / 255
    height = np.ascontiguousarray(height)
    pathing.flags.writeable = height.flags.writeable = False
    return pathing, height


def _entry(section: str, what: str, name: str) -> dict[str, Any]:
    """Entry `name` of a section of the maps' file, which holds things called `what`.

    Raises:
        ConfigError: there is none.
    """
    known = _MAPS[section]
    if name not in known:
        raise ConfigError(f"unknown {what} '{name}'; {nearest(name, tuple(known))}")
    return known[name]


def map_names() -> tuple[str, ...]:
    """All maps, SMAC's and SMAC-Comm's."""
    return tuple(_MAPS["maps"])


@cache
def map_info(name: str) -> MapInfo:
    """The map `name`.

    Raises:
        ConfigError: there is none.
    """
    raw = _entry("maps", "StarCraft map", name)
    pathing, height = terrain(raw["terrain"])
    calls = {
        side: tuple(
            Creation(unit, count, spawn, mode == "together")
            for unit, count, spawn, mode in raw[side]
        )
        for side in ("agents", "enemies")
    }
    enemies = tuple(c.unit for c in calls["enemies"] for _ in range(c.count))
    return MapInfo(
        name=name,
        agent_race=raw["races"][0],
        enemy_race=raw["races"][1],
        agents=tuple(sorted(c.unit for c in calls["agents"] for _ in range(c.count))),
        enemies=enemies,
        agent_creations=calls["agents"],
        enemy_creations=calls["enemies"],
        spawns=tuple(
            Spawn(**{key: tuple(tuple(p) for p in value) for key, value in spawn.items()})
            for spawn in raw["spawns"]
        ),
        enemy_order=EnemyOrder(
            raw["enemy_order"]["kind"], tuple(tuple(p) for p in raw["enemy_order"]["points"])
        ),
        pathing=pathing,
        height=height,
        sizes=tuple(raw["sizes"]),
        **{
            key: raw[key]
            for key in (
                "suite",
                "limit",
                "map_type",
                "unit_type_bits",
                "agent_bits",
                "enemy_bits",
                "unit_overrides",
                "normalise_as",
                "terrain",
                "max_reward",
            )
        },
    )


def scenario_names() -> tuple[str, ...]:
    """All SMACv2 scenarios, as "terran_5_vs_5"."""
    return tuple(_MAPS["smacv2"])


@cache
def scenario(name: str) -> Scenario:
    """The SMACv2 scenario `name`; errors as in `map_info`."""
    raw = {**_entry("smacv2", "SMACv2 scenario", name), "name": name}
    values: dict[str, Any] = {
        f.name: tuple(v) if isinstance(v := raw[f.name], list) else v for f in fields(Scenario)
    }
    return Scenario(**values)

"""The `env_args` of all StarCraft environments, once: defaults, ranges and meaning. Constructors'
signatures (`takes`), checks and the numbers that the compiled rules read follow from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

from envs.ranges import ABOVE_ZERO, AMOUNT, CHANCE, NUMBER, SIZE, SWITCH, number
from utils.films import FORMATS
from utils.ranges import Range, check_ranges, one_of

Function = TypeVar("Function", bound=Callable[..., Any])
Switch = Annotated[bool, SWITCH]
Size = Annotated[int, SIZE]
Number = Annotated[float, NUMBER]
Positive = Annotated[float, ABOVE_ZERO]
Amount = Annotated[float, AMOUNT]
AtLeastOne = Annotated[float, number(1)]
Chance = Annotated[float, CHANCE]
OnlySeven = Annotated[
    str, Range(lambda value: str(value) == "7", '"7", the only one that the simulator has')
]

FilmFormat = Annotated[str, one_of(*FORMATS)]

# The simulator's scripts for the enemies.
# attack_move: the map's one order at the start, then each unit's own choice of targets (SMAC).
# hunt: each attacks the agent that was closest when its last target died (SMACv2).
# nearest: each attacks the agent that is closest now.
# focus_fire: each attacks the weakest of the agents that its weapon reaches; if it reaches none,
# the closest.
# kite: units with few points left keep away from agents, those that outrange the nearest agent do
# so between shots; else as nearest.
# random_target: each attacks an agent drawn at random until it dies.
OWN_SCRIPTS = ("attack_move", "hunt", "nearest", "focus_fire", "kite", "random_target")
# Those of SMAC-Hard, each for some of SMAC's maps, see `smac_hard`.
HARD_SCRIPTS = (
    *("rush", "line_middle", "line_weakest", "wall_weakest", "wall_centre", "wall_sweep"),
    *("medic_weakest", "medic_nearest", "retreat", "zealots_first", "late_retreat", "densest"),
    *("march_nearest", "encircle", "gather", "two_groups", "ambush", "crescent", "corners"),
    *("weaker_marine", "weaker_stalker"),
)
SCRIPTS = (*OWN_SCRIPTS, *HARD_SCRIPTS)

FIELD_SIDE = 32  # cells, of SMACv2's field
TEAMS = "weighted_teams"
SURROUND, REFLECT, EITHER = "surround", "reflect_position", "surrounded_and_reflect"
# SMACv2's description of what is drawn; None: as the scenario says
CAPABILITIES: Mapping[str, Any] = {
    "n_units": None,
    "n_enemies": None,
    "team_gen": {
        "dist_type": TEAMS,
        "unit_types": None,
        "weights": None,
        "exception_unit_types": None,
    },
    "start_positions": {"dist_type": EITHER, "p": 0.5, "map_x": FIELD_SIDE, "map_y": FIELD_SIDE},
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What SMAC's environments have in common; the defaults are SMAC's.

    The fields of one class, with those of its bases, are the `env_args` of one environment. All
    that are switches or fractional numbers in `Options` and `V2Options` are known to the compiled
    rules.

    Attributes:
        nested: ranges of entries of a field that is a mapping, by dotted key.

    Raises:
        ConfigError: a value out of range.
    """

    nested: ClassVar[Mapping[str, Range]] = {}

    map_name: str = "3m"  # see `facts.map_names`
    difficulty: str = "7"  # of the game's own player, "1" to "9" or "A"
    step_mul: Size = 8  # game loops per step; 16 are one game second
    move_amount: Positive = 2.0  # how far away the target of a move is, in cells
    continuing_episode: Switch = False  # an episode cut by the limit counts as cut, not as ended
    obs_all_health: Switch = True  # agents see health and shield of others
    obs_own_health: Switch = True  # and their own
    obs_last_action: Switch = False  # and the last actions of agents in sight
    obs_pathing_grid: Switch = False  # and whether 8 points around them are walkable
    obs_terrain_height: Switch = False  # and the ground's height at 9 points around them
    obs_timestep_number: Switch = False  # and step / limit (2 entries; SMAC leaves the first at 0)
    obs_instead_of_state: Switch = False  # the state is all observations
    state_last_action: Switch = True  # the state has the last actions of all agents
    state_timestep_number: Switch = False  # and step / limit
    reward_sparse: Switch = False  # only +1 for a win and -1 for a loss
    reward_only_positive: Switch = True  # what agents lose is not subtracted
    reward_death_value: Number = 10.0  # per unit that dies
    reward_win: Number = 200.0  # for a win
    reward_defeat: Number = 0.0  # added on a loss, so a punishment is negative
    reward_negative_scale: Number = 0.5  # weight of damage taken and losses
    reward_scale: Switch = True  # divide by the largest return, times reward_scale_rate
    reward_scale_rate: Positive = 20.0  # about the return of a win
    heuristic_ai: Switch = False  # scripted agents: each attacks the nearest until it is dead
    heuristic_rest: Switch = False  # and walks towards what the attack action does not reach
    replay_dir: str = ""  # where replays go
    replay_prefix: str = ""  # of their file names; "": the map's name

    def __post_init__(self) -> None:
        check_ranges(vars(self), ranges_of(type(self)), "env_args.")


@dataclass(frozen=True, kw_only=True)
class V2Options(Options):
    """SMACv2's besides, off; and its rule for rewards: what is only positive is cut at zero, where
    SMAC takes the absolute value.
    """

    nested: ClassVar[Mapping[str, Range]] = {
        "capability_config.n_units": SIZE,
        "capability_config.n_enemies": SIZE,
        "capability_config.start_positions.p": CHANCE,
        "capability_config.start_positions.map_x": SIZE,
        "capability_config.start_positions.map_y": SIZE,
    }

    # what is drawn in every episode, in SMACv2's form
    capability_config: Mapping[str, Any] = field(default_factory=dict)
    use_unit_ranges: Switch = True  # agents see and shoot as far as their type; else 9 and 6
    conic_fov: Switch = False  # they see and attack in a cone, which further actions turn
    prob_obs_enemy: Chance = 1.0  # that who was not the first to see an enemy is told of it at all
    action_mask: Switch = True  # attacks are available within range only
    obs_own_pos: Switch = False  # agents see their own place on the map


@dataclass(frozen=True, kw_only=True)
class SimulatorOptions(Options):
    """`sc2sim`."""

    nested: ClassVar[Mapping[str, Range]] = {
        f"opponent_weights.{script}": AMOUNT for script in SCRIPTS
    }

    difficulty: OnlySeven = "7"
    opponents: str = "attack_move"  # who plays the enemies: a script, or "mixture"
    # with "mixture": script -> weight of being drawn; empty: the map's own scripts, all equal
    opponent_weights: Mapping[str, float] | None = None
    opponent_heals: Switch = True  # scripted medivacs heal whom SMAC-Hard has them attack
    replay_dir: str = "results/replays"
    replay_film: FilmFormat = "gif"  # what films replays come with
    threads: Size = 1  # that share the battles; results do not depend on it


_SIDE = Range(
    lambda value: value == FIELD_SIDE, f"{FIELD_SIDE}: the field is 32 cells wide and high"
)


@dataclass(frozen=True, kw_only=True)
class SimulatorV2Options(SimulatorOptions, V2Options):
    """`sc2sim_v2`."""

    nested: ClassVar[Mapping[str, Range]] = {
        **SimulatorOptions.nested,
        **V2Options.nested,
        "capability_config.start_positions.map_x": _SIDE,
        "capability_config.start_positions.map_y": _SIDE,
    }

    map_name: str = "terran_5_vs_5"  # see `facts.scenario_names`
    capability_config: Mapping[str, Any] = field(default_factory=lambda: CAPABILITIES)
    obs_own_pos: Switch = True
    opponents: str = "hunt"


@dataclass(frozen=True, kw_only=True)
class GameOptions(Options):
    """What the real game's environments have besides."""

    game_version: str | None = None  # e.g. "4.10"; None: the newest that is installed
    debug: Switch = False  # print what is sent to the game


@dataclass(frozen=True, kw_only=True)
class SC2Options(GameOptions):
    """`sc2`."""

    game_timeout: AtLeastOne = 120.0  # s that the game may take for an answer
    start_interval: Amount = 1.0  # s between two games' starts


@dataclass(frozen=True, kw_only=True)
class HardOptions(GameOptions):
    """`sc2hard`."""

    module: str = "smac_hard.env"  # where the package has its environment
    # further arguments of the package's environment
    kwargs: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class SC2V2Options(HardOptions, V2Options):
    """`sc2v2`."""

    nested: ClassVar[Mapping[str, Range]] = V2Options.nested

    map_name: str = "terran_5_vs_5"  # a scenario, or one of the package's maps
    obs_own_pos: Switch = True
    min_attack_range: Amount = 2  # with use_unit_ranges, at least
    num_fov_actions: Size = 12  # directions of the cone
    obs_starcraft: Switch = True  # SMAC's features at all
    module: str = "smacv2.env.starcraft2.wrapper"


def _hints(options: type[Options]) -> dict[str, Any]:
    return get_type_hints(options, include_extras=True)


def ranges_of(options: type[Options]) -> dict[str, Range]:
    """key -> range of a class of options, entries of mappings by dotted key."""
    hints = _hints(options).items()
    beside = {key: one.__metadata__[0] for key, one in hints if hasattr(one, "__metadata__")}
    return {**beside, **options.nested}


def rule_types() -> dict[str, type]:
    """key -> bool or float, for all options that the compiled rules know."""
    types = {
        one.name: getattr(_hints(V2Options)[one.name], "__origin__", None)
        for one in fields(V2Options)
    }
    return {key: kind for key, kind in types.items() if kind in (bool, float)}


def defaults_of(options: type[Options]) -> dict[str, Any]:
    """key -> default of a class of options."""
    return {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(options)
    }


def takes(options: type[Options]) -> Callable[[Function], Function]:
    """Decorator for a function whose `**keywords` are fields of `options`: they stand in its
    signature, and their ranges in its attribute `ranges`, as `env_args` are checked against both.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function).parameters.values()
        given = [one for one in own if one.kind is not one.VAR_KEYWORD]
        named = [
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default)
            for key, default in defaults_of(options).items()
        ]
        vars(function)["__signature__"] = inspect.Signature([*given, *named])
        vars(function)["ranges"] = ranges_of(options)
        return function

    return decorate

"""SMAC's and SMACv2's actions, availability, observations, state, reward and end of episode on
arrays of units, B battles at once.

Samvelyan et al. 2019, sections 4 and 5, and Ellis et al. 2023, with the public environments'
options and oddities. Distances are between centres. The kernels run over a range of battles each
(`Workers`) and write into the arrays that they are given.
"""

# ruff: noqa: ANN001, ANN202 -- numba infers the types of the kernels at the end of this file
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import hypot, isfinite, sqrt
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from envs.starcraft.battle import (
    ORDER_ATTACK,
    ORDER_HEAL,
    ORDER_MOVE,
    ORDER_NONE,
    ORDER_STOP,
    Battle,
    Workers,
)
from envs.starcraft.facts import (
    MAX_COOLDOWN,
    MAX_SHIELD,
    N_ACTIONS_NO_ATTACK,
    SHOOT_RANGE,
    SIGHT_RANGE,
    UNIT_INDEX,
    UNIT_NAMES,
    MapInfo,
)
from utils.errors import ConfigError

NO_OP, STOP, NORTH, SOUTH, EAST, WEST = range(N_ACTIONS_NO_ATTACK)
N_MOVES = 4
N_PATHING = 8
N_HEIGHT = 9
UNKNOWN_ACTION = -1  # the last action before the first one
# SMACv2's cone of view: looks to N_LOOKS directions, counter-clockwise from the east; half of its
# angle
N_LOOKS = 12
LOOK_X = np.cos(2 * np.pi * np.arange(N_LOOKS) / N_LOOKS)
LOOK_Y = np.sin(2 * np.pi * np.arange(N_LOOKS) / N_LOOKS)
CONE_COS = float(np.cos(np.pi / N_LOOKS))
DX = np.array([0.0, 0.0, 0.0, 0.0, 1.0, -1.0])
DY = np.array([0.0, 0.0, 1.0, -1.0, 0.0, 0.0])
# where pathing (the first 8) and height are looked up, in move amounts
AROUND = np.array(
    [[0, 2], [0, -2], [2, 0], [-2, 0], [1, 1], [-1, -1], [1, -1], [-1, 1], [0, 0]], dtype=np.float64
)

RUNNING, WON, LOST, DRAWN, TIMEOUT = range(5)
MARINE, MARAUDER, MEDIVAC = (UNIT_INDEX[n] for n in ("Marine", "Marauder", "Medivac"))


@dataclass(frozen=True)
class Options:
    """SMAC's `env_args` that shape the interface, with SMAC's defaults (comments:
    config/envs/sc2sim.yaml).

    Raises:
        ConfigError: a value out of range.
    """

    continuing_episode: bool = False
    heuristic_ai: bool = False
    heuristic_rest: bool = False
    move_amount: float = 2.0
    obs_all_health: bool = True
    obs_instead_of_state: bool = False
    obs_last_action: bool = False
    obs_own_health: bool = True
    obs_pathing_grid: bool = False
    obs_terrain_height: bool = False
    obs_timestep_number: bool = False
    reward_death_value: float = 10.0
    reward_defeat: float = 0.0
    reward_negative_scale: float = 0.5
    reward_only_positive: bool = True
    reward_scale: bool = True
    reward_scale_rate: float = 20.0
    reward_sparse: bool = False
    reward_win: float = 200.0
    state_last_action: bool = True
    state_timestep_number: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if not isinstance(value, (bool, np.bool_)):
                    raise ConfigError(
                        f"StarCraft: {field.name} is {value!r}, must be True or False"
                    )
            elif (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not isfinite(value)
            ):
                raise ConfigError(f"StarCraft: {field.name} is {value!r}, must be a finite number")
        for name in ("move_amount", "reward_scale_rate"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"StarCraft: {name} is {getattr(self, name)}, must be above 0")


@dataclass(frozen=True)
class V2Options(Options):
    """SMACv2's options besides (comments: config/envs/sc2sim_v2.yaml), off; and its rule for
    rewards: what is only positive is cut at zero, where SMAC takes the absolute value.

    Raises:
        ConfigError: a value out of range.
    """

    obs_own_pos: bool = False
    conic_fov: bool = False
    prob_obs_enemy: float = 1.0
    action_mask: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prob_obs_enemy <= 1:
            raise ConfigError(
                f"StarCraft: prob_obs_enemy is {self.prob_obs_enemy}, must be from 0 to 1"
            )


class _Rules(NamedTuple):
    """What the kernels need to know of map and options; one signature for all maps."""

    n_agents: int
    n_enemies: int
    limit: int
    first_attack: int  # number of the first attack (or heal) action
    heals: bool
    cuts_rewards: bool
    move_amount: float
    map_x: float
    map_y: float
    playable_x: float
    playable_y: float
    agent_shields: bool
    enemy_shields: bool
    type_bits: int
    obs_all_health: bool
    obs_own_health: bool
    obs_last_action: bool
    obs_pathing_grid: bool
    obs_terrain_height: bool
    obs_timestep_number: bool
    obs_instead_of_state: bool
    state_last_action: bool
    state_timestep_number: bool
    reward_sparse: bool
    reward_only_positive: bool
    reward_death_value: float
    reward_win: float
    reward_defeat: float
    reward_negative_scale: float
    reward_scale: bool
    reward_scale_rate: float
    obs_own_pos: bool
    conic_fov: bool
    prob_obs_enemy: float
    action_mask: bool


class _Tables(NamedTuple):
    """By unit type: ranges of an agent (float64), divisors of agents and enemies (float64), type
    bits (int64).
    """

    sight: np.ndarray
    shoot: np.ndarray
    max_cooldown: np.ndarray
    agent_shield: np.ndarray
    enemy_shield: np.ndarray
    agent_bit: np.ndarray
    enemy_bit: np.ndarray
    pathing: np.ndarray
    height: np.ndarray


class _Units(NamedTuple):
    """The arrays of a `Battle` that the interface reads."""

    type: np.ndarray
    alive: np.ndarray
    x: np.ndarray
    y: np.ndarray
    health: np.ndarray
    shield: np.ndarray
    energy: np.ndarray
    cooldown: np.ndarray
    health_max: np.ndarray
    shield_max: np.ndarray


class _Views(NamedTuple):
    """SMACv2's limits of view: the direction that each agent looks to (int64 [B, A]); who found
    each enemy (int64 [B, E], -1: nobody yet); the battle's draw for what follows from chance
    (uint64 [B]).
    """

    look: np.ndarray
    finder: np.ndarray
    draw: np.ndarray


class Interface:
    """The rules of SMAC between a `Battle` and a `VectorEnv`'s arrays.

    An episode: `begin`, `observe`, then per step `give_orders`, the engine's step, `score`,
    `observe`.

    Args:
        info: the map.
        battle: of B battles with the map's numbers of units; unit types may differ from battle to
            battle.
        options: see `Options`; with `V2Options` the rules are SMACv2's.
        sight, shoot: an agent's ranges by unit type, float64 [types]; default 9 and 6 for all.
        threads: over battles.

    Attributes:
        n_actions, obs_size, state_size: U, O, S. With obs_timestep_number O is the length of the
            vector that comes, one more than SMAC reports. order (int8 [B, A]), target (int64 [B,
            A], unit index), target_x, target_y (float64 [B, A]): for the engine.
        executed: int64 [B, A], the actions behind the orders: the given ones, or the heuristic's.
        last_action: int64 [B, A], the given ones of the last step, -1 before the first.
        steps: int64 [B], of the running episode.
        won: bool [B]. outcome: int64 [B]. dead_agents, dead_enemies: int64 [B]. All after the last
            step.
        max_reward: float64 [B], what scales battle b's rewards; NaN until its first episode has
            begun.
    """

    def __init__(
        self,
        info: MapInfo,
        battle: Battle,
        options: Options,
        sight: np.ndarray | None = None,
        shoot: np.ndarray | None = None,
        threads: int = 1,
    ) -> None:
        if (battle.n_agents, battle.n_enemies) != (info.n_agents, info.n_enemies):
            raise ValueError(
                f"a battle of {battle.n_agents} against {battle.n_enemies} units is not map "
                f"{info.name}"
            )
        b, a, n = battle.n_envs, battle.n_agents, battle.n_units
        self.info, self.options, self.battle = info, options, battle
        self.n_agents, self.n_enemies = a, battle.n_enemies
        v2 = options if isinstance(options, V2Options) else V2Options()
        first_attack = N_ACTIONS_NO_ATTACK + (N_LOOKS if v2.conic_fov else 0)
        # a healer's targets are agents
        self.n_actions = first_attack + (
            max(a, battle.n_enemies) if info.heals else battle.n_enemies
        )
        self._draws_views = v2.prob_obs_enemy < 1
        self._rules = _Rules(
            n_agents=a,
            n_enemies=battle.n_enemies,
            limit=info.limit,
            first_attack=first_attack,
            heals=info.heals,
            cuts_rewards=isinstance(options, V2Options),
            map_x=float(info.map_size[0]),
            map_y=float(info.map_size[1]),
            playable_x=float(info.playable_size[0]),
            playable_y=float(info.playable_size[1]),
            agent_shields=info.agent_race == "P",
            enemy_shields=info.enemy_race == "P",
            type_bits=info.unit_type_bits,
            **{**_kernel_options(v2), **_kernel_options(options)},
        )
        self._tables = _Tables(
            sight=_ranges(sight, SIGHT_RANGE),
            shoot=_ranges(shoot, SHOOT_RANGE),
            max_cooldown=_by_type(MAX_COOLDOWN, 0.0, info.normalise_as),
            # only Protoss types have a divisor, and only they are divided
            agent_shield=_by_type(MAX_SHIELD, 1.0, info.normalise_as),
            enemy_shield=_by_type(MAX_SHIELD, 1.0, {}),
            agent_bit=_by_type(info.agent_bits, -1, {}).astype(np.int64),
            enemy_bit=_by_type(info.enemy_bits, -1, {}).astype(np.int64),
            pathing=np.array(info.pathing, dtype=np.bool_),
            height=np.array(info.height, dtype=np.float64),
        )
        self._units = _Units(*(getattr(battle, name) for name in _Units._fields))
        self._workers = Workers(threads, b)

        (
            self.move_feature_size,
            self.enemy_feature_size,
            self.ally_feature_size,
            self.own_feature_size,
        ) = self._parts(v2)
        self.obs_size = (
            self.move_feature_size
            + self.n_enemies * self.enemy_feature_size
            + (a - 1) * self.ally_feature_size
            + self.own_feature_size
            + int(options.obs_timestep_number)
        )
        self.agent_attributes = ["health", "energy/cooldown", "rel_x", "rel_y"]
        self.enemy_attributes = ["health", "rel_x", "rel_y"]
        bits = [f"type_{i}" for i in range(info.unit_type_bits)]
        for attributes, race in (
            (self.agent_attributes, info.agent_race),
            (self.enemy_attributes, info.enemy_race),
        ):
            attributes += ["shield"] if race == "P" else []
            if v2.conic_fov and attributes is self.agent_attributes:
                attributes += ["fov_x", "fov_y"]
            attributes += bits
        self.state_size = (
            a * self.obs_size
            if options.obs_instead_of_state
            else a * len(self.agent_attributes)
            + self.n_enemies * len(self.enemy_attributes)
            + a * self.n_actions * int(options.state_last_action)
            + int(options.state_timestep_number)
        )

        self.order = np.zeros((b, a), dtype=np.int8)
        self.target = np.zeros((b, a), dtype=np.int64)
        self.target_x = np.zeros((b, a))
        self.target_y = np.zeros((b, a))
        self.executed = np.zeros((b, a), dtype=np.int64)
        self.last_action = np.full((b, a), UNKNOWN_ACTION, dtype=np.int64)
        self.steps = np.zeros(b, dtype=np.int64)
        self.won = np.zeros(b, dtype=np.bool_)
        self.outcome = np.zeros(b, dtype=np.int64)
        self.dead_agents = np.zeros(b, dtype=np.int64)
        self.dead_enemies = np.zeros(b, dtype=np.int64)
        self.max_reward = np.full(b, np.nan)
        self._views = _Views(
            look=np.zeros((b, a), dtype=np.int64),
            finder=np.full((b, battle.n_enemies), -1, dtype=np.int64),
            draw=np.zeros(b, dtype=np.uint64),
        )
        self._everyone = np.ones(b, dtype=np.bool_)
        self._heuristic_target = np.full((b, a), -1, dtype=np.int64)
        self._points = np.zeros((b, n))  # health and shield after the last step
        self._counted_dead = np.zeros((b, n), dtype=np.bool_)

    def _parts(self, v2: V2Options) -> tuple[int, int, int, int]:
        """Sizes of the move features, of one enemy's, of one ally's and of the own features, as
        SMAC reports them.
        """
        o, info = self.options, self.info
        agent_shield, enemy_shield = int(info.agent_race == "P"), int(info.enemy_race == "P")
        bits = info.unit_type_bits
        move = N_MOVES + N_PATHING * int(o.obs_pathing_grid) + N_HEIGHT * int(o.obs_terrain_height)
        enemy = 4 + bits + int(o.obs_all_health) * (1 + enemy_shield)
        ally = (
            4
            + bits
            + int(o.obs_all_health) * (1 + agent_shield)
            + self.n_actions * int(o.obs_last_action)
        )
        own = bits + int(o.obs_own_health) * (1 + agent_shield) + int(o.obs_timestep_number)
        own += 2 * int(v2.obs_own_pos) + 2 * int(v2.conic_fov)
        return move, enemy, ally, own

    def begin(self, mask: np.ndarray, rngs: Sequence[np.random.Generator] = ()) -> None:
        """Starts episodes in `mask` (bool [B]): the battles' units are those of the first
        observation.

        Args:
            rngs: B generators; drawn from only where what agents see is random (`prob_obs_enemy`
                below 1).
        """
        battle, a = self.battle, self.n_agents
        self._views.look[mask] = 0
        if self._draws_views:
            self._views.finder[mask] = -1
            for b in np.flatnonzero(mask):
                self._views.draw[b] = rngs[b].integers(2**64, dtype=np.uint64)
        self.steps[mask] = 0
        self.last_action[mask] = UNKNOWN_ACTION
        self.won[mask] = False
        self.outcome[mask] = RUNNING
        self.dead_agents[mask] = 0
        self.dead_enemies[mask] = 0
        self._heuristic_target[mask] = -1
        self._points[mask] = battle.health[mask] + battle.shield[mask]
        self._counted_dead[mask] = ~battle.alive[mask]
        first = mask & np.isnan(self.max_reward)
        if first.any():
            whole = battle.health_max[first, a:].sum(axis=1) + battle.shield_max[first, a:].sum(
                axis=1
            )
            fixed = self.n_enemies * self.options.reward_death_value + self.options.reward_win
            self.max_reward[first] = whole + fixed

    def give_orders(self, actions: np.ndarray, mask: np.ndarray, avail: np.ndarray) -> None:
        """Turns actions into `order`, `target`, `target_x`, `target_y` and remembers them.

        With `heuristic_ai` the actions are only remembered, and each agent goes for its nearest
        enemy (medivac: hurt agent) until that is dead (healed).

        Args:
            actions: int64 [B, A], available ones.
            mask: bool [B].
            avail: uint8 [B, A, U], of the present state.
        """
        o = self.options
        if o.heuristic_ai:
            self._workers.run(
                _heuristic, mask, self._rules, self._units, avail, o.heuristic_rest,
                self._heuristic_target,
                self.executed, self.order, self.target, self.target_x, self.target_y,
            )  # fmt: skip
            self.last_action[mask] = actions[mask]
        else:
            self._workers.run(
                _give_orders, mask, self._rules, self._tables, self._units, self._views, actions,
                self.executed,
                self.last_action, self.order, self.target, self.target_x, self.target_y,
            )  # fmt: skip

    def score(
        self, mask: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray
    ) -> None:
        """Counts the step that the engine has just made in `mask` (bool [B]).

        Writes reward (float32 [B]), terminated, truncated (bool [B]) and the attributes of the last
        step. An episode cut by its limit is `truncated` with `continuing_episode`, else
        `terminated`, as in SMAC.
        """
        self._workers.run(
            _score, mask, self._rules, self._units, self.options.continuing_episode, self._points,
            self._counted_dead,
            self.max_reward, self.steps, self.outcome, self.won, self.dead_agents,
            self.dead_enemies,
            reward, terminated, truncated,
        )  # fmt: skip

    def observe(
        self, mask: np.ndarray, obs: np.ndarray, state: np.ndarray, avail: np.ndarray
    ) -> None:
        """Writes obs (float32 [B, A, O]), state (float32 [B, S]) and avail (uint8 [B, A, U]) of
        `mask` (bool [B]).
        """
        self._workers.run(
            _observe, mask, self._rules, self._tables, self._units, self._views, self.steps,
            self.last_action,
            obs, state, avail,
        )  # fmt: skip

    def env_info(self) -> dict[str, Any]:
        """SMAC's own entries of `get_env_info`."""
        return {
            "agent_features": list(self.agent_attributes),
            "enemy_features": list(self.enemy_attributes),
        }

    def visibility(self) -> np.ndarray:
        """What SMAC's `get_visibility_matrix` tells: bool [B, A, N], agents first; a unit does not
        see itself.

        SMACv2's cone and `prob_obs_enemy` are not counted.
        """
        u, a = self.battle, self.n_agents
        dx = u.x[:, None, :] - u.x[:, :a, None]
        dy = u.y[:, None, :] - u.y[:, :a, None]
        sight = self._tables.sight[u.type[:, :a, None]]
        seen = (np.sqrt(dx * dx + dy * dy) < sight) & u.alive[:, None, :] & u.alive[:, :a, None]
        seen[:, np.arange(a), np.arange(a)] = False
        return seen

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self._workers.close()


def _kernel_options(options: Options) -> dict[str, Any]:
    """The options that `_Rules` has too, each of one type whatever the user wrote: a kernel has one
    signature.
    """
    values = {}
    for field in fields(options):
        if field.name in _Rules._fields:
            values[field.name] = (bool if field.type == "bool" else float)(
                getattr(options, field.name)
            )
    return values


def _by_type(values: dict[str, float], default: float, instead: dict[str, str]) -> np.ndarray:
    return np.array(
        [values.get(instead.get(name, name), default) for name in UNIT_NAMES], dtype=np.float64
    )


def _ranges(given: np.ndarray | None, default: float) -> np.ndarray:
    if given is None:
        return np.full(len(UNIT_NAMES), default)
    if given.shape != (len(UNIT_NAMES),):
        raise ValueError(
            f"ranges by unit type are {list(given.shape)}, must be [{len(UNIT_NAMES)}]"
        )
    return np.ascontiguousarray(given, dtype=np.float64)


# kernels: (first battle, end, ...); all arrays are of all battles


@njit(cache=True, nogil=True)
def _give_orders(
    first, end, mask, rules, tables, units, views, actions, executed, last_action, order, target,
    target_x, target_y
):  # fmt: skip
    for b in range(first, end):
        if not mask[b]:
            continue
        for a in range(rules.n_agents):
            action = actions[b, a]
            executed[b, a] = action
            last_action[b, a] = action
            if action == NO_OP:
                order[b, a] = ORDER_NONE
            elif action == STOP:
                order[b, a] = ORDER_STOP
            elif action < N_ACTIONS_NO_ATTACK:
                order[b, a] = ORDER_MOVE
                target_x[b, a] = units.x[b, a] + rules.move_amount * DX[action]
                target_y[b, a] = units.y[b, a] + rules.move_amount * DY[action]
            elif action < rules.first_attack:
                views.look[b, a] = action - N_ACTIONS_NO_ATTACK
                order[b, a] = ORDER_NONE
            else:
                healer = rules.heals and units.type[b, a] == MEDIVAC
                i = action - rules.first_attack + (0 if healer else rules.n_agents)
                order[b, a] = ORDER_HEAL if healer else ORDER_ATTACK
                target[b, a] = i
                if not rules.action_mask and not _in_reach(b, a, i, rules, tables, units, views):
                    order[b, a] = ORDER_NONE


@njit(cache=True, nogil=True)
def _heuristic(
    first, end, mask, rules, units, avail, rest, chosen, executed, order, target, target_x, target_y
):  # fmt: skip
    n_agents = rules.n_agents
    for b in range(first, end):
        if not mask[b]:
            continue
        for a in range(n_agents):
            executed[b, a] = NO_OP
            order[b, a] = ORDER_NONE
            if not units.alive[b, a]:
                continue
            healer = rules.heals and units.type[b, a] == MEDIVAC
            offset, count = (0, n_agents) if healer else (n_agents, rules.n_enemies)
            goal = chosen[b, a]
            if goal >= 0:
                i = offset + goal
                if not units.alive[b, i] or (
                    healer and units.health[b, i] == units.health_max[b, i]
                ):
                    goal = -1
            if goal < 0:
                nearest = hypot(rules.playable_x, rules.playable_y)
                for k in range(count):
                    i = offset + k
                    if not units.alive[b, i]:
                        continue
                    if healer:
                        if (
                            units.type[b, i] == MEDIVAC
                            or units.health[b, i] == units.health_max[b, i]
                        ):
                            continue
                    elif units.type[b, a] == MARAUDER and units.type[b, i] == MEDIVAC:
                        continue
                    distance = hypot(units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a])
                    if distance < nearest:
                        nearest = distance
                        goal = k
            chosen[b, a] = goal
            if goal < 0:
                continue
            i = offset + goal
            action = rules.first_attack + goal
            if rest and avail[b, a, action] == 0:
                dx = units.x[b, i] - units.x[b, a]
                dy = units.y[b, i] - units.y[b, a]
                if abs(dx) > abs(dy):
                    action = EAST if dx > 0 else WEST
                else:
                    action = NORTH if dy > 0 else SOUTH
                order[b, a] = ORDER_MOVE
                target_x[b, a] = units.x[b, a] + rules.move_amount * DX[action]
                target_y[b, a] = units.y[b, a] + rules.move_amount * DY[action]
            else:
                order[b, a] = ORDER_HEAL if healer else ORDER_ATTACK
                target[b, a] = i
            executed[b, a] = action


@njit(cache=True, nogil=True)
def _score(
    first, end, mask, rules, units, continuing, points, counted_dead, max_reward, steps, outcome,
    won, dead_agents,
    dead_enemies, reward, terminated, truncated
):  # fmt: skip
    n_agents = rules.n_agents
    n_units = n_agents + rules.n_enemies
    for b in range(first, end):
        if not mask[b]:
            continue
        steps[b] += 1
        agents_left = enemies_left = fighters = enemy_medivacs = 0
        hurt = dealt = agent_deaths = enemy_deaths = 0.0
        for i in range(n_units):
            agent = i < n_agents
            fell = 0.0
            death = 0.0
            if units.alive[b, i]:
                now = units.health[b, i] + units.shield[b, i]
                fell = points[b, i] - now
                points[b, i] = now
                if agent:
                    agents_left += 1
                    fighters += units.type[b, i] != MEDIVAC
                else:
                    enemies_left += 1
                    enemy_medivacs += units.type[b, i] == MEDIVAC
            elif not counted_dead[b, i]:
                counted_dead[b, i] = True
                fell = points[b, i]
                death = rules.reward_death_value
            if agent:
                hurt += fell
                agent_deaths += death
            else:
                dealt += fell
                enemy_deaths += death

        value = 0.0
        if not rules.reward_sparse:
            value = dealt + enemy_deaths
            if rules.reward_only_positive:
                # SMAC takes the absolute value: what enemies regenerate is paid too
                value = max(value, 0.0) if rules.cuts_rewards else abs(value)
            else:
                value -= rules.reward_negative_scale * (hurt + agent_deaths)

        result = RUNNING
        if (agents_left == 0 and enemies_left > 0) or (rules.heals and fighters == 0):
            result = LOST
            value = -1.0 if rules.reward_sparse else value + rules.reward_defeat
        elif (agents_left > 0 and enemies_left == 0) or (
            rules.heals and enemies_left == 1 and enemy_medivacs == 1
        ):
            result = WON
            value = 1.0 if rules.reward_sparse else value + rules.reward_win
        elif agents_left == 0:
            result = DRAWN
        elif steps[b] >= rules.limit:
            result = TIMEOUT
        if rules.reward_scale:
            value /= max_reward[b] / rules.reward_scale_rate

        reward[b] = value
        outcome[b] = result
        won[b] = result == WON
        dead_agents[b] = n_agents - agents_left
        dead_enemies[b] = rules.n_enemies - enemies_left
        truncated[b] = continuing and result == TIMEOUT
        terminated[b] = result != RUNNING and not truncated[b]


@njit(cache=True, nogil=True)
def _observe(first, end, mask, rules, tables, units, views, steps, last_action, obs, state, avail):
    for b in range(first, end):
        if not mask[b]:
            continue
        if rules.prob_obs_enemy < 1.0:
            _find_enemies(b, rules, tables, units, views, steps[b])
        for a in range(rules.n_agents):
            _available(b, a, rules, tables, units, views, avail[b, a])
            _observe_agent(
                b, a, rules, tables, units, views, steps, last_action, avail[b, a], obs[b, a]
            )
        if rules.obs_instead_of_state:
            size = obs.shape[2]
            for a in range(rules.n_agents):
                for k in range(size):
                    state[b, a * size + k] = obs[b, a, k]
        else:
            _describe(b, rules, tables, units, views, steps, last_action, avail.shape[2], state[b])


@njit(inline="always")
def _in_cone(b, a, dx, dy, distance, views):
    """Whether agent a looks to where (dx, dy), `distance` away, is from it."""
    look = views.look[b, a]
    # what is at the very border is inside, whatever the rounding
    return dx * LOOK_X[look] + dy * LOOK_Y[look] >= CONE_COS * distance - 1e-9


@njit(inline="always")
def _in_reach(b, a, i, rules, tables, units, views):
    """Whether agent a may attack (heal) unit i: near enough and, with a cone of view, in the
    cone.
    """
    dx, dy = units.x[b, i] - units.x[b, a], units.y[b, i] - units.y[b, a]
    distance = sqrt(dx * dx + dy * dy)
    near = distance <= tables.shoot[units.type[b, a]]
    return near and (not rules.conic_fov or _in_cone(b, a, dx, dy, distance, views))


@njit(inline="always")
def _chance(draw, number):
    """Random number `number` of the stream `draw`, in [0, 1): SplitMix64 (Steele, Lea, Flood
    2014).
    """
    z = draw + np.uint64(number + 1) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)) * (1.0 / 9007199254740992.0)


@njit(inline="always")
def _find_enemies(b, rules, tables, units, views, step):
    """Who sees an enemy first; of several in one step, the first in an order that is drawn for the
    step.
    """
    n_agents = rules.n_agents
    for k in range(rules.n_enemies):
        if views.finder[b, k] >= 0 or not units.alive[b, n_agents + k]:
            continue
        best = 2.0
        for a in range(n_agents):
            if not units.alive[b, a]:
                continue
            dx, dy = (
                units.x[b, n_agents + k] - units.x[b, a],
                units.y[b, n_agents + k] - units.y[b, a],
            )
            distance = sqrt(dx * dx + dy * dy)
            if distance >= tables.sight[units.type[b, a]]:
                continue
            if rules.conic_fov and not _in_cone(b, a, dx, dy, distance, views):
                continue
            place = _chance(views.draw[b], (rules.n_enemies + step) * n_agents + a)
            if place < best:
                best = place
                views.finder[b, k] = a


@njit(inline="always")
def _may_see(b, a, k, rules, views):
    """Whether agent a is told of enemy k when that is in sight."""
    if rules.prob_obs_enemy >= 1.0 or views.finder[b, k] == a:
        return True
    return _chance(views.draw[b], k * rules.n_agents + a) < rules.prob_obs_enemy


@njit(inline="always")
def _available(b, a, rules, tables, units, views, row):
    """Fills one agent's mask, `row` [U]."""
    row[:] = 0
    if not units.alive[b, a]:
        row[NO_OP] = 1
        return
    row[STOP] = 1
    x, y = units.x[b, a], units.y[b, a]
    half = rules.move_amount / 2
    for action in range(NORTH, N_ACTIONS_NO_ATTACK):
        # towards zero, so that -0.5 is still in cell 0
        cell_x = int(x + half * DX[action])
        cell_y = int(y + half * DY[action])
        if (
            0 <= cell_x < rules.map_x
            and 0 <= cell_y < rules.map_y
            and tables.pathing[cell_x, cell_y]
        ):
            row[action] = 1
    for action in range(N_ACTIONS_NO_ATTACK, rules.first_attack):
        row[action] = 1
    healer = rules.heals and units.type[b, a] == MEDIVAC
    offset, count = (0, rules.n_agents) if healer else (rules.n_agents, rules.n_enemies)
    for k in range(count):
        i = offset + k
        if not units.alive[b, i] or (healer and units.type[b, i] == MEDIVAC):
            continue
        if not rules.action_mask or _in_reach(b, a, i, rules, tables, units, views):
            row[rules.first_attack + k] = 1


@njit(inline="always")
def _observe_agent(b, a, rules, tables, units, views, steps, last_action, avail, out):
    """Fills one agent's observation, `out` [O]."""
    out[:] = 0.0
    if rules.obs_timestep_number:
        # the own part has a place for it that stays zero; dead agents are told the time too
        out[-1] = steps[b] / rules.limit
    if not units.alive[b, a]:
        return
    n_agents, bits = rules.n_agents, rules.type_bits
    x, y = units.x[b, a], units.y[b, a]
    sight = tables.sight[units.type[b, a]]

    for k in range(N_MOVES):
        out[k] = avail[NORTH + k]
    at = N_MOVES
    if rules.obs_pathing_grid:
        for k in range(N_PATHING):
            out[at + k] = _look_up(tables.pathing, x, y, AROUND[k], rules)
        at += N_PATHING
    if rules.obs_terrain_height:
        for k in range(N_HEIGHT):
            out[at + k] = _look_up(tables.height, x, y, AROUND[k], rules)
        at += N_HEIGHT

    width = 4 + bits
    if rules.obs_all_health:
        width += 2 if rules.enemy_shields else 1
    for k in range(rules.n_enemies):
        i = n_agents + k
        dx, dy = units.x[b, i] - x, units.y[b, i] - y
        distance = sqrt(dx * dx + dy * dy)
        seen = units.alive[b, i] and distance < sight
        if rules.conic_fov:
            seen = seen and _in_cone(b, a, dx, dy, distance, views)
        if seen and _may_see(b, a, k, rules, views):
            out[at] = avail[rules.first_attack + k]
            out[at + 1] = distance / sight
            out[at + 2] = dx / sight
            out[at + 3] = dy / sight
            c = at + 4
            if rules.obs_all_health:
                out[c] = units.health[b, i] / units.health_max[b, i]
                c += 1
                if rules.enemy_shields:
                    out[c] = units.shield[b, i] / tables.enemy_shield[units.type[b, i]]
                    c += 1
            if bits > 0:
                out[c + tables.enemy_bit[units.type[b, i]]] = 1.0
        at += width

    n_actions = len(avail)
    width = 4 + bits
    if rules.obs_all_health:
        width += 2 if rules.agent_shields else 1
    if rules.obs_last_action:
        width += n_actions
    for i in range(n_agents):
        if i == a:
            continue
        dx, dy = units.x[b, i] - x, units.y[b, i] - y
        distance = sqrt(dx * dx + dy * dy)
        seen = units.alive[b, i] and distance < sight
        if rules.conic_fov:
            seen = seen and _in_cone(b, a, dx, dy, distance, views)
        if seen:
            out[at] = 1.0
            out[at + 1] = distance / sight
            out[at + 2] = dx / sight
            out[at + 3] = dy / sight
            c = at + 4
            if rules.obs_all_health:
                out[c] = units.health[b, i] / units.health_max[b, i]
                c += 1
                if rules.agent_shields:
                    out[c] = units.shield[b, i] / tables.agent_shield[units.type[b, i]]
                    c += 1
            if bits > 0:
                out[c + tables.agent_bit[units.type[b, i]]] = 1.0
                c += bits
            if rules.obs_last_action and last_action[b, i] >= 0:
                out[c + last_action[b, i]] = 1.0
        at += width

    if rules.obs_own_health:
        out[at] = units.health[b, a] / units.health_max[b, a]
        at += 1
        if rules.agent_shields:
            out[at] = units.shield[b, a] / tables.agent_shield[units.type[b, a]]
            at += 1
    if rules.obs_own_pos:
        out[at] = x / rules.map_x
        out[at + 1] = y / rules.map_y
        at += 2
    if rules.conic_fov:
        out[at] = LOOK_X[views.look[b, a]]
        out[at + 1] = LOOK_Y[views.look[b, a]]
        at += 2
    if bits > 0:
        out[at + tables.agent_bit[units.type[b, a]]] = 1.0


@njit(inline="always")
def _look_up(grid, x, y, offset, rules):
    """The grid's value at `offset` ([2], move amounts) from the cell of (x, y); 1 outside of the
    map.
    """
    cell_x = int(int(x) + rules.move_amount * offset[0])
    cell_y = int(int(y) + rules.move_amount * offset[1])
    if 0 <= cell_x < rules.map_x and 0 <= cell_y < rules.map_y:
        return 1.0 * grid[cell_x, cell_y]
    return 1.0


@njit(inline="always")
def _describe(b, rules, tables, units, views, steps, last_action, n_actions, out):
    """Fills one battle's state, `out` [S]."""
    out[:] = 0.0
    n_agents, bits = rules.n_agents, rules.type_bits
    centre_x, centre_y = rules.map_x / 2, rules.map_y / 2
    at = 0
    for i in range(n_agents + rules.n_enemies):
        agent = i < n_agents
        shields = rules.agent_shields if agent else rules.enemy_shields
        width = (
            (4 if agent else 3)
            + (1 if shields else 0)
            + (2 if agent and rules.conic_fov else 0)
            + bits
        )
        if units.alive[b, i]:
            kind = units.type[b, i]
            out[at] = units.health[b, i] / units.health_max[b, i]
            c = at + 1
            if agent:
                medivac = rules.heals and kind == MEDIVAC
                out[c] = (
                    units.energy[b, i] if medivac else units.cooldown[b, i]
                ) / tables.max_cooldown[kind]
                c += 1
            out[c] = (units.x[b, i] - centre_x) / rules.playable_x
            out[c + 1] = (units.y[b, i] - centre_y) / rules.playable_y
            c += 2
            if shields:
                divisor = tables.agent_shield[kind] if agent else tables.enemy_shield[kind]
                out[c] = units.shield[b, i] / divisor
                c += 1
            if agent and rules.conic_fov:
                out[c] = LOOK_X[views.look[b, i]]
                out[c + 1] = LOOK_Y[views.look[b, i]]
                c += 2
            if bits > 0:
                out[c + (tables.agent_bit[kind] if agent else tables.enemy_bit[kind])] = 1.0
        at += width
    if rules.state_last_action:
        for a in range(n_agents):
            if last_action[b, a] >= 0:
                out[at + last_action[b, a]] = 1.0
            at += n_actions
    if rules.state_timestep_number:
        out[at] = steps[b] / rules.limit

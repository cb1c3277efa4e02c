"""StarCraft II itself behind PyMARL's interface: one game, one battle at a time."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from envs.multiagentenv import Actions, ArrayEnv
from envs.starcraft.battle import ORDER_ATTACK, ORDER_HEAL, ORDER_MOVE, ORDER_STOP, Battle
from envs.starcraft.facts import UNIT_INDEX, UNIT_NAMES, map_info, unit_type
from envs.starcraft.game.grids import pathing_grid, terrain_height
from envs.starcraft.interface import RUNNING, TIMEOUT, Interface
from envs.starcraft.options import SC2Options, ranges_of, takes
from envs.starcraft.replay import Recorder
from utils.errors import ConfigError, EnvFailure, MissingPackage
from utils.seeding import derive_seed

# So many times in a row a game may be refused, or lost before its first step.
ATTEMPTS = 5
# s before the next launch after one loss; doubles with each further one.
BACKOFF = 1.0
BACKOFF_MAX = 60.0
# Loops within which the map's script must have created all units.
CREATION_LOOPS = 200

_GAME_TYPES = {unit_type(name).game_id: UNIT_INDEX[name] for name in UNIT_NAMES}

_log = logging.getLogger(__name__)


def load_client() -> ModuleType:
    """The module that talks to the game.

    Raises:
        MissingPackage: pysc2 or what it needs is not installed, or cannot be imported.
    """
    try:
        from envs.starcraft.game import client
    except Exception as error:  # a protobuf that does not fit raises TypeError, for one
        what = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise MissingPackage(
            f"pysc2 cannot be used ({what}): pip install -r requirements-sc2.txt and bash "
            "install_sc2.sh install "
            "the real game, --env-config=sc2sim needs neither"
        ) from error
    return client


class StarCraft2Env(ArrayEnv):
    """SMAC's environment on the real game (Samvelyan et al. 2019); interface and options as in the
    simulator.

    The game is launched at the first reset. Between episodes its units are killed and created anew
    by the map's script. A game that crashes, hangs, hangs up or ends is closed: the step says
    `env_error` in info and its episode is void, the next reset launches another one, after a pause
    that doubles with every loss in a row.

    Launch it from a thread that stays: the kernel ends the game with the thread that launched it.

    Args:
        seed: of the first game; one that replaces it gets a seed derived from it.
        options: see `options.SC2Options`. Replays go to `replay_dir`, absolute or relative to the
            game's own folder of replays.

    Raises:
        ConfigError: an unknown map, a value out of range.
        MissingPackage, UserError: pysc2, the game or the map is not there.
    """

    ranges = ranges_of(SC2Options)

    @takes(SC2Options)
    def __init__(self, seed: int, **options: Any) -> None:
        self._options = given = SC2Options(**options)
        info = map_info(given.map_name)
        self._client = load_client()
        if str(given.difficulty) not in self._client.DIFFICULTIES:
            known = ", ".join(self._client.DIFFICULTIES)
            raise ConfigError(f"sc2: difficulty is {given.difficulty!r}, must be one of {known}")
        self._installation = self._client.find_game(given.map_name, given.game_version)
        if given.debug:
            self._client.log_actions()
        self.map_info = info
        self.n_agents, self.n_enemies = info.n_agents, info.n_enemies
        self.episode_limit = info.limit
        self.battle = Battle.of_map(info, 1)
        self._rules = Interface(info, self.battle, given)
        self.n_actions = self._rules.n_actions
        self._seed = seed

        self._obs = np.zeros((1, self.n_agents, self._rules.obs_size), dtype=np.float32)
        self._state = np.zeros((1, self._rules.state_size), dtype=np.float32)
        self._avail = np.zeros((1, self.n_agents, self.n_actions), dtype=np.uint8)
        self._reward = np.zeros(1, dtype=np.float32)
        self._terminated, self._truncated = np.zeros(1, dtype=np.bool_), np.zeros(1, dtype=np.bool_)
        self._only = np.ones(1, dtype=np.bool_)
        self._targets = np.full((1, self.battle.n_units), -1, dtype=np.int64)
        self._recorder = Recorder(info, self.battle)  # for pictures; replays are the game's own
        self._tags: list[int] = []  # of the units, in the battle's order
        self._game: Any = None
        self._running = False
        self._launches = 0
        self._losses = 0  # games lost in a row, without a complete episode between them
        self._restarts = 0
        self._battles_game = self._battles_won = self._timeouts = 0

    # -- episodes ----------------------------------------------------------------------------------
    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Starts an episode.

        Returns:
            The observations, A arrays of [O], and the state [S].

        Raises:
            EnvFailure: no game could be had.
            UserError: the game refuses the map.
        """
        self._running = False
        for _ in range(ATTEMPTS):
            try:
                if self._game is None:
                    self._launch()
                else:
                    self._game.kill_all()
                self._wait_for_units()
                break
            except self._client.GameBroken as error:
                trouble = error
                self._lose(error)
        else:
            raise EnvFailure(
                f"StarCraft II failed {ATTEMPTS} times in a row on {self.map_info.name}: {trouble}"
            )
        self._rules.begin(self._only)
        self._reward[0] = 0.0
        self._recorder.begin(self._only)
        self._observe()
        self._running = True
        return self.get_obs(), self.get_state()

    def step(self, actions: Actions) -> tuple[float, bool, dict[str, Any]]:
        """Takes one action per agent; see `MultiAgentEnv.step`.

        With `heuristic_ai` the list of actions is overwritten with what the agents did instead, as
        in SMAC.

        Raises:
            ValueError: an action that is not available, or no running episode.
        """
        if not self._running:
            raise ValueError("no running episode: reset the environment before the next step")
        chosen = np.asarray(actions).astype(np.int64).reshape(1, -1)
        self._check(chosen)
        rules = self._rules
        rules.give_orders(chosen, self._only, self._avail)
        if self._options.heuristic_ai and not isinstance(actions, tuple):
            given: Any = actions
            for agent, action in enumerate(rules.executed[0].tolist()):
                given[agent] = action
        try:
            self._game.act(self._orders())
            self._game.step(self._options.step_mul)
            units = self._game.observe()
        except self._client.GameBroken as error:
            self._running = False
            self._lose(error)
            return 0.0, True, {"env_error": True}
        self._read(units)
        rules.score(self._only, self._reward, self._terminated, self._truncated)
        self._observe()
        info: dict[str, Any] = {
            "battle_won": bool(rules.won[0]),
            "dead_allies": int(rules.dead_agents[0]),
            "dead_enemies": int(rules.dead_enemies[0]),
        }
        if rules.outcome[0] != RUNNING:
            self._running = False
            self._losses = 0
            self._battles_game += 1
            self._battles_won += bool(rules.won[0])
            self._timeouts += bool(rules.outcome[0] == TIMEOUT)
        if self._truncated[0]:
            info["episode_limit"] = True
        return float(self._reward[0]), not self._running, info

    def _check(self, actions: np.ndarray) -> None:
        if actions.shape != (1, self.n_agents):
            raise ValueError(f"{actions.size} actions for {self.n_agents} agents")
        for agent, action in enumerate(actions[0].tolist()):
            if not 0 <= action < self.n_actions or not self._avail[0, agent, action]:
                available = np.flatnonzero(self._avail[0, agent]).tolist()
                raise ValueError(
                    f"agent {agent}: action {action} is not available, only {available}"
                )

    # -- the game ----------------------------------------------------------------------------------
    def _launch(self) -> None:
        if self._losses:
            time.sleep(min(BACKOFF_MAX, BACKOFF * 2 ** (self._losses - 1)))
        info, options = self.map_info, self._options
        seed = derive_seed(self._seed, "game", self._launches) if self._launches else self._seed
        self._game = self._client.Game(
            self._installation,
            (info.agent_race, info.enemy_race),
            str(options.difficulty),
            seed,
            float(options.game_timeout),
            float(options.start_interval),
        )
        # One that does not come up (its port may be taken) has used nothing of its seed.
        self._launches += 1
        start = self._game.start
        low, high = start.playable_area.p0, start.playable_area.p1
        told = replace(
            info,
            pathing=pathing_grid(start),
            height=terrain_height(start),
            map_size=(start.map_size.x, start.map_size.y),
            playable_size=(high.x - low.x, high.y - low.y),
        )
        rules = Interface(told, self.battle, self._options)
        rules.max_reward[:] = self._rules.max_reward
        self._rules.close()
        self._rules = rules

    def _lose(self, error: Exception) -> None:
        """The game is of no more use (or there never was one)."""
        self._losses += 1
        self._restarts += self._game is not None
        words = "" if self._game is None else self._game.last_words()
        _log.warning(
            "StarCraft II (%s), loss %d in a row: %s %s",
            self.map_info.name,
            self._losses,
            error,
            words,
        )
        self._close_game()

    def _close_game(self) -> None:
        game, self._game = self._game, None
        if game is not None:
            game.close()

    def _wait_for_units(self) -> None:
        """Steps until the map's script has created all units, and takes note of who is who."""
        client, info = self._client, self.map_info
        for _ in range(CREATION_LOOPS):
            units = self._game.observe()
            agents = [unit for unit in units if unit.owner == client.AGENTS]
            enemies = [unit for unit in units if unit.owner == client.ENEMIES]
            if (len(agents), len(enemies)) == (info.n_agents, info.n_enemies):
                break
            self._game.step(1)
        else:
            raise client.GameBroken(
                f"map {info.name} has {len(agents)} and {len(enemies)} units after "
                f"{CREATION_LOOPS} loops, "
                f"not {info.n_agents} and {info.n_enemies}"
            )
        agents.sort(key=lambda unit: (unit.unit_type, unit.pos.x, unit.pos.y))
        units = [*agents, *enemies]
        self._tags = [unit.tag for unit in units]
        types = [
            *self._agent_types(agents),
            *(self._enemy_type(unit.unit_type) for unit in enemies),
        ]
        self.battle.type[0] = types
        for name in ("health_max", "shield_max", "energy_max"):
            getattr(self.battle, name)[0] = [getattr(unit, name) for unit in units]
        self._read(units)

    def _agent_types(self, agents: list[Any]) -> list[int]:
        """The agents have types of the map's own, numbered in alphabetical order."""
        names = dict(
            zip(
                sorted({unit.unit_type for unit in agents}),
                sorted(set(self.map_info.agents)),
                strict=False,
            )
        )
        found = tuple(names.get(unit.unit_type) for unit in agents)
        if found != self.map_info.agents:
            raise EnvFailure(
                f"map {self.map_info.name} has agents of other types than SMAC's: {list(found)}"
            )
        return [UNIT_INDEX[name] for name in found]

    def _enemy_type(self, number: int) -> int:
        if number not in _GAME_TYPES:
            raise EnvFailure(
                f"map {self.map_info.name} has enemies of unit type {number}, which SMAC's maps do "
                "not have"
            )
        return _GAME_TYPES[number]

    def _read(self, units: list[Any]) -> None:
        """Fills the battle; who is missing is dead."""
        battle = self.battle
        present = {unit.tag: unit for unit in units}
        index = {tag: i for i, tag in enumerate(self._tags)}
        for i, tag in enumerate(self._tags):
            unit = present.get(tag)
            battle.alive[0, i] = unit is not None
            if unit is None:
                battle.health[0, i] = 0.0
                self._targets[0, i] = -1
                continue
            battle.x[0, i], battle.y[0, i] = unit.pos.x, unit.pos.y
            battle.health[0, i], battle.shield[0, i] = unit.health, unit.shield
            battle.energy[0, i], battle.cooldown[0, i] = unit.energy, unit.weapon_cooldown
            self._targets[0, i] = index.get(unit.engaged_target_tag, -1)

    def _orders(self) -> list[Any]:
        """What the agents are told in this step."""
        rules, client = self._rules, self._client
        orders = []
        for agent, (order, tag) in enumerate(
            zip(rules.order[0].tolist(), self._tags, strict=False)
        ):
            if order == ORDER_STOP:
                orders.append(client.Order(client.STOP, tag))
            elif order == ORDER_MOVE:
                point = (float(rules.target_x[0, agent]), float(rules.target_y[0, agent]))
                orders.append(client.Order(client.MOVE, tag, point=point))
            elif order in (ORDER_ATTACK, ORDER_HEAL):
                ability = client.ATTACK if order == ORDER_ATTACK else client.HEAL
                orders.append(client.Order(ability, tag, target=self._tags[rules.target[0, agent]]))
        return orders

    def _observe(self) -> None:
        self._rules.observe(self._only, self._obs, self._state, self._avail)
        self._recorder.add(self._only, self._targets, self._rules.executed, self._reward)

    # -- PyMARL's interface ------------------------------------------------------------------------
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._obs[0], self._state[0], self._avail[0]

    def get_env_info(self) -> dict[str, Any]:
        return {**super().get_env_info(), **self._rules.env_info()}

    def get_visibility_matrix(self) -> np.ndarray:
        """Whom each agent sees, bool [A, A + E]; nobody sees itself."""
        return self._rules.visibility()[0]

    def get_unit_types(self) -> list[int]:
        """The agents' types, numbered from 0 in alphabetical order."""
        names = sorted(set(self.map_info.agents))
        return [names.index(name) for name in self.map_info.agents]

    def get_stats(self) -> dict[str, float]:
        """SMAC's figures; battles_draw counts timeouts, as there, restarts the games that were
        lost.
        """
        return {
            "battles_won": self._battles_won,
            "battles_game": self._battles_game,
            "battles_draw": self._timeouts,
            "win_rate": self._battles_won / max(1, self._battles_game),
            "timeouts": self._timeouts,
            "restarts": self._restarts,
        }

    @property
    def game_pid(self) -> int | None:
        """Process id of the running game."""
        return None if self._game is None else self._game.pid

    def render(self) -> np.ndarray:
        """The picture of the battle, see `render.Painter`.

        Raises:
            ValueError: no episode has begun.
        """
        return self._recorder.picture(0, int(self._rules.outcome[0]))

    def seed(self, seed: int) -> None:
        """Sets the seed; a running game cannot be seeded, so the next reset launches another
        one.
        """
        self._seed, self._launches, self._running = seed, 0, False
        self._close_game()

    def save_replay(self) -> None:
        """Writes a replay of everything since the game was launched.

        Raises:
            ValueError: no game is running.
        """
        if self._game is None:
            raise ValueError("no game is running: there is nothing to save")
        # The time in the name, to the second, would not keep the games of several workers apart.
        prefix = self._options.replay_prefix or self._options.map_name
        path = self._game.save_replay(self._options.replay_dir, f"{prefix}_{self._seed}")
        _log.info("replay saved to %s", path)

    def close(self) -> None:
        self._running = False
        self._close_game()
        self._rules.close()

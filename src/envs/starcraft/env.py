"""StarCraft battles in the simulator: SMAC's interface over `sim.engine.Engine`, B battles at
once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.starcraft.battle import Battle
from envs.starcraft.facts import MapInfo, map_info
from envs.starcraft.interface import RUNNING, TIMEOUT, Interface
from envs.starcraft.opponents import MIXTURE, Opponents
from envs.starcraft.options import SCRIPTS, SimulatorOptions, ranges_of, takes
from envs.starcraft.replay import Recorder
from envs.starcraft.words import words
from envs.vector_env import EnvSpec, VectorEnv
from envs.words import Words


def _simulator(*args: Any, **kwargs: Any) -> Any:
    from envs.starcraft.sim.engine import Engine

    return Engine(*args, **kwargs)


class Simulation(VectorEnv):
    """B simulated battles with SMAC's observations, state, actions and rewards; what all
    environments on them share.

    `info`: battle_won (1.0 only in the step that wins), dead_allies, dead_enemies; where opponents
    are mixed, opponent (position in `opponents.SCRIPTS`).

    Args:
        n_envs: B.
        seed: battle b's course depends on it, on b and on the actions only.
        info: the map.
        options: see `options.SimulatorOptions`.
        base: see `opponents.Opponents`.
        engine: for `make_engine`, besides.
        sight, shoot: see `Interface`.

    Raises:
        ConfigError: opponents that do not exist.
    """

    make_engine: Callable[..., Any] = staticmethod(_simulator)

    def __init__(
        self,
        n_envs: int,
        seed: int | None,
        info: MapInfo,
        options: SimulatorOptions,
        base: str,
        engine: Mapping[str, Any] | None = None,
        sight: np.ndarray | None = None,
        shoot: np.ndarray | None = None,
    ) -> None:
        self.map_info = info
        self.step_mul, threads = options.step_mul, options.threads
        self.engine = self.make_engine(info, n_envs, threads=threads, **(engine or {}))
        self.interface = Interface(
            info, self.battle, options, sight=sight, shoot=shoot, threads=threads
        )
        self.opponents = Opponents(
            info,
            self.battle,
            base,
            options.opponents,
            options.opponent_weights,
            threads=threads,
            heals=options.opponent_heals,
        )
        spec = EnvSpec(
            n_agents=info.n_agents,
            n_actions=self.interface.n_actions,
            obs_size=self.interface.obs_size,
            state_size=self.interface.state_size,
            episode_limit=info.limit,
            extra=self.interface.env_info(),
        )
        self._mixed = options.opponents == MIXTURE
        keys = (
            "battle_won",
            "dead_allies",
            "dead_enemies",
            *(("opponent",) if self._mixed else ()),
        )
        super().__init__(n_envs, spec, seed, info_keys=keys)
        # by script
        self._battles_won = np.zeros((len(SCRIPTS), n_envs), dtype=np.int64)
        self._battles_game = np.zeros((len(SCRIPTS), n_envs), dtype=np.int64)
        self._timeouts = np.zeros(n_envs, dtype=np.int64)
        self._replay_dir = Path(options.replay_dir)
        self._replay_prefix = options.replay_prefix or info.name
        self._replay_film = options.replay_film
        self._recorder = Recorder(info, self.battle)

    @property
    def battle(self) -> Battle:
        """The units."""
        return self.engine.battle

    def _reset(self, mask: np.ndarray) -> None:
        self.engine.reset(mask, self.rngs)
        self.opponents.begin(mask, self.rngs)
        unled = mask & self.opponents.unled
        if unled.any():
            self.engine.stop_enemies(unled)
        self.interface.begin(mask, self.rngs)
        self.interface.observe(mask, self.obs, self.state, self.avail_actions)
        for values in self.info.values():
            values[mask] = 0.0
        self._tell_opponents(mask)
        self._recorder.begin(mask)
        self._record(mask)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        rules = self.interface
        rules.give_orders(actions, mask, self.avail_actions)
        given: Interface | Opponents = rules
        if self.opponents.commands:
            self.opponents.command(mask, rules.order, rules.target, rules.target_x, rules.target_y)
            given = self.opponents
        self.engine.step(
            given.order, given.target, given.target_x, given.target_y, mask, loops=self.step_mul
        )
        rules.score(mask, self.reward, self.terminated, self.truncated)
        rules.observe(mask, self.obs, self.state, self.avail_actions)
        for key, values in (
            ("battle_won", rules.won),
            ("dead_allies", rules.dead_agents),
            ("dead_enemies", rules.dead_enemies),
        ):
            np.copyto(self.info[key], values, where=mask)
        ended = mask & (rules.outcome != RUNNING)
        self._tell_opponents(mask)
        if ended.any():
            rows = np.flatnonzero(ended)
            self._battles_game[self.opponents.script[rows], rows] += 1
            self._battles_won[self.opponents.script[rows], rows] += rules.won[rows]
            self._timeouts += ended & (rules.outcome == TIMEOUT)
        self._record(mask)

    def _tell_opponents(self, mask: np.ndarray) -> None:
        if self._mixed:
            np.copyto(self.info["opponent"], self.opponents.script, where=mask)

    def seed(self, seed: int) -> None:
        """Restarts all random streams; what scales the rewards is found anew in the next
        episode.
        """
        super().seed(seed)
        self.interface.max_reward[:] = np.nan

    def get_rng_state(self) -> dict[str, Any] | None:
        """All random states between episodes, and what scales the rewards: with random teams the
        first one decides.
        """
        return {**(super().get_rng_state() or {}), "max_reward": self.interface.max_reward.tolist()}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_rng_state`.

        Raises:
            ValueError: the state is of another number of environments.
        """
        super().set_rng_state(state)
        self.interface.max_reward[:] = state["max_reward"]

    def _record(self, mask: np.ndarray) -> None:
        self.engine.find_targets(mask)
        self._recorder.add(mask, self.engine.targets, self.interface.executed, self.reward)

    def words(self) -> Words:
        """Names of units, actions and what an agent sees."""
        return words(self.map_info, self.interface.options)

    def render(self, index: int = 0) -> np.ndarray:
        """The picture of battle `index`, see `render.Painter`.

        Raises:
            ValueError: it has not begun an episode.
        """
        return self._recorder.picture(index, int(self.interface.outcome[index]))

    def save_replay(self, index: int = 0) -> None:
        """Writes the running or last episode of battle `index` to `replay_dir`: a film and its
        figures, see `replay.Recorder.save`.

        Raises:
            ValueError: it has not begun an episode.
        """
        self._recorder.save(
            index,
            self._replay_dir,
            self._replay_prefix,
            int(self.interface.outcome[index]),
            self._replay_film,
        )

    def get_stats(self) -> dict[str, list[float]]:
        """SMAC's figures over all episodes so far; battles_draw counts timeouts, as there.

        Where opponents are mixed, also battles_won_SCRIPT and battles_game_SCRIPT.
        """
        won, games = self._battles_won.sum(axis=0), self._battles_game.sum(axis=0)
        by_script = {}
        for name in self.opponents.names if self._mixed else ():
            script = SCRIPTS.index(name)
            by_script[f"battles_won_{name}"] = self._battles_won[script].tolist()
            by_script[f"battles_game_{name}"] = self._battles_game[script].tolist()
        return {
            "battles_won": won.tolist(),
            "battles_game": games.tolist(),
            "battles_draw": self._timeouts.tolist(),
            "win_rate": (won / np.maximum(games, 1)).tolist(),
            "timeouts": self._timeouts.tolist(),
            "restarts": [0] * self.n_envs,
            **by_script,
        }

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self.interface.close()
        self.opponents.close()
        self.engine.close()


class SC2Sim(Simulation):
    """B simulated battles of one of SMAC's maps.

    Args:
        n_envs: B.
        seed: battle b's course depends on it, on b and on the actions only.
        options: see `options.SimulatorOptions`.

    Raises:
        ConfigError: an unknown map, a value out of range.
    """

    ranges = ranges_of(SimulatorOptions)

    @takes(SimulatorOptions)
    def __init__(self, n_envs: int, seed: int | None = None, **options: Any) -> None:
        given = SimulatorOptions(**options)
        super().__init__(n_envs, seed, map_info(given.map_name), given, base="attack_move")

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
from envs.starcraft.interface import RUNNING, TIMEOUT, Interface, Options
from envs.starcraft.opponents import MIXTURE, SCRIPTS, Opponents
from envs.starcraft.replay import Recorder
from envs.vector_env import EnvSpec, VectorEnv
from utils.errors import ConfigError

DIFFICULTY = "7"


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
        options: of the interface.
        engine: for `make_engine`, besides.
        sight, shoot: see `Interface`.
        base, opponents, opponent_weights: see `opponents.Opponents`.
        step_mul: game loops per step.
        replay_dir: where `save_replay` writes.
        replay_prefix: of the file names; "": the map's name.
        threads: over battles.

    Raises:
        ConfigError: a value out of range.
    """

    make_engine: Callable[..., Any] = staticmethod(_simulator)

    def __init__(
        self,
        n_envs: int,
        seed: int | None,
        info: MapInfo,
        options: Options,
        base: str,
        opponents: str,
        opponent_weights: Mapping[str, float] | None,
        step_mul: int,
        replay_dir: str,
        replay_prefix: str,
        threads: int,
        engine: Mapping[str, Any] | None = None,
        sight: np.ndarray | None = None,
        shoot: np.ndarray | None = None,
    ) -> None:
        for name, value in (("step_mul", step_mul), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(
                    f"StarCraft: {name} is {value!r}, must be a whole number of at least 1"
                )
        self.map_info = info
        self.step_mul = step_mul
        self.engine = self.make_engine(info, n_envs, threads=threads, **(engine or {}))
        self.interface = Interface(
            info, self.battle, options, sight=sight, shoot=shoot, threads=threads
        )
        self.opponents = Opponents(
            info, self.battle, base, opponents, opponent_weights, threads=threads
        )
        spec = EnvSpec(
            n_agents=info.n_agents,
            n_actions=self.interface.n_actions,
            obs_size=self.interface.obs_size,
            state_size=self.interface.state_size,
            episode_limit=info.limit,
            extra=self.interface.env_info(),
        )
        self._mixed = opponents == MIXTURE
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
        self._replay_dir, self._replay_prefix = Path(replay_dir), replay_prefix or info.name
        self._recorder = Recorder(info, self.battle)

    @property
    def battle(self) -> Battle:
        """The units."""
        return self.engine.battle

    def _reset(self, mask: np.ndarray) -> None:
        self.engine.reset(mask, self.rngs)
        self.opponents.begin(mask, self.rngs)
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
        given = rules
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
        return {**super().get_rng_state(), "max_reward": self.interface.max_reward.tolist()}

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
            index, self._replay_dir, self._replay_prefix, int(self.interface.outcome[index])
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
        map_name: one of `facts.map_names()`.
        difficulty: of the enemies; the simulator plays SMAC's default "7" only.
        opponents, opponent_weights: who plays the enemies, see `opponents.Opponents`. the others:
            see `Simulation`, `interface.Options` and config/envs/sc2sim.yaml.

    Raises:
        ConfigError: an unknown map, a value out of range.
    """

    def __init__(
        self,
        n_envs: int,
        seed: int | None = None,
        map_name: str = "3m",
        difficulty: str = DIFFICULTY,
        step_mul: int = 8,
        move_amount: float = 2.0,
        continuing_episode: bool = False,
        obs_all_health: bool = True,
        obs_own_health: bool = True,
        obs_last_action: bool = False,
        obs_pathing_grid: bool = False,
        obs_terrain_height: bool = False,
        obs_timestep_number: bool = False,
        obs_instead_of_state: bool = False,
        state_last_action: bool = True,
        state_timestep_number: bool = False,
        reward_sparse: bool = False,
        reward_only_positive: bool = True,
        reward_death_value: float = 10.0,
        reward_win: float = 200.0,
        reward_defeat: float = 0.0,
        reward_negative_scale: float = 0.5,
        reward_scale: bool = True,
        reward_scale_rate: float = 20.0,
        heuristic_ai: bool = False,
        heuristic_rest: bool = False,
        opponents: str = "attack_move",
        opponent_weights: dict[str, float] | None = None,
        replay_dir: str = "results/replays",
        replay_prefix: str = "",
        threads: int = 1,
    ) -> None:
        check_difficulty("sc2sim", difficulty)
        options = Options(
            continuing_episode=continuing_episode,
            heuristic_ai=heuristic_ai,
            heuristic_rest=heuristic_rest,
            move_amount=move_amount,
            obs_all_health=obs_all_health,
            obs_instead_of_state=obs_instead_of_state,
            obs_last_action=obs_last_action,
            obs_own_health=obs_own_health,
            obs_pathing_grid=obs_pathing_grid,
            obs_terrain_height=obs_terrain_height,
            obs_timestep_number=obs_timestep_number,
            reward_death_value=reward_death_value,
            reward_defeat=reward_defeat,
            reward_negative_scale=reward_negative_scale,
            reward_only_positive=reward_only_positive,
            reward_scale=reward_scale,
            reward_scale_rate=reward_scale_rate,
            reward_sparse=reward_sparse,
            reward_win=reward_win,
            state_last_action=state_last_action,
            state_timestep_number=state_timestep_number,
        )
        super().__init__(
            n_envs,
            seed,
            map_info(map_name),
            options,
            base="attack_move",
            opponents=opponents,
            opponent_weights=opponent_weights,
            step_mul=step_mul,
            replay_dir=replay_dir,
            replay_prefix=replay_prefix,
            threads=threads,
        )


def check_difficulty(name: str, difficulty: str) -> None:
    """Raises `ConfigError` for a difficulty that the simulator does not have."""
    if str(difficulty) != DIFFICULTY:
        raise ConfigError(
            f'{name}: difficulty is {difficulty!r}, the simulator has only "7" (SMAC\'s default)'
        )

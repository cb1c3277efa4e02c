"""StarCraft battles in the simulator: SMAC's interface over `sim.engine.Engine`, B battles at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from envs.starcraft.battle import Battle
from envs.starcraft.facts import map_info
from envs.starcraft.interface import RUNNING, TIMEOUT, Interface, Options
from envs.vector_env import EnvSpec, VectorEnv
from utils.errors import ConfigError

DIFFICULTY = "7"
RECORDED = ("type", "alive", "x", "y", "health", "shield", "energy", "cooldown", "health_max", "shield_max")


def _simulator(*args: Any, **kwargs: Any) -> Any:
    from envs.starcraft.sim.engine import Engine

    return Engine(*args, **kwargs)


class SC2Sim(VectorEnv):
    """B simulated battles of one map with SMAC's observations, state, actions and rewards.

    Args:
        n_envs: B.
        seed: battle b's course depends on it, on b and on the actions only.
        map_name: one of `facts.map_names()`.
        difficulty: of the enemies; the simulator plays SMAC's default "7" only.
        step_mul: game loops per step.
        replay_dir: where `save_replay` writes; "": battles are not recorded.
        replay_prefix: of the file names; "": the map's name.
        threads: over battles.
        the others: see `interface.Options` and config/envs/sc2sim.yaml.

    `info`: battle_won (1.0 only in the step that wins), dead_allies, dead_enemies.

    Raises:
        ConfigError: an unknown map, a value out of range.
    """

    make_engine: Callable[..., Any] = staticmethod(_simulator)

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
        replay_dir: str = "",
        replay_prefix: str = "",
        threads: int = 1,
    ) -> None:
        if str(difficulty) != DIFFICULTY:
            raise ConfigError(f'sc2sim: difficulty is {difficulty!r}, the simulator has only "7" (SMAC\'s default)')
        for name, value in (("step_mul", step_mul), ("threads", threads)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"sc2sim: {name} is {value!r}, must be a whole number of at least 1")
        info = map_info(map_name)
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
        self.map_info = info
        self.step_mul = step_mul
        self.engine = self.make_engine(info, n_envs, threads=threads)
        self.interface = Interface(info, self.battle, options, threads=threads)
        spec = EnvSpec(
            n_agents=info.n_agents,
            n_actions=self.interface.n_actions,
            obs_size=self.interface.obs_size,
            state_size=self.interface.state_size,
            episode_limit=info.limit,
            extra=self.interface.env_info(),
        )
        super().__init__(n_envs, spec, seed, info_keys=("battle_won", "dead_allies", "dead_enemies"))
        self._battles_won = np.zeros(n_envs, dtype=np.int64)
        self._battles_game = np.zeros(n_envs, dtype=np.int64)
        self._timeouts = np.zeros(n_envs, dtype=np.int64)
        self._replay_dir = Path(replay_dir) if replay_dir else None
        self._replay_prefix = replay_prefix or info.name
        self._records: list[list[dict[str, np.ndarray]]] = [[] for _ in range(n_envs)]

    @property
    def battle(self) -> Battle:
        """The units."""
        return self.engine.battle

    def _reset(self, mask: np.ndarray) -> None:
        self.engine.reset(mask, self.rngs)
        self.interface.begin(mask)
        self.interface.observe(mask, self.obs, self.state, self.avail_actions)
        for values in self.info.values():
            values[mask] = 0.0
        if self._replay_dir is not None:
            for b in np.flatnonzero(mask):
                self._records[b] = []
            self._record(mask)

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        rules = self.interface
        rules.give_orders(actions, mask, self.avail_actions)
        self.engine.step(rules.order, rules.target, rules.target_x, rules.target_y, mask, loops=self.step_mul)
        rules.score(mask, self.reward, self.terminated, self.truncated)
        rules.observe(mask, self.obs, self.state, self.avail_actions)
        for key, values in (
            ("battle_won", rules.won),
            ("dead_allies", rules.dead_agents),
            ("dead_enemies", rules.dead_enemies),
        ):
            np.copyto(self.info[key], values, where=mask)
        ended = mask & (rules.outcome != RUNNING)
        self._battles_game += ended
        self._battles_won += ended & rules.won
        self._timeouts += ended & (rules.outcome == TIMEOUT)
        if self._replay_dir is not None:
            self._record(mask)

    def _record(self, mask: np.ndarray) -> None:
        for b in np.flatnonzero(mask):
            frame = {name: getattr(self.battle, name)[b].copy() for name in RECORDED}
            self._records[b].append({**frame, "actions": self.interface.executed[b].copy()})

    def save_replay(self, index: int = 0) -> None:
        """Writes the last episode of battle `index` to `replay_dir`, as PREFIX_NUMBER.npz.

        Arrays [frames, N] of a `Battle`'s fields, and "actions" [frames, A], those that led to the frame.

        Raises:
            ConfigError: no replay_dir was given, so nothing is recorded.
        """
        if self._replay_dir is None:
            raise ConfigError("sc2sim: nothing is recorded; set env_args.replay_dir to a folder to save replays")
        if not self._records[index]:
            raise ValueError(f"environment {index} has not begun an episode: there is nothing to save")
        self._replay_dir.mkdir(parents=True, exist_ok=True)
        frames = {key: np.stack([one[key] for one in self._records[index]]) for key in self._records[index][0]}
        number = 0
        while (path := self._replay_dir / f"{self._replay_prefix}_{number:04d}.npz").exists():
            number += 1
        np.savez_compressed(path, map_name=self.map_info.name, n_agents=self.n_agents, **frames)

    def get_stats(self) -> dict[str, list[float]]:
        """SMAC's figures over all episodes so far; battles_draw counts timeouts, as there."""
        games = np.maximum(self._battles_game, 1)
        return {
            "battles_won": self._battles_won.tolist(),
            "battles_game": self._battles_game.tolist(),
            "battles_draw": self._timeouts.tolist(),
            "win_rate": (self._battles_won / games).tolist(),
            "timeouts": self._timeouts.tolist(),
            "restarts": [0] * self.n_envs,
        }

    def close(self) -> None:
        """Ends the threads; may be called twice."""
        self.interface.close()
        self.engine.close()

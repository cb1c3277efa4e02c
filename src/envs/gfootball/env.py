"""Google Research Football behind PyMARL's interface."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from envs.gfootball import features
from envs.multiagentenv import Actions, HostedEnv
from envs.ranges import SIZE, SWITCH
from utils.errors import ConfigError, MissingPackage
from utils.ranges import check_ranges
from utils.registry import nearest

INSTALL = "bash install_gfootball.sh"

PAPER_NAMES = {"academy_3_vs_2": "academy_3_vs_1_with_keeper"}
# Whole teams play there: those who begin near the ball.
N_AGENTS = {"academy_counterattack_easy": 4, "academy_counterattack_hard": 4}
REWARDS = {"scoring": False, "scoring,checkpoints": True}
REPRESENTATIONS = ("relative", "simple115v2")


def load_engine() -> ModuleType:
    """The module that needs the package.

    Raises:
        MissingPackage: gfootball or what it needs is not installed, or cannot be imported.
    """
    try:
        importlib.import_module(
            "gfootball_engine"
        )  # first: gfootball prints something if it cannot be imported
        # gym would print in every process that nobody maintains it
        importlib.import_module("gym_notices.notices").notices.clear()
        return importlib.import_module("envs.gfootball.engine")
    except Exception as error:  # gym and the compiled part may fail in any way
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise MissingPackage(
            f"Google Research Football cannot be used ({what}): {INSTALL} builds it"
        ) from error


class FootballEnv(HostedEnv):
    """Agents of the left team against the package's own players; all 19 actions are always
    available.

    An episode ends by its scenario's rules (in the academy: a goal, the ball lost or out of play),
    or is cut after `time_limit` steps. The reward is the team's: 1 for a goal, -1 for one conceded;
    with checkpoints the package's bonus for nearing the goal with the ball, the mean over agents.
    `info["battle_won"]`: a goal was scored.

    Args:
        seed: of this environment's random stream.
        map_name: a scenario: one of the package's, `academy_4_vs_3`, or a name in `PAPER_NAMES`.
        n_agents: players of the left team that are controlled; None: 4 in the counterattacks,
            elsewhere all but the keeper.
        fixed_players: each agent has the same player all the time, the last `n_agents` in the
            scenario's order. False: as the package does it, which gives an agent another player now
            and then, the keeper (at 3_vs_2's and 4_vs_3's beginning, too) or one nearer to the
            ball.
        time_limit: steps after which an episode is cut.
        rewards: "scoring" or "scoring,checkpoints".
        representation: of observations: "relative" (`features.observations`) or "simple115v2" (the
            package's, which is the same for all agents but for the entry that tells whom they
            control). The state is `features.state`.
        write_full_episode_dumps: the package writes a trace of each episode.
        write_goal_dumps: it writes one of the steps before each goal.
        write_video: it writes a video with each trace.
        logdir: where to.

    Raises:
        ConfigError: an unknown scenario, rewards or representation, a number out of range.
        MissingPackage: the package is not installed.
    """

    ranges = {
        "n_agents": SIZE,
        "fixed_players": SWITCH,
        "time_limit": SIZE,
        "write_full_episode_dumps": SWITCH,
        "write_goal_dumps": SWITCH,
        "write_video": SWITCH,
    }

    def __init__(
        self,
        seed: int,
        map_name: str = "academy_3_vs_2",
        n_agents: int | None = None,
        fixed_players: bool = True,
        time_limit: int = 150,
        rewards: str = "scoring",
        representation: str = "relative",
        write_full_episode_dumps: bool = False,
        write_goal_dumps: bool = False,
        write_video: bool = False,
        logdir: str = "results/gfootball",
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        if rewards not in REWARDS:
            raise ConfigError(
                f"gfootball: unknown rewards '{rewards}'; {nearest(rewards, REWARDS)}"
            )
        if representation not in REPRESENTATIONS:
            hint = nearest(representation, REPRESENTATIONS)
            raise ConfigError(f"gfootball: unknown representation '{representation}'; {hint}")
        if write_video and not (write_full_episode_dumps or write_goal_dumps):
            raise ConfigError(
                "gfootball: write_video needs write_full_episode_dumps or write_goal_dumps"
            )
        self._engine = load_engine()
        self.map_name = map_name
        scenario = PAPER_NAMES.get(map_name, map_name)
        players = self._engine.count_field_players(scenario)
        self.n_agents = N_AGENTS.get(scenario, players) if n_agents is None else n_agents
        if not 1 <= self.n_agents <= players:
            raise ConfigError(
                f"gfootball: n_agents is {self.n_agents}, {map_name} has 1 to {players}"
            )
        self.episode_limit = time_limit
        self._representation = representation
        self.env, self._config = self._engine.make(
            scenario,
            self.n_agents,
            fixed_players,
            seed % 2**31,
            REWARDS[rewards],
            write_goal_dumps,
            write_full_episode_dumps,
            write_video,
            logdir,
        )
        self.n_actions = self._engine.action_count(self._config)
        self._avail_actions = np.ones((self.n_agents, self.n_actions), dtype=np.uint8)
        self._controlled = list(range(self.n_agents))
        self._steps = 0
        self._running = False
        self.seed(seed)
        self._observe(self.env.unwrapped.observation())

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Starts an episode; returns observations and state."""
        self._config.seed_next_episode(int(self._rng.integers(2**31)))
        self._steps = 0
        self._running = True
        self._observe(self.env.reset())
        return self.get_obs(), self.get_state()

    def step(self, actions: Actions) -> tuple[float, bool, dict[str, Any]]:
        """Takes one action per agent.

        Args:
            actions: A action indices.

        Returns:
            the team's reward, whether the episode is over, info: `battle_won`, and `episode_limit`
            where it was cut.

        Raises:
            ValueError: no running episode, a wrong number of actions, an unknown action.
        """
        if not self._running:
            raise ValueError(f"{self.map_name}: no running episode, reset before the next step")
        chosen = [int(action) for action in actions]
        if len(chosen) != self.n_agents or not all(
            0 <= action < self.n_actions for action in chosen
        ):
            raise ValueError(
                f"{self.map_name}: actions {chosen}, must be {self.n_agents} from 0 to "
                f"{self.n_actions - 1}"
            )
        raw, reward, terminated, _ = self.env.step(chosen)
        self._steps += 1
        cut = not terminated and self._steps >= self.episode_limit
        self._running = not (terminated or cut)
        self._observe(raw)
        info: dict[str, Any] = {"battle_won": bool(self._raw["score"][0] > 0)}
        if cut:
            info["episode_limit"] = True
        return float(np.mean(reward)), bool(terminated or cut), info

    def _observe(self, raw: Sequence[features.Raw]) -> None:
        self._raw = raw[0]  # but for whom they control, agents are told the same
        # an agent has nobody (-1) while the ball is out of play
        self._controlled = [
            now if now >= 0 else before
            for now, before in zip((one["active"] for one in raw), self._controlled, strict=True)
        ]
        if self._representation == "relative":
            self._obs = features.observations(self._raw, self._controlled)
        else:
            self._obs = self._engine.simple115(raw, True)
        self._state = features.state(self._raw)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._obs, self._state, self._avail_actions

    def render(self) -> np.ndarray:
        """The package's plan view, uint8 [H, W, 3]."""
        return np.array(self._engine.draw(self._raw), dtype=np.uint8)

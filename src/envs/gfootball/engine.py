"""The package gfootball: the only module here that imports it."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path
from typing import Any

import gym
from gfootball import scenarios
from gfootball.env import config as gfootball_config
from gfootball.env import football_env, wrappers
from gfootball.env.football_action_set import get_action_set
from gfootball.env.observation_processor import ObservationState, get_frame

from envs.gfootball.features import Raw
from utils.errors import ConfigError
from utils.registry import nearest

# Steps after which the package itself ends an episode: never, so that an end is one by the
# scenario's rules.
_NO_CLOCK = 2**30
_OWN_SCENARIOS = str(Path(__file__).parent / "scenarios")

# The package looks for scenarios among the modules of this package of its own.
if _OWN_SCENARIOS not in scenarios.__path__:
    scenarios.__path__.append(_OWN_SCENARIOS)

simple115 = wrappers.Simple115StateWrapper.convert_observation


def scenario_names() -> list[str]:
    """The package's scenarios and ours."""
    return sorted(
        module.name for module in pkgutil.iter_modules(scenarios.__path__) if not module.ispkg
    )


class Config(gfootball_config.Config):
    """The package's settings; each episode's seed is set before its reset.

    One is not the package's: with `fixed_players` only as many players can be controlled as there
    are agents, so that the package has no others to give them.
    """

    def NewScenario(self, inc: int = 1) -> None:
        """Called by the package before every episode."""
        super().NewScenario(inc)
        scenario = self.ScenarioConfig()
        scenario.game_duration = _NO_CLOCK
        if self["fixed_players"]:
            team = scenario.left_team
            theirs = _field_players(team)[-self.number_of_left_players() :]
            for player in range(len(team)):
                team[player].controllable = player in theirs

    def seed_next_episode(self, seed: int) -> None:
        """All that is random in the next episode follows from `seed`, an int in [0, 2**31)."""
        self.update(_seeded(seed))


def _seeded(seed: int) -> dict[str, Any]:
    """Settings without which the package draws from Python's global generator."""
    # The second one, whose players move first, the package would derive once and for all from the
    # first seed.
    return {"game_engine_random_seed": seed, "reverse_team_processing": bool(seed % 2)}


def _field_players(team: Any) -> list[int]:
    return [player for player in range(len(team)) if team[player].role != scenarios.e_PlayerRole_GK]


def count_field_players(scenario: str) -> int:
    """Players of the left team without the keeper.

    Raises:
        ConfigError: no scenario of this name.
    """
    if scenario not in scenario_names():  # the package would end the process
        raise ConfigError(
            f"gfootball: no scenario '{scenario}'; {nearest(scenario, scenario_names())}"
        )
    return len(
        _field_players(
            Config({"level": scenario, "fixed_players": False, **_seeded(0)})
            .ScenarioConfig()
            .left_team
        )
    )


def make(
    scenario: str,
    n_agents: int,
    fixed_players: bool,
    seed: int,
    checkpoints: bool,
    write_goal_dumps: bool,
    write_full_episode_dumps: bool,
    write_video: bool,
    logdir: str,
) -> tuple[gym.Env, Config]:
    """The package's environment with raw observations, and its settings.

    Args:
        scenario: one of `scenario_names`.
        n_agents: players of the left team that are controlled.
        fixed_players: see `Config`.
        seed: of the episode that the package begins by itself.
        checkpoints: reward for nearing the goal with the ball.
        write_goal_dumps, write_full_episode_dumps, write_video, logdir: the package's.
    """
    config = Config(
        {
            "level": scenario,
            "fixed_players": fixed_players,
            "players": [f"agent:left_players={n_agents},right_players=0"],
            "dump_scores": write_goal_dumps,
            "dump_full_episodes": write_full_episode_dumps,
            "write_video": write_video,
            "tracesdir": os.path.abspath(logdir),
            **_seeded(seed),
        }
    )
    env: gym.Env = football_env.FootballEnv(config)
    return wrappers.CheckpointRewardWrapper(env) if checkpoints else env, config


def action_count(config: Config) -> int:
    """Actions of a player."""
    return len(get_action_set(config))


def draw(raw: Raw) -> Any:
    """The package's plan view of a raw observation, uint8 [H, W, 3]."""
    return get_frame(ObservationState({"observation": raw}))

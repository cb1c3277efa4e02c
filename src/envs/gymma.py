"""Any PettingZoo parallel environment behind PyMARL's interface."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from envs.multiagentenv import Actions, HostedEnv
from envs.ranges import AMOUNT, CHANCE, NUMBER, SIZE, SWITCH, whole
from envs.vector_env import out_of_range
from envs.words import Words, numbered
from utils.errors import ConfigError, MissingPackage, UserError, first_line
from utils.ranges import check_ranges
from utils.registry import nearest

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Dict, Space
    from pettingzoo import ParallelEnv

PACKAGES = ("pettingzoo", "mpe2", "gymnasium")  # what requirements-pettingzoo.txt installs
# keywords of the SISL tasks
SIZES = (
    *("n_walkers", "n_pursuers", "n_evaders", "n_catch", "x_size", "y_size", "obs_range"),
    *("terrain_length", "max_cycles"),
)
REWARDS = (
    *("forward_reward", "terminate_reward", "fall_reward"),
    *("tag_reward", "catch_reward", "urgency_reward"),
)

_log = logging.getLogger(__name__)


class GymmaEnv(HostedEnv):
    """One PettingZoo parallel environment; the agents are its `possible_agents`, in their order.

    Observations are flattened (`gymnasium.spaces.flatten`: a discrete one becomes one-hot) and zero
    padded to the largest. Action masks come from a dict observation's `action_mask` or from
    `infos[agent]["action_mask"]`; without one all actions of the agent are available. An agent that
    PettingZoo has dropped has a zero observation, reward 0, and action 0 as its only action.
    Rewards are individual.

    Actions are discrete, or numbers from -1 to 1, one for each entry of a bounded `Box`, whose
    bounds they are scaled to; an action is then padded to the longest, what a dropped agent does is
    ignored, and there are no masks.

    The state is the environment's own `state()`; where it has none, or with `use_env_state: False`,
    it is all observations one after the other, unpadded.

    The episode is over when no agent is left: by the task's own rules if the last ones terminated,
    otherwise cut. It is also cut after `time_limit` steps. At its end the agents that were still
    there show their last observation.

    Args:
        key: a module with a `parallel_env`, e.g. "mpe2.simple_spread_v3" or
            "pettingzoo.butterfly.pistonball_v6"; or, as in EPyMARL, a Gymnasium environment whose
            spaces are tuples of the agents', with the module that registers it, e.g.
            "lbforaging:Foraging-8x8-2p-3f-v3".
        seed: of this environment's random stream.
        time_limit: steps after which an episode is cut if the environment has not ended it.
        kwargs: keywords for `parallel_env`.
        use_env_state: False: do without `state()`, which in some environments is a large picture.
        rebuild: True: construct the environment anew for every episode. Some keep things over a
            reset (counters, say), so that an episode does not follow from its seed alone and a
            resumed run would go its own way.
        map_name: a name for the results; None: `key`.

    Raises:
        ConfigError: an unknown module, one without a parallel environment, keywords that it does
            not take, actions that neither all discrete nor all in bounded boxes, a time_limit below
            1; in an episode: a `state()` that fails.
        MissingPackage: PettingZoo, or what the environment needs beside it, is not installed.
    """

    # `kwargs`: those of the tasks that have a yaml
    ranges = {
        "time_limit": SIZE,
        "use_env_state": SWITCH,
        "rebuild": SWITCH,
        **{f"kwargs.{key}": SIZE for key in SIZES},
        **{f"kwargs.{key}": NUMBER for key in REWARDS},
        "kwargs.position_noise": AMOUNT,
        "kwargs.angle_noise": AMOUNT,
        "kwargs.constraint_window": CHANCE,
        "kwargs.agent_obsk": whole(0),
    }

    def __init__(
        self,
        key: str,
        seed: int,
        time_limit: int = 25,
        kwargs: Mapping[str, Any] | None = None,
        use_env_state: bool = True,
        rebuild: bool = False,
        map_name: str | None = None,
    ) -> None:
        check_ranges(locals(), self.ranges, "env_args.")
        self.key = key
        self.map_name = map_name or key
        self.episode_limit = time_limit
        self._kwargs = dict(kwargs or {})
        self._rebuild = rebuild
        self.env = make_parallel_env(key, self._kwargs)
        self.agents = list(self.env.possible_agents)
        self.n_agents = len(self.agents)
        self._obs_spaces = [
            _observation_space(self.env.observation_space(agent)) for agent in self.agents
        ]
        self.obs_sizes = tuple(_flat_size(space, key) for space in self._obs_spaces)
        self._actions = [
            _read_actions(self.env.action_space(agent), agent, key) for agent in self.agents
        ]
        if len(set(map(type, self._actions))) > 1:
            raise ConfigError(
                f"gymma: the actions of {key} are discrete for some agents, continuous for others"
            )
        self.continuous_actions = isinstance(self._actions[0], _Bounded)
        self.action_sizes = tuple(actions.size for actions in self._actions)
        self.n_actions = max(self.action_sizes)
        self._obs = np.zeros((self.n_agents, max(self.obs_sizes)), dtype=np.float32)
        self._avail_actions = np.zeros((self.n_agents, self.n_actions), dtype=np.uint8)
        self._steps = 0
        self._running = False
        self.seed(seed)
        # sizes of states are known only after a reset; it does not touch the stream that episodes
        # are drawn from
        observations, infos = self.env.reset(seed=seed)
        self._observe(observations, infos, self.env.agents)
        self._own_state = use_env_state and self._gives_state()
        self._state = self._read_state()

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Starts an episode; returns observations and state."""
        if self._rebuild:
            self.env.close()
            self.env = make_parallel_env(self.key, self._kwargs)
        observations, infos = self.env.reset(seed=int(self._rng.integers(2**31)))
        self._steps = 0
        self._running = True
        self._observe(observations, infos, self.env.agents)
        self._state = self._read_state()
        return self.get_obs(), self.get_state()

    def step(self, actions: Actions) -> tuple[np.ndarray, bool, dict[str, Any]]:
        """Takes one action per agent; dropped agents take action 0, or any where they are
        continuous.

        Args:
            actions: A action indices, or floats [A, U] from -1 to 1.

        Returns:
            rewards float32 [A], whether the episode is over, info with `episode_limit` where it was
            cut.

        Raises:
            ValueError: no running episode, a wrong number of actions, an action that is not
                available or out of range.
        """
        if not self._running:
            raise ValueError(f"{self.key}: no running episode, reset before the next step")
        chosen = (
            self._check_continuous(actions) if self.continuous_actions else self._check(actions)
        )
        acting = {
            agent: own.convert(action)
            for agent, own, action in zip(self.agents, self._actions, chosen, strict=True)
            if agent in self.env.agents
        }
        observations, rewards, terminations, truncations, infos = self.env.step(acting)
        self._steps += 1
        over = all(terminations[agent] or truncations[agent] for agent in acting)
        terminated = over and all(terminations[agent] for agent in acting)
        cut = not terminated and (over or self._steps >= self.episode_limit)
        self._running = not (terminated or cut)
        self._observe(observations, infos, list(acting) if over else self.env.agents)
        self._state = self._read_state()
        reward = np.array(
            [rewards[agent] if agent in acting else 0 for agent in self.agents], dtype=np.float32
        )
        return reward, terminated or cut, {"episode_limit": True} if cut else {}

    def _check(self, actions: Actions) -> list[int]:
        chosen = [int(action) for action in actions]
        if len(chosen) != self.n_agents:
            raise ValueError(f"{self.key}: {len(chosen)} actions for {self.n_agents} agents")
        for agent, action, available in zip(self.agents, chosen, self._avail_actions, strict=True):
            if not 0 <= action < self.n_actions or not available[action]:
                known = np.flatnonzero(available).tolist()
                raise ValueError(
                    f"{self.key}, {agent}: action {action} is not available, only {known}"
                )
        return chosen

    def _check_continuous(self, actions: Actions) -> np.ndarray:
        chosen = np.asarray(actions, dtype=np.float32)
        wanted = (self.n_agents, self.n_actions)
        if chosen.shape != wanted:
            raise ValueError(
                f"{self.key}: actions are {list(chosen.shape)}, must be {list(wanted)}"
            )
        bad = out_of_range(chosen)
        if bad is not None:
            agent, action = self.agents[bad[0]], chosen[bad].tolist()
            raise ValueError(f"{self.key}, {agent}: action {action} is not all from -1 to 1")
        return chosen

    def _observe(
        self, observations: Mapping[str, Any], infos: Mapping[str, Any], present: Collection[str]
    ) -> None:
        """Writes observations and masks; agents that are not `present` get those of a dropped
        agent.
        """
        from gymnasium.spaces import flatten

        self._obs[:] = 0
        self._avail_actions[:] = 0
        for row, agent in enumerate(self.agents):
            if self.continuous_actions:
                self._avail_actions[row, : self.action_sizes[row]] = 1
            if agent not in present:
                self._avail_actions[row, 0] = 1
                continue
            observation, mask = observations[agent], infos.get(agent, {}).get("action_mask")
            if _has_mask(self.env.observation_space(agent)):
                observation, mask = observation["observation"], observation["action_mask"]
            self._obs[row, : self.obs_sizes[row]] = flatten(self._obs_spaces[row], observation)
            if self.continuous_actions:
                continue
            self._avail_actions[row, : self.action_sizes[row]] = (
                1 if mask is None else np.asarray(mask) != 0
            )
            if not self._avail_actions[row].any():
                if self._running:
                    raise ValueError(
                        f"{self.key}: {agent} is alive, but its action mask allows nothing"
                    )
                self._avail_actions[row, 0] = 1

    def _gives_state(self) -> bool:
        try:
            np.asarray(self.env.state(), dtype=np.float32)
        except Exception as error:  # environments without a state fail in whatever way they like
            _log.info(
                "%s has no usable state() (%r): the state is all observations", self.key, error
            )
            return False
        return True

    def _read_state(self) -> np.ndarray:
        if self._own_state:
            try:
                return np.array(self.env.state(), dtype=np.float32).reshape(-1)
            except (
                Exception
            ) as error:  # as above; some can tell their state only while all agents are there
                raise ConfigError(
                    f"gymma: state() of {self.key} fails in an episode ({first_line(error)}): set "
                    "use_env_state=False"
                ) from error
        return np.concatenate(
            [row[:size] for row, size in zip(self._obs, self.obs_sizes, strict=True)]
        )

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self._obs, self._state, self._avail_actions

    def get_env_info(self) -> dict[str, Any]:
        return {
            **super().get_env_info(),
            "obs_sizes": self.obs_sizes,
            "action_sizes": self.action_sizes,
            "individual_rewards": True,
            "continuous_actions": self.continuous_actions,
        }

    def words(self) -> Words:
        """The agents' own names; PettingZoo has none for what they see and do."""
        return numbered(self.obs_sizes, self.action_sizes)._replace(
            agents=tuple(map(str, self.agents))
        )

    def render(self) -> np.ndarray | None:
        """The current picture, uint8 [H, W, 3]; None where the environment gives none."""
        if self._kwargs.get("render_mode", "rgb_array") is None:
            return None
        frame = self.env.render()
        return None if frame is None else np.array(frame, dtype=np.uint8)


def make_parallel_env(key: str, kwargs: Mapping[str, Any]) -> ParallelEnv:
    """`parallel_env(**kwargs)` of module `key`, drawing into arrays unless `kwargs` say otherwise.

    Raises:
        ConfigError, MissingPackage: see `GymmaEnv`.
    """
    if kwargs.get("render_mode") != "human":
        os.environ.setdefault(
            "SDL_VIDEODRIVER", "dummy"
        )  # some open a window to draw into arrays, too
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    module_name, colon, _ = key.partition(":")
    module = _import(module_name)
    if colon:
        return cast("ParallelEnv", _Team(key, kwargs))
    if not hasattr(module, "parallel_env"):
        raise ConfigError(
            f"gymma: '{key}' has no parallel_env: not an environment in which agents act at the "
            "same time"
        )
    try:
        try:
            return module.parallel_env(**{"render_mode": "rgb_array", **kwargs})
        except TypeError as error:
            if "render_mode" in kwargs or "render_mode" not in str(error):
                raise
            return module.parallel_env(**kwargs)
    except ModuleNotFoundError as error:
        raise _missing(key, error) from error
    except UserError:
        raise
    except Exception as error:  # environments refuse keywords in whatever way they like
        raise ConfigError(
            f"gymma: {key} refuses env_args.kwargs {dict(kwargs)}: {first_line(error)}"
        ) from error


class _Team:
    """A Gymnasium environment of several agents behind PettingZoo's parallel interface: tuples of
    spaces, observations and rewards become dicts by agent. All agents are there until the end.

    Args:
        key: "MODULE:ID", as `gymnasium.make` takes it; the module has been imported.
        kwargs: keywords for the environment.

    Raises:
        ConfigError: an unknown id, keywords it does not take, spaces that are no tuples.
    """

    def __init__(self, key: str, kwargs: Mapping[str, Any]) -> None:
        import gymnasium
        from gymnasium.spaces import Tuple

        try:
            # Wrappers that check one agent's types would refuse tuples of rewards.
            self.env = gymnasium.make(key, disable_env_checker=True, **kwargs).unwrapped
        except (gymnasium.error.Error, TypeError, ValueError, AssertionError) as error:
            raise ConfigError(f"gymma: {key} cannot be made: {first_line(error)}") from error
        spaces = self.env.observation_space, self.env.action_space
        if not all(isinstance(space, Tuple) for space in spaces):
            raise ConfigError(
                f"gymma: {key} has no tuple of spaces, one for each agent: it is not an "
                "environment of several agents"
            )
        self._observed, self._acted = (tuple(cast("Tuple", space)) for space in spaces)
        self.possible_agents = [f"agent_{i}" for i in range(len(self._acted))]
        self.agents: list[str] = list(self.possible_agents)

    def observation_space(self, agent: str) -> Space:
        return self._observed[self.possible_agents.index(agent)]

    def action_space(self, agent: str) -> Space:
        return self._acted[self.possible_agents.index(agent)]

    def reset(self, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        observations, info = self.env.reset(seed=seed)
        self.agents = list(self.possible_agents)
        return self._by_agent(observations), self._infos(info)

    def step(self, actions: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
        chosen: Any = [actions[agent] for agent in self.possible_agents]
        observations, rewards, terminated, truncated, info = self.env.step(chosen)
        over, cut = np.all(terminated), np.all(truncated)
        ends = [dict.fromkeys(self.possible_agents, bool(flag)) for flag in (over, cut)]
        if over or cut:
            self.agents = []
        return self._by_agent(observations), self._by_agent(rewards), *ends, self._infos(info)

    def state(self) -> np.ndarray:
        raise NotImplementedError("Gymnasium knows no state of all agents")

    def render(self) -> Any:
        return self.env.render()

    def close(self) -> None:
        self.env.close()

    def _by_agent(self, values: Any) -> dict[str, Any]:
        shared = isinstance(values, int | float | np.number)  # one reward for all
        rows = [values] * len(self.possible_agents) if shared else values
        return dict(zip(self.possible_agents, rows, strict=True))

    def _infos(self, info: Mapping[str, Any]) -> dict[str, Any]:
        masks = info.get("action_mask")
        if masks is None:
            return {agent: {} for agent in self.possible_agents}
        return {a: {"action_mask": mask} for a, mask in self._by_agent(masks).items()}


def _import(key: str) -> ModuleType:
    package = key.partition(".")[0]
    try:
        if not package or importlib.util.find_spec(package) is None:
            known = f"{', '.join(PACKAGES)}: {_install(PACKAGES[0], key)}"
            raise MissingPackage(
                f"gymma: there is no package '{package}' for env_args.key '{key}'; {known}"
            )
        return importlib.import_module(key)
    except ModuleNotFoundError as error:
        if error.name and f"{key}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"gymma: no module '{key}'; {nearest(key, _siblings(key))}"
            ) from error
        raise _missing(key, error) from error
    except ImportError as error:
        raise ConfigError(f"gymma: cannot import '{key}': {first_line(error)}") from error


def _missing(key: str, error: ModuleNotFoundError) -> MissingPackage:
    package = str(error.name).partition(".")[0]
    install = _install(package, key)
    return MissingPackage(
        f"gymma: {key} needs the package '{package}', which is not installed: {install}"
    )


def _install(package: str, key: str) -> str:
    """The command that installs `package`, which module `key` needs."""
    if key.startswith("pettingzoo.sisl"):
        return "pip install -r requirements-sisl.txt"
    if key.startswith("gymnasium_robotics"):
        return "pip install -r requirements-mamujoco.txt"
    return (
        "pip install -r requirements-pettingzoo.txt"
        if package in PACKAGES
        else f"pip install {package}"
    )


def _siblings(key: str) -> list[str]:
    """The modules in the innermost package of `key` that exists."""
    parent = key.rpartition(".")[0]
    while parent:
        try:
            paths = importlib.import_module(parent).__path__
        except (ImportError, AttributeError):
            parent = parent.rpartition(".")[0]
        else:
            return [f"{parent}.{module.name}" for module in pkgutil.iter_modules(paths)]
    return []


def _has_mask(space: Space) -> bool:
    from gymnasium.spaces import Dict

    return isinstance(space, Dict) and set(space.keys()) == {"observation", "action_mask"}


def _observation_space(space: Space) -> Space:
    """What is observed, without the action mask."""
    return cast("Dict", space)["observation"] if _has_mask(space) else space


def _flat_size(space: Space, key: str) -> int:
    from gymnasium.spaces import flatdim

    try:
        return int(flatdim(space))
    except (NotImplementedError, ValueError):
        raise ConfigError(f"gymma: {key} has observations without a fixed size: {space}") from None


@dataclass(frozen=True)
class _Choices:
    """An agent's discrete actions: `size` numbers from `first` on."""

    first: int
    size: int

    def convert(self, action: int) -> int:
        """The environment's own number of an action."""
        return self.first + action


@dataclass(frozen=True)
class _Bounded:
    """An agent's continuous actions, in a bounded box of `size` entries."""

    space: Box
    size: int

    def convert(self, action: np.ndarray) -> np.ndarray:
        """From numbers from -1 to 1, [U], to the box."""
        # in doubles and in this form, bounds of -1 and 1 change nothing; others may be passed by a
        # rounding error
        low, high = (bound.astype(np.float64) / 2 for bound in (self.space.low, self.space.high))
        scaled = (high + low) + (high - low) * action[: self.size].reshape(self.space.shape)
        return np.asarray(np.clip(scaled, self.space.low, self.space.high), dtype=self.space.dtype)


def _read_actions(space: Space, agent: str, key: str) -> _Choices | _Bounded:
    from gymnasium.spaces import Box, Discrete

    if isinstance(space, Discrete):
        return _Choices(int(space.start), int(space.n))
    if isinstance(space, Box) and space.is_bounded() and np.issubdtype(space.dtype, np.floating):
        return _Bounded(space, int(np.prod(space.shape)))
    raise ConfigError(
        f"gymma: {agent} of {key} has the actions {space}; only discrete ones and bounded boxes of "
        "floats work"
    )

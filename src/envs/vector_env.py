"""B environments stepped at once: the contract, its arrays, and the way back to PyMARL's
interface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from envs.multiagentenv import Actions, ArrayEnv
from envs.words import Words, numbered
from utils.ranges import Range
from utils.seeding import derive_seed


def at_least_one(name: str, value: int) -> int:
    """Returns `value`.

    Raises:
        ValueError: it is below 1.
    """
    if value < 1:
        raise ValueError(f"{name} is {value}, must be at least 1")
    return int(value)


def out_of_range(actions: np.ndarray) -> tuple[int, ...] | None:
    """Where continuous actions, [..., U], are not numbers from -1 to 1: the index of the first such
    one; or None.
    """
    fine = np.abs(actions) <= 1  # False for NaN, too
    return None if fine.all() else tuple(map(int, np.argwhere(~fine)[0][:-1]))


@dataclass(frozen=True)
class EnvSpec:
    """What all environments of a `VectorEnv` have in common.

    Args:
        n_agents, n_actions, obs_size, state_size: A, U, O, S.
        episode_limit: the longest episode, in steps.
        obs_sizes, action_sizes: the true sizes of each agent, A ints; default: O and U for all.
        individual_rewards: whether the reward is one number per agent.
        continuous_actions: whether an action is U numbers from -1 to 1 (`action_sizes`: those of
            each agent, the others are padding) rather than one of U choices.
        extra: further entries for `get_env_info`; not compared.

    Raises:
        ValueError: a size below 1, or individual sizes that do not fit.
    """

    n_agents: int
    n_actions: int
    obs_size: int
    state_size: int
    episode_limit: int
    obs_sizes: tuple[int, ...] = ()
    action_sizes: tuple[int, ...] = ()
    individual_rewards: bool = False
    continuous_actions: bool = False
    extra: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        for name in ("n_agents", "n_actions", "obs_size", "state_size", "episode_limit"):
            at_least_one(name, getattr(self, name))
        for name, largest in (("obs_sizes", self.obs_size), ("action_sizes", self.n_actions)):
            sizes = tuple(int(size) for size in getattr(self, name)) or (largest,) * self.n_agents
            if len(sizes) != self.n_agents or min(sizes) < 1 or max(sizes) > largest:
                raise ValueError(
                    f"{name} {sizes} do not fit {self.n_agents} agents with sizes from 1 to "
                    f"{largest}"
                )
            object.__setattr__(self, name, sizes)

    def env_info(self) -> dict[str, Any]:
        """PyMARL's `get_env_info` dict."""
        return {
            **self.extra,
            "state_shape": self.state_size,
            "obs_shape": self.obs_size,
            "n_actions": self.n_actions,
            "n_agents": self.n_agents,
            "episode_limit": self.episode_limit,
            "obs_sizes": self.obs_sizes,
            "action_sizes": self.action_sizes,
            "individual_rewards": self.individual_rewards,
            "continuous_actions": self.continuous_actions,
        }

    def action_layout(self, n_envs: int) -> tuple[tuple[int, ...], type]:
        """Shape and dtype of the actions: int64 [B, A], continuous ones float32 [B, A, U]."""
        if self.continuous_actions:
            return (n_envs, self.n_agents, self.n_actions), np.float32
        return (n_envs, self.n_agents), np.int64

    def layout(self, n_envs: int) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shape and dtype of every array of the contract, environments first."""
        b, a = n_envs, self.n_agents
        return {
            "obs": ((b, a, self.obs_size), np.float32),
            "state": ((b, self.state_size), np.float32),
            "avail_actions": ((b, a, self.n_actions), np.uint8),
            "reward": ((b, a) if self.individual_rewards else (b,), np.float32),
            "terminated": ((b,), np.bool_),
            "truncated": ((b,), np.bool_),
            "failed": ((b,), np.bool_),
        }


class VectorEnv:
    """B environments behind preallocated arrays (docs/reference/contracts.md, "Environments").

    A subclass implements `_reset(mask)` and `_step(actions, mask)`, which write the rows in `mask`
    of the arrays below and no others; it draws from `self.rngs[b]` (one numpy Generator per
    environment) only. Checks, flags and the bookkeeping of running episodes are done here, once.

    Args:
        n_envs: B.
        spec: sizes.
        seed: environment b's stream depends on `seed` and b only. None: the subclass has already
            seeded itself.
        info_keys: the keys of `info`.

    Attributes:
        obs: float32 [B, A, O]. state: float32 [B, S]. avail_actions: uint8 [B, A, U]. All of the
            current step. Continuous actions are always available: ones, but for the padding.
        reward: float32 [B] or [B, A], of the last step.
        terminated, truncated: bool [B], the last step ended the episode; never both.
        failed: bool [B], the environment broke in the last call: drop its episode.
        info: name -> float64 [B], figures of the last step, NaN where there was none.
        env_restarts: how many environments were replaced so far.
    """

    obs: np.ndarray
    state: np.ndarray
    avail_actions: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    failed: np.ndarray
    env_restarts: int = 0
    # what entries of `env_args` must be, entries of mappings by dotted key; `make_vector_env` and
    # constructors check it
    ranges: ClassVar[Mapping[str, Range]] = {}

    def __init__(
        self, n_envs: int, spec: EnvSpec, seed: int | None, info_keys: Sequence[str] = ()
    ) -> None:
        self.n_envs = at_least_one("n_envs", n_envs)
        self.spec = spec
        self.n_agents = spec.n_agents
        self.n_actions = spec.n_actions
        self.obs_size = spec.obs_size
        self.state_size = spec.state_size
        self.episode_limit = spec.episode_limit
        self.obs_sizes = spec.obs_sizes
        self.action_sizes = spec.action_sizes
        self.individual_rewards = spec.individual_rewards
        self.continuous_actions = spec.continuous_actions
        for name, array in self._allocate(spec.layout(self.n_envs)).items():
            setattr(self, name, array)
        self.info = {key: np.full(self.n_envs, np.nan) for key in info_keys}
        self._running = np.zeros(self.n_envs, dtype=bool)
        # Not to be written to. Not marked so either: numba would compile its kernels again for
        # read-only masks.
        self._everyone = np.ones(self.n_envs, dtype=bool)
        # where agent a of environment b begins in the flat avail_actions
        self._avail_offsets = (np.arange(self.n_envs * self.n_agents) * self.n_actions).reshape(
            self.n_envs, -1
        )
        if seed is not None:
            self.seed(seed)

    # to be written by a subclass

    def _reset(self, mask: np.ndarray) -> None:
        """Starts episodes in `mask` (bool [B]): writes obs, state and avail_actions there; the
        flags are clear.
        """
        raise NotImplementedError

    def _step(self, actions: np.ndarray, mask: np.ndarray) -> None:
        """Steps the environments in `mask` (bool [B]): writes their rows of every array.

        Args:
            actions: int64 [B, A], or float32 [B, A, U] from -1 to 1, checked; zeros outside of
                `mask`.
        """
        raise NotImplementedError

    def _allocate(self, layout: dict[str, tuple[tuple[int, ...], type]]) -> dict[str, np.ndarray]:
        return {name: np.zeros(shape, dtype) for name, (shape, dtype) in layout.items()}

    # the contract

    def reset(self, mask: np.ndarray | None = None) -> None:
        """Starts new episodes in `mask` (bool [B], default all); the other environments stay as
        they are.

        Raises:
            ValueError: a mask of wrong shape or type.
        """
        mask = self._as_mask(mask)
        self._running[mask] = False
        self.terminated[mask] = False
        self.truncated[mask] = False
        self.failed[mask] = False
        self.reward[mask] = 0.0
        self._reset(mask)
        self._running[mask] = True

    def step(self, actions: np.ndarray, mask: np.ndarray | None = None) -> None:
        """Steps the environments in `mask` (bool [B], default all); the other environments stay as
        they are.

        Args:
            actions: integers [B, A]; with continuous actions floats [B, A, U] from -1 to 1. Rows
                outside of `mask` are not looked at.

        Raises:
            ValueError: an action that is not available, or not from -1 to 1; an environment whose
                episode is over; a wrong shape or type.
        """
        mask = self._as_mask(mask)
        actions = self._check_actions(actions, mask)
        self._step(actions, mask)
        ended = self.terminated | self.truncated
        ended |= self.failed
        self._running[mask] = ~ended[mask]

    def seed(self, seed: int) -> None:
        """Restarts all random streams; environment b's depends on `seed` and b only."""
        self.rngs = [np.random.default_rng(derive_seed(seed, "env", b)) for b in range(self.n_envs)]

    def set_t_env(self, t_env: int) -> None:
        """Tells the training step before episodes are collected, for tasks that change in the
        course of training.
        """

    def get_rng_state(self) -> dict[str, Any] | None:
        """All random states between episodes, as plain Python values; None where they cannot be
        had.

        An environment that carries more than random streams from one episode to the next adds it
        here.
        """
        return {"rngs": [rng.bit_generator.state for rng in self.rngs]}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_rng_state`: the next episodes are bit-identical to those that followed
        it.

        Raises:
            ValueError: the state is of another number of environments.
        """
        if len(state["rngs"]) != self.n_envs:
            raise ValueError(
                f"random state of {len(state['rngs'])} environments, this one has {self.n_envs}"
            )
        for rng, rng_state in zip(self.rngs, state["rngs"], strict=True):
            rng.bit_generator.state = rng_state

    def render(self, index: int = 0) -> np.ndarray:
        """The picture of environment `index`, uint8 [H, W, 3].

        Raises:
            NotImplementedError: it cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot render")

    def save_replay(self, index: int = 0) -> None:
        """Writes a replay of the last episode of environment `index`.

        Raises:
            NotImplementedError: it cannot.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot save replays")

    def words(self) -> Words:
        """Names of agents, actions and entries of observations; here only numbers."""
        return numbered(self.obs_sizes, self.action_sizes)

    def get_stats(self) -> dict[str, list[float]]:
        """Figures over all episodes so far, one per environment; empty where none are kept."""
        return {}

    def get_env_info(self) -> dict[str, Any]:
        """PyMARL's env_info, with `obs_sizes`, `action_sizes`, `individual_rewards` and
        `continuous_actions`.
        """
        return self.spec.env_info()

    def close(self) -> None:
        """Frees everything; may be called twice."""

    def __enter__(self) -> VectorEnv:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # checks

    def _as_mask(self, mask: np.ndarray | None) -> np.ndarray:
        if mask is None:
            return self._everyone
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.n_envs,):
            raise ValueError(
                f"mask is {mask.dtype} {list(mask.shape)}, must be bool [{self.n_envs}]"
            )
        return mask

    def _check_actions(self, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        actions = np.asarray(actions)
        shape, dtype = self.spec.action_layout(self.n_envs)
        kinds, wanted = ("f", "floats") if self.continuous_actions else ("iu", "integers")
        if actions.shape != shape or actions.dtype.kind not in kinds:
            raise ValueError(
                f"actions are {actions.dtype} {list(actions.shape)}, must be {wanted} {list(shape)}"
            )
        actions = actions.astype(dtype)
        everyone = mask is self._everyone or mask.all()
        if not everyone:
            actions[~mask] = 0
        if (mask > self._running).any():
            idle = np.flatnonzero(mask & ~self._running).tolist()
            raise ValueError(
                f"environments {idle} have no running episode: reset them before the next step"
            )
        if self.continuous_actions:
            bad = out_of_range(actions)
            if bad is not None:
                raise ValueError(
                    f"environment {bad[0]}, agent {bad[1]}: action {actions[bad].tolist()} is not "
                    "all from -1 to 1"
                )
            return actions
        if actions.min() < 0 or actions.max() >= self.n_actions:
            self._complain(
                actions, mask & ((actions < 0) | (actions >= self.n_actions)).any(axis=1)
            )
        allowed = self.avail_actions.reshape(-1).take(self._avail_offsets + actions)
        if not everyone:
            allowed[~mask] = 1
        if not allowed.all():
            self._complain(actions, (allowed == 0).any(axis=1))
        return actions

    def _complain(self, actions: np.ndarray, bad: np.ndarray) -> None:
        b = int(np.flatnonzero(bad)[0])
        for agent, action in enumerate(actions[b].tolist()):
            available = np.flatnonzero(self.avail_actions[b, agent]).tolist()
            if not available:
                raise ValueError(
                    f"environment {b}, agent {agent}: no action is available: at least one must "
                    "be, a no-op where there is nothing to do"
                )
            if action not in available:
                raise ValueError(
                    f"environment {b}, agent {agent}: action {action} is not available, only "
                    f"{available}"
                )


def warm_up(make: Callable[..., VectorEnv], env_args: Mapping[str, Any]) -> None:
    """One step of a batched environment, so that what it compiles is on the disk before many
    processes ask for it at once.
    """
    with make(1, **{**env_args, "seed": 0}) as env:
        env.reset()
        env.step(
            np.zeros(*env.spec.action_layout(1))
            if env.continuous_actions
            else env.avail_actions.argmax(-1)
        )


class SingleEnv(ArrayEnv):
    """A `VectorEnv` of one environment behind PyMARL's interface. Observations, masks, continuous
    actions are padded.

    Raises:
        ValueError: the `VectorEnv` holds more than one environment.
    """

    def __init__(self, vector_env: VectorEnv) -> None:
        if vector_env.n_envs != 1:
            raise ValueError(f"SingleEnv needs n_envs=1, got {vector_env.n_envs}")
        self.vector_env = vector_env
        self.n_agents = vector_env.n_agents
        self.n_actions = vector_env.n_actions
        self.episode_limit = vector_env.episode_limit

    def step(self, actions: Actions) -> tuple[float | np.ndarray, bool, dict[str, Any]]:
        env, actions = self.vector_env, np.asarray(actions)
        env.step(actions[None] if env.continuous_actions else actions.reshape(1, -1))
        info: dict[str, Any] = {
            key: float(v[0]) for key, v in env.info.items() if not np.isnan(v[0])
        }
        if env.truncated[0]:
            info["episode_limit"] = True
        if env.failed[0]:
            info["env_error"] = True
        reward = env.reward[0].copy() if env.individual_rewards else float(env.reward[0])
        return reward, bool(env.terminated[0] or env.truncated[0] or env.failed[0]), info

    def reset(self) -> tuple[list[np.ndarray], np.ndarray]:
        self.vector_env.reset()
        return self.get_obs(), self.get_state()

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.vector_env.obs[0], self.vector_env.state[0], self.vector_env.avail_actions[0]

    def render(self) -> np.ndarray:
        return self.vector_env.render(0)

    def close(self) -> None:
        self.vector_env.close()

    def seed(self, seed: int) -> None:
        self.vector_env.seed(seed)

    def save_replay(self) -> None:
        self.vector_env.save_replay(0)

    def get_env_info(self) -> dict[str, Any]:
        return self.vector_env.get_env_info()

    def words(self) -> Words:
        return self.vector_env.words()

    def get_stats(self) -> dict[str, float]:
        return {key: values[0] for key, values in self.vector_env.get_stats().items()}

    def set_t_env(self, t_env: int) -> None:
        self.vector_env.set_t_env(t_env)

    def get_rng_state(self) -> dict[str, Any] | None:
        return self.vector_env.get_rng_state()

    def set_rng_state(self, state: dict[str, Any]) -> None:
        self.vector_env.set_rng_state(state)

"""From PyMARL's lists to the arrays of a `VectorEnv`: what the serial and the subprocess backend
share.
"""

from __future__ import annotations

import inspect
import logging
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec, VectorEnv, at_least_one
from utils.errors import EnvFailure
from utils.seeding import derive_seed

INFO_SLOTS = 256  # numeric info keys an environment may use

_log = logging.getLogger(__name__)

Layout = dict[str, tuple[tuple[int, ...], type]]


def host_layout(spec: EnvSpec, n_envs: int) -> Layout:
    """The contract's arrays, and those in which actions and info figures [B, INFO_SLOTS] travel."""
    return {
        **spec.layout(n_envs),
        "actions": spec.action_layout(n_envs),
        "info_values": ((n_envs, INFO_SLOTS), np.float64),
    }


def read_spec(env_info: dict[str, Any]) -> EnvSpec:
    """The sizes in PyMARL's env_info; shapes given as tuples are flattened.

    Raises:
        ValueError: an entry is missing or below 1.
    """
    rest = dict(env_info)
    try:
        return EnvSpec(
            n_agents=int(rest.pop("n_agents")),
            n_actions=int(rest.pop("n_actions")),
            obs_size=int(np.prod(rest.pop("obs_shape"))),
            state_size=int(np.prod(rest.pop("state_shape"))),
            episode_limit=int(rest.pop("episode_limit")),
            obs_sizes=tuple(rest.pop("obs_sizes", ())),
            action_sizes=tuple(rest.pop("action_sizes", ())),
            individual_rewards=bool(rest.pop("individual_rewards", False)),
            continuous_actions=bool(rest.pop("continuous_actions", False)),
            extra=rest,
        )
    except KeyError as error:
        raise ValueError(f"get_env_info() lacks {error}") from None


class EnvHost:
    """Owns one `MultiAgentEnv` and writes what it says into one row of the arrays.

    Args:
        factory: makes the environment from the entries of `env_args`.
        env_args: its arguments without the seed.
        seed: the seed of this environment.
    """

    def __init__(
        self, factory: Callable[..., MultiAgentEnv], env_args: dict[str, Any], seed: int
    ) -> None:
        self._factory = factory
        self._env_args = env_args
        self.env = self._build(seed)
        self.spec = read_spec(self.env.get_env_info())
        self._info_slots: dict[str, int] = {}
        self._t = 0

    def _build(self, seed: int) -> MultiAgentEnv:
        return self._factory(**{**self._env_args, "seed": seed})

    def attach(self, arrays: dict[str, np.ndarray], spec: EnvSpec, index: int) -> None:
        """From now on results go to row `index` of `arrays` (see `host_layout`).

        Raises:
            ValueError: this environment's sizes differ from `spec`.
        """
        if self.spec != spec:
            raise ValueError(
                f"environment {index} has other sizes than environment 0: {self.spec}, {spec}"
            )
        self.obs, self.state, self.avail_actions = (
            arrays[k][index] for k in ("obs", "state", "avail_actions")
        )
        self.actions, self.info_values = arrays["actions"][index], arrays["info_values"][index]
        row = slice(index, index + 1)
        self.reward = arrays["reward"][row].reshape(-1)  # [1] or [A]
        self.terminated, self.truncated, self.failed = (
            arrays[k][row] for k in ("terminated", "truncated", "failed")
        )

    def reset(self, t_env: int | None) -> None:
        """Starts an episode and writes obs, state and avail_actions.

        Args:
            t_env: the training step, for environments that want to know it; None: it was never
                told.
        """
        set_t_env = getattr(
            self.env, "set_t_env", None
        )  # environments from elsewhere may not have it
        if t_env is not None and set_t_env is not None:
            set_t_env(t_env)
        self.env.reset()
        self._t = 0
        self._observe()

    def step(self) -> list[str]:
        """Takes the actions in the row and writes the results.

        Returns:
            Names of info figures not seen before, in the order of their columns in `info_values`.

        Raises:
            ValueError: the environment broke PyMARL's interface (shapes, number of rewards).
        """
        reward, ended, info = self.env.step(self.actions.copy())
        self._t += 1
        broken = bool(info.get("env_error", False))
        ended = bool(ended)
        if ended:
            cut = bool(info.get("episode_limit", False))
        else:
            cut = self._t >= self.spec.episode_limit
        self.failed[0] = broken
        self.truncated[0] = cut and not broken
        self.terminated[0] = ended and not cut and not broken
        if broken:
            return []
        rewards = np.asarray(reward, dtype=np.float32).reshape(-1)
        if rewards.shape != self.reward.shape:
            raise ValueError(
                f"step() gave {rewards.size} rewards, expected {self.reward.size}: "
                "an environment with individual rewards says individual_rewards: True in "
                "get_env_info()"
            )
        self.reward[:] = rewards
        new_names = self._write_info(info)
        self._observe()
        return new_names

    def _write_info(self, info: dict[str, Any]) -> list[str]:
        slots = self._info_slots
        known = len(slots)
        self.info_values[:known] = np.nan
        for name, value in info.items():
            if isinstance(value, numbers.Real | np.bool_) or (
                isinstance(value, np.ndarray) and value.ndim == 0
            ):
                slot = slots.setdefault(name, len(slots))
                if slot >= INFO_SLOTS:
                    raise ValueError(f"info has more than {INFO_SLOTS} numeric entries")
                self.info_values[slot] = value
        return list(slots)[known:]

    def _observe(self) -> None:
        self.state[:] = _sized(self.env.get_state(), self.spec.state_size, "get_state()")
        _write_rows(self.obs, self.env.get_obs(), self.spec.obs_sizes, "get_obs()")
        _write_rows(
            self.avail_actions,
            self.env.get_avail_actions(),
            self.spec.action_sizes,
            "get_avail_actions()",
        )

    def seed(self, seed: int) -> None:
        """Restarts the random stream. An environment whose `seed` takes no argument, as in PyMARL,
        is built anew.
        """
        try:
            inspect.signature(self.env.seed).bind(seed)
        except TypeError:
            pass
        else:
            try:
                self.env.seed(seed)
                return
            except NotImplementedError:
                pass
        self.env.close()
        self.env = self._build(seed)

    def get_rng_state(self) -> dict[str, Any] | None:
        """The environment's random state, None where it cannot give one."""
        get = getattr(self.env, "get_rng_state", None)
        return get() if get else None

    def set_rng_state(self, state: dict[str, Any]) -> None:
        """Inverse of `get_rng_state`."""
        self.env.set_rng_state(state)

    def render(self) -> np.ndarray:
        """The picture, uint8 [H, W, 3].

        Raises:
            NotImplementedError: the environment gives none.
        """
        frame = self.env.render()
        if frame is None:
            raise NotImplementedError(f"{type(self.env).__name__}.render() gives no picture")
        return np.asarray(frame, dtype=np.uint8)

    def save_replay(self) -> None:
        """Writes a replay of the last episode."""
        self.env.save_replay()

    def get_stats(self) -> dict[str, float]:
        """The environment's own figures over all episodes; environments from elsewhere may have
        none.
        """
        get = getattr(self.env, "get_stats", None)
        return (get() if get else None) or {}

    def close(self) -> None:
        """Closes the environment; what goes wrong there is logged, nothing depends on it any
        more.
        """
        try:
            self.env.close()
        except Exception:
            _log.warning("closing an environment failed", exc_info=True)


def _sized(values: object, size: int, what: str) -> np.ndarray:
    flat = np.asarray(values).reshape(-1)
    if flat.size != size:
        raise ValueError(f"{what} gave {flat.size} entries, get_env_info() says {size}")
    return flat


def _write_rows(
    rows: np.ndarray, values: Sequence[object], sizes: tuple[int, ...], what: str
) -> None:
    """Copies one list entry per agent into rows [A, X]; what lies beyond an agent's own size stays
    zero.
    """
    n_agents, width = rows.shape
    if len(values) != n_agents:
        raise ValueError(f"{what} gave {len(values)} entries for {n_agents} agents")
    if min(sizes) == width:
        rows[:] = _sized(values, n_agents * width, what).reshape(n_agents, width)
        return
    for row, value, size in zip(rows, values, sizes, strict=True):
        flat = np.asarray(value).reshape(-1)
        row[:size] = _sized(flat[:size] if flat.size == width else flat, size, what)


class AdapterVectorEnv(VectorEnv):
    """Base of the backends that hold B `MultiAgentEnv`s: seeds, info, and the accounts of broken
    environments.

    A backend implements `_start`, `_attach`, `_reset`, `_step`, `_ask` and `close`.

    Args:
        factory: makes one environment from the entries of `env_args`.
        env_args: its arguments; `seed` is set here: environment b gets `derive_seed(seed, role,
            b)`, and one that replaces it gets a seed that also depends on how many were replaced
            there before.
        n_envs: B.
        seed: of the run.
        role: which stream, e.g. "train_env".
        max_env_restarts: more failures than this in a row at one place, without an episode
            finished, end the run.
    """

    def __init__(
        self,
        factory: Callable[..., MultiAgentEnv],
        env_args: dict[str, Any],
        n_envs: int,
        seed: int,
        role: str,
        max_env_restarts: int = 5,
    ) -> None:
        self._factory = factory
        self._env_args = dict(env_args)
        self._seed = seed
        self._role = role
        self._max_env_restarts = max_env_restarts
        self._t_env: int | None = None
        self.n_envs = at_least_one("n_envs", n_envs)
        self._replaced = [0] * n_envs
        self._in_a_row = [0] * n_envs
        # row of self._info_table for each of environment b's info slots
        self._info_rows = [np.zeros(0, dtype=np.intp) for _ in range(n_envs)]
        self._info_table = np.full((INFO_SLOTS, n_envs), np.nan)
        try:
            super().__init__(n_envs, self._start(), seed=None)
            self._attach()
        except BaseException:
            self.close()
            raise

    # to be written by a backend

    def _start(self) -> EnvSpec:
        """Builds all environments and returns what they have in common."""
        raise NotImplementedError

    def _attach(self) -> None:
        """Connects the environments with the arrays in `self._arrays`."""
        raise NotImplementedError

    def _ask(
        self,
        method: str,
        arguments: Sequence[Any] | None = None,
        indices: Sequence[int] | None = None,
    ) -> list[Any]:
        """Calls a method of the hosts `indices` (default all), with one argument each if
        `arguments` are given.
        """
        raise NotImplementedError

    # shared

    def _allocate(self, layout: Layout) -> dict[str, np.ndarray]:
        self._arrays = self._allocate_all(host_layout(self.spec, self.n_envs))
        return {name: self._arrays[name] for name in layout}

    def _allocate_all(self, layout: Layout) -> dict[str, np.ndarray]:
        return super()._allocate(layout)

    def _host_seed(self, b: int) -> int:
        seed = derive_seed(self._seed, self._role, b)
        return derive_seed(seed, "restart", self._replaced[b]) if self._replaced[b] else seed

    def _after_step(self, b: int, new_names: Sequence[str]) -> None:
        """Makes environment b's info public and ends its row of failures if an episode is
        complete.
        """
        for name in new_names:
            if name not in self.info:
                if len(self.info) == INFO_SLOTS:
                    raise ValueError(
                        f"info has more than {INFO_SLOTS} numeric entries over all environments"
                    )
                self.info[name] = self._info_table[len(self.info)]
            self._info_rows[b] = np.append(self._info_rows[b], list(self.info).index(name))
        rows = self._info_rows[b]
        self._info_table[rows, b] = self._arrays["info_values"][b, : len(rows)]
        if self.terminated[b] or self.truncated[b]:
            self._in_a_row[b] = 0

    def _drop_episode(self, b: int) -> None:
        """Environment b is broken: if it was running, `failed` says so; its reward and info are
        void.
        """
        self.failed[b] = self._running[b]
        self.terminated[b] = self.truncated[b] = self._running[b] = False
        self.reward[b] = 0.0
        self._info_rows[b] = np.zeros(0, dtype=np.intp)
        self._info_table[:, b] = np.nan

    def _count_failure(self, b: int, cause: str) -> None:
        """One more replacement for environment b.

        Raises:
            EnvFailure: it broke more than `max_env_restarts` times in a row.
        """
        self._replaced[b] += 1
        self._in_a_row[b] += 1
        if self._in_a_row[b] > self._max_env_restarts:
            raise EnvFailure(
                f"environment {b} ({self._role}) broke {self._in_a_row[b]} times in a row "
                f"(max_env_restarts is {self._max_env_restarts}), the last time: {cause}"
            )
        self.env_restarts += 1
        _log.warning(
            "environment %d (%s) is replaced, restart %d: %s",
            b,
            self._role,
            self.env_restarts,
            cause,
        )

    def seed(self, seed: int) -> None:
        self._seed = seed
        self._replaced = [0] * self.n_envs
        self._ask("seed", [self._host_seed(b) for b in range(self.n_envs)])

    def set_t_env(self, t_env: int) -> None:
        self._t_env = (
            t_env  # every environment, also one that replaces another, hears it with its next reset
        )

    def get_rng_state(self) -> dict[str, Any] | None:
        hosts = self._ask("get_rng_state")
        if any(state is None for state in hosts):
            return None
        return {"seed": self._seed, "replaced": list(self._replaced), "hosts": hosts}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        if len(state["hosts"]) != self.n_envs:
            raise ValueError(
                f"random state of {len(state['hosts'])} environments, this one has {self.n_envs}"
            )
        self._seed = state["seed"]
        self._replaced = list(state["replaced"])
        self._ask("set_rng_state", state["hosts"])

    def render(self, index: int = 0) -> np.ndarray:
        return self._ask("render", indices=[index])[0]

    def save_replay(self, index: int = 0) -> None:
        self._ask("save_replay", indices=[index])

    def get_stats(self) -> dict[str, list[float]]:
        stats = self._ask("get_stats")
        return {key: [one.get(key, float("nan")) for one in stats] for key in stats[0]}

"""From PyMARL's lists to the arrays of a `VectorEnv`: what the serial and the subprocess backend
share.
"""

from __future__ import annotations

import inspect
import logging
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from envs.multiagentenv import MultiAgentEnv
from envs.vector_env import EnvSpec, VectorEnv, at_least_one
from envs.words import Words, numbered
from utils.errors import EnvError, EnvFailure, UserError, raised
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


def read_spec(env_info: object) -> EnvSpec:
    """The sizes in PyMARL's env_info; shapes given as tuples are flattened.

    Raises:
        EnvError: an entry is missing, no number, or below 1; entries contradict one another.
    """
    if not isinstance(env_info, Mapping):
        raise EnvError(f"get_env_info() gave {_kind(env_info)}, must be a dict of sizes")
    rest = dict(env_info)
    try:
        return EnvSpec(
            n_agents=_whole("n_agents", rest.pop("n_agents")),
            n_actions=_whole("n_actions", rest.pop("n_actions")),
            obs_size=_flat_size("obs_shape", rest.pop("obs_shape")),
            state_size=_flat_size("state_shape", rest.pop("state_shape")),
            episode_limit=_whole("episode_limit", rest.pop("episode_limit")),
            obs_sizes=tuple(rest.pop("obs_sizes", ())),
            action_sizes=tuple(rest.pop("action_sizes", ())),
            individual_rewards=bool(rest.pop("individual_rewards", False)),
            continuous_actions=bool(rest.pop("continuous_actions", False)),
            extra=rest,
        )
    except KeyError as error:
        raise EnvError(f"get_env_info() lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise EnvError(f"get_env_info(): {error}") from error


def _whole(name: str, value: Any) -> int:
    known = isinstance(value, int | float | np.integer | np.floating)
    if known and not isinstance(value, bool) and math.isfinite(value) and value == int(value):
        return int(value)
    raise ValueError(f"{name} is {value!r}, must be a whole number")


def _flat_size(name: str, shape: Any) -> int:
    sizes = shape if isinstance(shape, list | tuple | np.ndarray) else (shape,)
    return math.prod(_whole(name, size) for size in sizes)


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
        self._approved = b""  # available actions that are known to be well formed
        self._t = -1  # steps of the episode; before the first: -1
        self.env = self._build(seed)
        self.spec = read_spec(self.asked(self.env.get_env_info))
        self._info_slots: dict[str, int] = {}

    def _build(self, seed: int) -> MultiAgentEnv:
        env = self.asked(self._factory, **{**self._env_args, "seed": seed})
        lacking = [name for name in _NEEDED if not callable(getattr(env, name, None))]
        if lacking:
            raise EnvError(f"{type(env).__name__} has no method {lacking[0]}()")
        return env

    def asked(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the environment.

        Raises:
            EnvRaised: it raised something; errors for the user and failures pass as they are.
        """
        try:
            return method(*args, **kwargs)
        except (UserError, EnvFailure):
            raise
        except (Exception, SystemExit) as error:
            raise self._env_error(_name(method), error) from error

    def _env_error(self, method: str, error: BaseException) -> EnvError:
        """What a method of the environment raised, as an error in one line."""
        if isinstance(error, NotImplementedError):
            return EnvError(f"{_at(self._t)}{method}() is not implemented")
        return EnvRaised(f"{_at(self._t)}{method}() raised {raised(error)}")

    def attach(self, arrays: dict[str, np.ndarray], spec: EnvSpec, index: int) -> None:
        """From now on results go to row `index` of `arrays` (see `host_layout`).

        Raises:
            EnvError: this environment's sizes differ from `spec`.
        """
        if self.spec != spec:
            raise EnvError(f"it has other sizes than environment 0: {self.spec}, {spec}")
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
            self.asked(set_t_env, t_env)
        self._t = 0
        self.asked(self.env.reset)
        self._observe(acting=True)

    def step(self) -> list[str]:
        """Takes the actions in the row and writes the results.

        Returns:
            Names of info figures not seen before, in the order of their columns in `info_values`.

        Raises:
            EnvError: the environment broke PyMARL's interface.
            EnvRaised: it raised something.
        """
        self._t += 1
        try:  # as `asked`, which would be a call more in every step
            returned = self.env.step(self.actions.copy())
        except (UserError, EnvFailure):
            raise
        except (Exception, SystemExit) as error:
            raise self._env_error("step", error) from error
        try:
            reward, ended, info = returned
            broken = bool(info.get("env_error", False))
            over = ended if ended is True or ended is False else _as_bool(ended)
        except (TypeError, ValueError, AttributeError):
            raise EnvError(f"{_at(self._t)}step() {_step_fault(returned)}") from None
        if over:
            cut = bool(info.get("episode_limit", False))
        else:
            cut = self._t >= self.spec.episode_limit
        self.failed[0] = broken
        self.truncated[0] = cut and not broken
        self.terminated[0] = over and not cut and not broken
        if broken:
            return []
        self._write_reward(reward)
        new_names = self._write_info(info)
        self._observe(acting=not (over or cut))
        return new_names

    def _write_reward(self, reward: object) -> None:
        try:
            rewards = np.asarray(reward).reshape(-1)
        except ValueError:  # rows of different lengths
            rewards = np.empty(0, dtype=object)
        if rewards.dtype.kind not in _NUMBERS:
            raise EnvError(
                f"{_at(self._t)}step() gave the reward {reward!r}, must be "
                f"{'numbers, one per agent' if self.reward.size > 1 else 'a number'}"
            )
        if rewards.shape != self.reward.shape:
            raise EnvError(
                f"{_at(self._t)}step() gave {rewards.size} rewards, expected {self.reward.size}: "
                "an environment with individual rewards says individual_rewards: True in "
                "get_env_info()"
            )
        self.reward[:] = rewards

    def _write_info(self, info: Mapping[str, Any]) -> list[str]:
        slots = self._info_slots
        known = len(slots)
        self.info_values[:known] = np.nan
        for name, value in info.items():
            if isinstance(value, numbers.Real | np.bool_) or (
                isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in _NUMBERS
            ):
                slot = slots.setdefault(name, len(slots))
                if slot >= INFO_SLOTS:
                    raise EnvError(f"{_at(self._t)}info has more than {INFO_SLOTS} numeric entries")
                self.info_values[slot] = value
        return list(slots)[known:]

    def _observe(self, acting: bool) -> None:
        """Writes what the agents see.

        Args:
            acting: whether they act next: each must then have an action.
        """
        env, spec = self.env, self.spec
        method = "get_state"
        try:
            state = env.get_state()
            method = "get_obs"
            obs = env.get_obs()
            method = "get_avail_actions"
            avail = env.get_avail_actions()
        except (UserError, EnvFailure):
            raise
        except (Exception, SystemExit) as error:
            raise self._env_error(method, error) from error
        try:
            self.state[:] = _sized(state, spec.state_size, "get_state()")
            _write_rows(self.obs, obs, spec.obs_sizes, "get_obs()")
            _write_rows(self.avail_actions, avail, spec.action_sizes, "get_avail_actions()")
            flat = self.avail_actions.tobytes()
            if flat != self._approved:  # most steps change nothing
                _check_avail(self.avail_actions, avail, acting)
                self._approved = flat if acting else b""
        except EnvError as error:
            raise EnvError(f"{_at(self._t)}{error}") from error

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
            except Exception as error:
                raise EnvRaised(f"seed() raised {raised(error)}") from error
        self.close()
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

    def words(self) -> Words:
        """The environment's names, numbers where it has none."""
        get = getattr(self.env, "words", None)
        return (get() if get else None) or numbered(self.spec.obs_sizes, self.spec.action_sizes)

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
        except (Exception, SystemExit) as error:
            _log.warning("closing an environment failed: close() raised %s", raised(error))
            _log.debug("where it did:", exc_info=True)


_NEEDED = ("get_env_info", "reset", "step", "get_obs", "get_state", "get_avail_actions")
_NUMBERS = "fiub"  # kinds of NumPy's types
_STEP_WANTED = "must return (reward, terminated, info): a number, True or False, a dict"


class EnvRaised(EnvError):
    """Code of an environment raised an exception, which another attempt need not do."""


def _name(method: Callable[..., Any]) -> str:
    if isinstance(method, type):
        return f"{method.__name__}.__init__"
    return getattr(method, "__name__", type(method).__name__)


def _at(t: int) -> str:
    return "" if t < 0 else f"step {t}: " if t else "reset: "


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"


def _as_bool(value: Any) -> bool:
    """`terminated` of an environment that does not give Python's own True and False."""
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "biu" and array.reshape(-1)[0] in (0, 1):
        return bool(array.reshape(-1)[0])
    raise TypeError


def _step_fault(returned: object) -> str:
    """What is wrong with what `step` gave."""
    if not isinstance(returned, tuple | list):
        return f"gave {_kind(returned)}; it {_STEP_WANTED}"
    if len(returned) != 3:
        gymnasium = "; Gymnasium's environments run through --env-config=gymma"
        return (
            f"gave {len(returned)} values; it {_STEP_WANTED}"
            f"{gymnasium if len(returned) in (4, 5) else ''}"
        )
    _, ended, info = returned
    if not hasattr(info, "get"):
        return f"gave {_kind(info)} as info; it {_STEP_WANTED}"
    return f"gave {ended!r} as terminated; it {_STEP_WANTED}"


def _sized(values: object, size: int, what: str, whole: bool = False) -> np.ndarray:
    """`values` as numbers [size].

    Args:
        what: the method that gave them, for the message.
        whole: floats that are neither 0 nor 1 become 2.

    Raises:
        EnvError: another number of them, or no numbers.
    """
    try:
        flat = np.asarray(values).reshape(-1)
    except ValueError:
        raise EnvError(f"{what} gave rows of different lengths") from None
    if flat.dtype.kind not in _NUMBERS:
        raise EnvError(f"{what} gave {_kind(values)} that holds no numbers")
    if flat.size != size:
        raise EnvError(f"{what} gave {flat.size} entries, get_env_info() says {size}")
    if whole and flat.dtype.kind == "f":  # 2 is what `_check_avail` finds
        flat = np.where((flat == 0) | (flat == 1), flat, 2)
    return flat


def _write_rows(rows: np.ndarray, values: Any, sizes: tuple[int, ...], what: str) -> None:
    """Copies one list entry per agent into rows [A, X]; what lies beyond an agent's own size stays
    zero.
    """
    n_agents, width = rows.shape
    whole = rows.dtype.kind == "u"
    if not hasattr(values, "__len__") or isinstance(values, str | bytes | dict):
        raise EnvError(f"{what} gave {_kind(values)}, must be a list of one row per agent")
    if len(values) != n_agents:
        raise EnvError(f"{what} gave {len(values)} entries for {n_agents} agents")
    if min(sizes) == width:
        try:
            rows[:] = _sized(values, n_agents * width, what, whole).reshape(n_agents, width)
            return
        except EnvError as error:
            _blame_agent(values, sizes, what, error)
            raise
    for agent, (row, value, size) in enumerate(zip(rows, values, sizes, strict=True)):
        flat = np.asarray(value).reshape(-1)
        own = flat[:size] if flat.size == width else flat
        row[:size] = _sized(own, size, f"agent {agent}: {what}", whole)


def _blame_agent(
    values: Sequence[object], sizes: tuple[int, ...], what: str, error: EnvError
) -> None:
    """Raises the error of the first agent whose row is wrong where another agent's is right."""
    faults = {}
    for agent, (value, size) in enumerate(zip(values, sizes, strict=True)):
        try:
            _sized(value, size, f"agent {agent}: {what}")
        except EnvError as fault:
            faults[agent] = fault
    if 0 < len(faults) < len(sizes):
        raise min(faults.items())[1] from error


def _check_avail(rows: np.ndarray, values: Sequence[Any], acting: bool) -> None:
    """Makes sure that `rows`, uint8 [A, U], is made of zeros and ones, with an action per agent.

    Args:
        values: what they were made of.
        acting: whether an agent without an action matters.

    Raises:
        EnvError: naming the agent.
    """
    most = rows.max(axis=1).tolist()
    if min(most) == 1 == max(most):
        return
    for agent, (value, largest) in enumerate(zip(values, most, strict=True)):
        if largest > 1:
            given = np.asarray(value).reshape(-1)
            odd = given[(given != 0) & (given != 1)]  # NaN, too
            raise EnvError(
                f"agent {agent}: get_avail_actions() gave {odd[0]}, must be 0 or 1 for each action"
            )
        if acting and largest == 0:
            raise EnvError(
                f"agent {agent}: get_avail_actions() leaves no action: at least one must be "
                "available, a no-op where there is nothing to do"
            )


@dataclass
class Accounts:
    """How often environments broke, and where they stand among those of the run.

    Attributes:
        replaced: [B], how often each was replaced.
        in_a_row: [B], how often since it last finished an episode.
        first: number of the first one in the run.
    """

    replaced: list[int]
    in_a_row: list[int]
    first: int = 0


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
        accounts: to go on with, where these environments are a part of others; None: new ones.
    """

    def __init__(
        self,
        factory: Callable[..., MultiAgentEnv],
        env_args: dict[str, Any],
        n_envs: int,
        seed: int,
        role: str,
        max_env_restarts: int = 5,
        accounts: Accounts | None = None,
    ) -> None:
        self._factory = factory
        self._env_args = dict(env_args)
        self._seed = seed
        self._role = role
        self._max_env_restarts = max_env_restarts
        self._t_env: int | None = None
        self.n_envs = at_least_one("n_envs", n_envs)
        self._accounts = accounts or Accounts([0] * n_envs, [0] * n_envs)
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
        seed = derive_seed(self._seed, self._role, self._accounts.first + b)
        replaced = self._accounts.replaced[b]
        return derive_seed(seed, "restart", replaced) if replaced else seed

    def _after_step(self, b: int, new_names: Sequence[str]) -> None:
        """Makes environment b's info public and ends its row of failures if an episode is
        complete.
        """
        for name in new_names:
            if name not in self.info:
                if len(self.info) == INFO_SLOTS:
                    raise EnvError(
                        f"info has more than {INFO_SLOTS} numeric entries over all environments"
                    )
                self.info[name] = self._info_table[len(self.info)]
            self._info_rows[b] = np.append(self._info_rows[b], list(self.info).index(name))
        rows = self._info_rows[b]
        self._info_table[rows, b] = self._arrays["info_values"][b, : len(rows)]
        if self.terminated[b] or self.truncated[b]:
            self._accounts.in_a_row[b] = 0

    def _named(self, b: int, error: EnvError) -> EnvError:
        """The error of environment b, with its number; it may be raised in place of the first."""
        name = getattr(self._factory, "name", None) or _name(self._factory)
        number = self._accounts.first + b
        text = (
            f"environment {number} ({self._role}, {name.removesuffix('.__init__')}): {error.line}"
        )
        return type(error)(text, error.detail)

    def _drop_episode(self, b: int) -> None:
        """Environment b is broken: if it was running, `failed` says so; its reward and info are
        void.
        """
        if self._running[b]:
            self.failed[b] = True
            self.terminated[b] = self.truncated[b] = self._running[b] = False
            self.reward[b] = 0.0
        self._info_rows[b] = np.zeros(0, dtype=np.intp)
        self._info_table[:, b] = np.nan

    def _count_failure(self, b: int, cause: str, detail: str = "") -> None:
        """One more replacement for environment b.

        Args:
            cause: one line.
            detail: what belongs to it, e.g. the traceback.

        Raises:
            EnvFailure: it broke more than `max_env_restarts` times in a row.
        """
        accounts, number = self._accounts, self._accounts.first + b
        accounts.replaced[b] += 1
        accounts.in_a_row[b] += 1
        if accounts.in_a_row[b] > self._max_env_restarts:
            raise EnvFailure(
                f"environment {number} ({self._role}) broke {accounts.in_a_row[b]} times in a row "
                f"(max_env_restarts is {self._max_env_restarts}), the last time: {cause}",
                detail,
            )
        self.env_restarts += 1
        _log.warning(
            "environment %d (%s) is replaced, restart %d: %s",
            number,
            self._role,
            self.env_restarts,
            cause,
        )

    def seed(self, seed: int) -> None:
        self._seed = seed
        self._accounts.replaced = [0] * self.n_envs
        self._ask("seed", [self._host_seed(b) for b in range(self.n_envs)])

    def set_t_env(self, t_env: int) -> None:
        self._t_env = (
            t_env  # every environment, also one that replaces another, hears it with its next reset
        )

    def get_rng_state(self) -> dict[str, Any] | None:
        hosts = self._ask("get_rng_state")
        if any(state is None for state in hosts):
            return None
        return {"seed": self._seed, "replaced": list(self._accounts.replaced), "hosts": hosts}

    def set_rng_state(self, state: dict[str, Any]) -> None:
        if len(state["hosts"]) != self.n_envs:
            raise ValueError(
                f"random state of {len(state['hosts'])} environments, this one has {self.n_envs}"
            )
        self._seed = state["seed"]
        self._accounts.replaced = list(state["replaced"])
        self._ask("set_rng_state", state["hosts"])

    def render(self, index: int = 0) -> np.ndarray:
        return self._ask("render", indices=[index])[0]

    def save_replay(self, index: int = 0) -> None:
        self._ask("save_replay", indices=[index])

    def words(self) -> Words:
        return self._ask("words", indices=[0])[0]

    def get_stats(self) -> dict[str, list[float]]:
        stats = self._ask("get_stats")
        return {key: [one.get(key, float("nan")) for one in stats] for key in stats[0]}

"""The collection loop: whole episodes from B environments that run side by side."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from components.episode_buffer import EpisodeBatch
from components.transitions import OBSERVED
from envs import make_vector_env
from envs.vector_env import VectorEnv
from plugins import loader_for_workers
from utils.errors import EnvError, RunFailure, UserError, raised
from utils.seeding import derive_seed, isolated_global_rng

COLLECTED = (*OBSERVED, "actions", "reward", "terminated", "truncated", "filled")


class Collector:
    """Runs one episode in each of `batch_size_run` environments at a time.

    Training and evaluation have environments of their own; those of the evaluation are made when
    first needed. Their random streams depend on the seed and `t_env` alone, so that evaluating
    never changes what is trained and a resumed run evaluates as the uninterrupted one.

    Args:
        args: `env`, `env_args`, `batch_size_run`, `seed`, `test_nepisode`, ... of the run.
        logger: `utils.logging.Logger`.

    Attributes:
        t_env: training steps so far, over all environments; steps of broken episodes do not count.
        seconds: wall-clock spent in "environment" and "acting" so far.
    """

    backend = "native"

    def __init__(self, args: SimpleNamespace, logger: Any) -> None:
        self.args = args
        self.logger = logger
        self.batch_size = args.batch_size_run
        self.test_batch_size = min(args.batch_size_run, args.test_nepisode)
        self.n_test_runs = max(1, args.test_nepisode // args.batch_size_run)
        self.env = self._make_env(self.batch_size, "train_env")
        self.test_env: VectorEnv | None = None
        self.reseed_tests = False
        self.env_info = self.env.get_env_info()
        self.episode_limit = self.env.episode_limit
        self.t_env = 0
        self.t = 0
        self.train_figures = _Figures()
        self.test_figures = _Figures()
        self.log_train_stats_t = -args.runner_log_interval - 1
        self.logged_restarts = 0
        self.env_lost = False
        self.seconds = {"environment": 0.0, "acting": 0.0}
        self.filming = args.render and args.evaluate
        self.frames: list[np.ndarray] = []  # of environment 0, where `filming`

    def _make_env(self, n_envs: int, role: str) -> VectorEnv:
        args = self.args
        try:
            return make_vector_env(
                args.env,
                args.env_args,
                n_envs,
                args.seed,
                self.backend,
                role,
                worker_setup=loader_for_workers(args.plugins),
                env_timeout=args.env_timeout,
                max_env_restarts=args.max_env_restarts,
                ray=args.ray,
                optional_args=args.env_args_optional,
            )
        except (UserError, RunFailure):
            raise
        except (Exception, SystemExit) as error:
            raise self._env_error(error, "cannot be made") from error

    def _env_error(self, error: BaseException, what: str) -> EnvError:
        """What an environment raised, as a failure of the run in one line."""
        return EnvError(f"environment '{self.args.env}' {what}: {raised(error)}")

    def setup(
        self,
        scheme: Mapping[str, Any],
        groups: Mapping[str, int],
        preprocess: Mapping[str, Any],
        mac: Any,
    ) -> None:
        """Fixes what an episode batch looks like and who acts."""
        self.new_batch = partial(
            EpisodeBatch, scheme, groups, max_seq_length=self.episode_limit + 1,
            preprocess=preprocess,
            device=self.args.device,
        )  # fmt: skip
        self.mac = mac

    def get_env_info(self) -> dict[str, Any]:
        """PyMARL's env_info."""
        return self.env_info

    def run(self, test_mode: bool = False) -> EpisodeBatch:
        """Collects one episode per environment.

        Args:
            test_mode: evaluation: other environments, greedy where the selector is, nothing counted
                as training.

        Returns:
            [B', T, ...] with B' the number of episodes that were not broken, at least 1.

        Raises:
            RunFailure: environments broke more than `max_env_restarts` times in a row.
        """
        if not test_mode:
            try:
                return self._run(self.env, test_mode=False)
            except RunFailure:
                self.env_lost = True
                raise
        if self.test_env is None:
            self.test_env = self._make_env(self.test_batch_size, "test_env")
            # An environment without a random state (a foreign game, say) would have to be built
            # anew to be seeded: its evaluations draw on from the seed that it was made with.
            self.reseed_tests = self.test_env.get_rng_state() is not None
        stream = derive_seed(self.args.seed, "evaluation", self.t_env)
        if self.test_figures.runs == 0 and self.reseed_tests:
            self.test_env.seed(stream)
        with isolated_global_rng(derive_seed(stream, "acting", self.test_figures.runs)):
            return self._run(self.test_env, test_mode=True)

    def _run(self, env: VectorEnv, test_mode: bool) -> EpisodeBatch:
        for _ in range(self.args.max_env_restarts + 1):
            batch, episodes = self._collect(env, test_mode)
            if len(episodes.ok) > 0:
                break
        else:
            raise RunFailure(
                f"all {env.n_envs} environments broke {self.args.max_env_restarts + 1} times in a "
                "row"
            )
        if len(episodes.ok) < env.n_envs:
            batch = batch[episodes.ok.tolist()]
        figures = self.test_figures if test_mode else self.train_figures
        figures.add(episodes)
        if not test_mode:
            self.t_env += int(episodes.lengths.sum())
        self._log(env, test_mode)
        return batch

    @torch.no_grad()
    def _collect(self, env: VectorEnv, test_mode: bool) -> tuple[EpisodeBatch, _Episodes]:
        """One episode in each environment; broken ones end early and are left out of the
        figures.
        """
        args = self.args
        b, tick = env.n_envs, time.perf_counter
        started = tick()
        batch = self.new_batch(batch_size=b)
        recorded = tuple(getattr(self.mac, "recorded", ()))
        columns = _Columns(batch, recorded)
        try:
            env.set_t_env(self.t_env)
            env.reset()
        except (UserError, RunFailure):
            raise
        except (Exception, SystemExit) as error:
            raise self._env_error(error, "failed in reset()") from error
        self.mac.init_hidden(batch_size=b)
        seconds_acting = 0.0
        shape, dtype = env.spec.action_layout(b)
        actions: np.ndarray = np.zeros(shape, dtype)
        returns = np.zeros((b, env.n_agents) if not args.common_reward else b)
        lengths = np.zeros(b, dtype=np.int64)
        info: dict[str, np.ndarray] = {}
        # Environments whose observation of step t is to be kept, ended ones (their last) included;
        # and their rows.
        alive = ~env.failed
        rows = _rows(alive)
        over = env.failed
        for t in range(self.episode_limit + 1):
            for key in OBSERVED:
                columns.write(key, rows, t, getattr(env, key)[rows])
            columns.write("filled", rows, t, 1)
            if self.filming and alive[0]:
                self._film(env)
            batch.changed("filled", "actions")
            running = alive
            if over.any():
                running = alive & ~over
                if not running.any():
                    break
                rows = _rows(running)
            before = tick()
            bs = rows if isinstance(rows, slice) else torch.from_numpy(rows)
            try:
                chosen = self.mac.select_actions(
                    batch, t_ep=t, t_env=self.t_env, bs=bs, test_mode=test_mode
                )
            except ValueError as error:
                self._check_choice(env, running, t, error)
                raise
            chosen = chosen.reshape(-1, *actions.shape[1:]).cpu().numpy()
            seconds_acting += tick() - before
            actions[rows] = chosen
            columns.write(
                "actions", rows, t, chosen if env.continuous_actions else chosen[..., None]
            )
            for key in recorded:
                columns.write(key, rows, t, self.mac.last_record[key].cpu().numpy())
            try:
                env.step(actions, running)
            except (UserError, RunFailure):
                raise
            except (Exception, SystemExit) as error:
                raise self._env_error(error, f"failed in step {t + 1}") from error
            reward = self._reward(env)[rows]
            columns.write("reward", rows, t, reward.reshape(len(chosen), -1))
            returns[rows] += reward
            lengths[rows] += 1
            alive = running
            # Most steps end no episode; then there is nothing to find out about.
            over = running & (env.terminated | env.truncated | env.failed)
            if over.any():
                for key in ("terminated", "truncated"):
                    columns.write(key, rows, t, getattr(env, key)[rows, None])
                alive = running & ~env.failed
                rows = _rows(alive)
                ended = over & alive
                for key, values in env.info.items():
                    info.setdefault(key, np.full(b, np.nan))[ended] = values[ended]
        self.t = int(lengths.max())
        batch.changed(*columns.keys)
        ok = np.flatnonzero(env.terminated | env.truncated)
        if not np.isfinite(returns[ok]).all():
            bad = int(ok[~np.isfinite(returns[ok].reshape(len(ok), -1)).all(axis=1)][0])
            raise EnvError(
                f"environment '{args.env}', number {bad}: the rewards of an episode of "
                f"{lengths[bad]} steps sum up to {returns[bad]}, every reward must be finite"
            )
        # Controllers written for PyMARL have no figures of their own.
        for key, figure in getattr(self.mac, "episode_figures", dict)().items():
            info[key] = figure.double().cpu().numpy()
        self.seconds["acting"] += seconds_acting
        self.seconds["environment"] += tick() - started - seconds_acting
        return batch, _Episodes(ok, returns[ok], lengths[ok], {k: v[ok] for k, v in info.items()})

    def _check_choice(self, env: VectorEnv, running: np.ndarray, t: int, error: ValueError) -> None:
        """Raises `EnvError` if an agent had no action to choose from."""
        without = ~env.avail_actions.any(axis=2) & running[:, None]
        if without.any():
            b, agent = np.argwhere(without)[0].tolist()
            raise EnvError(
                f"environment '{self.args.env}', number {b}, step {t + 1}: agent {agent} has no "
                "available action: at least one must be, a no-op where there is nothing to do"
            ) from error

    def _film(self, env: VectorEnv) -> None:
        try:
            self.frames.append(env.render(0))
        except NotImplementedError as error:
            raise UserError(
                f"environment '{self.args.env}' gives no pictures: set render=False"
            ) from error
        except (UserError, RunFailure):
            raise
        except Exception as error:
            raise self._env_error(error, "failed in render()") from error

    def _reward(self, env: VectorEnv) -> np.ndarray:
        """The reward in the form the scheme wants: [B], or [B, A] with `common_reward: False`."""
        if env.individual_rewards == (not self.args.common_reward):
            return env.reward
        if env.individual_rewards:
            return (
                env.reward.sum(1) if self.args.reward_scalarisation == "sum" else env.reward.mean(1)
            )
        return np.repeat(env.reward[:, None], env.n_agents, axis=1)

    # -- figures -----------------------------------------------------------------------------------
    def _log(self, env: VectorEnv, test_mode: bool) -> None:
        if test_mode:
            if self.test_figures.runs == self.n_test_runs:
                self.test_figures.write(self.logger, "test_", self.t_env, lists=True)
                self.test_figures.clear()
            return
        if env.env_restarts > self.logged_restarts:
            self.logger.log_stat("env_restarts", env.env_restarts, self.t_env)
            self.logged_restarts = env.env_restarts
        if self.t_env - self.log_train_stats_t >= self.args.runner_log_interval:
            self.train_figures.write(self.logger, "", self.t_env)
            self.train_figures.clear()
            if hasattr(self.mac, "action_selector") and hasattr(
                self.mac.action_selector, "epsilon"
            ):
                self.logger.log_stat("epsilon", self.mac.action_selector.epsilon, self.t_env)
            self.log_train_stats_t = self.t_env

    def save_replay(self) -> None:
        """Saves a replay of the last evaluation episode."""
        (self.test_env or self.env).save_replay()

    def close_env(self) -> None:
        """Ends all environments and their processes."""
        self.env_lost = True
        for env in (self.env, self.test_env):
            try:
                if env is not None:
                    env.close()
            except (Exception, SystemExit) as error:  # the results are whole
                self.logger.console_logger.warning(
                    "environment '%s' failed in close(): %s", self.args.env, raised(error)
                )

    # -- checkpoints -------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Counters, unlogged figures and the random state of the training environments (None where
        it is unknown).
        """
        return {
            "t_env": self.t_env,
            "log_train_stats_t": self.log_train_stats_t,
            "train_figures": self.train_figures.state_dict(),
            "env_restarts": self.env.env_restarts,
            # Closed environments, such as those that ended the run, cannot be asked any more.
            "env_rng": None if self.env_lost else self.env.get_rng_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.t_env = state["t_env"]
        self.log_train_stats_t = state["log_train_stats_t"]
        self.train_figures.load_state_dict(state["train_figures"])
        self.env.env_restarts = self.logged_restarts = state["env_restarts"]
        if state["env_rng"] is None:
            self.logger.console_logger.warning(
                "environment '%s' cannot restore its random state: the continuation is not "
                "bit-identical",
                self.args.env,
            )
        else:
            self.env.set_rng_state(state["env_rng"])


class _Episodes(SimpleNamespace):
    """Figures of the unbroken episodes of one collection."""

    def __init__(
        self, ok: np.ndarray, returns: np.ndarray, lengths: np.ndarray, info: dict[str, np.ndarray]
    ) -> None:
        super().__init__(ok=ok, returns=returns, lengths=lengths, info=info)


class _Figures:
    """Figures of the episodes since the last log: returns, lengths and the last step's info of
    each.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.runs = 0
        self.returns: list[Any] = []
        self.lengths: list[int] = []
        self.info: dict[str, list[float]] = defaultdict(list)

    def add(self, episodes: _Episodes) -> None:
        self.runs += 1
        self.returns += episodes.returns.tolist()
        self.lengths += episodes.lengths.tolist()
        for key, values in episodes.info.items():
            self.info[key] += values[~np.isnan(values)].tolist()

    def write(self, logger: Any, prefix: str, t_env: int, lists: bool = False) -> None:
        """Logs PyMARL's means; with individual rewards `return_mean` is the mean over agents."""
        returns = np.asarray(self.returns)
        if returns.ndim == 2:
            for agent, value in enumerate(returns.mean(0)):
                logger.log_stat(f"{prefix}agent_{agent}_return_mean", float(value), t_env)
            returns = returns.mean(1)
        logger.log_stat(f"{prefix}return_mean", float(returns.mean()), t_env)
        logger.log_stat(f"{prefix}return_std", float(returns.std()), t_env)
        logger.log_stat(f"{prefix}ep_length_mean", float(np.mean(self.lengths)), t_env)
        for key, values in self.info.items():
            if values:
                # Over all episodes, as in PyMARL: an absent key counts as 0 (`episode_limit` where
                # nothing was cut).
                logger.log_stat(
                    f"{prefix}{key}_mean", float(np.sum(values)) / len(self.lengths), t_env
                )
        if self.info.get(
            "battle_won"
        ):  # the same under a name that fits games other than StarCraft
            logger.log_stat(
                f"{prefix}win_rate",
                float(np.sum(self.info["battle_won"])) / len(self.lengths),
                t_env,
            )
        if lists:
            logger.log_list(f"{prefix}returns", returns.tolist(), t_env)
            if self.info.get("battle_won"):
                logger.log_list(f"{prefix}wins", self.info["battle_won"], t_env)

    def state_dict(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "returns": self.returns,
            "lengths": self.lengths,
            "info": dict(self.info),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.runs, self.returns, self.lengths = (
            state["runs"],
            list(state["returns"]),
            list(state["lengths"]),
        )
        self.info = defaultdict(list, {key: list(values) for key, values in state["info"].items()})


class _Columns:
    """Writes NumPy values into the time steps of a batch.

    In main memory through NumPy, whose indexing costs a fraction of torch's for so few numbers.
    """

    def __init__(self, batch: EpisodeBatch, recorded: tuple[str, ...]) -> None:
        self.keys = (*COLLECTED, *recorded)
        self._stored = {key: batch.stored(key) for key in self.keys}
        self._arrays = (
            {key: value.numpy() for key, value in self._stored.items()}
            if torch.device(batch.device).type == "cpu"
            else None
        )

    def write(self, key: str, rows: slice | np.ndarray, t: int, values: np.ndarray | int) -> None:
        """Writes step t of the episodes `rows`."""
        if self._arrays is not None:
            self._arrays[key][rows, t] = values
        else:
            target = self._stored[key]
            target[rows, t] = torch.as_tensor(values, dtype=target.dtype)


def _rows(mask: np.ndarray) -> slice | np.ndarray:
    """The index of the rows in a mask: a full slice, which costs nothing, where that is all of
    them.
    """
    return slice(None) if mask.all() else np.flatnonzero(mask)

"""The training loop: collect, learn, evaluate, log, checkpoint; and what happens when it is told to
stop.
"""

from __future__ import annotations

import signal
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch

from assembly import assemble, scheme_of
from components.augmentation import AmplitudeScaling
from components.episode_buffer import PRIORITY_FLOOR, EpisodeBatch, PrioritizedReplayBuffer
from components.transitions import Transitions
from runners import REGISTRY as RUNNERS
from utils.checkpoints import check_archive, read_checkpoint, write_checkpoint
from utils.errors import Diverged, RunFailure, UserError
from utils.films import check_format, write_film
from utils.logging import Logger, Position, ProgressLine
from utils.observers import Interrupted, Paused
from utils.precision import products_in
from utils.seeding import derive_seed, get_global_rng_state, set_global_rng_state
from utils.signals import EndRequest
from utils.state import capture, restore

FILM_FRAME_MS = 150


class StopRequest(EndRequest):
    """Notes the first signal, so that the loop can end where its state is whole."""

    def __init__(self, log: Any) -> None:
        super().__init__()
        self.log = log

    def on_first(self, signum: int) -> None:
        """Says what will happen."""
        self.log.warning(
            "%s: ending after this episode, with a checkpoint; %s aborts",
            signal.Signals(signum).name,
            "Ctrl-C once more" if signum == signal.SIGINT else "Ctrl-C twice",
        )


class Rest(NamedTuple):
    """Where a run that is not at work has stopped: how much is written, and the seconds spent."""

    position: Position
    seconds: float


class Training:
    """Everything a run holds, and the loop over it.

    Args:
        args: the run's configuration.
        logger: where figures go.
        run_dir: where checkpoints go.
        stop: tells whether somebody asked the run to end.
    """

    def __init__(
        self, args: SimpleNamespace, logger: Logger, run_dir: Path, stop: StopRequest
    ) -> None:
        self.args, self.logger, self.run_dir, self.stop = args, logger, run_dir, stop
        self.log = logger.console_logger
        # What has been set up is closed even if the next line fails.
        self.runner = RUNNERS[args.runner](args=args, logger=logger)
        try:
            parts = assemble(args, self.runner.get_env_info(), logger)
            self.mac, self.buffer, self.learner = parts.mac, parts.buffer, parts.learner
            scheme, groups, preprocess = scheme_of(args, self.mac)
            self.runner.setup(scheme=scheme, groups=groups, preprocess=preprocess, mac=self.mac)
        except BaseException:
            self.runner.close_env()
            raise
        self.scaling = None
        if args.amplitude_scaling:
            seed = derive_seed(args.seed, "amplitude_scaling")
            self.scaling = AmplitudeScaling(args.amplitude_scaling, seed)
        self.episode = 0
        self.prepared = False
        self.last_test_t = -args.test_interval - 1
        self.last_log_t = 0
        self.last_save_t = 0
        self.last_test_return: float | None = None
        self.seconds = {"learning": 0.0, "evaluation": 0.0}
        self.threads_before = torch.get_num_threads()
        args.learner_threads = args.learner_threads or self.threads_before
        # A learner that shares out its updates itself takes one of torch's threads in each of its
        # own; a GPU does not share.
        own = getattr(self.learner, "shares_updates", False) and args.device == "cpu"
        self.learning_threads = 1 if own else args.learner_threads
        self.progress = ProgressLine(args.t_max, self.log)
        self.rested: Rest | None = None
        self.closed = False

    # -- the loop ----------------------------------------------------------------------------------
    def work(self, steps: int | None = None) -> float | None:
        """`evaluate_only` or `run`, as the configuration says; see `Session.work`."""
        if self.args.evaluate:
            return self.evaluate_only()
        return self.run(None if steps is None else self.runner.t_env + steps)

    def run(self, until: int | None = None) -> float | None:
        """Trains until `t_max`; see `session.run`.

        What is due (evaluation, log, checkpoint) comes before the next collection, so that a run
        which is stopped in between goes on with it.

        Raises:
            Paused: at step `until`.
        """
        args = self.args
        self._take_up()
        self.log.info(
            "training for %d steps, seed %d, results in %s", args.t_max, args.seed, self.run_dir
        )
        try:
            while True:
                done = self.runner.t_env >= args.t_max
                if self._due(self.last_test_t, args.test_interval) or (
                    done and self.last_test_t != self.runner.t_env
                ):
                    self._evaluate()
                if self._due(self.last_log_t, args.log_interval) or done:
                    self._log()
                if done or (
                    args.save_model and self._due(self.last_save_t, args.save_model_interval)
                ):
                    self.save()
                if done:
                    return self.last_test_return
                self._check_stop()
                if until is not None and self.runner.t_env >= until:
                    raise Paused
                self._collect_and_learn()
        except Interrupted:
            self.save()
            raise
        except RunFailure as failure:
            if not isinstance(failure, Diverged):  # weights that are NaN are not worth keeping
                self.save()
            raise

    def rest(self) -> None:
        """Nothing is shown or written until `run` is called again."""
        self.rested = self._mark()
        self.progress.close()

    def _mark(self) -> Rest:
        return self.rested or Rest(self.logger.position(), self.progress.seconds())

    def _take_up(self) -> None:
        """Metrics that were written after the run rested (after its checkpoint) are cut off; those
        before it are shown to Sacred.
        """
        if self.rested is None:
            return
        if self.rested.position:  # it may have rested before there were files
            self.logger.rewind(self.rested.position)
        self.progress = ProgressLine(
            self.args.t_max, self.log, t_start=self.runner.t_env, spent=self.rested.seconds
        )
        self.rested = None

    def _due(self, last: int, interval: int) -> bool:
        return self.runner.t_env - last >= interval

    def _check_stop(self) -> None:
        if self.stop.received is not None:
            raise Interrupted(self.stop.received)

    @contextmanager
    def _timed(self, share: str, threads: int) -> Iterator[None]:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[share] += time.perf_counter() - start

    def _collect_and_learn(self) -> None:
        torch.set_num_threads(self.args.acting_threads)
        t_before = self.runner.t_env
        with torch.no_grad():  # a runner written for PyMARL leaves that to its caller
            batch = self.runner.run(test_mode=False)
        self.buffer.insert_episode_batch(batch)
        self.episode += batch.batch_size
        updates = self._updates_due(t_before, self.episode - batch.batch_size)
        if updates and self._can_draw():
            with self._timed("learning", self.learning_threads):
                if not self.prepared and hasattr(self.learner, "prepare"):
                    self.learner.prepare(self.buffer)
                self.prepared = True
                for _ in range(updates):
                    self._update()
        self.progress.update(self.runner.t_env, self.shares(), self._last_test_text())

    def _updates_due(self, t_before: int, episode_before: int) -> int:
        """Training batches to draw after a collection that began at these counts of steps and
        episodes.
        """
        args = self.args
        if args.steps_per_update:
            rounds = self.runner.t_env // args.steps_per_update - t_before // args.steps_per_update
            return rounds * args.updates_per_step
        every = args.accumulated_episodes
        if every and episode_before // every == self.episode // every:
            return 0
        return args.updates_per_collection

    def _can_draw(self) -> bool:
        if self.buffer.episodes_in_buffer < self.args.warmup_episodes:
            return False
        if self.args.replay == "transitions":
            return self.buffer.n_transitions() >= self.args.batch_size
        return self.buffer.can_sample(max(self.args.batch_size, self.args.latest_episodes))

    def _update(self) -> None:
        with products_in(self.args.precision):
            self._learn()
        resets = getattr(self.learner, "resets", None)
        if resets is not None:
            resets.reset_if_due(self.episode)

    def _learn(self) -> None:
        t_env = self.runner.t_env
        if not isinstance(self.buffer, PrioritizedReplayBuffer):
            self.learner.train(self._draw(), t_env, self.episode)
            return
        sample, episodes, weights = self.buffer.sample(self.args.batch_size, t_env)
        self._hand_over(sample)
        info = self.learner.train(sample, t_env, self.episode, weights)
        errors = (info or {}).get("td_errors_abs")
        if errors is None:
            raise UserError(
                f"learner '{self.args.learner}' returns no td_errors_abs, from which a prioritised "
                "buffer would get its priorities: set use_per=False"
            )
        priorities = errors.flatten().cpu().numpy() + PRIORITY_FLOOR
        self.buffer.update_priorities(episodes, priorities)

    def _draw(self) -> EpisodeBatch | Transitions:
        """A training batch of the kind that `replay` names, on the learner's device."""
        args = self.args
        if args.replay == "transitions":
            history, recent = args.transition_history, args.recent_transitions
            return self.buffer.sample_transitions(args.batch_size, history, recent).to(args.device)
        if args.latest_episodes:
            sample = self.buffer.sample_beside_latest(args.batch_size, args.latest_episodes)
        else:
            latest = args.replay == "latest"
            draw = self.buffer.sample_latest if latest else self.buffer.sample
            sample = draw(args.batch_size)
        self._hand_over(sample)
        return sample

    def _hand_over(self, sample: EpisodeBatch) -> None:
        """Moves a sample to the learner's device, and augments it where that is asked for."""
        if sample.device != self.args.device:
            sample.to(self.args.device)
        if self.scaling is not None:
            self.scaling(sample)

    def _evaluate(self) -> None:
        environment = dict(getattr(self.runner, "seconds", {}))
        try:
            with self._timed("evaluation", self.args.acting_threads), torch.no_grad():
                for _ in range(max(1, self.args.test_nepisode // self.runner.batch_size)):
                    self._check_stop()
                    self.runner.run(test_mode=True)
        except Interrupted:
            if hasattr(self.runner, "test_figures"):  # it will begin anew
                self.runner.test_figures.clear()
            raise
        if environment:
            # What the evaluation spent in environments is counted once, as evaluation.
            self.runner.seconds.update(environment)
        self.last_test_t = self.runner.t_env
        if self.logger.stats["test_return_mean"]:
            self.last_test_return = self.logger.stats["test_return_mean"][-1][1]

    def _log(self) -> None:
        t_env = self.runner.t_env
        self.logger.log_stat("episode", self.episode, t_env)
        self.logger.print_recent_stats()
        for name, share in self.shares().items():
            self.logger.log_timing(f"share_{name}", share, t_env)
        self.logger.log_timing("seconds", self.progress.seconds(), t_env)
        self.logger.log_timing("steps_per_second", self.progress.steps_per_second(), t_env)
        self.progress.line()
        self.last_log_t = t_env

    def shares(self) -> dict[str, float]:
        """Shares of the wall-clock time in environment, acting, learning and evaluation, summing to
        1.
        """
        seconds = {**getattr(self.runner, "seconds", {}), **self.seconds}
        total = sum(seconds.values()) or 1.0
        return {name: value / total for name, value in seconds.items()}

    def _last_test_text(self) -> str:
        for key, text in (
            ("test_battle_won_mean", "test wins {:.0%}"),
            ("test_return_mean", "test return {:.2f}"),
        ):
            if self.logger.stats[key]:
                return text.format(self.logger.stats[key][-1][1])
        return ""

    # -- evaluation alone --------------------------------------------------------------------------
    def evaluate_only(self) -> float | None:
        """Evaluates the loaded networks on `test_nepisode` episodes; writes a replay or pictures
        where asked for.
        """
        args = self.args
        if args.render:
            check_format(args.film_format)
        self._take_up()
        self._evaluate()
        self.logger.print_recent_stats()
        if args.save_replay:
            try:
                self.runner.save_replay()
            except NotImplementedError as error:
                raise UserError(
                    f"environment '{args.env}' cannot save replays: set save_replay=False"
                ) from error
        if args.render:
            self._save_film()
        return self.last_test_return

    def evaluate_apart(self, n_episodes: int) -> dict[str, float]:
        """Means over an evaluation in environments of its own, which leaves no trace in the run.

        Args:
            n_episodes: as many side by side as divide it and `batch_size_run` allows.

        Returns:
            `test_return_mean`, ..., named as in the results.
        """
        most = min(self.args.batch_size_run, n_episodes)
        n_envs = max(n for n in range(1, most + 1) if n_episodes % n == 0)
        sizes = {"batch_size_run": n_envs, "test_nepisode": n_episodes}
        args = SimpleNamespace(**(vars(self.args) | sizes))
        figures = Logger(self.log)
        runner = RUNNERS[args.runner](args=args, logger=figures)
        try:
            runner.setup(*scheme_of(args, self.mac), self.mac)
            runner.t_env = self.runner.t_env
            torch.set_num_threads(args.acting_threads)
            with torch.no_grad():
                for _ in range(n_episodes // n_envs):
                    runner.run(test_mode=True)
        finally:
            runner.close_env()
        return {key: float(values[-1][1]) for key, values in figures.stats.items()}

    def _save_film(self) -> None:
        if not hasattr(self.runner, "frames"):
            raise UserError(
                f"runner '{self.args.runner}' keeps no pictures of its episodes: set render=False"
            )
        path = self.run_dir / f"evaluation.{self.args.film_format}"
        write_film(self.runner.frames, path, frame_ms=FILM_FRAME_MS)
        self.log.info("film of the evaluation: %s", path)
        self.logger.log_film(path, self.runner.t_env)

    # -- checkpoints -------------------------------------------------------------------------------
    def save(self) -> None:
        """Writes a checkpoint, unless `save_model` is off."""
        if hasattr(self.learner, "raise_if_diverged"):
            self.learner.raise_if_diverged(self.runner.t_env)
        if self.args.save_model:
            self.checkpoint()

    def checkpoint(self) -> Path:
        """Writes a checkpoint; its folder."""
        args, t_env = self.args, self.runner.t_env
        position, seconds = self._mark()
        self.last_save_t = t_env
        state = {
            "has_buffer": args.checkpoint_buffer,
            "training": {
                key: getattr(self, key)
                for key in (
                    "episode",
                    "prepared",
                    "last_test_t",
                    "last_log_t",
                    "last_save_t",
                    "last_test_return",
                    "seconds",
                )
            },
            "runner": self._runner_state(),
            "learner": capture(self.learner, shared=(self.args, self.logger, self.log)),
            "scaling": None if self.scaling is None else self.scaling.rng.bit_generator.state,
            "rng": get_global_rng_state(),
            "logger": position,
            "progress": seconds,
        }
        buffer = self.buffer.state_dict() if args.checkpoint_buffer else None
        path = write_checkpoint(
            self.run_dir / "checkpoints",
            t_env,
            state,
            buffer,
            self.learner.save_models,
            args.keep_checkpoints,
        )
        self.log.info("checkpoint %s", path)
        return path

    def _runner_state(self) -> dict[str, Any]:
        if hasattr(self.runner, "state_dict"):
            return self.runner.state_dict()
        return {"t_env": self.runner.t_env}

    def load(self, path: Path) -> None:
        """Continues from a checkpoint; `run` cuts off the metrics that were written after it."""
        state, buffer = read_checkpoint(path)
        for key, value in state["training"].items():
            setattr(self, key, value)
        if hasattr(self.runner, "load_state_dict"):
            self.runner.load_state_dict(state["runner"])
        else:
            self.runner.t_env = state["runner"]["t_env"]
            self.log.warning(
                "runner '%s' has no load_state_dict: only t_env is restored", self.args.runner
            )
        restore(self.learner, state["learner"])
        if self.scaling is not None and state.get("scaling") is not None:
            self.scaling.rng.bit_generator.state = state["scaling"]
        if buffer is not None:
            self.buffer.load_state_dict(buffer)
        else:
            self.log.warning(
                "the checkpoint has no replay buffer (checkpoint_buffer: False): it fills anew"
            )
        self.rested = Rest(state["logger"], state["progress"])
        set_global_rng_state(state["rng"])
        self.log.info("continuing from %s", path)

    def load_models(self, path: Path, load_step: int) -> None:
        """Loads PyMARL's model files from `path/STEP/`: the newest STEP, or the one nearest to
        `load_step`.

        Raises:
            UserError: there are none.
        """
        if not path.is_dir():
            raise UserError(f"checkpoint_path={path} is a file: give RUN_DIR/checkpoints")
        steps = sorted(
            int(folder.name)
            for folder in path.iterdir()
            if folder.is_dir() and folder.name.isascii() and folder.name.isdecimal()
        )
        if not steps:
            raise UserError(
                f"checkpoint_path={path} has no folders named after steps: give RUN_DIR/checkpoints"
            )
        step = steps[-1] if load_step == 0 else min(steps, key=lambda s: abs(s - load_step))
        folder = path / str(step)
        try:
            for file in sorted(folder.glob("*.th")):
                if zipfile.is_zipfile(file):  # files of old torches are none, and have no checksums
                    check_archive(file)
            if self.args.checkpoint_agents:
                self.mac.load_models(str(folder), trained_agents=self.args.checkpoint_agents)
            elif self.args.evaluate:  # only the controller acts; a policy may come without the rest
                self.mac.load_models(str(folder))
            else:
                self.learner.load_models(str(folder))
        except Exception as error:  # what torch raises for a damaged or foreign file, and more
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"the models in {folder} do not fit this configuration: {reason}"
            ) from error
        self.runner.t_env = step
        self.log.info("loaded models of step %d from %s", step, path)

    def close(self) -> None:
        """Ends environments and the progress line; torch has its threads back. Calling it again
        changes nothing.
        """
        if self.closed:
            return
        self.closed = True
        torch.set_num_threads(self.threads_before)
        self.progress.close()
        self.runner.close_env()

"""A run in this process, from its configuration to its results.

It may work once or be taken up again and again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from plugins import load_plugins
from training import StopRequest, Training
from utils.checkpoints import ResumePoint, check_checkpoint
from utils.config import resolve_device
from utils.errors import RunFailure, UserError
from utils.loggers import FAILED, FINISHED, INTERRUPTED, attach
from utils.logging import Logger
from utils.memory import keep_freed_memory
from utils.observers import Interrupted, Paused
from utils.seeding import (
    get_global_rng_state,
    isolated_global_rng,
    seed_globals,
    set_global_rng_state,
)
from utils.signals import ENDING, handling_signals


def run(
    sacred_run: Any,
    config: Mapping[str, Any],
    log: Any,
    run_dir: Path,
    resume: ResumePoint | None = None,
) -> float | None:
    """One run, from the configuration to its results.

    Args:
        sacred_run: Sacred's run object, whose `info` receives the metrics.
        config: the merged and checked configuration.
        log: a `logging.Logger` for the console.
        run_dir: where metrics and checkpoints go.
        resume: the checkpoint to continue from.

    Returns:
        The last evaluation's `test_return_mean`, Sacred's result of the run; None if there was
        none.

    Raises:
        Interrupted: after Ctrl-C, SIGTERM or another of `ENDING`, once the checkpoint is written.
        UserError, RunFailure: see there.
    """
    session = Session(config, log, resume)
    try:
        return session.work(sacred_run, run_dir)
    finally:
        session.close()


class _Unloadable(UserError):
    """A checkpoint does not fit what is to be trained."""


def _load(training: Training, checkpoint: Path) -> None:
    try:
        training.load(checkpoint)
    except RunFailure:
        raise
    except Exception as error:  # whatever a state of another form leads to
        said = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise _Unloadable(f"checkpoint {checkpoint} cannot be loaded: {said}") from error


class Session:
    """A run in this process: the command line works it once, `api.Run` takes it up again and again.

    Between two pieces of work its networks, replay buffer and environments stay in memory, and so
    does the state of its random generators: other runs may work meanwhile.

    Args:
        config: the merged and checked configuration.
        log: a `logging.Logger` for the console.
        resume: the checkpoint to begin with.

    Attributes:
        training: everything the run holds; None before `open`, and after a failure.
        finished: whether there is nothing left to do.
    """

    def __init__(
        self, config: Mapping[str, Any], log: Any, resume: ResumePoint | None = None
    ) -> None:
        self.config = dict(config)
        self.resume = resume
        self.log = log
        self.logger = Logger(log)
        self.training: Training | None = None
        self.finished = False
        self._random: dict[str, Any] | None = None
        self._logging = False
        self._end = INTERRUPTED

    def open(self, run_dir: Path) -> Training:
        """Builds environments, networks and buffer, or takes them from the checkpoint.

        Args:
            run_dir: where metrics and checkpoints go.

        Raises:
            UserError: the settings do not fit, or the checkpoint cannot be read.
        """
        if self.training is None:
            with self._own_random():
                self.training = self._build(run_dir)
        self.training.run_dir = run_dir
        return self.training

    def work(self, sacred_run: Any, run_dir: Path, steps: int | None = None) -> float | None:
        """Trains, or evaluates alone where the configuration says so.

        Args:
            sacred_run: Sacred's run object, whose `info` receives the metrics.
            run_dir: where metrics and checkpoints go.
            steps: pause after so many environment steps; None: go on to `t_max`.

        Returns:
            The last evaluation's `test_return_mean`; None if there was none.

        Raises:
            Paused: after `steps`.
            Interrupted: after Ctrl-C, SIGTERM or another of `ENDING`, once the checkpoint is
                written.
            UserError, RunFailure: see there.
        """
        self.logger.setup_sacred(sacred_run)
        if not self._logging and not sacred_run.unobserved:
            self.logger.setup_loggers(attach(self.config, run_dir))
            self._logging = True
        stop = StopRequest(self.log)
        try:
            with (
                self._writing(run_dir),
                handling_signals(ENDING, stop.note),
            ):
                training = self.open(run_dir)
                training.stop = stop
                with self._own_random():
                    result = training.work(steps)
        except (Interrupted, Paused):
            raise
        except BaseException as exc:  # an update may have stopped half-way
            self._end = FAILED if isinstance(exc, Exception) else INTERRUPTED
            self.close()
            self.training = None
            raise
        self.finished = True
        self._end = FINISHED
        return result

    def evaluate(self, n_episodes: int, run_dir: Path) -> dict[str, float]:
        """See `Training.evaluate_apart`."""
        training = self.open(run_dir)
        with isolated_global_rng(training.args.seed):
            return training.evaluate_apart(n_episodes)

    def save(self, run_dir: Path) -> Path:
        """Writes a checkpoint; its folder."""
        training = self.open(run_dir)
        with self._writing(run_dir), self._own_random():
            return training.checkpoint()

    def close(self) -> None:
        """Ends the environments and the loggers; the networks stay."""
        try:
            if self.training is not None:
                self.training.close()
        finally:
            self.logger.close_loggers(self._end)
            self._logging = False

    def _build(self, run_dir: Path) -> Training:
        config, log = self.config, self.log
        device = resolve_device(config, log)  # without CUDA, this switches config["use_cuda"] off
        args = SimpleNamespace(**config)
        args.device = device
        args.unique_token = f"{args.name}__{run_dir.name}"
        keep_freed_memory()
        seed_globals(args.seed)
        load_plugins(args.plugins)
        if self.resume is None:
            return self._built(args, run_dir, None)
        checkpoints = (self.resume.checkpoint_dir, *self.resume.older)
        for checkpoint, older in zip(checkpoints, (*checkpoints[1:], None), strict=True):
            try:
                return self._built(args, run_dir, checkpoint)
            except _Unloadable as error:
                if older is None:
                    raise
                log.warning("%s; trying an older one", error)
        raise AssertionError("the last checkpoint is returned or raised")

    def _built(self, args: SimpleNamespace, run_dir: Path, checkpoint: Path | None) -> Training:
        training = Training(args, self.logger, run_dir, StopRequest(self.log))
        try:
            if checkpoint is not None:
                if self.resume is not None and checkpoint != self.resume.checkpoint_dir:
                    check_checkpoint(checkpoint, run_dir)  # that one was, when it was found
                _load(training, checkpoint)
            if args.checkpoint_path:
                training.load_models(Path(args.checkpoint_path), args.load_step)
            training.rest()
        except BaseException:
            training.close()
            raise
        return training

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """The process's random generators are in this run's state."""
        if self._random is not None:
            set_global_rng_state(self._random)
        try:
            yield
        finally:
            self._random = get_global_rng_state()

    @contextmanager
    def _writing(self, run_dir: Path) -> Iterator[None]:
        """The result files are open."""
        self.logger.setup_files(run_dir)
        try:
            yield
        finally:
            try:
                if self.training is not None:
                    self.training.rest()
            finally:
                self.logger.close()

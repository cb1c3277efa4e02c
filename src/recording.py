"""One piece of a run as it is recorded: Sacred's experiment, the folder of the results, the output.

`main` and `api` start runs here. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import os
import shutil
import signal
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.errors import EnvFailure, RunFailure, UserError
from utils.signals import ENDING, EndRequest, handling_signals

if TYPE_CHECKING:
    import io

    from sacred import Experiment
    from sacred.run import Run as SacredRun

    from utils.checkpoints import ResumePoint
    from utils.observers import RunFolder
    from utils.run_lock import RunLock


def prepare_process() -> None:
    """What has to be so before torch and Sacred are imported."""
    # Read when torch loads. OpenMP's threads would else burn their time waiting for one another:
    # where other runs share the machine, an update takes up to a hundred times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    warnings.filterwarnings(
        "ignore", message="pkg_resources is deprecated", category=UserWarning
    )  # Sacred's import


def find_resume(config: dict[str, Any]) -> ResumePoint | None:
    """The run that `resume` asks to continue, if there is one; fixes the seed (see `set_seed`).

    Raises:
        UserError, Finished: see `utils.checkpoints.resolve_resume`.
    """
    from utils.config import set_seed

    point = None
    if config["resume"]:
        from utils.checkpoints import resolve_resume

        point = resolve_resume(config)
        if point is not None and config["seed"] is None:
            config["seed"] = point.seed
    set_seed(config)
    return point


class Recorder:
    """Carries out one piece of work as a run of a Sacred experiment.

    Attributes:
        experiment: Sacred's; its options are those of the command line.
        run_dir: where the results are, once the work has begun.
        lock: keeps other processes off that folder, as long as somebody refers to it.
    """

    def __init__(self) -> None:
        self.run_dir: Path | None = None
        self.lock: RunLock | None = None
        self._work: Callable[[SacredRun, Path], Any]
        self._begun = False
        self._observer: RunFolder | None = None
        self._new_folders: list[Path] = []
        self._output: io.StringIO
        self._signals = _OutsideOfTraining()
        self.experiment = _new_experiment(self._main)

    def command(self, name: str, config: Mapping[str, Any], options: dict[str, Any]) -> None:
        """Carries out one of Sacred's commands, e.g. `print_config`."""
        self._configure(config)
        with _sacred_settings():
            self.experiment.run(name, options=options)

    def record(
        self,
        config: Mapping[str, Any],
        work: Callable[[SacredRun, Path], Any],
        run_dir: Path | None = None,
        observe: bool = True,
        options: dict[str, Any] | None = None,
        meta_info: dict[str, Any] | None = None,
    ) -> Any:
        """Does the work; a run that fails before its first metric leaves no folder.

        Args:
            config: merged, checked, with a seed.
            work: takes Sacred's run and the folder of the results, returns the run's result.
            run_dir: the folder of the run that goes on; None: a new one.
            observe: False: nothing is recorded, `run_dir` is only passed on.
            options: Sacred's.
            meta_info: recorded with the run.

        Raises:
            UserError: besides the work's own: the disk is full, Sacred refuses an option, the
                package of a logger is missing.
            Interrupted: by a signal, before the work has handlers of its own.
        """
        from utils.config import check_results_folder
        from utils.loggers import check_packages
        from utils.logging import record_output

        if observe and run_dir is not None:
            self._hold(run_dir)
        if observe:
            check_packages(config)
            check_results_folder(run_dir or Path(config["local_results_path"]))
        # What cannot be imported should fail before anything is written.
        import session  # noqa: F401

        options = {**(options or {}), "--unobserved": not observe}
        self._work, self.run_dir = work, run_dir
        # Sacred has no types: mypy takes the None that it begins with for the type.
        self.experiment.captured_out_filter = self._recorded_output  # type: ignore[assignment]
        self._configure(config)
        if observe:
            self._add_observers(config, run_dir)
            options["--id"] = run_dir.name if run_dir else options.get("--id")
        with ExitStack() as stack:
            self._output = stack.enter_context(record_output())
            stack.enter_context(handling_signals(ENDING, self._signals.note))
            stack.enter_context(_sacred_settings())
            try:
                return self.experiment.run(options=options, meta_info=meta_info).result
            except UserError:
                self._discard()
                raise
            except Exception as exc:
                self._explain(exc, config)
                raise

    def _add_observers(self, config: Mapping[str, Any], run_dir: Path | None) -> None:
        from utils.config import missing_folders, results_dir
        from utils.observers import RunFolder, make_observers

        basedir = (run_dir.parent if run_dir else results_dir(config)).absolute()
        self._new_folders = missing_folders(basedir)
        self._observer = RunFolder(basedir, run_dir)
        self.experiment.observers = [self._observer, *make_observers(config, self._observer)]

    def _discard(self) -> None:
        """Removes the folder that was made for this run, unless it has metrics."""
        from utils.config import remove_empty

        if self._observer is not None and not self._wrote_metrics():
            if self._observer.created is not None:
                shutil.rmtree(self._observer.created, ignore_errors=True)
            remove_empty(self._new_folders)

    def _explain(self, exc: Exception, config: Mapping[str, Any]) -> None:
        """Raises `UserError` where it is for the user to mend what `exc` says."""
        from utils.config import disk_problem

        problem = "" if isinstance(exc, EnvFailure) else disk_problem(exc)
        if problem:
            self._discard()
            onwards = f" and continue with resume={self.run_dir}" if self._wrote_metrics() else ""
            where = self.run_dir or config["local_results_path"]
            raise UserError(problem.format(where) + onwards) from exc
        if not self._begun and isinstance(exc, OSError | RuntimeError | ValueError | KeyError):
            self._discard()  # Sacred refuses an option, or cannot make the folder
            raise UserError(f"the run cannot be started: {exc}") from exc

    def _recorded_output(self, _: str = "") -> str:
        return self._output.getvalue()

    def _configure(self, config: Mapping[str, Any]) -> None:
        from utils.observers import masked_config

        self.experiment.add_config(masked_config(config))

    def _main(self, run: SacredRun) -> Any:
        self._begun = True
        if self._observer is not None:
            self._observer.watch(run.info)
            assert self._observer.dir is not None  # made when the run started
            self.run_dir = Path(self._observer.dir)
            self._hold(self.run_dir)
        assert self.run_dir is not None  # without an observer it is given
        try:
            return self._worked(run, self.run_dir)
        finally:
            # Sacred itself forgets the end of a run that fails.
            run.captured_out = self._recorded_output()

    def _worked(self, run: SacredRun, run_dir: Path) -> Any:
        from utils.observers import Interrupted

        try:
            return self._work(run, run_dir)
        except Interrupted as exc:
            self._signals.heed(exc.signum)
            raise
        except SystemExit as exc:
            where = traceback.extract_tb(exc.__traceback__)[-1]
            raise RunFailure(
                f"the run was ended by sys.exit({exc.code!r}) in {where.filename}, line "
                f"{where.lineno}: code that a run calls must return, or raise an error"
            ) from exc
        except EnvFailure:
            self._output.write(traceback.format_exc())  # the screen gets one line
            raise
        except (UserError, RunFailure):
            raise
        except Exception:
            self._output.write(traceback.format_exc())
            raise
        finally:
            self._signals.over = True

    def _hold(self, run_dir: Path) -> None:
        from utils.run_lock import hold

        self.lock = hold(run_dir)

    def _wrote_metrics(self) -> bool:
        """Whether there is anything worth keeping or continuing."""
        metrics = self.run_dir / "metrics.jsonl" if self.run_dir else None
        return metrics is not None and metrics.is_file() and metrics.stat().st_size > 0


def _new_experiment(main: Callable[[SacredRun], Any]) -> Experiment:
    from sacred import Experiment

    from utils.logging import get_logger

    base_dir = Path(__file__).resolve().parent
    with _sacred_settings():
        try:
            experiment = Experiment("murmuration", base_dir=base_dir, save_git_info=True)
        except (
            Exception
        ) as exc:  # no git, a repository without commits, one that belongs to somebody else, ...
            get_logger().debug("no git information recorded: %s", exc)
            experiment = Experiment("murmuration", base_dir=base_dir, save_git_info=False)
    experiment.logger = get_logger()  # type: ignore[assignment] # Sacred has no types

    @experiment.main
    def train(_run: SacredRun) -> Any:
        """Train, or evaluate."""
        return main(_run)

    return experiment


@contextmanager
def _sacred_settings() -> Iterator[None]:
    """Sacred's settings of the whole process are ours; somebody else may use it, too."""
    from sacred import SETTINGS

    ours = {
        "CAPTURE_MODE": "no",  # utils.logging records the output
        "DISCOVER_SOURCES": "none",  # the commit says it all, and git is slow file by file
        "DISCOVER_DEPENDENCIES": "pkg",
    }
    before = {key: SETTINGS[key] for key in ours}
    SETTINGS.update(ours)
    try:
        yield
    finally:
        SETTINGS.update(before)


class _OutsideOfTraining(EndRequest):
    """Before the work, the first signal ends the run at once; after it, the run is at its end
    anyway.
    """

    over = False

    def heed(self, signum: int) -> None:
        """The work was ended by this signal."""
        self.received = signum
        self.interrupts = int(signum == signal.SIGINT)

    def on_first(self, signum: int) -> None:
        from utils.observers import Interrupted

        if not self.over:
            raise Interrupted(signum)

"""Loggers that a run writes to beside Sacred (key `loggers`): TensorBoard, W&B, MLflow.

None of them can stop or delay training: each works in a thread of its own, and one that fails is
left out for the rest of the run, with one warning.
"""

from __future__ import annotations

import importlib.util
import logging
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from utils.background import Background
from utils.elsewhere import note, recall
from utils.errors import ConfigError, MissingPackage
from utils.loggers.base import FAILED, FINISHED, INTERRUPTED, Figure, Recorded, RunLogger, Subject
from utils.loggers.to_mlflow import MLflow
from utils.loggers.to_tensorboard import TensorBoard
from utils.loggers.to_wandb import WandB
from utils.registry import nearest

__all__ = ["FAILED", "FINISHED", "INTERRUPTED", "Attached", "attach", "check", "check_packages"]

LOGGERS: dict[str, type[RunLogger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}
# Keys of other programs that mean `loggers: [NAME]`.
SWITCHES = {"use_tensorboard": "tensorboard"}
_END_WAIT = 30.0  # [s] that the end of a run waits for a logger

_log = logging.getLogger(__name__)


def asked_for(config: Mapping[str, Any]) -> list[str]:
    """The names of the loggers that a configuration asks for, each once."""
    switched = [name for key, name in SWITCHES.items() if config[key]]
    return list(dict.fromkeys([*config["loggers"], *switched]))


def check(config: Mapping[str, Any]) -> None:
    """Checks the keys `loggers` and `logger_args`.

    Raises:
        ConfigError: an unknown logger or option.
    """
    for name in config["loggers"]:
        if name not in LOGGERS:
            raise ConfigError(f"loggers: unknown logger '{name}'; {nearest(str(name), LOGGERS)}")
    for name, options in config["logger_args"].items():
        if name not in LOGGERS:
            raise ConfigError(f"logger_args: unknown logger '{name}'; {nearest(name, LOGGERS)}")
        known = LOGGERS[name].options
        if not isinstance(options, Mapping):
            raise ConfigError(f"logger_args.{name} must be a mapping, got {options!r}")
        for option in options:
            if option not in known:
                hint = nearest(option, known) if known else "it has no options"
                raise ConfigError(f"logger_args.{name}: unknown option '{option}'; {hint}")


def check_packages(config: Mapping[str, Any]) -> None:
    """Looks for the packages of the loggers that a configuration asks for.

    Raises:
        MissingPackage: one is not installed.
    """
    for name in asked_for(config):
        package = LOGGERS[name].package
        spec = importlib.util.find_spec(package)
        # W&B writes to folders named wandb, which Python takes for packages without an origin.
        if spec is None or spec.origin is None:
            raise MissingPackage(
                f"logger '{name}' needs the package {package}: pip install -r "
                f'requirements-{name}.txt, or pip install -e ".[{name}]"'
            )


def attach(config: Mapping[str, Any], run_dir: Path) -> list[Attached]:
    """The loggers that a configuration asks for; each begins with its `begin`."""
    from utils.observers import masked_config

    run = Subject(masked_config(config), run_dir.absolute())
    return [
        Attached(name, LOGGERS[name](run, config["logger_args"].get(name, {})), run_dir)
        for name in asked_for(config)
    ]


class Attached:
    """A logger in a thread of its own, which is left out once it fails.

    `elsewhere.json` in the run's folder keeps the run's id in the logger, and the last step of
    every series that a logger without `rewind` got before the run was taken back to a checkpoint.

    Args:
        name: for messages and `elsewhere.json`.
        logger: does the logging.
        run_dir: the folder of the run.
    """

    def __init__(self, name: str, logger: RunLogger, run_dir: Path) -> None:
        self._name = name
        self._logger = logger
        self._run_dir = run_dir
        self._thread = Background(f"logger-{name}")
        self._waiting: deque[Figure | Callable[[], None]] = deque()  # in the order of the calls
        self._draining = threading.Event()
        self._begun = False
        self._retired = False
        self._reached: dict[str, int] = {}

    def begin(
        self, last_t: int, lost: Mapping[str, int], earlier: Callable[[], list[Recorded]]
    ) -> None:
        """The run begins, or goes on after it was taken back to a checkpoint.

        Args:
            last_t: step of the last figure before the checkpoint; -1 if there is none.
            lost: figures that were logged after it, with their last steps.
            earlier: gives what is recorded up to the checkpoint; called where a logger has none of
                it.
        """
        first = not self._begun
        if first:
            self._begun = True
            self._thread.start()
        self._put(partial(self._begin, first, last_t, lost, earlier))

    def figure(self, key: str, value: float, t: int) -> None:
        """Passes a figure on, as the other methods do; before `begin` they do nothing."""
        self._put(Figure(key, value, t))

    def values(self, key: str, values: Sequence[float | None], t: int) -> None:
        """Passes a list of figures on; None: one was not finite."""
        self._put(partial(self._values, key, values, t))

    def film(self, path: Path, t: int) -> None:
        """Passes a film on."""
        self._put(lambda: self._logger.film(path, t))

    def flush(self) -> None:
        """Lets it write what waits in memory."""
        self._put(lambda: self._logger.flush())

    def close(self, status: str) -> None:
        """Ends it, within 30 s."""
        if not self._begun:
            return
        self._put(lambda: self._logger.close(status))
        if not self._thread.call(self._work).wait(_END_WAIT):
            _log.warning(
                "logger '%s' does not answer: the end of the run may be missing there", self._name
            )
        self._thread.end()

    def _put(self, what: Figure | Callable[[], None]) -> None:
        if not self._begun:
            return
        self._waiting.append(what)
        if not self._draining.is_set():
            self._draining.set()
            self._thread.call(self._work)

    def _work(self) -> None:
        """In the thread: what waits, figures that follow one another at once."""
        self._draining.clear()
        try:
            figures: list[Figure] = []
            while self._waiting and not self._retired:
                what = self._waiting.popleft()
                if isinstance(what, Figure):
                    figures.append(what)
                    continue
                self._log(figures)
                figures = []
                what()
            self._log(figures)
        except Exception as exc:  # whatever a package raises
            from utils.observers import mask_secrets

            self._retired = True
            said = textwrap.shorten(mask_secrets(f"{type(exc).__name__}: {exc}"), 200)
            _log.warning(
                "logger '%s' fails and is left out from here on; the run's files have everything "
                "(%s)",
                self._name,
                said,
            )
        if self._retired:
            self._waiting.clear()

    def _log(self, figures: Sequence[Figure]) -> None:
        new = [figure for figure in figures if self._is_new(figure.key, figure.t)]
        if new:
            self._logger.figures(new)

    def _values(self, key: str, values: Sequence[float | None], t: int) -> None:
        finite = [value for value in values if value is not None]
        if finite and self._is_new(f"{key}[]", t):
            self._logger.values(key, finite, t)

    def _is_new(self, key: str, t: int) -> bool:
        return t > self._reached.get(key, -1)

    def _begin(
        self,
        first: bool,
        last_t: int,
        lost: Mapping[str, int],
        earlier: Callable[[], list[Recorded]],
    ) -> None:
        state = recall(self._run_dir, self._name)
        reached = state.get("reached", {})
        empty = False
        if first:
            state["id"], empty = self._logger.open(state.get("id"))
        if empty:
            reached = {}
        elif (lost or first) and not self._logger.rewind(last_t):
            reached = {key: max(t, reached.get(key, -1)) for key, t in {**reached, **lost}.items()}
        note(self._run_dir, self._name, {**state, "reached": reached})
        self._reached = reached
        if empty:
            self._catch_up(earlier())

    def _catch_up(self, recorded: Sequence[Recorded]) -> None:
        figures: list[Figure] = []
        for key, value, t in recorded:
            if isinstance(value, list):
                self._log(figures)
                figures = []
                self._values(key, value, t)
            else:
                figures.append(Figure(key, value, t))
        self._log(figures)

"""Runs from Python, e.g. in a notebook; docs/api.md shows how.

    from api import Run

    run = Run("qmix", "predator_prey", t_max=20_000, seed=1)
    run.train()
    run.evaluate(32)
    run.metrics("test_return_mean")

A run of the command line with the same settings has the same results, byte for byte.
"""

from __future__ import annotations

import copy
import json
import math
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from recording import Recorder, find_resume, prepare_process

prepare_process()

import numpy as np  # noqa: E402 - torch reads what is prepared when it loads

from analysis.runs import Series  # noqa: E402
from isolation import undisturbed  # noqa: E402
from session import Session  # noqa: E402
from training import Training  # noqa: E402
from utils.checkpoints import (  # noqa: E402
    ResumePoint,
    newest_readable,
    read_config,
    run_folder,
)
from utils.config import (  # noqa: E402
    CONFIG_DIR,
    build_config,
    check_config,
    convert,
    load_file,
    results_dir,
)
from utils.errors import ConfigError, Finished, UserError  # noqa: E402
from utils.logging import get_logger  # noqa: E402
from utils.observers import Interrupted, Paused  # noqa: E402
from utils.registry import nearest  # noqa: E402

__all__ = ["Run", "Series"]


class Run:
    """One run: `python src/main.py --config=ALGORITHM --env-config=ENVIRONMENT with KEY=VALUE ...`.

    Nothing is built or written before it is asked for. Several runs may live in one process, be
    trained in turn and keep to themselves: random generators, torch threads, signal handlers,
    logging and plug-ins are after every call what they were before it.

    Args:
        algorithm: name of a file in `config/algs/`, or the path of a yaml file.
        environment: the same in `config/envs/`.
        settings: keys that are no Python names: `{"env_args.penalty": 0.5}`.
        observe: write results as the command line does, to `local_results_path`; False: to a
            temporary folder, which goes when the run is closed or forgotten.
        keys: further settings; entries of mappings as `env_args={"penalty": 0.5}`. They count more
            than `settings`.

    Raises:
        ConfigError: an unknown name or key, a value of the wrong type or out of range.
        UserError: there is no run to `resume`.
    """

    def __init__(
        self,
        algorithm: str,
        environment: str,
        /,
        settings: Mapping[str, Any] | None = None,
        observe: bool = True,
        **keys: Any,
    ) -> None:
        updates = list(_updates({**(settings or {}), **keys}))
        self._set_up(build_config(str(algorithm), str(environment), updates), observe)

    @classmethod
    def resume(cls, path: str | Path, /, **keys: Any) -> Run:
        """A recorded run that goes on from its newest checkpoint, or from one of them.

        Args:
            path: folder of the run or of a checkpoint.
            keys: what may differ from its first settings, e.g. `t_max`.

        Raises:
            ConfigError: an unknown key, a value of the wrong type or out of range.
            UserError: no run or no readable checkpoint there, or a key that may not differ.
        """
        old = read_config(run_folder(Path(path)))
        config = {**load_file(CONFIG_DIR / "default.yaml"), **old}
        for key, value in keys.items():
            if key not in config:
                raise ConfigError(f"unknown key '{key}'; {nearest(key, config)}")
            kind = type(config[key])
            config[key] = value if config[key] is None else convert(key, value, kind)
        config["resume"] = str(path)
        check_config(config)
        run = cls.__new__(cls)
        run._set_up(config, observe=True)
        return run

    def _set_up(self, config: dict[str, Any], observe: bool) -> None:
        if config["resume"] and not observe:
            raise ConfigError("resume goes on with a recorded run: leave out observe=False")
        with undisturbed():
            point = _find_resume(config)
            log = get_logger()
        self._lock = point.lock if point else None
        self._config = config
        self._observe = observe
        self._temporary = None if observe else tempfile.TemporaryDirectory(prefix="unobserved-")
        self._folder = point.run_dir if point else None
        if self._temporary is not None:
            self._folder = Path(self._temporary.name)
        if point is not None:
            point = replace(point, lock=None)  # `_lock` has it
        self._session: Session | None = Session(config, log, point)

    # -- what it is --------------------------------------------------------------------------------
    @property
    def config(self) -> dict[str, Any]:
        """A copy of the configuration, with the seed that was drawn if none was given."""
        return copy.deepcopy(self._config)

    @property
    def folder(self) -> Path | None:
        """Where the results are: `metrics.jsonl`, `checkpoints`, ...; None before `train` makes
        it.
        """
        return self._folder

    @property
    def t_env(self) -> int:
        """Environment steps trained so far."""
        return self._open().runner.t_env

    @property
    def learner(self) -> Any:
        """The learner, with its networks."""
        return self._open().learner

    @property
    def mac(self) -> Any:
        """The controller, with the agents' networks."""
        return self._open().mac

    def metrics(self, key: str) -> Series:
        """One figure over time.

        Args:
            key: e.g. `test_return_mean`; `metrics.jsonl` has them all.

        Returns:
            The named tuple (t int64 [n], values float64 [n]): environment steps, and NaN where the
            figure was not finite.

        Raises:
            UserError: the run has written no such figure.
        """
        points = [(t, value) for name, t, value in self._figures() if name == key]
        if not points:
            known = {name for name, _, _ in self._figures()}
            raise UserError(f"the run has no metric '{key}' so far; {nearest(key, known)}")
        t, values = zip(*points, strict=True)
        return Series(np.array(t, dtype=np.int64), np.array(values, dtype=np.float64))

    def _figures(self) -> Iterator[tuple[str, int, float]]:
        """Name, step and value of everything in `metrics.jsonl` but lists."""
        file = self._folder / "metrics.jsonl" if self._folder else None
        if file is None or not file.is_file():
            return
        for entry in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            value = math.nan if entry["value"] is None else entry["value"]
            if not isinstance(value, list):
                yield entry["key"], entry["t"], value

    # -- what it does ------------------------------------------------------------------------------
    def train(self, steps: int | None = None) -> float | None:
        """Trains up to `t_max`; called again, it goes on where it stopped.

        Ctrl-C ends it after the present episode with a checkpoint, and then interrupts the caller;
        a second Ctrl-C aborts it at once, and it goes on from the checkpoint before. After an error
        that ends a run it goes on from the newest checkpoint, too.

        Args:
            steps: pause after so many environment steps, or a few more: episodes are not cut.

        Returns:
            `test_return_mean` of the last evaluation; None if there was none.

        Raises:
            KeyboardInterrupt: after Ctrl-C.
            UserError: something must be changed first, e.g. an unknown map.
            RunFailure: the run cannot go on, e.g. `Diverged`.
        """
        if steps is not None and steps < 1:
            raise ConfigError(f"train: steps must be at least 1, got {steps}")
        signum = None
        with self._undisturbed():
            session = self._live()
            if not session.finished:
                try:
                    self._record(session, steps)
                except Paused:
                    pass
                except Interrupted as exc:
                    signum = exc.signum
        if signum is not None:
            signal.raise_signal(signum)  # it is the caller's, too
        return self._open().last_test_return

    def evaluate(self, n_episodes: int) -> dict[str, float]:
        """Greedy episodes of the present networks, in environments of their own.

        Nothing of it is recorded, and training goes on as if it had not been. The same networks
        after the same number of steps play the same episodes.

        Args:
            n_episodes: how many.

        Returns:
            Means over the episodes by name: `test_return_mean`, `test_ep_length_mean`, ...
        """
        if n_episodes < 1:
            raise ConfigError(f"evaluate: n_episodes must be at least 1, got {n_episodes}")
        with self._undisturbed():
            return self._live().evaluate(n_episodes, self._place())

    def save(self) -> Path:
        """Writes a checkpoint (with `save_model=False`, too); its folder, which has PyMARL's model
        files and all that `Run.resume` needs.

        Raises:
            UserError: the run has no folder before it is trained.
        """
        if self._folder is None:
            raise UserError("the run has no folder for a checkpoint yet: train it first")
        with self._undisturbed():
            return self._live().save(self._folder)

    def close(self) -> None:
        """Ends environments and their processes; the end of the training does so, too. A run that
        was not at its end goes on from its newest checkpoint.
        """
        if self._session is not None:
            with self._undisturbed():
                self._session.close()
            if not self._session.finished:
                self._session = None
        self._lock = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        name, env = self._config["name"], self._config["env_config"]
        return f"Run({name!r}, {env!r}, seed={self._config['seed']}, folder={self._folder})"

    def _record(self, session: Session, steps: int | None) -> None:
        recorder = Recorder()
        try:
            recorder.record(
                self._config,
                lambda sacred_run, run_dir: session.work(sacred_run, run_dir, steps),
                self._folder,
                self._observe,
            )
            session.close()
        finally:
            self._lock = None if session.finished else recorder.lock
            if session.training is None:  # it failed
                self._session = None
            if self._observe and recorder.run_dir is not None:
                self._folder = recorder.run_dir if recorder.run_dir.is_dir() else None

    def _undisturbed(self) -> AbstractContextManager[None]:
        return undisturbed(self._config["plugins"])

    def _live(self) -> Session:
        """The session; after a failure a new one, from the newest checkpoint.

        Raises:
            UserError: there is none.
        """
        if self._session is None:
            point = None
            if self._folder is not None:
                checkpoint = newest_readable(self._folder / "checkpoints")
                if checkpoint is None:
                    raise UserError(f"no checkpoint in {self._folder} to go on from: start anew")
                seed = self._config["seed"]
                point = ResumePoint(self._folder, self._folder.name, checkpoint, seed)
            self._session = Session(self._config, get_logger(), point)
        return self._session

    def _open(self) -> Training:
        with self._undisturbed():
            return self._live().open(self._place())

    def _place(self) -> Path:
        """The folder of the results, or the one in which it will be."""
        return self._folder or results_dir(self._config)


def _find_resume(config: dict[str, Any]) -> ResumePoint | None:
    """As `find_resume`; a run that `auto` finds at its end is taken up there."""
    try:
        return find_resume(config)
    except Finished as exc:
        config["resume"] = str(exc.run_dir)
        return find_resume(config)


def _updates(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Settings as the command line has them: `key=literal`, nested ones with dots."""
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _updates(value, f"{prefix}{key}.")
        elif isinstance(value, np.generic):
            yield f"{prefix}{key}={value.item()!r}"
        else:
            yield f"{prefix}{key}={str(value) if isinstance(value, Path) else repr(value)}"

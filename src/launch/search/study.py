"""What all processes of a search share: its trials, in Optuna's storage.

A trial belongs to the process that asked for it, which gives signs of life. Where they stop,
another process marks it as failed and queues its settings again, as a trial that goes on in the
same folder; so does a process that is told to end. Such a trial and the one that goes on count as
one.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, ProgrammingError, SQLAlchemyError

from launch.folder import AtWork, lock_file
from launch.search.space import all_points, suggest, written
from launch.search.spec import Sampler, Search
from launch.table import counts_in_words
from utils.errors import RunFailure, UserError
from utils.seeding import derive_seed

PLACE = "search.json"
ASKED = "asked"
_SILENT = 3  # signs of life that a process may miss
_ATTEMPTS = 5  # to open a storage
_TURN_PATIENCE = 120.0  # [s] for another process that asks for a trial
_ORDER = ("running", "waiting", "complete", "pruned", "failed")
_STATES = (TrialState.RUNNING, TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)

# What Optuna says of its own future, and of `ask` beside heartbeats, which are given here.
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
optuna.logging.set_verbosity(optuna.logging.WARNING)

_log = logging.getLogger(__name__)


def started_over(trials: list[FrozenTrial]) -> set[int]:
    """Numbers of the trials that go on under another number."""
    history = RetryHeartbeatStaleTrialCallback.retry_history
    return {number for trial in trials for number in history(trial)}


def counted(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The trials without those that go on under another number."""
    over = started_over(trials)
    return [trial for trial in trials if trial.number not in over]


# --- The storage ---


def open_storage(url: str, folder: Path, heartbeat: int | None = None) -> RDBStorage:
    """The database.

    Args:
        url: empty: SQLite in `folder`; `$NAME` stands for a variable of the environment.
        heartbeat: seconds between signs of life; None for whoever only looks.

    Raises:
        UserError: it cannot be reached.
    """
    url = os.path.expandvars(url) or f"sqlite:///{folder / 'search.db'}"
    for attempt in range(_ATTEMPTS):
        try:
            return _storage(url, heartbeat)
        except (IntegrityError, ProgrammingError) as exc:
            if attempt == _ATTEMPTS - 1:
                raise UserError(_unusable(url, exc)) from exc
            time.sleep(1.0)  # another process makes the tables at this moment
        except (SQLAlchemyError, OptunaError, ImportError) as exc:
            raise UserError(_unusable(url, exc)) from exc
    raise AssertionError("the last attempt returns or raises")


def _storage(url: str, heartbeat: int | None) -> RDBStorage:
    sqlite = make_url(url).get_backend_name() == "sqlite"
    return RDBStorage(
        url,
        engine_kwargs={"connect_args": {"timeout": 60}} if sqlite else None,
        heartbeat_interval=heartbeat,
        grace_period=None if heartbeat is None else _SILENT * heartbeat,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(
            inherit_intermediate_values=True
        ),
    )


def _unusable(url: str, exc: BaseException) -> str:
    return f"the storage {_shown(url)} cannot be used: {_first_line(exc)}"


def _shown(url: str) -> str:
    """Without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(no URL of a database)"


def _first_line(exc: BaseException) -> str:
    said = str(exc.__cause__ or exc).strip().splitlines()
    return said[0] if said else type(exc).__name__


class TakenOver(Exception):
    """Another process has taken a trial over: this one seemed dead."""


@contextmanager
def _storage_errors() -> Iterator[None]:
    """
    Raises:
        TakenOver: the trial is not this process's any more.
        RunFailure: instead of any error of the storage.
    """
    try:
        yield
    except UpdateFinishedTrialError as exc:
        raise TakenOver(str(exc)) from exc
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as exc:
        raise RunFailure(
            f"the storage of the search fails: {_first_line(exc)}; the same command goes on"
        ) from exc


def note_place(folder: Path, storage: str, name: str) -> None:
    """Writes where the trials are, for `status` and `report`."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{PLACE}.{os.getpid()}"
    partial.write_text(json.dumps({"storage": storage, "study": name}) + "\n", encoding="utf-8")
    os.replace(partial, folder / PLACE)


def load_study(folder: Path) -> optuna.Study:
    """The trials of the search whose results are in a folder, to look at.

    Raises:
        UserError: there is none.
    """
    try:
        place = json.loads((folder / PLACE).read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise UserError(f"no search in {folder}: start one with `search SPEC.yaml`") from exc
    storage = open_storage(place["storage"], folder)
    try:
        return optuna.load_study(study_name=place["study"], storage=storage)
    except KeyError as exc:
        raise UserError(f"the storage of {folder} has no search '{place['study']}'") from exc


# --- A process's part of it ---


class Best(NamedTuple):
    """A trial that is complete: its number, value and settings."""

    number: int
    value: float
    chosen: Mapping[str, Any]


class SharedStudy:
    """The trials of a search, for a process that takes part.

    Args:
        folder: of the results.

    Raises:
        UserError: the storage cannot be reached, or its search is about something else.
    """

    def __init__(self, search: Search, folder: Path) -> None:
        self.search, self.folder = search, folder
        folder.mkdir(parents=True, exist_ok=True)
        self._id = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        (folder / "processes").mkdir(exist_ok=True)
        self._next_beat = 0.0
        self.mine: dict[int, Trial] = {}
        with self.turn(), _storage_errors():
            self._storage = open_storage(search.storage, folder, search.heartbeat)
            self.study = optuna.create_study(
                storage=self._storage,
                study_name=folder.name,
                direction="maximize" if search.maximize else "minimize",
                pruner=_pruner(search),
                load_if_exists=True,
            )
            self._agree()
            if search.sampler.kind == "grid":
                for point in all_points(search.space):
                    self.study.enqueue_trial(point, skip_if_exists=True)
        note_place(folder, search.storage, folder.name)
        self._alive: IO[str] = lock_file(self._mark(self._id), patience=0)

    def close(self) -> None:
        """This process is at its end; trials that are still its own are queued again."""
        for trial in list(self.mine.values()):
            try:
                self.put_back(trial)
            except RunFailure as exc:  # without a sign of life it is taken over later
                _log.warning("trial %d stays where it is: %s", trial.number, exc)
        self._mark(self._id).unlink(missing_ok=True)
        self._alive.close()

    def _agree(self) -> None:
        """The search in the storage is this one."""
        mine = self.search.identity()
        theirs = self.study.user_attrs.get(ASKED)
        if theirs is None:
            self.study.set_user_attr(ASKED, mine)
            return
        for key, value in mine.items():
            if theirs.get(key) != value:
                other = _difference(key, value, theirs.get(key))
                raise UserError(
                    f"the search in {self.folder} was begun with another {other}; choose another "
                    "folder with --results"
                )

    # --- Trials ---

    def ask(self) -> tuple[Trial, dict[str, Any]] | None:
        """The next trial and its settings; None: there is none at present."""
        with self.turn(), _storage_errors():
            self._take_over()
            trials = self.study.get_trials(deepcopy=False)
            if not any(trial.state is TrialState.WAITING for trial in trials):
                begun = sum(trial.state in _STATES for trial in counted(trials))
                if begun >= self.search.trials:
                    return None
            trial = self.study.ask()
            self.mine[trial.number] = trial
            self._storage.record_heartbeat(trial._trial_id)
            trial.set_user_attr("process", self._id)
            # A seed of its own for each trial: processes do not try the same, and one process
            # that works on one trial at a time always tries the same.
            self.study.sampler = _sampler(self.search.sampler, trial.number)
            chosen = suggest(self.search.space, trial)
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", _folder_of(trial, trials))
            return trial, chosen

    def others_at_work(self) -> int:
        """How many trials other processes have at work, or have left in the queue."""
        with _storage_errors():
            open_ = self.study.get_trials(
                deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)
            )
        return sum(trial.number not in self.mine for trial in open_)

    def beat(self) -> list[Trial]:
        """Gives signs of life, every now and then; the trials that another process has taken over
        in spite of them (this one had been stopped).
        """
        if time.monotonic() < self._next_beat:
            return []
        lost = []
        with _storage_errors():
            for trial in self.mine.values():
                self._storage.record_heartbeat(trial._trial_id)
                if self._storage.get_trial(trial._trial_id).state is not TrialState.RUNNING:
                    lost.append(trial)
        for trial in lost:
            del self.mine[trial.number]
        self._next_beat = time.monotonic() + self.search.heartbeat
        return lost

    def report(self, trial: Trial, values: Mapping[int, float]) -> bool:
        """Notes the values of evaluations; whether the pruner wants the trial to end.

        Raises:
            TakenOver: the trial is not this process's any more.
        """
        with _storage_errors():
            known = self._storage.get_trial(trial._trial_id).intermediate_values
            for number, value in values.items():
                if known.get(number) != value:
                    self._storage.set_trial_intermediate_value(trial._trial_id, number, value)
            # `trial.should_prune()` would know what `trial.report` was told, which has no second
            # thoughts: a mean changes when another run begins.
            return self.study.pruner.prune(self.study, self._storage.get_trial(trial._trial_id))

    def complete(self, trial: Trial, value: float) -> bool:
        """The trial has its value; False: another process has taken it over."""
        return self._tell(trial, values=value)

    def best(self) -> Best:
        """The best of the trials that are complete."""
        with _storage_errors():
            trial = self.study.best_trial
        assert trial.value is not None  # it is complete
        return Best(trial.number, trial.value, written(self.search.space, trial.params))

    def prune(self, trial: Trial) -> None:
        """The trial was ended early; its last evaluation counts."""
        self._tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, why: str) -> None:
        """The trial has no value, and is not tried again."""
        self._tell(trial, state=TrialState.FAIL, why=why)

    def put_back(self, trial: Trial) -> None:
        """The trial is interrupted: whoever asks next goes on with it."""
        with _storage_errors():
            self._start_over(trial._trial_id)
        del self.mine[trial.number]

    def _tell(self, trial: Trial, why: str = "", **result: Any) -> bool:
        self.mine.pop(trial.number, None)
        try:
            with _storage_errors():
                if why:
                    trial.set_user_attr("error", why)
                self.study.tell(trial.number, **result)
        except (TakenOver, ValueError) as exc:  # ValueError: Optuna's for the same
            _log.warning("trial %d was taken over by another process: %s", trial.number, exc)
            return False
        return True

    def _take_over(self) -> None:
        """Queues the trials of processes that are dead."""
        fail_stale_trials(self.study)
        running = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        owners = {trial.user_attrs.get("process", self._id) for trial in running} - {self._id}
        dead = {owner for owner in owners if self._is_dead(owner)}
        for trial in running:
            if trial.user_attrs.get("process") in dead:
                self._start_over(trial._trial_id)
        for owner in dead:
            self._mark(owner).unlink(missing_ok=True)

    def _start_over(self, trial_id: int) -> None:
        try:
            self._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:  # another process was faster
            return
        again = self._storage.get_heartbeat_stale_trial_callback()
        assert again is not None  # `open_storage` gave it
        again(self.study, self._storage.get_trial(trial_id))

    # --- Locks ---

    def _mark(self, process: str) -> Path:
        return self.folder / "processes" / process

    def _is_dead(self, process: str) -> bool:
        """Whether a process that uses this folder is certainly gone: it has lost its lock."""
        mark = self._mark(process)
        if not mark.exists():  # it does not share this folder; its signs of life tell
            return False
        try:
            lock_file(mark, patience=0).close()
        except (AtWork, OSError):
            return False
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One process at a time: no trial is begun beyond the number that is wanted."""
        with lock_file(self.folder / "turn.lock", _TURN_PATIENCE):
            yield


def _difference(key: str, mine: Any, theirs: Any) -> str:
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping):
        parts = [one for one in (*theirs, *mine) if mine.get(one) != theirs.get(one)]
        return f"{key} ({parts[0]})"
    return "set of runs (settings, tasks or seeds)" if key == "runs" else f"{key} ({theirs})"


def _folder_of(trial: Trial, others: list[FrozenTrial]) -> str:
    """The folder of a trial's runs: that of an earlier trial with the same settings, whose runs are
    not repeated.
    """
    same = (
        other for other in others if other.params == trial.params and "folder" in other.user_attrs
    )
    return next((other.user_attrs["folder"] for other in same), f"{trial.number:04d}")


def _sampler(asked: Sampler, number: int) -> optuna.samplers.BaseSampler:
    seed = derive_seed(asked.seed, "sampler", number)
    if asked.kind == "tpe":
        return optuna.samplers.TPESampler(n_startup_trials=asked.startup_trials, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    """Optuna's "steps" are evaluations here."""
    asked = search.pruner
    if asked.kind == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=asked.startup_trials, n_warmup_steps=asked.first_evaluation
        )
    if asked.kind == "hyperband":
        return optuna.pruners.HyperbandPruner(
            min_resource=asked.first_evaluation,
            max_resource=search.evaluations,
            reduction_factor=asked.reduction_factor,
        )
    return optuna.pruners.NopPruner()


def counts(trials: list[FrozenTrial]) -> Counter[str]:
    """Trials by state: complete, pruned, failed, running, waiting."""
    words = {TrialState.FAIL: "failed"}
    return Counter(words.get(trial.state, trial.state.name.lower()) for trial in counted(trials))


def summary(trials: list[FrozenTrial]) -> str:
    """`12 trials: 2 running, 10 complete`."""
    return counts_in_words(counts(trials), "trials", _ORDER)

"""MLflow, in a database beside the results or on a tracking server."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from utils.loggers.base import FAILED, FINISHED, INTERRUPTED, Figure, RunLogger, flat

_STATUS = {FINISHED: "FINISHED", FAILED: "FAILED", INTERRUPTED: "KILLED"}
_AT_ONCE = 1000  # metrics in one request, MLflow's limit
_PARAMS_AT_ONCE = 100
_LONGEST = 6000  # characters of a setting, MLflow's limit
_WAIT = 60  # [s] that a write waits for another run's


class MLflow(RunLogger):
    """A run of MLflow. Without `tracking_uri` and MLFLOW_TRACKING_URI it is written to
    `LOCAL_RESULTS_PATH/mlflow.db`, a database of SQLite.

    MLflow has no histograms: lists of values stay in `metrics.jsonl`.
    """

    package = "mlflow"
    options = ("tracking_uri", "experiment")

    def open(self, known: str | None) -> tuple[str, bool]:
        """See `RunLogger`.

        Raises:
            MlflowException: the server cannot be reached, or does not have the known run.
        """
        from mlflow import MlflowClient

        for chatty in ("mlflow", "alembic"):  # each step of making a database
            logging.getLogger(chatty).setLevel(logging.WARNING)

        results = Path(self.run.config["local_results_path"]).absolute()
        uri = self.given.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")
        films = None if uri else (results / "mlflow").as_uri()
        with _alone(None if uri else results / ".mlflow.lock"):
            self._client: Any = MlflowClient(
                uri or f"sqlite:///{results / 'mlflow.db'}?timeout={_WAIT}"
            )
            experiment = self._experiment(films)
        if known is not None:
            self._id = known
            self._client.update_run(known, status="RUNNING")
            return known, False
        self._id = self._client.create_run(
            experiment, run_name=self.run.name, tags={"group": self.run.group}
        ).info.run_id
        self._settings()
        return self._id, True

    def figures(self, figures: Sequence[Figure]) -> None:
        """See `RunLogger`."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_name(key), value, now, t) for key, value, t in figures]
        for start in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[start : start + _AT_ONCE])

    def film(self, path: Path, t: int) -> None:
        """An artifact: a copy of the file."""
        self._client.log_artifact(self._id, str(path))

    def close(self, status: str) -> None:
        """See `RunLogger`."""
        self._client.set_terminated(self._id, _STATUS[status])

    def _experiment(self, artifacts: str | None) -> str:
        name = (
            self.given.get("experiment")
            or os.environ.get("MLFLOW_EXPERIMENT_NAME")
            or "murmuration"
        )
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return self._client.create_experiment(name, artifact_location=artifacts)

    def _settings(self) -> None:
        from mlflow.entities import Param

        settings = [
            Param(_name(key), str(value)[:_LONGEST]) for key, value in flat(self.run.config)
        ]
        for start in range(0, len(settings), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=settings[start : start + _PARAMS_AT_ONCE])


def _name(key: str) -> str:
    """`key` in the characters that MLflow takes."""
    return re.sub(r"[^\w.\- /]", "-", key)


@contextlib.contextmanager
def _alone(lock: Path | None) -> Iterator[None]:
    """Runs that start together make the database one after another."""
    if lock is None:
        yield
        return
    import fcntl

    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the file's end frees it
        yield

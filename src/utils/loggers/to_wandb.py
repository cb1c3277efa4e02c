"""Weights & Biases."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.loggers.base import FINISHED, Figure, RunLogger

_log = logging.getLogger(__name__)


class WandB(RunLogger):
    """A run of Weights & Biases, whose step is the number of environment steps.

    Without `mode` and WANDB_MODE it is online if there is an API key, else offline: it never asks
    for one. Offline, each process writes a folder of its own, and that of a resumed run begins with
    the figures up to the checkpoint.
    """

    package = "wandb"
    options = ("project", "entity", "mode", "group", "tags", "notes")

    def open(self, known: str | None) -> tuple[str, bool]:
        """See `RunLogger`."""
        import wandb

        # Its own default tells of everything in lines; warnings stay.
        logging.getLogger("wandb").setLevel(logging.WARNING)
        mode = self.given.get("mode") or os.environ.get("WANDB_MODE") or _usual_mode(wandb)
        offline = mode != "online"
        run_id = known or secrets.token_hex(4)
        options = {key: value for key, value in self.given.items() if value}
        self._run: Any = wandb.init(
            id=run_id,
            dir=str(self.run.folder),
            name=self.run.name,
            config=dict(self.run.config),
            resume=None if offline else "allow",
            reinit="create_new",  # several runs may live in one process
            settings=wandb.Settings(
                console="off",  # cout.txt has the output
                silent=True,
                x_disable_stats=True,  # of the machine, every 15 s
                disable_git=True,
                disable_code=True,
            ),
            **{**self._usual(), **options, "mode": mode},
        )
        if mode == "offline":
            _log.info("W&B is offline; to upload: wandb sync %s", Path(self._run.dir).parent)
        return run_id, offline or known is None

    def figures(self, figures: Sequence[Figure]) -> None:
        """See `RunLogger`."""
        rows: dict[int, dict[str, float]] = {}
        for figure in figures:
            rows.setdefault(figure.t, {})[figure.key] = figure.value
        for t, row in rows.items():
            self._run.log(row, step=t)

    def values(self, key: str, values: Sequence[float], t: int) -> None:
        """A histogram."""
        import wandb

        self._run.log({key: wandb.Histogram(list(values))}, step=t)

    def film(self, path: Path, t: int) -> None:
        """A moving picture."""
        import wandb

        self._run.log({path.stem: wandb.Video(str(path), format="gif")}, step=t)

    def close(self, status: str) -> None:
        """Everything but a finished run is "failed" there; `status` in the summary tells more."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status == FINISHED else 1)

    def _usual(self) -> dict[str, str]:
        return {
            "project": os.environ.get("WANDB_PROJECT") or "murmuration",
            "group": os.environ.get("WANDB_RUN_GROUP") or self.run.group,
        }


def _usual_mode(wandb: Any) -> str:
    return "online" if wandb.api.api_key else "offline"

"""TensorBoard events in `RUN/tb`, through PyTorch's writer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.loggers.base import FINISHED, Figure, RunLogger, flat

# Figures that TensorBoard's HPARAMS page shows in columns beside the settings.
COLUMNS = ("test_return_mean", "test_battle_won_mean", "return_mean")


class TensorBoard(RunLogger):
    """Scalars, the settings as hyper-parameters, histograms and films.

    A resumed run writes another file into the same folder. It begins with the mark that makes
    TensorBoard forget what was logged after the checkpoint.
    """

    package = "tensorboard"

    def open(self, known: str | None) -> tuple[str, bool]:
        """See `RunLogger`; the id is the folder's name."""
        from torch.utils.tensorboard import SummaryWriter

        folder = self.run.folder / "tb"
        empty = not any(folder.glob("events.out.tfevents.*"))
        self._writer: Any = SummaryWriter(str(folder))
        self._settings()
        return folder.name, empty

    def figures(self, figures: Sequence[Figure]) -> None:
        """See `RunLogger`."""
        for figure in figures:
            self._writer.add_scalar(figure.key, figure.value, figure.t)

    def values(self, key: str, values: Sequence[float], t: int) -> None:
        """A histogram."""
        import numpy as np

        self._writer.add_histogram(key, np.asarray(values, dtype=np.float64), t)

    def film(self, path: Path, t: int) -> None:
        """A moving picture on the page IMAGES. (`add_video` would need moviepy to make a GIF.)"""
        from PIL import Image
        from tensorboard.compat.proto.summary_pb2 import Summary

        with Image.open(path) as film:
            width, height = film.size
        picture = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        self._add(Summary(value=[Summary.Value(tag=path.stem, image=picture)]), t)

    def rewind(self, t: int) -> bool:
        """Readers drop what other files of the folder have from step t + 1 on."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        start = SessionLog(status=SessionLog.START)
        file = self._writer.file_writer
        file.add_event(Event(step=t + 1, file_version="brain.Event:2"))
        file.add_event(Event(step=t + 1, session_log=start))
        return True

    def flush(self) -> None:
        """See `RunLogger`."""
        self._writer.flush()

    def close(self, status: str) -> None:
        """See `RunLogger`."""
        if status == FINISHED:  # else the page HPARAMS has its end open
            self._add(self._end)
        self._writer.close()

    def _settings(self) -> None:
        """The configuration, for the page HPARAMS."""
        from torch.utils.tensorboard.summary import hparams

        plain = {key: _plain(value) for key, value in flat(self.run.config)}
        experiment, start, self._end = hparams(plain, dict.fromkeys(COLUMNS))
        self._add(experiment)
        self._add(start)

    def _add(self, summary: Any, t: int | None = None) -> None:
        self._writer.file_writer.add_summary(summary, t)


def _plain(value: Any) -> bool | str | int | float:
    """A setting as the page can sort it."""
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)

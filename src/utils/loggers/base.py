"""What a logger beside Sacred is: `RunLogger`, which each of them implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

FINISHED, FAILED, INTERRUPTED = "finished", "failed", "interrupted"  # how a run has ended


class Figure(NamedTuple):
    """A number at a step; it may be NaN or infinite."""

    key: str
    value: float
    t: int


class Recorded(NamedTuple):
    """An entry of the result files: a number or a list of them, where None was not finite."""

    key: str
    value: float | list[float | None]
    t: int


class Subject(NamedTuple):
    """The run that is logged.

    Attributes:
        config: its configuration, without passwords.
        folder: its folder, `.../ALG/MAP/ID`.
    """

    config: Mapping[str, Any]
    folder: Path

    @property
    def group(self) -> str:
        """What its seeds have in common: `ALG/MAP`."""
        return "/".join(self.folder.parts[-3:-1])

    @property
    def name(self) -> str:
        """`ALG/MAP/ID`."""
        return "/".join(self.folder.parts[-3:])


class RunLogger(ABC):
    """One run in one logger. All methods are called in one thread, which is not the training's.

    Whatever a method raises retires the logger.

    Args:
        run: the run.
        options: its entry in the key `logger_args`.

    Attributes:
        package: the module that it needs, and the extra that installs it has the logger's name.
        options: the entries that `logger_args` may have for it.
    """

    package: ClassVar[str]
    options: ClassVar[tuple[str, ...]] = ()

    def __init__(self, run: Subject, options: Mapping[str, Any]) -> None:
        self.run = run
        self.given = options

    @abstractmethod
    def open(self, known: str | None) -> tuple[str, bool]:
        """Begins, or goes on with, the run there.

        Args:
            known: what `open` returned as the run's id when it was first called for this run; None
                if this is the first time.

        Returns:
            The id, and whether nothing of the run is there: then its earlier figures follow.
        """

    @abstractmethod
    def figures(self, figures: Sequence[Figure]) -> None:
        """Logs figures, with steps in ascending order."""

    def values(self, key: str, values: Sequence[float], t: int) -> None:  # noqa: B027 - optional
        """Logs the finite values of a distribution, for example the returns of an evaluation."""

    def film(self, path: Path, t: int) -> None:  # noqa: B027 - optional
        """Logs a film (GIF)."""

    def rewind(self, t: int) -> bool:
        """Takes back what was logged after step t, because it will be logged anew.

        Returns:
            Whether it can. If not, figures that are there already will not be passed to it again.
        """
        return False

    def flush(self) -> None:  # noqa: B027 - optional
        """Writes what waits in memory."""

    @abstractmethod
    def close(self, status: str) -> None:
        """Ends the run there: `FINISHED`, `FAILED` or `INTERRUPTED`."""


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings by dotted key; an empty mapping is an entry."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value

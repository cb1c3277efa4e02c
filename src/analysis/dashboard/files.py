"""The files of a run that its page shows: films, replays, checkpoints, console output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from analysis.dashboard.entry import Entry, moment
from analysis.dashboard.index import Index

FILMS = ("evaluation.gif", "evaluation.mp4")
PLAIN = ("cout.txt", "config.json", "run.json")
_PICTURES = (".gif", ".mp4")
_REPLAYS = (".gif", ".mp4", ".npz", ".SC2Replay")


class Checkpoint(NamedTuple):
    """A folder below `checkpoints/`.

    Attributes:
        size: of all its files [bytes].
        resumable: it holds the whole training state, not the models alone.
    """

    step: int
    size: int
    written: datetime
    resumable: bool


def checkpoints(entry: Entry) -> list[Checkpoint]:
    """The run's checkpoints, the newest first."""
    found = []
    for folder in _folders(entry.path / "checkpoints"):
        if not folder.name.isdecimal():
            continue
        files = [file for file in folder.iterdir() if file.is_file()]
        states = [file.stat() for file in files]
        last = max((state.st_mtime for state in states), default=folder.stat().st_mtime)
        found.append(
            Checkpoint(
                int(folder.name),
                sum(state.st_size for state in states),
                datetime.fromtimestamp(last, timezone.utc),
                any(file.name == "state.pt" for file in files),
            )
        )
    return sorted(found, reverse=True)


def films(index: Index, entry: Entry) -> dict[str, Path]:
    """Films of the run and of the evaluations of its checkpoints, by name."""
    found = {}
    for one in (entry, *evaluations(index, entry)):
        for film in FILMS:
            if (one.path / film).is_file():
                found[_name(entry, one, film)] = one.path / film
    return found


def replays(index: Index, entry: Entry) -> dict[str, Path]:
    """Replays of the run and of the evaluations of its checkpoints, by name.

    Environments write replays to a folder that runs share: those that were written while a run
    went on are its own.
    """
    found = {}
    for one in (entry, *evaluations(index, entry)):
        for file in _replays_of(one):
            found[_name(entry, one, file.name)] = file
    return found


def evaluations(index: Index, entry: Entry) -> list[Entry]:
    """The runs that evaluated this one's checkpoints."""
    found = []
    for other in index.entries():
        source = other.config.get("checkpoint_path")
        if other.id != entry.id and isinstance(source, str) and source:
            path = _against(other, Path(source))
            if path is not None and path.resolve().is_relative_to(entry.path.resolve()):
                found.append(other)
    return found


def served(index: Index, entry: Entry, name: str) -> Path | None:
    """The file that the page may hand out under a name, None for all others."""
    if name in PLAIN and (entry.path / name).is_file():
        return entry.path / name
    return {**films(index, entry), **replays(index, entry)}.get(name)


def is_picture(name: str) -> bool:
    """Whether a browser shows the file."""
    return name.endswith(_PICTURES)


def _name(owner: Entry, one: Entry, file: str) -> str:
    return file if one is owner else f"{one.path.name}/{file}"


def _replays_of(entry: Entry) -> Iterable[Path]:
    args = entry.config.get("env_args")
    folder = args.get("replay_dir") if isinstance(args, Mapping) else None
    start, end = entry.started, moment(entry.record.get("stop_time"))
    if entry.config.get("save_replay") is not True or not folder or start is None:
        return []
    place = _against(entry, Path(str(folder)))
    if place is None or not place.is_dir():
        return []
    until = end.timestamp() + 1 if end else float("inf")
    files = [file for file in place.iterdir() if file.suffix in _REPLAYS and file.is_file()]
    return sorted(file for file in files if start.timestamp() <= file.stat().st_mtime <= until)


def _against(entry: Entry, path: Path) -> Path | None:
    """A path of the run's configuration, which may be relative to the project's folder."""
    if path.is_absolute():
        return path
    experiment = entry.record.get("experiment")
    base = experiment.get("base_dir") if isinstance(experiment, Mapping) else None
    return Path(base).parent / path if isinstance(base, str) else None


def _folders(place: Path) -> list[Path]:
    try:
        return [folder for folder in place.iterdir() if folder.is_dir()]
    except OSError:
        return []

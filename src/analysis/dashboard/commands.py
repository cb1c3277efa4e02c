"""The commands that go on with a run, for copying."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

from analysis.dashboard.entry import Entry

_PROGRAM = ("python", "src/main.py")
# What a new command says itself, or must not repeat.
_SETTINGS = (
    *("resume", "evaluate", "render", "film_format", "save_replay"),
    *("checkpoint_path", "load_step"),
)
_WITH_VALUE = ("-i", "--id")
_ALONE = ("-u", "--unobserved", "-p", "--print-config")


def commands(entry: Entry) -> tuple[dict[str, str], str]:
    """What to type, from the project's folder, to resume, evaluate, film and play a run.

    Returns:
        Commands by name, and why there are none where there are none.
    """
    words = _recorded(entry)
    if words is None:
        return {}, (
            "The run does not say how it was started (PyMARL's runs and published ones do not): "
            "there is no command to continue it."
        )
    folder = entry.path / "checkpoints"
    if not folder.is_dir():
        return {"Run it again": _join(_without(words, ()))}, (
            "The run has no checkpoint: it can be neither resumed nor evaluated."
        )
    evaluate = _with(_without(words, (*_SETTINGS, "test_nepisode")), evaluate=True)
    evaluate = _with(evaluate, checkpoint_path=folder)
    found = {
        "Resume": _join(_with(_without(words, _SETTINGS), resume=entry.path)),
        "Evaluate": _join(_with(evaluate, test_nepisode=100)),
        "Film": _join(_with(evaluate, render=True, test_nepisode=1)),
        "Play": _join(["play", str(entry.path)]),
    }
    if entry.config.get("evaluate") is True:
        del found["Resume"]
    return found, ""


def _recorded(entry: Entry) -> list[str] | None:
    meta = entry.record.get("meta")
    words = meta.get("command_line") if isinstance(meta, Mapping) else None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    return words


def _without(words: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The command line without these settings, and without the options that name a new run."""
    kept, behind, skip = [], False, False
    for word in words:
        behind |= word == "with"
        name = word.partition("=")[0]
        if skip:
            skip = False
        elif not behind and name in _WITH_VALUE:
            skip = word == name
        elif not (name in settings if behind else name in _ALONE):
            kept.append(word)
    return kept


def _with(words: Sequence[str], **settings: object) -> list[str]:
    start = list(words) if "with" in words else [*words, "with"]
    return start + [f"{key}={value}" for key, value in settings.items()]


def _join(words: Sequence[str]) -> str:
    return shlex.join([*_PROGRAM, *words])

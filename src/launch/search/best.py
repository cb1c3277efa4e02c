"""The best settings, as a yaml file that `--config` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from launch.search.spec import Search

BEST = "best.yaml"


def write_best(
    search: Search, folder: Path, number: int, value: float, chosen: Mapping[str, Any]
) -> Path:
    """Writes `best.yaml`.

    Args:
        number, value: of the trial.
        chosen: its settings.

    Returns:
        The file.
    """
    file = folder / BEST
    algorithm = search.method.algorithm
    if Path(algorithm).suffix:  # a path, which is relative to the file that says it
        algorithm = os.path.relpath(Path(algorithm).expanduser().absolute(), folder.absolute())
    runs = len(search.jobs({}))
    head = (
        f"# The best settings of the search {search.experiment.name}: trial {number}, "
        f"{search.metric} {value:.6g} (mean of {runs} runs).\n"
    )
    settings = nested({**search.settings(), **chosen})
    body = yaml.safe_dump({"inherits": algorithm, **settings}, sort_keys=False)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{BEST}.{os.getpid()}"
    partial.write_text(head + body, encoding="utf-8")
    os.replace(partial, file)
    return file


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings: `env_args.penalty` -> `{env_args: {penalty: ...}}`."""
    content: dict[str, Any] = {}
    for key, value in settings.items():
        *parents, last = key.split(".")
        inner = content
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    return content


def commands(search: Search, file: Path) -> list[str]:
    """The command lines that train with that file: one for each task, with its first seed."""
    lines = []
    for task in search.experiment.tasks.values():
        own = {
            **task.settings,
            **{k: v for per in task.per_method.values() for k, v in per.items()},
        }
        settings = [f"{key}={value}" for key, value in own.items()]
        files = f"--config={file} --env-config={task.environment}"
        words = " ".join([*settings, f"seed={task.seeds[0]}"])
        lines.append(f"python src/main.py {files} with {words}")
    return lines

"""A run as a command line, and the runs that are finished already."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis import published
from analysis.runs import flatten, is_setting
from utils.config import build_config

console = Console()

MAIN = Path(__file__).resolve().parents[1] / "main.py"

# Values that older runs have under another name.
_RENAMED = {("consensus_scope", "attention"): "paper"}


@dataclass(frozen=True)
class FinishedRun:
    """A completed run: its folder, or the file of a published one, and its configuration."""

    path: Path
    config: Mapping[str, Any]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All values with dotted keys."""
        values = dict(flatten(self.config))
        if values.get("optimizer") == "adam" and "adam_eps" not in values:
            # The epsilon of both optimisers was one key before.
            values["adam_eps"] = values.pop("optim_eps", 1e-8)
        return {
            key: _RENAMED.get((key, value), value) if isinstance(value, str) else value
            for key, value in values.items()
        }


@dataclass(frozen=True)
class Job:
    """One run: `python src/main.py --config=ALGORITHM --env-config=ENVIRONMENT with SETTINGS`.

    Args:
        settings: key -> value; entries of mappings as `env_args.map_name`. A `seed` belongs here.
    """

    algorithm: str
    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.algorithm, self.environment, *self.updates()])

    def updates(self) -> list[str]:
        """The settings as they are typed on the command line."""
        return [f"{key}={value}" for key, value in self.settings.items()]

    def command(self, results: Path) -> list[str]:
        """The command line; an unfinished run of the same job is continued."""
        files = [f"--config={self.algorithm}", f"--env-config={self.environment}"]
        fixed = [f"local_results_path={results}", "resume=auto"]
        program = [sys.executable, str(MAIN)]
        return [*program, *files, "with", *fixed, *self.updates()]

    def find(self, runs: Iterable[FinishedRun]) -> FinishedRun | None:
        """The first of these runs that is one of this job, if there is one."""
        return next((run for run in runs if self._describes(run.settings)), None)

    def finished_run(self, results: Path) -> Path | None:
        """The folder of a completed run of this job in a folder of results, if there is one."""
        found = self.find(finished_runs(results))
        return found.path if found else None

    def _describes(self, found: Mapping[str, Any]) -> bool:
        """Whether a run with these settings is one of this job: named settings are equal, and so
        are all others that make a difference, as far as the run knows them.
        """
        if any(found.get(key) != value for key, value in self.settings.items()):
            return False
        others = tuple(update for update in self.updates() if not update.startswith("seed="))
        wanted = _whole_config(self.algorithm, self.environment, others)
        return all(found.get(key, value) == value for key, value in wanted.items())


@lru_cache(maxsize=1024)
def _whole_config(algorithm: str, environment: str, updates: tuple[str, ...]) -> dict[str, Any]:
    """What makes a run what it is, by dotted key."""
    config = build_config(algorithm, environment, updates)
    return {key: value for key, value in flatten(config) if is_setting(key)}


def finished_runs(results: Path, kept: Path | None = None) -> list[FinishedRun]:
    """All completed runs in a folder of results, those of sweeps after the others, and then those
    published in the folder `kept`.
    """
    runs = []
    files = [sorted(results.glob(f"{part}sacred/*/*/*/config.json")) for part in ("", "runs/*/")]
    for file in [*files[0], *files[1]]:
        record = json.loads((file.parent / "run.json").read_text())
        if record["status"] == "COMPLETED":
            runs.append(FinishedRun(file.parent, json.loads(file.read_text())))
    for file in sorted(kept.rglob(f"*{published.SUFFIX}")) if kept is not None else ():
        config, record = published.read_head(file)
        if record["status"] == "COMPLETED":
            runs.append(FinishedRun(file, config))
    return runs

"""Experiments by name: the yaml files of this folder, and where their results and curves are.

The form is that of `launch.spec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from experiments import ROOT
from launch import spec
from utils.errors import ConfigError
from utils.registry import nearest

FOLDER = ROOT / "experiments"
PUBLISHED = FOLDER / "published"


@dataclass(frozen=True)
class Experiment(spec.Experiment):
    """An experiment whose results have a place in this checkout."""

    @property
    def folder(self) -> Path:
        """Where its runs write."""
        return ROOT / "results" / self.results

    @property
    def published(self) -> Path:
        """Where its curves are kept."""
        return PUBLISHED / self.results

    def kept(self, count: bool) -> Path | None:
        """The folder of published runs, if they are to count as finished."""
        return self.published if count else None


def names() -> list[str]:
    """All experiments. Files whose names begin with `_` are only there to be inherited from."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("_"))


def load(name: str) -> Experiment:
    """Reads an experiment: a name from this folder, or the path of a yaml file.

    Raises:
        ConfigError: there is no such file, or something in it is unknown or of the wrong type.
    """
    path = Path(name) if name.endswith(".yaml") else _file_of(name)
    experiment = Experiment(**vars(spec.read(path, FOLDER)))
    modules = [file.stem for file in FOLDER.glob("*.py")]
    for key in ("figures", "program"):
        module = getattr(experiment, key)
        if module and module not in modules:
            raise ConfigError(f"{path}: {key}: no module '{module}'; {nearest(module, modules)}")
    return experiment


def _file_of(name: str) -> Path:
    path = FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"unknown experiment '{name}'; {nearest(name, names())}")
    return path

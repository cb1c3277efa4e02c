"""What a run needs: cores, memory, GPUs, hours, and anything else by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from utils.config import convert
from utils.ranges import COUNT, FINITE_POSITIVE, Range, check_ranges

_GPUS = Range(
    lambda value: 0 <= value <= 1 or (value < float("inf") and value == int(value)),
    "a whole number, or a share between 0 and 1",
)
_KINDS = {"cores": int, "memory": float, "gpus": float, "hours": float}
_RANGES = {"cores": COUNT, "memory": FINITE_POSITIVE, "gpus": _GPUS, "hours": FINITE_POSITIVE}


@dataclass(frozen=True)
class Resources:
    """What every run of a sweep needs.

    Attributes:
        cores: processor cores, and threads of the run.
        memory: [GB]; None: not limited.
        gpus: whole GPUs, or a share: with 0.25, four runs use one GPU. 0: the run sees none.
        hours: a job's time limit on Slurm [h]; None: the partition's default.
        named: anything else that is counted, e.g. `sc2`: licences on Slurm, resources on Ray.
    """

    cores: int = 1
    memory: float | None = None
    gpus: float = 0
    hours: float | None = None
    named: Mapping[str, float] = field(default_factory=dict)

    @property
    def runs_per_gpu(self) -> int:
        """How many runs share one GPU; 1 where a run has whole ones or none."""
        return int(1 / self.gpus + 1e-9) if 0 < self.gpus < 1 else 1


def read_resources(content: Mapping[str, Any], where: str = "resources.") -> Resources:
    """Checks the entries of a spec's `resources`.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    values = {
        key: convert(key, value, _KINDS.get(key, float), where) for key, value in content.items()
    }
    check_ranges(values, {key: _RANGES.get(key, FINITE_POSITIVE) for key in values}, where)
    named = {key: value for key, value in values.items() if key not in _KINDS}
    return Resources(**{key: values[key] for key in _KINDS if key in values}, named=named)

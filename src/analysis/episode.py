"""A recorded episode as plain data: pictures, what agents saw and did, what the policy computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

DIGITS = 4  # that numbers keep on their way to the page


@dataclass(frozen=True)
class Array:
    """Inner values of a policy: `components.inner.Inner` without torch.

    Attributes:
        values: [N, ...]; NaN where there is nothing to say.
        axes: what the axes after the first are.
        kind: value | probability | action | number.
    """

    values: np.ndarray
    axes: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Episode:
    """One episode of A agents: N = T + 1 situations, T joint actions between them.

    Attributes:
        title: algorithm and map.
        facts: name -> text, about the policy and the episode.
        notes: sentences about what is not shown.
        agents: A names. observations, actions: of each agent, the names of the entries of its
            observation and of its actions.
        obs: [N, A, O], avail: [N, A, U], padded to the largest.
        taken: int [T, A], or float [T, A, U] where actions are real numbers.
        rewards: [T], or [T, A] where every agent has its own.
        inner: name -> what the policy computed.
        pictures: N PNG files, or none.
    """

    title: str
    facts: Mapping[str, str]
    notes: Sequence[str]
    agents: Sequence[str]
    observations: Sequence[Sequence[str]]
    actions: Sequence[Sequence[str]]
    obs: np.ndarray
    avail: np.ndarray
    taken: np.ndarray
    rewards: np.ndarray
    inner: Mapping[str, Array]
    pictures: Sequence[bytes] = field(default=())

    def for_page(self) -> dict[str, Any]:
        """Everything but the pictures, as JSON has it; NaN is null."""
        return {
            "title": self.title,
            "facts": dict(self.facts),
            "notes": list(self.notes),
            "agents": list(self.agents),
            "observations": [list(names) for names in self.observations],
            "actions": [list(names) for names in self.actions],
            "obs": plain(self.obs),
            "avail": self.avail.astype(int).tolist(),
            "taken": plain(self.taken),
            "rewards": plain(self.rewards),
            "inner": [
                {
                    "name": name,
                    "axes": list(array.axes),
                    "kind": array.kind,
                    "values": plain(array.values),
                }
                for name, array in self.inner.items()
            ],
            "pictures": len(self.pictures),
        }


def plain(values: np.ndarray) -> Any:
    """Nested lists: whole numbers as they are, fractional ones to `DIGITS` digits, None for NaN."""
    if values.dtype.kind in "iub":
        return values.tolist()
    return _rounded(values.astype(float).tolist())


def _rounded(values: Any) -> Any:
    if isinstance(values, list):
        return [_rounded(value) for value in values]
    return float(f"{values:.{DIGITS}g}") if np.isfinite(values) else None

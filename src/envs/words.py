"""Names of agents, actions and entries of observations, for people who watch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

COMPASS = ("north", "south", "east", "west")
PUSHES = ("none", "left", "right", "down", "up")  # of particle worlds: -x, +x, -y, +y


class Words(NamedTuple):
    """What is shown instead of numbers; an entry of an observation is called "GROUP: ENTRY".

    Attributes:
        agents: A names.
        observations: for each agent, as many names as its observation has entries.
        actions: for each agent, as many names as it has actions.
    """

    agents: tuple[str, ...]
    observations: tuple[tuple[str, ...], ...]
    actions: tuple[tuple[str, ...], ...]


def numbered(obs_sizes: Sequence[int], action_sizes: Sequence[int]) -> Words:
    """Words of an environment that has none of its own: the numbers."""
    return Words(
        tuple(f"agent {i}" for i in range(len(obs_sizes))),
        tuple(tuple(f"observation: {k}" for k in range(size)) for size in obs_sizes),
        tuple(tuple(f"action {k}" for k in range(size)) for size in action_sizes),
    )


def grouped(name: str, entries: Iterable[str]) -> list[str]:
    """Entries of an observation that belong together."""
    return [f"{name}: {entry}" for entry in entries]


def one_hot(name: str, of: Iterable[str]) -> list[str]:
    """The entries of a one-hot, by what each of them says."""
    return grouped(name, (f"is {one}" for one in of))


def every(n: int, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """The same names for each of n agents."""
    return (tuple(names),) * n

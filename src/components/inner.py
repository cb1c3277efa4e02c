"""Inner values of a policy, for people who watch it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

KINDS = ("value", "probability", "action", "number")


class Inner(NamedTuple):
    """A named array of what a controller or a learner computes at every step of an episode.

    Attributes:
        values: [N, ...], N filled steps in their order; NaN where there is nothing to say.
        axes: what the axes after the first are, from left to right. `agent`, `other agent` and
            `action` have the environment's names, all others are numbered: `Q` is Q_0, Q_1, ...
        kind: `value` (of any size), `probability`, `action` (the number of an action, of the
            agent on the last axis), `number` (of something that is counted; -1: none).
    """

    values: Tensor
    axes: tuple[str, ...] = ()
    kind: str = "value"


Explained = dict[str, Inner]

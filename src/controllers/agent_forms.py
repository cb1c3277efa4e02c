"""The forms in which agent networks come: ours with `step` and `unroll`, PyMARL's with `forward`
alone.
"""

from __future__ import annotations

import copy
import logging
from functools import cache

import torch
from torch import Tensor, nn

from modules.agents.n_rnn_agent import NRNNAgent
from utils.seeding import isolated_global_rng

_log = logging.getLogger(__name__)

# They are `step` in another layout, so `step` and `unroll` of the class before still say the same.
_LAYOUTS_OF_STEP = (NRNNAgent.forward,)


@cache
def is_current(agent_class: type, method: str) -> bool:
    """Whether an agent has `method` ("step" or "unroll") and no subclass has replaced what it must
    agree with since.

    A plug-in that inherits from one of our agents does, as PyMARL's users are used to, when it
    replaces `forward` alone (or `init_hidden`, which `unroll` relies on): `forward` is called step
    by step then.
    """

    def depth(name: str) -> int | None:
        owners = (i for i, cls in enumerate(agent_class.__mro__) if name in vars(cls))
        return next(
            (i for i in owners if vars(agent_class.__mro__[i])[name] not in _LAYOUTS_OF_STEP), None
        )

    mine = depth(method)
    if mine is None:
        return False
    relied_on = ("forward",) if method == "step" else ("forward", "init_hidden")
    return all(theirs is None or mine <= theirs for theirs in map(depth, relied_on))


def takes_rows(agent: nn.Module, inputs: Tensor, hidden: Tensor) -> bool:
    """Whether `agent.forward` wants one row per agent, [B * A, F] as in PyMARL, instead of
    PyMARL2's [B, A, F].

    That is tried on a copy, PyMARL2's form first: nothing of the agent or the random streams
    changes.

    Args:
        inputs: [B, A, F].
        hidden: [B, A, H].

    Raises:
        Exception: what the agent raised, where it takes neither.
    """
    errors = []
    for rows in (False, True):
        trial = copy.deepcopy(agent)
        try:
            with torch.no_grad(), isolated_global_rng(0):
                trial(inputs.flatten(0, 1) if rows else inputs, hidden)
        except Exception as error:  # whatever a network says to a shape it was not written for
            errors.append(error)
            continue
        _log.debug(
            "agent %s is called with %s",
            type(agent).__name__,
            "[B * A, F]" if rows else "[B, A, F]",
        )
        return rows
    raise errors[0]

"""A loss over many episodes, computed for a few of them at a time to bound the memory of an
update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.episode_buffer import EpisodeBatch


class Losses(NamedTuple):
    """What is computed of some episodes, B of them.

    Attributes:
        loss: scalar, the mean over their transitions, to be minimised.
        figures: to log; of each the mean is taken.
        errors: what `episode_errors` makes of them, [B] each.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    errors: dict[str, Tensor]


def in_chunks(
    losses_of: Callable[[EpisodeBatch, Tensor | None], Losses],
    batch: EpisodeBatch,
    per_weight: Tensor | None,
    limit: int,
    params: Sequence[nn.Parameter],
) -> Losses:
    """`losses_of(batch, per_weight)`, with gradients of about `limit` transitions at once.

    Args:
        losses_of: called for consecutive episodes, until all were.
        limit: 0 computes everything at once.
        params: who gets gradients.

    Returns:
        The same, its figures as scalars.
    """
    transitions = batch.lengths() - 1
    total = int(transitions.sum())
    n_chunks = min(batch.batch_size, -(-total // limit)) if limit else 1
    done: list[Losses] = []

    def share_of_loss(episodes: slice) -> Tensor:
        weights = None if per_weight is None else per_weight[episodes]
        losses = losses_of(batch if n_chunks == 1 else batch[episodes], weights)
        n = int(transitions[episodes].sum())
        figures = {key: x.detach().mean() * n / total for key, x in losses.figures.items()}
        loss = losses.loss * (n / total)
        done.append(Losses(loss.detach(), figures, losses.errors))
        return loss

    bounds = [batch.batch_size * i // n_chunks for i in range(n_chunks + 1)]
    chunks = [slice(*pair) for pair in pairwise(bounds)]
    if n_chunks == 1:
        loss = share_of_loss(chunks[0])
    else:
        loss = _InTurn.apply([partial(share_of_loss, chunk) for chunk in chunks], *params)
    return Losses(
        loss,
        {key: torch.stack([part.figures[key] for part in done]).sum() for key in done[0].figures},
        {key: torch.cat([part.errors[key] for part in done]) for key in done[0].errors},
    )


class _InTurn(torch.autograd.Function):
    """The sum of losses that are computed one after the other, each with its gradient, so that
    their graphs never exist together.
    """

    @staticmethod
    def forward(ctx: Any, losses: Sequence[Callable[[], Tensor]], *params: Tensor) -> Tensor:
        total, ctx.grads = params[0].new_zeros(()), None
        for loss_of in losses:
            with torch.enable_grad():
                loss = loss_of()
            grads = torch.autograd.grad(loss, params)
            if ctx.grads is None:
                ctx.grads = grads
            else:
                for accumulated, grad in zip(ctx.grads, grads, strict=True):
                    accumulated += grad
            total += loss.detach()
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(grad * accumulated for accumulated in ctx.grads)

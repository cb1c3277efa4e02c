"""A loss over many episodes, computed for a part of them at a time: by several threads side by
side, and in turn to bound the memory of an update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from components.episode_buffer import EpisodeBatch

# Transitions below which another thread costs more than it gains.
LEAST_PER_THREAD = 1000


class Losses(NamedTuple):
    """What is computed of some episodes, B of them.

    Attributes:
        loss: the mean over their transitions, to be minimised: a scalar, or [A], one loss per
            agent, of networks that have nothing in common.
        figures: to log; of each the mean is taken.
        errors: what `episode_errors` makes of them, [B] each.
    """

    loss: Tensor
    figures: dict[str, Tensor]
    errors: dict[str, Tensor]

    def plus(self, more: dict[str, Tensor]) -> Losses:
        """With further losses, scalars by name, which are logged, too."""
        return Losses(sum(more.values(), self.loss), {**self.figures, **more}, self.errors)


def in_parts(
    losses_of: Callable[[EpisodeBatch, Tensor | None], Losses],
    batch: EpisodeBatch,
    per_weight: Tensor | None,
    params: Sequence[nn.Parameter],
    threads: int = 1,
    limit: int = 0,
) -> Losses:
    """`losses_of(batch, per_weight)`, the episodes shared out among threads.

    The result does not depend on which thread is done first; that of another number of threads is
    the same to rounding. Every thread uses one thread of torch.

    Args:
        losses_of: called for consecutive episodes, until all were; draws no random numbers.
        params: who gets gradients.
        threads: that share the work.
        limit: about so many transitions at once in each thread, to bound the memory; 0: no limit.

    Returns:
        The same, its figures as scalars.
    """
    transitions = batch.lengths() - 1
    total = int(transitions.sum())
    threads = max(1, min(threads, total // LEAST_PER_THREAD))
    rounds = -(-total // (limit * threads)) if limit else 1
    n_parts = min(batch.batch_size, rounds * threads)
    if n_parts == 1:
        losses = losses_of(batch, per_weight)
        return losses._replace(figures={key: _mean(x) for key, x in losses.figures.items()})

    def part(episodes: slice) -> Losses:
        weights = None if per_weight is None else per_weight[episodes]
        losses = losses_of(batch[episodes], weights)
        share = int(transitions[episodes].sum()) / total
        figures = {key: _mean(x) * share for key, x in losses.figures.items()}
        return Losses(losses.loss * share, figures, losses.errors)

    done: list[Losses] = []
    parts = [partial(part, episodes) for episodes in _even(transitions, n_parts)]
    loss = _Parts.apply(parts, done, threads, *params)
    return Losses(
        loss,
        {key: torch.stack([one.figures[key] for one in done]).sum() for key in done[0].figures},
        {key: torch.cat([one.errors[key] for one in done]) for key in done[0].errors},
    )


def _mean(x: Tensor) -> Tensor:
    return x.detach().mean()


def _even(transitions: Tensor, n_parts: int) -> list[slice]:
    """Consecutive episodes in `n_parts` parts, none empty, with about as many transitions each."""
    sums, n = transitions.cumsum(0), len(transitions)
    wanted = sums[-1] * torch.arange(1, n_parts) // n_parts
    bounds = [0]
    for i, bound in enumerate(torch.searchsorted(sums, wanted).tolist(), start=1):
        bounds.append(min(max(bound + 1, bounds[-1] + 1), n - n_parts + i))
    return [slice(*pair) for pair in pairwise([*bounds, n])]


class _Parts(torch.autograd.Function):
    """The sum of losses of parts, each computed with its gradient before the next one of its
    thread, so that the graphs of a thread's parts never exist together.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parts: Sequence[Callable[[], Losses]],
        done: list[Losses],
        threads: int,
        *params: Tensor,
    ) -> Tensor:
        def compute(part: Callable[[], Losses]) -> tuple[Losses, tuple[Tensor, ...]]:
            with torch.enable_grad():
                losses = part()
                grads = torch.autograd.grad(losses.loss.sum(), params)
            return losses._replace(loss=losses.loss.detach()), grads

        results = _by_threads(compute, parts, threads)
        done += [losses for losses, _ in results]
        # In the order of the episodes, whoever was first.
        by_param = zip(*(grads for _, grads in results), strict=True)
        ctx.grads = [torch.stack(grads).sum(0) for grads in by_param]
        return torch.stack([losses.loss for losses in done]).sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        def scaled(of_param: Tensor) -> Tensor:
            # One loss per agent: every parameter is one per agent, too.
            axes = [1] * (of_param.dim() - 1) if grad.dim() else []
            return of_param * (grad.view(-1, *axes) if grad.dim() else grad)

        return None, None, None, *map(scaled, ctx.grads)


def _by_threads(function: Callable[[Any], Any], items: Sequence[Any], threads: int) -> list[Any]:
    """`map`, by this thread and `threads - 1` others."""
    if threads == 1:
        return list(map(function, items))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # This one takes every `threads`-th item, from the first on, and the pool the others.
        waiting = {
            i: _pool(threads - 1).submit(copy_context().run, function, item)
            for i, item in enumerate(items)
            if i % threads
        }
        own = {i: function(item) for i, item in enumerate(items) if i % threads == 0}
        return [own[i] if i in own else waiting[i].result() for i in range(len(items))]
    finally:
        torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    # OpenMP's number of threads belongs to the thread that sets it.
    return ThreadPoolExecutor(threads, "learner", initializer=torch.set_num_threads, initargs=(1,))

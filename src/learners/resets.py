"""Periodic resets: networks that are updated often keep their plasticity (Yang et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from learners.base import Learner


class Resets:
    """Shrink and perturb, for every network of a learner, the target networks included.

    Every `reset_interval` episodes all weights become keep * theta + (1 - keep) * theta_0. The
    optimisers go on with what they know of the gradients.

    Args:
        learner: just built, so that its weights are theta_0.
        args: `reset_interval`, `reset_keep`, `reset_towards`: `initial` (theta_0 are always the
            weights before training) or `fresh` (they are drawn anew each time).
        fresh: another learner of the same settings, with weights drawn just now.

    Attributes:
        initial: theta_0, one tensor for each of `params`; part of a checkpoint.
        last_reset_episode: episodes at the last reset.
    """

    def __init__(
        self, learner: Learner, args: SimpleNamespace, fresh: Callable[[], Learner]
    ) -> None:
        self.args = args
        self.params = parameters_of(learner)
        self.initial: list[Tensor] = []
        if args.reset_towards == "initial":
            self.initial = [param.detach().clone() for param in self.params]
        self.last_reset_episode = 0
        self._fresh = fresh

    def reset_if_due(self, episode_num: int) -> None:
        """Resets if `reset_interval` episodes have passed since the last time."""
        if episode_num - self.last_reset_episode >= self.args.reset_interval:
            self.reset()
            self.last_reset_episode = episode_num

    @torch.no_grad()
    def reset(self) -> None:
        """Moves all weights by the share 1 - `reset_keep` towards theta_0."""
        towards = self.initial or [param.detach() for param in parameters_of(self._fresh())]
        share = 1.0 - self.args.reset_keep
        torch._foreach_lerp_([param.detach() for param in self.params], towards, share)


def parameters_of(learner: Learner) -> list[nn.Parameter]:
    """The weights of all networks of a learner, each once."""
    params = [param for network in learner.networks() for param in network.parameters()]
    return list({id(param): param for param in params}.values())

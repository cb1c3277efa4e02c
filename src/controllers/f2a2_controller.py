"""The controller of F2A2: acts as `ActorMAC` does and records how probable each of the actions
was.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.action_selectors import MultinomialActionSelector
from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from controllers.actor_controller import ActorMAC
from controllers.basic_controller import ALL

# Stands for log 0: finite, so that the ratio of two probabilities that are 0 is a number.
LOWEST = -1e9


class F2A2MAC(ActorMAC):
    """Discrete policies whose behaviour is known for all actions, not only for those taken.

    Importance ratios are needed at actions that the present policy draws anew too (F2A2,
    proposition 4).

    Args:
        scheme, groups, args: as for `ActorMAC`.

    Attributes:
        recorded: `behaviour` [A, U]: log probabilities of what the actions were drawn from, epsilon
            included; `LOWEST` where an action is not available.
    """

    def __init__(
        self, scheme: Mapping[str, Any], groups: Mapping[str, int], args: SimpleNamespace
    ) -> None:
        super().__init__(scheme, groups, args)
        self.recorded = {"behaviour": {"vshape": (args.n_actions,), "group": "agents"}}

    @torch.no_grad()
    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A]."""
        selector = self.action_selector
        assert isinstance(selector, MultinomialActionSelector)
        avail = ep_batch["avail_actions"][bs, t_ep]
        policy = self.policy(self.forward(ep_batch, t_ep, test_mode, bs), avail)
        assert isinstance(policy, MaskedCategorical)
        probs = policy.probs
        actions = selector.select_action(probs, avail, t_env, test_mode)
        drawn_from = probs if test_mode else selector.probabilities(probs, avail)
        self.last_record = {"behaviour": drawn_from.log().clamp(min=LOWEST)}
        return actions

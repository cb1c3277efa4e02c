"""What MAMT's trust regions are learned from, taken at every update from policies and critic.

"MAMT" in the docstrings is the paper "Dealing with Non-Stationarity in MARL via Trust-Region
Decomposition" (Li et al., ICLR 2022). N rows, A agents, K choices of an agent: its actions, or
samples of a continuous one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from components.distributions import MaskedCategorical, Policy, policy_distribution
from learners.mamt.mirror_descent import counterfactual_effects
from modules.critics.attention import AttentionCritic


class Situation(NamedTuple):
    """Transitions, what the present policies do there, how far these are from the old ones, and
    what the critic says.
    """

    obs: Tensor  # [N, A, O]
    avail_actions: Tensor  # [N, A, U]
    replayed: Tensor  # [N, A] or [N, A, U], the actions of the batch
    actions: Tensor  # of the same kind, drawn from the present policies
    outputs: Tensor  # [N, A, U or 2 U], what the policy networks put out
    kl: Tensor  # [N, A], KL[pi_i || pi_old_i]
    # [N, A, A], see `mirror_descent.counterfactual_effects`; called where they are wanted, because
    # they cost more than all else
    effects: Callable[[], Tensor]
    values: Tensor  # [N, A, K], Q_i of agent i's choices
    log_weights: Tensor  # [N, A, K], see `mirror_descent.mirror_step`
    baselines: Tensor  # [N, A]
    # [A], what one unit of the values is in units of the rewards (their deviation over the buffer
    # where they are standardised); None: not known
    reward_unit: Tensor | None = None


@torch.no_grad()
def make_situation(
    critic: AttentionCritic,
    *,
    obs: Tensor,
    avail_actions: Tensor,
    replayed: Tensor,
    actions: Tensor,
    samples: Tensor | None,
    outputs: Tensor,
    old_outputs: Tensor,
    values: Tensor,
    baselines: Tensor,
    reward_unit: Tensor | None = None,
) -> Situation:
    """The situation of these rows; what is not described here is as in `Situation`.

    Args:
        critic: that gave `values`.
        samples: for continuous actions [N, A, K, U], the own choices that `values` are of, drawn
            from the policies.
        old_outputs: of the old policy networks, [N, A, U or 2U].
    """
    continuous = samples is not None
    policy, old = (
        policy_distribution(x.detach(), avail_actions, continuous) for x in (outputs, old_outputs)
    )
    if isinstance(old, MaskedCategorical):
        log_weights = old.log_probs
    else:
        assert samples is not None
        log_weights = old.log_prob(samples) - policy.log_prob(samples)
    return Situation(
        obs=obs,
        avail_actions=avail_actions,
        replayed=replayed,
        actions=actions,
        outputs=outputs.detach(),
        kl=policy.kl(old),
        effects=lambda: effects_of(critic, obs, actions, policy, samples),
        values=values,
        log_weights=log_weights,
        baselines=baselines.detach(),
        reward_unit=reward_unit,
    )


def effects_of(
    critic: AttentionCritic, obs: Tensor, actions: Tensor, policy: Policy, samples: Tensor | None
) -> Tensor:
    """What the action of agent j matters to agent i (MAMT, eq. 5): [N, A, A], see
    `counterfactual_effects`.

    Args:
        obs: [N, A, O].
        actions: [N, A] or [N, A, U].
        policy: of these rows.
        samples: for continuous actions [N, A, K, U], drawn from `policy`.
    """
    values = critic.counterfactual(obs, actions, samples)
    probs = (
        policy.probs
        if isinstance(policy, MaskedCategorical)
        else values.new_full(values.shape[:1] + values.shape[2:], 1 / values.shape[3])
    )
    return counterfactual_effects(values, probs, values[..., 0].diagonal(dim1=1, dim2=2))

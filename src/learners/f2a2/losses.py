"""The joint gradients of F2A2, as losses: pure functions whose gradient is the one that the paper
states.

"F2A2" in the docstrings is the paper "F2A2: Flexible Fully-decentralized Approximate Actor-critic
for Cooperative Multi-agent Reinforcement Learning" (Li et al., JMLR 2023). A agents, each with its
own policy and C copies of critics (one, or twins), M rows of a batch. Q is a cost-to-go everywhere,
so everything is minimised. Every agent's objective is J = alpha_1 J_actor + alpha_2 J_critic; delta
= Q - Q_target is the error of a critic. Coefficients carry no gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Weights(NamedTuple):
    """How much J_actor and J_critic weigh in the gradient of the actors, and in that of the
    critics.
    """

    actor_value: float
    actor_error: float
    critic_value: float
    critic_error: float


def joint_weights(alpha_1: float, alpha_2: float, joint: float) -> Weights:
    """alpha_1 and alpha_2 in both gradients, with what is new in the joint objective times `joint`.

    1: propositions 3 to 6. 0: J_actor alone moves actors and J_critic alone critics, block
    coordinate descent, the paper's ablation "w/o JOINT" (F2A2, section 6.4).

    In between because both terms are harmful where they prevail, and a ratio of the alphas that
    makes one of them small makes the other one large: alpha_1 grad Q lowers the cost of what the
    present policy does, the more so the rarer it is among the replayed actions; delta^2 drives the
    policy away from actions whose outcome is not known yet.
    """
    return Weights(alpha_1, joint * alpha_2, joint * alpha_1, alpha_2)


def truncated_ratio(log_probs: Tensor, of_behaviour: Tensor, bound: float) -> Tensor:
    """min(bound, pi / pi_0) from two logarithms of any equal shape, without gradient (F2A2, remark
    4).
    """
    return (log_probs - of_behaviour).detach().exp().clamp(max=bound)


def _value_coefficient(like: Tensor, weight: float | Tensor) -> Tensor:
    """[A, C, M]: `weight` for the first critic, which alone is part of J_actor, 0 for its twin."""
    out = torch.zeros_like(like)
    out[:, 0] = weight
    return out


def on_policy_critic_loss(q: Tensor, error: Tensor, weights: Weights) -> Tensor:
    """Gradient E_pi[(alpha_1 + 2 alpha_2 delta) grad Q] (F2A2, proposition 3).

    Args:
        q, error: [A, C, M], Q and delta of the joint actions taken.

    Returns:
        [A].
    """
    coefficient = _value_coefficient(q, weights.critic_value) + 2 * weights.critic_error * error
    return (coefficient.detach() * q).sum(1).mean(-1)


def off_policy_critic_loss(
    q: Tensor,
    error: Tensor,
    ratio: Tensor,
    q_new: Tensor,
    error_new: Tensor,
    inverse_ratio: Tensor,
    weights: Weights,
) -> Tensor:
    """Gradient of the critics on replayed and on resampled actions (F2A2, propositions 4, 5 and 6).

    E_{pi_0}[(alpha_1 rho + 2 alpha_2 delta) grad Q] + E_pi[(alpha_1 + 2 alpha_2 delta rho') grad
    Q]; of a twin critic the alpha_2 terms alone.

    Args:
        q, error: [A, C, M], Q and delta of the replayed joint actions.
        ratio: [A, M], rho = min(eps, pi / pi_0) of the own replayed action.
        q_new, error_new: [A, C, M], of the resampled ones; [A, 1, M] of the first critics alone if
            there are no errors.
        inverse_ratio: [A, M], rho' = min(eps, pi_0 / pi) of the own resampled action.

    Returns:
        [A].
    """
    replayed = (
        _value_coefficient(q, weights.critic_value * ratio) + 2 * weights.critic_error * error
    )
    resampled = _value_coefficient(q_new, weights.critic_value)
    resampled = resampled + 2 * weights.critic_error * error_new * inverse_ratio.unsqueeze(1)
    return ((replayed.detach() * q).sum(1) + (resampled.detach() * q_new).sum(1)).mean(-1)


def on_policy_actor_loss(
    log_prob: Tensor, q: Tensor, baseline: Tensor, error: Tensor, weights: Weights
) -> Tensor:
    """Gradient E_pi[alpha_1 grad log pi (Q - B + alpha_2 / alpha_1 delta^2)] (F2A2, proposition 3).

    Args:
        log_prob: [A, M], of the own action taken, with gradient.
        q, baseline, error: [A, M].

    Returns:
        [A].
    """
    coefficient = weights.actor_value * (q - baseline) + weights.actor_error * error.square()
    return (coefficient.detach() * log_prob).mean(-1)


def pathwise_actor_loss(
    q_new: Tensor, error_new: Tensor, inverse_ratio: Tensor, weights: Weights
) -> Tensor:
    """Gradient E_pi[sum over critics of (alpha_1 + 2 alpha_2 delta rho') grad pi grad_a Q]
    (propositions 4 and 5).

    alpha_1 goes through the first critic only, the errors of both critics enter.

    Args:
        q_new: [A, C, M], differentiable with respect to the own action.
        error_new: [A, C, M].
        inverse_ratio: [A, M].

    Returns:
        [A].
    """
    coefficient = _value_coefficient(q_new, weights.actor_value)
    coefficient = coefficient + 2 * weights.actor_error * error_new * inverse_ratio.unsqueeze(1)
    return (coefficient.detach() * q_new).sum(1).mean(-1)


def soft_actor_loss(
    log_prob: Tensor,
    advantage: Tensor,
    ratio: Tensor,
    log_prob_new: Tensor,
    advantage_new: Tensor,
    error_new: Tensor,
    inverse_ratio: Tensor,
    weights: Weights,
) -> Tensor:
    """Gradient of the actors of F2A2-SAC (F2A2, proposition 6).

    alpha_1 (E_{pi_0}[rho A grad log pi] + E_pi[A grad log pi])
    + alpha_2 E_pi[rho' (delta_1^2 + delta_2^2) grad log pi].

    The advantage A = Q_1 + alpha log pi - B is a cost: the paper writes - alpha log pi, SAC's sign
    for rewards, which would reward the policy for having no entropy.

    Args:
        log_prob, advantage, ratio: [A, M], of the own replayed action.
        log_prob_new, advantage_new, inverse_ratio: [A, M], of the own resampled action.
        error_new: [A, C, M], of the critics at the resampled joint actions; [A, 1, M] if there are
            none.

    Returns:
        [A].
    """
    replayed = weights.actor_value * ratio * advantage
    errors = error_new.square().sum(1)
    resampled = weights.actor_value * advantage_new + weights.actor_error * inverse_ratio * errors
    return (replayed.detach() * log_prob + resampled.detach() * log_prob_new).mean(-1)

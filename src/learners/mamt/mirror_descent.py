"""Mirror descent and the measures of MAMT's trust regions, as pure functions.

"MAMT" in the docstrings is the paper "Dealing with Non-Stationarity in MARL via Trust-Region
Decomposition" (Li et al., ICLR 2022); mirror descent policy optimisation is Tomar et al. 2020. A
agents, N rows, K choices of an agent: its actions, or samples of a continuous one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Probabilities below this one count as this one (as in Tomar et al.): with q < 1, D has no bound
# otherwise.
LEAST_LOG_PROB = math.log(1e-6)


def tsallis_log(log_probs: Tensor, q: float) -> Tensor:
    """log_q(x) = (x^(q-1) - 1) / (q - 1) of x = exp(`log_probs`), any shape; for q = 1 the
    logarithm.
    """
    log_probs = log_probs.clamp(min=LEAST_LOG_PROB)
    return log_probs if q == 1.0 else torch.expm1((q - 1.0) * log_probs) / (q - 1.0)


def step_penalty(log_probs: Tensor, old_log_probs: Tensor, q: float) -> Tensor:
    """D = log_q(pi) - log_q(pi_old) of the actions that were taken (MAMT, section 3.2), of the
    inputs' shape.
    """
    return tsallis_log(log_probs, q) - tsallis_log(old_log_probs, q)


def mirror_step(log_weights: Tensor, advantages: Tensor, delta: Tensor) -> Tensor:
    """Log-probabilities of pi^delta, proportional to pi_old exp(delta A): the mirror step in closed
    form.

    Args:
        log_weights: [N, A, K]: log pi_old(a); for samples of another policy mu, log pi_old(a) - log
            mu(a).
        advantages: [N, A, K].
        delta: [A].

    Returns:
        [N, A, K], differentiable in `delta`.
    """
    return torch.log_softmax(log_weights + delta.unsqueeze(-1) * advantages, dim=-1)


def mirror_values(log_weights: Tensor, values: Tensor, baselines: Tensor, delta: Tensor) -> Tensor:
    """V_i(o; delta_i) = sum_a pi_i^delta(a) Q_i(o, a) with the advantages Q_i - b_i (MAMT, eq. 8).

    Its derivative with respect to delta_i is the variance of the advantages under pi_i^delta.

    Args:
        log_weights, delta: of `mirror_step`.
        values: [N, A, K], Q_i of every choice of agent i.
        baselines: [N, A], b_i.

    Returns:
        [N, A].
    """
    # The softmax does not change with b_i, but its numbers stay small.
    return (mirror_step(log_weights, values - baselines.unsqueeze(-1), delta).exp() * values).sum(
        -1
    )


def counterfactual_effects(values: Tensor, probs: Tensor, taken: Tensor) -> Tensor:
    """|Q_i(o, a_-j) - Q_i(o, a)|: what the action of agent j matters to agent i (MAMT, eq. 5).

    Args:
        values: [N, i, j, K], Q_i with the action of agent j replaced by each of its choices.
        probs: [N, j, K], of the choices under pi_j (of K samples, 1 / K each).
        taken: [N, i], Q_i of the joint action.

    Returns:
        [N, i, j]; the diagonal has no meaning.
    """
    averaged = torch.einsum("nijk,njk->nij", values, probs)
    return (averaged - taken.unsqueeze(-1)).abs()


def coordination(effects: Tensor, sigma: float) -> Tensor:
    """C: the softmax of the effects over the other agents, entries below `sigma` set to zero (MAMT,
    eq. 5).

    Args:
        effects: [..., A, A], of at least two agents.

    Returns:
        [..., A, A] with a zero diagonal.
    """
    shares = _softmax_of_others(effects)
    return shares * (shares >= sigma)


def fixed_coordination(n_agents: int, like: Tensor) -> Tensor:
    """C_ij = 1 / (A - 1), the ablation MAMT-Fixed: [A, A]."""
    ones = torch.ones(n_agents, n_agents, dtype=like.dtype, device=like.device)
    return ones.fill_diagonal_(0.0) / (n_agents - 1)


def random_coordination(n_rows: int, n_agents: int, like: Tensor) -> Tensor:
    """C = softmax over the others of uniform draws from (0, 1), the ablation MAMT-Random: [N, A,
    A].
    """
    return _softmax_of_others(
        torch.rand(n_rows, n_agents, n_agents, dtype=like.dtype, device=like.device)
    )


def _softmax_of_others(scores: Tensor) -> Tensor:
    own = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return torch.softmax(scores.masked_fill(own, -math.inf), dim=-1)


def local_divergences(coefficients: Tensor, kl: Tensor, low: float, high: float) -> Tensor:
    """D_i = clip(sum over j of C_ij KL_ij, low, high) (MAMT, eq. 6): [N, A, A] and [N, A, A] -> [N,
    A].
    """
    return (coefficients * kl).sum(-1).clamp(low, high)


def weighted_sum_divergences(coefficients: Tensor, kl: Tensor, low: float, high: float) -> Tensor:
    """D_i = clip(1/A sum over j of C_ij KL[pi_j || pi_old_j]), whose sum over i is that of MAMT-WS.

    Args:
        coefficients: [N, A, A].
        kl: [N, A], of every agent's consecutive policies.

    Returns:
        [N, A].
    """
    return ((coefficients @ kl.unsqueeze(-1)).squeeze(-1) / kl.shape[-1]).clamp(low, high)

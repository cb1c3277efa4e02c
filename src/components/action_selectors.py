"""Action selectors: from what the agents put out to one action each.

`select_action(agent_inputs [B, A, U], avail_actions [B, A, U], t_env, test_mode=False) -> [B, A]`
int64. An action that is not available is never selected, whatever the networks put out; random
numbers come from torch's default generator. An agent without any available action is a ValueError.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import torch
from torch import Tensor

from components.distributions import MaskedCategorical
from components.epsilon_schedules import DecayThenFlatSchedule
from utils.ranges import PROBABILITY, check_ranges
from utils.registry import Registry

REGISTRY = Registry("action selector")
register = REGISTRY.register


def masked_argmax(scores: Tensor, avail_actions: Tensor) -> Tensor:
    """The available action with the highest score: [..., U] -> [...] int64; the first one of
    equals.

    For training: nothing is checked, which would wait for the GPU. Where no action is available
    (after the end of an episode) it is action 0.
    """
    return torch.where(avail_actions != 0, scores.detach(), -torch.inf).argmax(dim=-1)


def _checked_argmax(scores: Tensor, avail_actions: Tensor) -> Tensor:
    """`masked_argmax` for acting: NaN and -inf are the lowest, and an agent without any action is a
    ValueError.
    """
    available = avail_actions != 0
    if not bool(available.any(dim=-1).all()):
        where = (~available.any(dim=-1)).nonzero()[0].tolist()
        raise ValueError(
            f"no action is available at index {where} of avail_actions {tuple(avail_actions.shape)}"
        )
    # Every finite score, and what is as low as the lowest of them, stays above an unavailable
    # action's -inf.
    lowest = torch.finfo(scores.dtype).min
    scores = torch.nan_to_num(scores, nan=lowest, neginf=lowest)
    return masked_argmax(scores, avail_actions)


def greedy_actions(agent_inputs: Tensor, avail_actions: Tensor) -> Tensor:
    """The available action with the highest value.

    Args:
        agent_inputs: [..., U]; NaN and -inf count as the lowest value.
        avail_actions: [..., U], nonzero where available.

    Returns:
        [...] int64; the first one of equals.

    Raises:
        ValueError: an agent has no available action.
    """
    return _checked_argmax(agent_inputs, avail_actions)


def random_actions(avail_actions: Tensor) -> Tensor:
    """A uniformly random available action: [..., U] -> [...] int64.

    Raises:
        ValueError: an agent has no available action.
    """
    return _checked_argmax(
        torch.rand(avail_actions.shape, device=avail_actions.device), avail_actions
    )


def sample_actions(weights: Tensor, avail_actions: Tensor) -> Tensor:
    """Samples an available action with probability proportional to its weight.

    Args:
        weights: [..., U], non-negative; those of unavailable actions do not count. NaN is 0; an
            agent whose weights are all 0 (a softmax may underflow on all that is available) draws
            uniformly.
        avail_actions: [..., U].

    Returns:
        [...] int64.

    Raises:
        ValueError: an agent has no available action.
    """
    return _race(_available_weights(weights, avail_actions), avail_actions)


def _race(weights: Tensor, avail_actions: Tensor) -> Tensor:
    # Of U exponential clocks with these rates, u's rings first with probability w_u / sum(w): what
    # torch.multinomial does, without its checks.
    return _checked_argmax(weights / torch.empty_like(weights).exponential_(), avail_actions)


def _available_weights(weights: Tensor, avail_actions: Tensor) -> Tensor:
    weights = torch.nan_to_num(weights, nan=0.0).masked_fill(avail_actions == 0, 0.0)
    return torch.where(
        weights.sum(dim=-1, keepdim=True) > 0, weights, (avail_actions != 0).to(weights.dtype)
    )


def _epsilon_schedule(args: SimpleNamespace) -> DecayThenFlatSchedule:
    check_ranges(vars(args), {"epsilon_start": PROBABILITY, "epsilon_finish": PROBABILITY})
    return DecayThenFlatSchedule(
        args.epsilon_start, args.epsilon_finish, args.epsilon_anneal_time, decay="linear"
    )


def categorical_entropy(probs: Tensor) -> Tensor:
    """Entropies of distributions given by probabilities, [..., U] -> [...] (PyMARL's name)."""
    return torch.special.entr(probs / probs.sum(-1, keepdim=True)).sum(-1)


def multinomial_entropy(logits: Tensor) -> Tensor:
    """Entropies of distributions given by logits, [..., U] -> [...] (PyMARL2's name)."""
    return categorical_entropy(torch.softmax(logits, dim=-1))


@register("epsilon_greedy")
class EpsilonGreedyActionSelector:
    """The action with the highest value, or with probability epsilon a uniformly random one, drawn
    for each agent.

    Args:
        args: `epsilon_start`, `epsilon_finish`, `epsilon_anneal_time` (environment steps; linear),
            `evaluation_epsilon` (in tests).

    Attributes:
        epsilon: of the last training step.

    Raises:
        ConfigError: an epsilon is not in [0, 1].
    """

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args
        self.schedule = _epsilon_schedule(args)
        self.epsilon = self.schedule.eval(0)

    @torch.no_grad()
    def select_action(
        self, agent_inputs: Tensor, avail_actions: Tensor, t_env: int, test_mode: bool = False
    ) -> Tensor:
        """Values [B, A, U] -> actions [B, A]; without random numbers in `test_mode` where
        `evaluation_epsilon` is 0.
        """
        epsilon = self.args.evaluation_epsilon
        if not test_mode:
            epsilon = self.epsilon = self.schedule.eval(t_env)
        elif epsilon == 0:
            return greedy_actions(agent_inputs, avail_actions)
        # An exploring agent's values are replaced by noise, so one argmax serves both.
        explore = torch.rand(agent_inputs.shape[:-1], device=agent_inputs.device) < epsilon
        scores = torch.where(explore.unsqueeze(-1), torch.rand_like(agent_inputs), agent_inputs)
        return _checked_argmax(scores, avail_actions)


@register("multinomial")
class MultinomialActionSelector:
    """Samples from the agents' policies, mixed with the uniform one: (1 - epsilon) pi + epsilon /
    #available.

    Args:
        args: `epsilon_start`, `epsilon_finish`, `epsilon_anneal_time`, `test_greedy` (True: the
            most probable action when testing; False: a sample of pi, without epsilon).

    Attributes:
        epsilon: of the last training step.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args
        self.schedule = _epsilon_schedule(args)
        self.epsilon = self.schedule.eval(0)
        self.test_greedy = args.test_greedy

    @torch.no_grad()
    def select_action(
        self, agent_inputs: Tensor, avail_actions: Tensor, t_env: int, test_mode: bool = False
    ) -> Tensor:
        """Probabilities [B, A, U] (renormalised over the available actions) -> actions [B, A]."""
        if test_mode:
            pick = greedy_actions if self.test_greedy else sample_actions
            return pick(agent_inputs, avail_actions)
        self.epsilon = self.schedule.eval(t_env)
        return _race(self.probabilities(agent_inputs, avail_actions), avail_actions)

    def probabilities(self, agent_inputs: Tensor, avail_actions: Tensor) -> Tensor:
        """What training samples from at the current epsilon: [..., U] -> [..., U], each row summing
        to 1.
        """
        weights = _available_weights(agent_inputs, avail_actions)
        available = (avail_actions != 0).to(weights.dtype)
        policy = weights / weights.sum(dim=-1, keepdim=True)
        return torch.lerp(policy, available / available.sum(dim=-1, keepdim=True), self.epsilon)

    def acting_policy(self, policy: MaskedCategorical, avail_actions: Tensor) -> MaskedCategorical:
        """What training samples from at the current epsilon, for learners.

        Mixed as logarithms: of an action that a policy has all but given up, the probability may be
        0 in floating point, but its logarithm and the gradient of that are finite.

        Args:
            policy: [..., U].
            avail_actions: [..., U], those it was made with.
        """
        if self.epsilon == 0:
            return policy
        count = (avail_actions != 0).sum(dim=-1, keepdim=True).clamp(min=1)
        kept = math.log1p(-self.epsilon) if self.epsilon < 1 else -math.inf
        mixed = torch.logaddexp(policy.log_probs + kept, math.log(self.epsilon) - count.log())
        return MaskedCategorical(mixed, avail_actions)


@register("soft_policies")
class SoftPoliciesSelector:
    """Samples from the agents' policies as they are, in training and in tests.

    Args:
        args: not read.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args

    @torch.no_grad()
    def select_action(
        self, agent_inputs: Tensor, avail_actions: Tensor, t_env: int, test_mode: bool = False
    ) -> Tensor:
        """Probabilities [B, A, U] (renormalised over the available actions) -> actions [B, A]."""
        return sample_actions(agent_inputs, avail_actions)


@register("gumbel")
class GumbelActionSelector:
    """Samples softmax(logits) by the Gumbel-max trick, for agents that put out logits.

    Args:
        args: `test_greedy` (True: the highest logit when testing; False: a sample).
    """

    def __init__(self, args: SimpleNamespace) -> None:
        self.args = args
        self.test_greedy = args.test_greedy

    @torch.no_grad()
    def select_action(
        self, agent_inputs: Tensor, avail_actions: Tensor, t_env: int, test_mode: bool = False
    ) -> Tensor:
        """Logits [B, A, U] -> actions [B, A]."""
        if test_mode and self.test_greedy:
            return greedy_actions(agent_inputs, avail_actions)
        gumbel = -torch.empty_like(agent_inputs).exponential_().log()
        return _checked_argmax(agent_inputs + gumbel, avail_actions)

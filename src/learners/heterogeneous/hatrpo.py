"""HATRPO: trust-region steps of agents that learn one after the other (Kuba et al., ICLR 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from components.distributions import Policy
from learners.heterogeneous.happo import HAPPOLearner
from learners.heterogeneous.natural_gradient import (
    assign,
    conjugate_gradients,
    fisher_product,
    flat,
)
from learners.ppo_learner import Figures, PackedEpisodes, Rollout
from utils.ranges import COUNT, FINITE_POSITIVE, NOT_NEGATIVE, PROBABILITY, Range


class HATRPOLearner(HAPPOLearner):
    """HAPPO's order and weights M; an agent takes one step along the natural gradient in place of
    PPO's rounds.

    The step has length sqrt(2 delta / (s F s)) along s, conjugate gradients' solution of
    (F + damping) s = g, and is shortened until KL[old || new] is at most delta and the surrogate
    gains `accept_ratio` of what its slope promises (Kuba et al. 2022, section 4.1). Where no length
    does, the agent stays as it is.

    Args:
        mac, scheme, logger: as for `HAPPOLearner`.
        args: as for `HAPPOLearner`, and `kl_limit` (delta), `cg_steps`, `cg_damping`,
            `backtrack_steps`, `backtrack_factor`, `accept_ratio`. `ppo_epochs`, `ppo_minibatches`
            and the optimiser are of the critic.

    Raises:
        ConfigError: a setting that does not fit.
    """

    figures: ClassVar = (
        *("loss_policy", "loss_value", "policy_entropy", "policy_kl", "step_share", "grad_norm"),
        *("critic_grad_norm", "value_mean", "target_mean"),
    )
    ranges: ClassVar = {
        **HAPPOLearner.ranges,
        "entropy_coef": Range(lambda value: value == 0, "0.0: the trust region is in its place"),
        "kl_limit": FINITE_POSITIVE,
        "cg_steps": COUNT,
        "cg_damping": NOT_NEGATIVE,
        "backtrack_steps": COUNT,
        "backtrack_factor": Range(lambda value: 0 < value < 1, "greater than 0 and less than 1"),
        "accept_ratio": PROBABILITY,
    }

    def agent_updates(
        self, episodes: PackedEpisodes, agent: int, own: Rollout, t_env: int
    ) -> Iterator[Figures]:
        """The step of one agent."""
        yield self.natural_step(episodes.of_agent(agent), own, t_env)

    def surrogate_losses(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """The negative of ratio times advantage, [M, 1]."""
        return -log_ratio.exp() * advantages

    def natural_step(self, episodes: PackedEpisodes, own: Rollout, t_env: int) -> Figures:
        """One step of an agent within its trust region; figures to log.

        `policy_kl` is KL[old || new] and `step_share` the share of the full step, 0 if none is good
        enough.
        """
        assert episodes.agent is not None
        params = self.members.parameters(episodes.agent)
        loss, figures, parts = self.policy_loss(episodes, own, self.policy(episodes))
        outcome: list[Tensor] = []

        def take_step() -> None:
            step = self.full_step(episodes, params)
            outcome.extend(self.line_search(episodes, own, params, step, loss.detach()))

        grad_norm = self.optimise(
            self.optimiser, params, loss, t_env, parts, max_norm=math.inf, take_step=take_step
        )
        kl, share = outcome
        figures = {name: value for name, value in figures.items() if name != "clip_fraction"}
        return figures | {"policy_kl": kl, "step_share": share, "grad_norm": grad_norm}

    def full_step(self, episodes: PackedEpisodes, params: list[nn.Parameter]) -> Tensor:
        """The step [P] down the loss whose gradients the parameters have, of the divergence
        `kl_limit` to second order; 0 without a gradient.
        """
        gradient = flat(param.grad for param in params if param.grad is not None)
        with torch.no_grad():
            old = self.policy(episodes)
        # cuDNN's recurrent layers have no second derivative.
        with torch.backends.cudnn.flags(enabled=False):
            kl = self.divergence(episodes, old, self.policy(episodes))
            product = fisher_product(kl, params, self.args.cg_damping)
            direction = conjugate_gradients(product, -gradient, self.args.cg_steps)
            curvature = direction @ product(direction)
        length = (2 * self.args.kl_limit / curvature.clamp(min=1e-30)).sqrt()
        return torch.where(curvature > 0, length * direction, 0.0)

    @torch.no_grad()
    def line_search(
        self,
        episodes: PackedEpisodes,
        own: Rollout,
        params: list[nn.Parameter],
        step: Tensor,
        loss: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Takes the first of ever shorter steps that is good enough, or none.

        Args:
            step: [P].
            loss: before it.

        Returns:
            KL[old || new] and the share of the step that was taken, scalars.
        """
        args, start, old = self.args, flat(params), self.policy(episodes)
        promised = -flat(param.grad for param in params if param.grad is not None) @ step
        for j in range(args.backtrack_steps):
            share = args.backtrack_factor**j
            assign(params, start + share * step)
            new = self.policy(episodes)
            kl = self.divergence(episodes, old, new)
            gain = loss - self.policy_loss(episodes, own, new).loss
            if kl <= args.kl_limit and gain > 0 and gain >= args.accept_ratio * share * promised:
                return kl, torch.full_like(kl, share)
        assign(params, start)
        return torch.zeros_like(loss), torch.zeros_like(loss)

    def divergence(self, episodes: PackedEpisodes, old: Policy, new: Policy) -> Tensor:
        """KL[old || new] of one agent, mean over the steps with a choice: a scalar."""
        return self.mean(old.kl(new), episodes.choice).sum()

"""FOP: a soft actor-critic whose best joint policy factors into the agents' (Zhang et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from components.epsilon_schedules import DecayThenFlatSchedule
from components.inner import Explained, Inner
from controllers.actor_controller import ActorMAC
from learners.counterfactual import ActorCriticLearner
from learners.needs import Needs
from learners.returns import FilledSteps, filled_steps, lambda_targets
from modules.critics.twin import TwinUtilityCritic
from utils.ranges import COUNT, POSITIVE


class FOPLearner(ActorCriticLearner):
    """Entropy-regularised learning from replayed episodes, with two critics of which the lower one
    counts.

    The joint value is Q_tot = sum_i Q_i + V(s) + sum_i (lambda_i(s, a) - 1) (Q_i - v_i), where v_i
    is the soft value alpha log sum over a of exp(Q_i / alpha). Each policy is drawn to the
    Boltzmann policy of its own utilities, whose product is the best joint policy.

    Args:
        mac: an `ActorMAC`.
        scheme, logger: as for every learner.
        args: those of `ActorCriticLearner` and `TwinUtilityCritic`, `td_lambda`, `alpha_start`,
            `alpha_finish` and `alpha_anneal_time` (of the entropy's weight),
            `undiscounted_entropy`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = ActorCriticLearner.needs | Needs(
        settings={"replay": "episodes", "common_reward": True},
        why={
            "replay": "it learns from replayed episodes",
            "common_reward": "its critics value the team's reward",
        },
    )
    ranges: ClassVar = {
        **ActorCriticLearner.ranges,
        **TwinUtilityCritic.ranges,
        "hard_target_interval": COUNT,
        "alpha_start": POSITIVE,
        "alpha_finish": POSITIVE,
        "alpha_anneal_time": COUNT,
    }

    critic: TwinUtilityCritic
    target_critic: TwinUtilityCritic

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.schedule = DecayThenFlatSchedule(
            args.alpha_start, args.alpha_finish, args.alpha_anneal_time, decay="linear"
        )

    def make_critic(self) -> TwinUtilityCritic:
        return TwinUtilityCritic(self.scheme, self.args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on a batch of episodes; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        self.mac.agent.train()
        alpha = self.schedule.eval(t_env)
        filled = filled_steps(batch, self.mac)
        state = filled.steps.pack(batch["state"])
        policy = MaskedCategorical(filled.logits, filled.avail)
        targets = self._targets(filled, state, policy, alpha)
        figures = self._policy_step(filled, policy, alpha, t_env)
        figures |= self._critic_step(filled, state, targets, alpha, t_env)
        self.finish_update()
        self.log_means(t_env, **figures, policy_entropy=policy.entropy(), alpha=torch.tensor(alpha))

    @torch.no_grad()
    def _targets(
        self, filled: FilledSteps, state: Tensor, policy: MaskedCategorical, alpha: float
    ) -> Tensor:
        """TD(lambda) returns of soft values, [M, 1]: min_j Q_tot_j(s, a) - alpha sum_i log
        pi_i(a_i|o_i), a drawn from the present policies.

        With `undiscounted_entropy` the returns are those of Q_tot, and the mean over agents of
        -alpha log pi_i of the next step is added, not discounted, as in the authors' code.
        """
        actions, args = policy.sample(), self.args
        q = self.target_critic(filled.obs)
        values = self.target_critic.joint(q, actions, filled.avail, state, alpha).amin(0)
        log_prob = policy.log_prob(actions)
        if not args.undiscounted_entropy:
            values = values - alpha * log_prob.sum(-1, keepdim=True)
        returns = lambda_targets(
            filled.steps, filled.rewards, filled.goes_on, values, args.gamma, args.td_lambda
        )
        if args.undiscounted_entropy:
            mean = log_prob[filled.steps.nxt].mean(-1, keepdim=True)
            returns = returns - alpha * filled.goes_on.unsqueeze(-1) * mean
        return returns

    def _policy_step(
        self, filled: FilledSteps, policy: MaskedCategorical, alpha: float, t_env: int
    ) -> dict[str, Tensor]:
        """A step of all policies along -sum over a of pi_i (alpha log pi_i - min_j Q_ij); figures
        to log.
        """
        cur = filled.steps.cur
        with torch.no_grad():
            q = self.critic(filled.obs[cur]).amin(0)
        soft = alpha * policy.log_probs[cur] - q
        loss = (policy.probs[cur] * soft).sum(-1).mean()
        parts = {"observations": filled.obs, "q": q}
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        return {"loss_policy": loss, "grad_norm": grad_norm}

    def _critic_step(
        self, filled: FilledSteps, state: Tensor, targets: Tensor, alpha: float, t_env: int
    ) -> dict[str, Tensor]:
        """A step of both critics, each with a gradient of its own; figures to log."""
        cur = filled.steps.cur
        obs, actions, avail = filled.obs[cur], filled.actions[cur], filled.avail[cur]
        values = self.critic.joint(self.critic(obs), actions, avail, state[cur], alpha)
        errors = values - targets
        losses = errors.square().mean((1, 2))
        parts = {"observations": obs, "states": state, "rewards": filled.rewards}
        parts |= {"targets": targets, "q": values}
        grad_norm = self.optimise(self.critic_optimiser, self.critic_params, losses, t_env, parts)
        return {
            "loss_value": losses,
            "critic_grad_norm": grad_norm,
            "td_error_abs": errors.abs(),
            "q_taken_mean": values,
            "target_mean": targets,
        }

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        return ("critic",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Q_tot of the most probable joint action with the last weight of the entropy, and the
        utilities; of the lower critic.
        """
        self.mac.agent.eval()
        filled = filled_steps(batch, self.mac)
        state = filled.steps.pack(batch["state"])
        actions = MaskedCategorical(filled.logits, filled.avail).mode()
        q = self.critic(filled.obs)
        values = self.critic.joint(q, actions, filled.avail, state, self.args.alpha_finish)
        return {
            "value": Inner(values.amin(0).squeeze(-1)),
            "critic's action values": Inner(q.amin(0), ("agent", "action")),
        }

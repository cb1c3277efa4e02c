"""The update of actor-critics with a counterfactual baseline, which COMA, MA-AC and DOP share."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from controllers.actor_controller import ActorMAC
from learners.base import Learner, make_optimiser
from learners.needs import Needs
from utils.ranges import COUNT


class ActorCriticLearner(Learner):
    """Base of learners that have policies and a critic with a target network.

    A subclass has `make_critic`, and calls `finish_update` in its `train`.

    Args:
        mac: an `ActorMAC`.
        scheme, logger: as for every learner.
        args: `critic_hidden_dim`, `grad_norm_clip`, `hard_target_interval` (updates between copies
            of the critic to its target; 0: there is none, the critic is its own target).

    Attributes:
        updates: how many there have been.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = Needs(
        mac=ActorMAC,
        settings={"mixer": None},
        why={"mixer": "it has a critic instead of mixed action values"},
    )
    ranges: ClassVar = {"critic_hidden_dim": COUNT, "policy_hidden_dim": COUNT}

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic = self.make_critic()
        self.modules["critic"] = self.critic
        self.target_critic = (
            self.with_target(self.critic) if args.hard_target_interval else self.critic
        )
        self.params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)
        self.updates = 0

    def make_critic(self) -> nn.Module:
        """The network that values what the agents do."""
        raise NotImplementedError

    def finish_update(self) -> None:
        """Counts the update, and copies the critic to its target every `hard_target_interval`
        updates.
        """
        self.updates += 1
        interval = self.args.hard_target_interval
        if interval and self.updates % interval == 0:
            self.update_targets()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}


class CounterfactualLearner(ActorCriticLearner):
    """Base: a step of the critic towards targets, then one of the policies along grad log
    pi_i(a_i|o_i) (Q(a) - sum over a' of pi_i(a'|o_i) Q(a', a_-i)), with Q the critic before its
    step.

    A subclass also calls `step_both` in its `train`. The arguments are those of the base.
    """

    needs = ActorCriticLearner.needs | Needs(
        settings={"replay": "latest"}, why={"replay": "it learns on-policy"}
    )

    def step_both(
        self,
        all_q: Tensor,
        taken: Tensor,
        probs: Tensor,
        log_prob: Tensor,
        targets: Tensor,
        parts: Mapping[str, Tensor],
        t_env: int,
    ) -> dict[str, Tensor]:
        """A step of the critic and one of the policies.

        The M transitions and A agents are the axes [...]: [M, A] for one critic, whose losses are
        means over both; [A, M] for agents with critics and policies of their own, each with a loss
        of its own.

        Args:
            all_q: [..., U], values of every own action, with gradient.
            taken: [..., U], one-hot, the own actions taken.
            probs: [..., U], of the policies that act.
            log_prob: [...], of the actions taken, with gradient.
            targets: [...].
            parts: see `Learner.optimise`.

        Returns:
            The figures to log.

        Raises:
            Diverged: as `Learner.optimise`.
        """
        q = (all_q * taken).sum(-1)
        td_error = q - targets
        advantage = (q - (probs * all_q).sum(-1)).detach()
        parts = {**parts, "targets": targets, "q": q}
        loss_value = self.mean(td_error.square())
        critic_grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss_value, t_env, parts
        )
        loss_policy, grad_norm = self.policy_step(advantage, log_prob, t_env, parts)
        return {
            "loss_value": loss_value,
            "loss_policy": loss_policy,
            "critic_grad_norm": critic_grad_norm,
            "grad_norm": grad_norm,
            "td_error_abs": td_error.abs(),
            "q_taken_mean": q,
            "target_mean": targets,
            "advantage_abs": advantage.abs(),
        }

    def policy_step(
        self, advantage: Tensor, log_prob: Tensor, t_env: int, parts: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """A step of the policies along the mean of advantage times grad log pi.

        Args:
            advantage: [...], without gradient.
            log_prob: [...], of the actions taken, with gradient.
            parts: see `Learner.optimise`.

        Returns:
            The loss, and the gradient's norm.
        """
        loss = -self.mean(advantage * log_prob)
        return loss, self.optimise(self.optimiser, self.params, loss, t_env, parts)

    def mean(self, losses: Tensor) -> Tensor:
        """The loss that is minimised: [M, A] -> a scalar."""
        return losses.mean()

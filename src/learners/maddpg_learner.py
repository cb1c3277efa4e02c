"""MADDPG: deterministic policy gradients with a critic per agent that sees everything (Lowe et al.
2017).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from components.transitions import Transitions
from controllers.maddpg_controller import MADDPGMAC
from learners.base import Learner, make_optimiser, parts_of
from learners.needs import Needs
from modules.agents.policy_agent import PolicyAgent
from modules.critics.joint import JointCritic
from utils.ranges import COUNT, FINITE_POSITIVE, NOT_NEGATIVE, POSITIVE


class MADDPGLearner(Learner):
    """MADDPG for all agents at once; every agent has a loss and a gradient's norm of its own.

    Discrete actions are hard samples of the Gumbel-softmax (straight-through gradient), as one-hot
    inputs of the critics; continuous ones the mode of the policy, the tanh of its mean.

    Args:
        mac: a `MADDPGMAC` with agent `mlp_policy`.
        scheme, logger: as for every learner.
        args: `gumbel_temperature`, `policy_logit_penalty` (weight of the mean square of the policy
            network's outputs), `policy_grad_norm_clip`, `critic_grad_norm_clip`,
            `standardise_rewards`, `target_tau`, and what `JointCritic` reads.

    Raises:
        ConfigError: a setting that does not fit.
    """

    continuous_actions = True
    needs = Needs(
        mac=MADDPGMAC,
        agent=PolicyAgent,
        settings={"share_params": False, "replay": "transitions", "mixer": None},
        why={
            "replay": "it learns from single ones",
            "mixer": "its critics see everything, nothing is mixed",
        },
    )
    ranges: ClassVar = {
        "action_noise": NOT_NEGATIVE,
        "gumbel_temperature": FINITE_POSITIVE,
        "policy_hidden_dim": COUNT,
        "policy_logit_penalty": NOT_NEGATIVE,
        "policy_grad_norm_clip": POSITIVE,
        "critic_hidden_dim": COUNT,
        "critic_grad_norm_clip": POSITIVE,
    }

    def __init__(
        self, mac: MADDPGMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic = JointCritic(scheme, args)
        self.modules["critic"] = self.critic
        self.target_mac, self.target_critic = self.with_target(mac), self.with_target(self.critic)
        self.params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)

    def train(
        self, batch: Transitions, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update of critics, policies and targets on a batch of transitions; see
        `Learner.train`.
        """
        args, obs = self.args, batch["obs"]
        self.mac.agent.train()
        self.target_mac.agent.train()
        actions = batch["actions"]
        if not args.continuous_actions:
            actions = F.one_hot(actions, args.n_actions).to(obs)

        targets = self.targets_of(batch)
        q = self.critic(obs, actions)
        td_error = q - targets
        loss_critic = td_error.pow(2).mean(0)
        parts = parts_of(batch, targets=targets, q=q)
        critic_grad_norm = self.optimise(
            self.critic_optimiser,
            self.critic_params,
            loss_critic,
            t_env,
            parts,
            args.critic_grad_norm_clip,
        )

        # Each agent's action anew, the others' as they were (Lowe et al. 2017, eq. 5).
        own, outputs = self.act(self.mac, obs, batch["avail_actions"])
        frozen = {name: param.detach() for name, param in self.critic.named_parameters()}
        gain = functional_call(self.critic, frozen, (obs, actions, own)).mean(0)
        loss_policy = args.policy_logit_penalty * self.mac.agent.mean_square(outputs) - gain
        parts = parts_of(batch, policy=outputs)
        grad_norm = self.optimise(
            self.optimiser, self.params, loss_policy, t_env, parts, args.policy_grad_norm_clip
        )
        self.soft_update_targets(args.target_tau)
        self.log_means(
            t_env,
            loss_critic=loss_critic,
            loss_policy=loss_policy,
            grad_norm=grad_norm,
            critic_grad_norm=critic_grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q,
            target_mean=targets,
        )

    @torch.no_grad()
    def targets_of(self, batch: Transitions) -> Tensor:
        """y_i = r_i + gamma Q'_i(o', a') with the target policies' actions a', [N, A] (Lowe et al.
        2017, eq. 6).
        """
        args = self.args
        rewards = batch.standardised_rewards() if args.standardise_rewards else batch["reward"]
        following, _ = self.act(self.target_mac, batch["next_obs"], batch["next_avail_actions"])
        value = self.target_critic(batch["next_obs"], following)
        return rewards + args.gamma * (1 - batch["terminated"]) * value

    def act(self, mac: MADDPGMAC, obs: Tensor, avail: Tensor) -> tuple[Tensor, Tensor]:
        """Differentiable actions [N, A, U] of a controller's policies, and what its network puts
        out for them.
        """
        outputs = mac.agent.logits(obs)
        policy = mac.policy(outputs, avail)
        if self.args.continuous_actions:
            return policy.mode(), outputs[..., : self.args.n_actions]
        return policy.rsample(self.args.gumbel_temperature), outputs

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}

"""COMA: counterfactual multi-agent policy gradients (Foerster et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from controllers.actor_controller import ActorMAC
from learners.base import Learner, make_optimiser, parts_of
from learners.needs import Needs
from learners.returns import lambda_targets, last_actions, taken_or_policy
from modules.critics.counterfactual import CounterfactualCritic
from utils.ranges import COUNT


class COMALearner(Learner):
    """A central critic, on-policy with TD(lambda), whose counterfactual baseline tells each agent
    its own part.

    An update is a step of the critic towards the targets and one of the policies along grad log
    pi_i(a_i|o_i) (Q(s, a) - sum over a' of pi_i(a'|o_i) Q(s, a', a_-i)), where pi is what acts, its
    share of random actions included, and Q the critic before its step.

    Args:
        mac: an `ActorMAC`, its policies recurrent or not, shared or not.
        scheme, logger: as for every learner.
        args: `critic_hidden_dim`, `td_lambda`, `hard_target_interval` (updates between copies of
            the critic to its target), `grad_norm_clip`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = Needs(
        mac=ActorMAC,
        settings={"replay": "latest", "common_reward": True, "mixer": None},
        why={
            "replay": "it learns on-policy",
            "common_reward": "its critic values the team's reward",
            "mixer": "it has a critic instead of mixed action values",
        },
    )
    ranges: ClassVar = {"critic_hidden_dim": COUNT, "hard_target_interval": COUNT}

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic = CounterfactualCritic(scheme, args)
        self.modules["critic"] = self.critic
        self.target_critic = self.with_target(self.critic)
        self.params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)
        self.updates = 0

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on the newest episodes; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        args, steps = self.args, batch.steps()
        self.mac.agent.train()
        state, obs, avail = (steps.pack(batch[key]) for key in ("state", "obs", "avail_actions"))
        actions = steps.pack(batch["actions"]).squeeze(-1)
        policy = MaskedCategorical(self.mac.unroll(batch, steps), avail)
        acting = self.mac.action_selector.acting_policy(policy, avail)
        probs = acting.probs
        actions = actions.index_copy(0, *last_actions(probs, steps))
        taken = F.one_hot(actions, args.n_actions).to(probs)
        all_q = self.critic(state, obs, actions)[steps.cur]
        with torch.no_grad():
            values = (
                self.target_critic(state, obs, actions) * taken_or_policy(probs, taken, steps)
            ).sum(-1)
            rewards = steps.pack_transitions(batch["reward"]).expand(-1, args.n_agents)
            targets = lambda_targets(batch, steps, rewards, values, args.gamma, args.td_lambda)
        taken, probs = taken[steps.cur], probs[steps.cur]
        q = (all_q * taken).sum(-1)
        td_error = q - targets
        advantage = (q - (probs * all_q).sum(-1)).detach()
        parts = parts_of(batch, targets=targets, q=q)
        loss_value = td_error.square().mean()
        critic_grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss_value, t_env, parts
        )
        # Who had no choice (a dead unit) has a probability of 1, whose logarithm has no gradient.
        log_prob = acting.log_prob(actions)[steps.cur]
        loss_policy = -(advantage * log_prob).mean()
        grad_norm = self.optimise(self.optimiser, self.params, loss_policy, t_env, parts)
        self.updates += 1
        if self.updates % args.hard_target_interval == 0:
            self.update_targets()
        self.log_means(
            t_env,
            loss_value=loss_value,
            loss_policy=loss_policy,
            critic_grad_norm=critic_grad_norm,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q,
            target_mean=targets,
            advantage_abs=advantage.abs(),
            policy_entropy=policy.entropy(),
        )

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}

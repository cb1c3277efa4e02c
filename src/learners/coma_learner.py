"""COMA: counterfactual multi-agent policy gradients (Foerster et al. 2018)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from learners.counterfactual import CounterfactualLearner
from learners.needs import Needs
from learners.returns import (
    FilledSteps,
    filled_steps,
    lambda_targets,
    last_actions,
    taken_or_policy,
)
from modules.critics.counterfactual import CounterfactualCritic
from utils.ranges import COUNT


class COMALearner(CounterfactualLearner):
    """A central critic, on-policy with TD(lambda), whose counterfactual baseline tells each agent
    its own part.

    An update is a step of the critic towards the targets and one of the policies along grad log
    pi_i(a_i|o_i) (Q(s, a) - sum over a' of pi_i(a'|o_i) Q(s, a', a_-i)), where pi is what acts, its
    share of random actions included, and Q the critic before its step.

    Args:
        mac: an `ActorMAC`, its policies recurrent or not, shared or not.
        scheme, logger: as for every learner.
        args: those of `CounterfactualLearner`, and `td_lambda`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = CounterfactualLearner.needs | Needs(
        settings={"common_reward": True},
        why={"common_reward": "its critic values the team's reward"},
    )
    ranges: ClassVar = {**CounterfactualLearner.ranges, "hard_target_interval": COUNT}

    def make_critic(self) -> CounterfactualCritic:
        return CounterfactualCritic(self.scheme, self.args)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on the newest episodes; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        self.mac.agent.train()
        filled = filled_steps(batch, self.mac)
        steps, state = filled.steps, filled.steps.pack(batch["state"])
        policy = MaskedCategorical(filled.logits, filled.avail)
        acting = self.mac.action_selector.acting_policy(policy, filled.avail)
        actions = filled.actions.index_copy(0, *last_actions(acting.probs, steps))
        taken = F.one_hot(actions, self.args.n_actions).to(acting.probs)
        figures = self.step_both(
            all_q=self.critic(state, filled.obs, actions)[steps.cur],
            taken=taken[steps.cur],
            probs=acting.probs[steps.cur],
            # Who had no choice (a dead unit) has a probability of 1, whose logarithm has no
            # gradient.
            log_prob=acting.log_prob(actions)[steps.cur],
            targets=self._targets(
                filled, state, actions, taken_or_policy(acting.probs, taken, steps)
            ),
            parts={"observations": filled.obs, "states": state, "rewards": filled.rewards},
            t_env=t_env,
        )
        self.finish_update()
        self.log_means(t_env, **figures, policy_entropy=policy.entropy())

    @torch.no_grad()
    def _targets(
        self, filled: FilledSteps, state: Tensor, actions: Tensor, weights: Tensor
    ) -> Tensor:
        """TD(lambda) targets [M, A], from values weighted over own actions by [N, A, U]."""
        values = (self.target_critic(state, filled.obs, actions) * weights).sum(-1)
        rewards = filled.rewards.expand(-1, self.args.n_agents)
        return lambda_targets(
            filled.steps, rewards, filled.goes_on, values, self.args.gamma, self.args.td_lambda
        )

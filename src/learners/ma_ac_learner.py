"""MA-AC: decentralised actor-critic whose agents average their critics (Zhang et al. 2018,
algorithm 1).

"Fully Decentralized Multi-Agent Reinforcement Learning with Networked Agents" (ICML 2018). It is
F2A2's decentralised baseline: everybody sees the joint observation, learns from the own reward
alone, and knows the others' policies because they are sent (F2A2, table 2).
"""

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
from learners.counterfactual import CounterfactualLearner
from learners.f2a2.consensus import (
    LINK_RANGES,
    Channel,
    average_copies_,
    check_links,
    disagreement,
    equalise_,
    flat_copies,
    make_links,
)
from learners.needs import Needs
from learners.returns import FilledSteps, filled_steps
from modules.f2a2.critics import CentralCopies, joint_actions
from utils.ranges import NOT_NEGATIVE


class NetworkedActorCriticLearner(CounterfactualLearner):
    """Actor-critic of networked agents (MA-AC): local actors, and critics of joint observation and
    action that are averaged over the neighbours after every step.

    Agent i takes a step of its critic along delta grad Q with the TD(0) error delta = Q(o, a) - r_i
    - gamma Q(o', a'), a' drawn from all policies, and one of its actor along A_i grad log pi_i, A_i
    = Q(o, a) - sum of pi_i Q(o, ., a_-i). Then its critic becomes the weighted mean of its own and
    the neighbours' copies (Metropolis weights).

    Args:
        mac: an `ActorMAC` whose agents share no weights.
        scheme, logger: as for every learner.
        args: those of `CounterfactualLearner` (`hard_target_interval` is 0 in the paper, and the
            gradient of each agent is clipped on its own), and those of `make_links`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = CounterfactualLearner.needs | Needs(
        settings={"share_params": False, "td_lambda": 0.0},
        why={"td_lambda": "its targets are one-step targets"},
    )
    ranges: ClassVar = {
        **CounterfactualLearner.ranges,
        **LINK_RANGES,
        "hard_target_interval": NOT_NEGATIVE,
    }

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        super().check_settings(args)
        check_links(args)

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.links = make_links(args)
        self.channel = Channel(args.n_agents, ["observations", "actions", "policies", "critic"])

    def make_critic(self) -> CentralCopies:
        critic = CentralCopies(self.scheme, self.args, 1)
        equalise_(list(critic.parameters()))
        return critic

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on the newest episodes; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        self.mac.agent.train()
        filled = filled_steps(batch, self.mac)
        cur = filled.steps.cur
        obs = self.channel.share("observations", filled.obs, 1)
        actions = self.channel.share("actions", filled.actions[cur], 1)
        policy = MaskedCategorical(filled.logits, filled.avail)
        acting = self.mac.action_selector.acting_policy(policy, filled.avail)
        # Knowing the others' policies, everybody can draw their next actions.
        self.channel.share("policies", flat_copies(self.params))
        targets = self._targets(filled._replace(obs=obs), acting.probs.detach())
        taken = F.one_hot(actions, self.args.n_actions).to(acting.probs).transpose(0, 1)
        figures = self.step_both(
            all_q=self.critic(obs[cur], joint_actions(actions, self.args.n_actions))[:, 0],
            taken=taken,
            probs=acting.probs[cur].transpose(0, 1),
            log_prob=(acting.log_probs[cur].transpose(0, 1) * taken).sum(-1),
            targets=targets,
            parts={"rewards": filled.rewards, "observations": obs},
            t_env=t_env,
        )
        average_copies_(self.critic_params, self.channel, self.links.draw(), "critic")
        self.finish_update()
        self.log_means(
            t_env,
            **figures,
            policy_entropy=policy.entropy(),
            consensus_error=disagreement(self.critic_params),
            **self.channel.figures(["critic", "policies"]),
        )

    def mean(self, losses: Tensor) -> Tensor:
        """The losses of agents that learn alone: [A, M] -> [A]."""
        return losses.mean(1)

    @torch.no_grad()
    def _targets(self, filled: FilledSteps, probs: Tensor) -> Tensor:
        """r_i + gamma Q_i(o', a') with a' drawn from the policies [N, A, U]: [A, M]."""
        nxt = filled.steps.nxt
        next_actions = torch.distributions.Categorical(probs[nxt], validate_args=False).sample()
        joint = joint_actions(next_actions, self.args.n_actions)
        next_q = self.target_critic(filled.obs[nxt], joint)[:, 0]
        value = next_q.gather(-1, next_actions.t().unsqueeze(-1)).squeeze(-1)
        rewards = filled.rewards.t().expand(self.args.n_agents, -1)
        return rewards + self.args.gamma * filled.goes_on * value

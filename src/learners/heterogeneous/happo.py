"""HAPPO: PPO of agents that learn one after the other (Kuba et al., ICLR 2022).

The joint advantage is the sum of what each agent adds to it, given what those before it do (the
paper's lemma 1). So an agent's own surrogate is weighted by how much more probable the agents that
have learned before it have made their actions: if every agent improves its own, the team improves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.distributions import Policy
from controllers.actor_controller import ActorMAC
from learners.base import make_optimiser
from learners.heterogeneous.turns import members_of, turns
from learners.needs import Needs
from learners.ppo_learner import Figures, PackedEpisodes, PPOLearner, Rollout, StepLoss
from utils.ranges import one_of


class HAPPOLearner(PPOLearner):
    """PPO with a critic in common, whose agents take their `ppo_epochs` rounds one after the other.

    Of agent i_m the surrogate's advantages are M(s, a) = prod_{j < m} pi_new(a_j|o_j) /
    pi_old(a_j|o_j) A(s, a), over the agents that come before it in an order drawn for every batch
    (Kuba et al. 2022, section 4.2). Its own ratio is clipped, M is not.

    Args:
        mac: an `ActorMAC`, every agent with weights of its own.
        scheme, logger: as for every learner.
        args: as for `PPOLearner`, and `agent_order`: random | fixed (the agents' own).

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = PPOLearner.needs | Needs(
        settings={"share_params": False},
        why={"share_params": "the agents learn one after the other"},
    )
    ranges: ClassVar = {**PPOLearner.ranges, "agent_order": one_of("random", "fixed")}

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.members = members_of(mac, scheme, args)
        self.params = [param for i in range(args.n_agents) for param in self.members.parameters(i)]
        # Of whom no loss has a gradient, no weight moves: Adam's averages rest, too.
        self.optimiser = make_optimiser(self.params, args)

    def updates(self, episodes: PackedEpisodes, rollout: Rollout, t_env: int) -> Iterator[Figures]:
        """The agents' steps, agent by agent, then those of the critic."""
        log_m = torch.zeros_like(rollout.log_prob[..., :1])
        for agent in self.order():
            own = self.rollout_of(agent, rollout, log_m)
            yield from self.agent_updates(episodes, agent, own, t_env)
            log_m = log_m + self.log_change(episodes.of_agent(agent), own)
        for part, before in self.rounds(episodes, rollout):
            yield self.value_step(part, before, t_env)

    def order(self) -> list[int]:
        """Who learns first, second, ..."""
        return turns(self.args)

    def rollout_of(self, agent: int, rollout: Rollout, log_m: Tensor) -> Rollout:
        """What the steps of one agent go by: its log probabilities, and the advantages times M.

        Args:
            log_m: [B, T, 1], sum of the log ratios of those that have learned before.
        """
        advantages = rollout.advantages
        if advantages.shape[-1] > 1:
            advantages = advantages[..., agent : agent + 1]
        # As for the ratio of an agent's own: more than e^20 is just "too far".
        return rollout._replace(
            log_prob=rollout.log_prob[..., agent : agent + 1],
            advantages=log_m.clamp(max=20.0).exp() * advantages,
        )

    def agent_updates(
        self, episodes: PackedEpisodes, agent: int, own: Rollout, t_env: int
    ) -> Iterator[Figures]:
        """All steps of one agent on a batch."""
        for part, before in self.rounds(episodes, own):
            yield self.policy_step(part.of_agent(agent), before, t_env)

    @torch.no_grad()
    def log_change(self, episodes: PackedEpisodes, own: Rollout) -> Tensor:
        """Log ratio of an agent's policy to the one that acted: [B, T, 1], 0 without a choice.

        Args:
            episodes: of this agent.
        """
        log_ratio = self.log_ratio(episodes, own, self.policy(episodes))
        return episodes.padded(log_ratio * episodes.choice)

    def policy_loss(self, episodes: PackedEpisodes, rollout: Rollout, policy: Policy) -> StepLoss:
        """As in `PPOLearner`; of one agent a scalar."""
        losses = super().policy_loss(episodes, rollout, policy)
        return losses if episodes.agent is None else losses._replace(loss=losses.loss.sum())

    def policy(self, episodes: PackedEpisodes, at_ends: bool = False) -> Policy:
        """As in `PPOLearner`; of one agent where `episodes` are."""
        if episodes.agent is None:
            return super().policy(episodes, at_ends)
        where = slice(None) if at_ends else episodes.steps.cur
        network: Any = self.members(episodes.agent).train(self.mac.agent.training)
        outputs = network.unroll(episodes.inputs, episodes.steps)
        return self.mac.policy(outputs[where], episodes.avail[where])

    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        super().cuda()
        self.members.attach()

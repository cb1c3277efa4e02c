"""MA-AC: decentralised actor-critic whose agents average their critics (Zhang et al. 2018,
algorithm 1).

"Fully Decentralized Multi-Agent Reinforcement Learning with Networked Agents" (ICML 2018). It is
F2A2's decentralised baseline: everybody sees the joint observation, learns from the own reward
alone, and knows the others' policies because they are sent (F2A2, table 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.distributions import MaskedCategorical
from components.episode_buffer import EpisodeBatch
from controllers.actor_controller import ActorMAC
from learners.base import Learner, make_optimiser
from learners.f2a2.consensus import (
    Channel,
    average_copies_,
    disagreement,
    equalise_,
    flat_copies,
    make_links,
)
from learners.needs import Needs
from modules.f2a2.critics import CentralCopies
from utils.errors import ConfigError


class NetworkedActorCriticLearner(Learner):
    """Local actors, and critics of joint observation and action that are averaged over the
    neighbours after every step.

    Agent i takes a step of its critic along delta grad Q with the TD(0) error delta = Q(o, a) - r_i
    - gamma Q(o', a'), a' drawn from all policies, and one of its actor along A_i grad log pi_i, A_i
    = Q(o, a) - sum of pi_i Q(o, ., a_-i). Then its critic becomes the weighted mean of its own and
    the neighbours' copies (Metropolis weights).

    Args:
        mac: an `ActorMAC` whose agents share no weights.
        scheme, logger: as for every learner.
        args: `critic_hidden_dim`, `hard_target_interval` (0: the targets are the critics
            themselves, as in the paper), `grad_norm_clip`, `topology`, `topology_extra_edges`,
            `consensus_interval`, `consensus_interval_std`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = Needs(settings={"share_params": False})

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        _check(mac, args)
        super().__init__(mac, scheme, logger, args)
        self.critic = CentralCopies(scheme, args, 1)
        self.modules["critic"] = self.critic
        self.params, self.critic_params = list(mac.parameters()), list(self.critic.parameters())
        equalise_(self.critic_params)
        self.target_critic = (
            self.with_target(self.critic) if args.hard_target_interval else self.critic
        )
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)
        self.links = make_links(args)
        self.channel = Channel(args.n_agents, ["observations", "actions", "policies", "critic"])
        self.updates = 0

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on the newest episodes; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        args, steps = self.args, batch.steps()
        self.mac.agent.train()
        avail = steps.pack(batch["avail_actions"])
        obs = self.channel.share("observations", steps.pack(batch["obs"]), 1)
        actions = self.channel.share(
            "actions", steps.pack_transitions(batch["actions"]).squeeze(-1), 1
        )
        policy = MaskedCategorical(self.mac.unroll(batch, steps), avail)
        acting = self.mac.action_selector.acting_policy(policy, avail)
        probs = acting.probs
        # Knowing the others' policies, everybody can draw their next actions.
        self.channel.share("policies", flat_copies(self.params))
        target = self._targets(batch, obs, probs.detach())
        all_q = self.critic(obs[steps.cur], self._joint(actions))[:, 0]  # [A, M, U]
        taken = F.one_hot(actions, args.n_actions).to(probs).transpose(0, 1)
        own = probs[steps.cur].transpose(0, 1)
        q = (all_q * taken).sum(-1)
        td_error = q - target
        advantage = (q - (own * all_q).sum(-1)).detach()
        parts = {"rewards": batch["reward"], "observations": obs, "targets": target, "q": q}
        loss_value = td_error.square().mean(1)
        critic_grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss_value, t_env, parts
        )
        log_prob = (acting.log_probs[steps.cur].transpose(0, 1) * taken).sum(-1)
        loss_policy = -(advantage * log_prob).mean(1)
        grad_norm = self.optimise(self.optimiser, self.params, loss_policy, t_env, parts)
        average_copies_(self.critic_params, self.channel, self.links.draw(), "critic")
        self.updates += 1
        if args.hard_target_interval and self.updates % args.hard_target_interval == 0:
            self.update_targets()
        sent = [self.channel.sent(name) for name in ("critic", "policies")]
        self.log_means(
            t_env,
            loss_value=loss_value,
            loss_policy=loss_policy,
            critic_grad_norm=critic_grad_norm,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q,
            target_mean=target,
            advantage_abs=advantage.abs(),
            policy_entropy=policy.entropy(),
            consensus_error=disagreement(self.critic_params),
            sent_parameters=sum(traffic.numbers for traffic in sent).float(),
            sent_bytes=sum(traffic.bytes for traffic in sent).float(),
            sent_bytes_total=self.channel.total().bytes.float(),
        )

    @torch.no_grad()
    def _targets(self, batch: EpisodeBatch, obs: Tensor, probs: Tensor) -> Tensor:
        """r_i + gamma Q_i(o', a') with a' drawn from the policies [N, A, U]: [A, M]."""
        args, steps = self.args, batch.steps()
        following = torch.distributions.Categorical(probs[steps.nxt], validate_args=False).sample()
        value = self.target_critic(obs[steps.nxt], self._joint(following))[:, 0]
        value = value.gather(-1, following.t().unsqueeze(-1)).squeeze(-1)
        goes_on = 1 - steps.pack_transitions(batch["terminated"]).to(value).squeeze(-1)
        rewards = steps.pack_transitions(batch["reward"]).t().expand(args.n_agents, -1)
        return rewards + args.gamma * goes_on * value

    def _joint(self, actions: Tensor) -> Tensor:
        """int64 [M, A] -> [A, M, A, U]."""
        return (
            F.one_hot(actions, self.args.n_actions).float().expand(self.args.n_agents, -1, -1, -1)
        )

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}


def _check(mac: Any, args: SimpleNamespace) -> None:
    if not isinstance(mac, ActorMAC):
        raise ConfigError(f"ma_ac_learner needs mac=actor_mac, got '{args.mac}'")
    if args.replay != "latest":
        raise ConfigError(f"MA-AC learns on-policy: set replay=latest instead of '{args.replay}'")
    if args.mixer is not None:
        raise ConfigError(
            "MA-AC has critics instead of mixed action values: set mixer=null instead of "
            f"'{args.mixer}'"
        )
    if args.td_lambda != 0.0:
        raise ConfigError(
            f"MA-AC's targets are one-step targets: set td_lambda=0.0 instead of {args.td_lambda}"
        )
    if args.hard_target_interval < 0:
        raise ConfigError(
            f"hard_target_interval is {args.hard_target_interval}; it must not be negative"
        )

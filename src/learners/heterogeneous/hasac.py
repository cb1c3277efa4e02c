"""HASAC: soft actor-critic of agents that learn one after the other (Liu et al., ICLR 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from components.distributions import MaskedCategorical, Policy
from components.transitions import Transitions
from controllers.actor_controller import ActorMAC
from learners.base import Learner, log_by_agent, make_optimiser, parts_of
from learners.heterogeneous.turns import members_of, turns
from learners.needs import Needs
from modules.agents.policy_agent import PolicyAgent
from modules.critics.state_action import TwinCritic
from utils.ranges import COUNT, FINITE_POSITIVE, FOR_BATCH_NORM, NOT_NEGATIVE, POSITIVE, one_of


class Temperatures(nn.Module):
    """alpha_i, what agent i's entropy is worth: [A], kept as logarithms."""

    def __init__(self, alpha: float, n_agents: int) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((n_agents,), math.log(alpha)))

    def forward(self) -> Tensor:
        return self.log_alpha.exp()


class HASACLearner(Learner):
    """Twin critics of state and joint action, and policies that climb them in turn.

    Agent i_m climbs Q(s, a) + alpha H(pi) with the actions that the agents before it would now
    take, after their step, and those that the others take before theirs (Liu et al. 2024, the
    sequential update of the soft policy iteration). Discrete actions are hard samples of the
    Gumbel-softmax (straight-through gradient), continuous ones samples of a squashed Gaussian.

    Args:
        mac: an `ActorMAC` with `mlp_policy`, every agent with weights of its own.
        scheme, logger: as for every learner.
        args: `alpha_entropy`, `tune_alpha`, `alpha_lr`, `target_entropy_share`,
            `gumbel_temperature`, `agent_order`, `standardise_rewards`, `policy_logit_penalty`,
            `policy_grad_norm_clip`, `critic_grad_norm_clip`, `critic_hidden_dim`, `target_tau`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    continuous_actions = True
    needs = Needs(
        mac=ActorMAC,
        agent=PolicyAgent,
        settings={
            "share_params": False,
            "replay": "transitions",
            "common_reward": True,
            "mixer": None,
        },
        why={
            "share_params": "the agents learn one after the other",
            "replay": "it learns from single ones",
            "common_reward": "its critics value what the team gets",
            "mixer": "its critics see everything, nothing is mixed",
        },
    )
    ranges: ClassVar = {
        "alpha_entropy": FINITE_POSITIVE,
        "alpha_lr": POSITIVE,
        "target_entropy_share": FINITE_POSITIVE,
        "gumbel_temperature": FINITE_POSITIVE,
        "agent_order": one_of("random", "fixed"),
        "policy_hidden_dim": COUNT,
        "policy_logit_penalty": NOT_NEGATIVE,
        "policy_grad_norm_clip": POSITIVE,
        "critic_hidden_dim": COUNT,
        "critic_grad_norm_clip": POSITIVE,
        "batch_size": FOR_BATCH_NORM,
    }

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic = TwinCritic(args)
        self.target_critic = self.with_target(self.critic)
        self.temperatures = Temperatures(args.alpha_entropy, args.n_agents)
        self.modules |= {"critic": self.critic, "temperatures": self.temperatures}
        self.members = members_of(mac, scheme, args)
        self.params = [param for i in range(args.n_agents) for param in self.members.parameters(i)]
        self.critic_params = list(self.critic.parameters())
        # Of whom no loss has a gradient, no weight moves: Adam's averages rest, too.
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)
        self.alpha_optimiser = make_optimiser(
            self.temperatures.parameters(), args, 0.0, args.alpha_lr
        )
        sizes = torch.tensor(args.env_info["action_sizes"], dtype=torch.float32)
        share = args.target_entropy_share
        # [A]: of discrete policies a share of the largest entropy, of continuous ones -U_i.
        wanted = -share * sizes if args.continuous_actions else share * sizes.log()
        self.target_entropy = wanted.to(args.device)

    def train(
        self, batch: Transitions, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update of the critics, of every agent in turn and of the targets; see
        `Learner.train`.
        """
        self.mac.agent.train()  # batch norm with the statistics of the batch
        figures = self.critic_step(batch, t_env) | self.policy_steps(batch, t_env)
        self.soft_update_targets(self.args.target_tau)
        if self.log_due(t_env):
            for name, value in figures.items():
                self.logger.log_stat(name, value.mean().item(), t_env)
            log_by_agent(self.logger, figures, t_env)

    # -- critics -----------------------------------------------------------------------------------
    def critic_step(self, batch: Transitions, t_env: int) -> dict[str, Tensor]:
        """One step of both critics towards the soft targets; figures to log."""
        targets = self.value_targets(batch)
        actions = batch["actions"]
        if not self.args.continuous_actions:
            actions = F.one_hot(actions, self.args.n_actions).to(targets)
        q = self.critic(batch["state"], actions)
        loss = (q - targets).square().mean(1).sum()
        grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss, t_env,
            parts_of(batch, targets=targets, q=q), self.args.critic_grad_norm_clip,
        )  # fmt: skip
        return {
            "loss_value": loss.detach(),
            "critic_grad_norm": grad_norm,
            "td_error_abs": (q.detach() - targets).abs().mean(),
            "q_taken_mean": q.detach().mean(),
            "target_mean": targets.mean(),
        }

    @torch.no_grad()
    def value_targets(self, batch: Transitions) -> Tensor:
        """r + gamma (1 - d) (min_c target-Q_c(s', a') + sum_i alpha_i h_i), a' ~ pi: [N].

        h_i is the entropy of discrete policies, and -log pi_i(a'_i|o'_i) of continuous ones.
        """
        args = self.args
        rewards = batch.standardised_rewards() if args.standardise_rewards else batch["reward"]
        outputs = self.mac.agent.logits(batch["next_obs"])
        policy = self.mac.policy(outputs, batch["next_avail_actions"])
        actions = self.draw(policy)
        q = self.target_critic(batch["next_state"], actions).amin(0)
        bonus = (self.temperatures() * self.entropy(policy, actions)).sum(-1)
        goes_on = 1 - batch["terminated"].squeeze(1)
        return rewards.squeeze(1) + args.gamma * goes_on * (q + bonus)

    # -- policies ----------------------------------------------------------------------------------
    def policy_steps(self, batch: Transitions, t_env: int) -> dict[str, Tensor]:
        """A step of every agent, and of its temperature; figures [A] to log."""
        args, obs, avail = self.args, batch["obs"], batch["avail_actions"]
        with torch.no_grad():
            actions = self.draw(self.mac.policy(self.mac.agent.logits(obs), avail))
        frozen = {name: param.detach() for name, param in self.critic.named_parameters()}
        alphas = self.temperatures().detach()
        found: dict[str, list[Tensor]] = {}
        entropies = alphas.new_zeros(args.n_agents)
        for i in self.order():
            network: Any = self.members(i).train()
            outputs, policy = self.policy_of(i, obs, avail)
            own = self.draw(policy)
            joint = torch.cat([actions[:, :i], own, actions[:, i + 1 :]], dim=1)
            q = functional_call(self.critic, frozen, (batch["state"], joint)).amin(0)
            entropy = self.entropy(policy, own).squeeze(1)
            loss = -(q + alphas[i] * entropy).mean()
            penalised = loss + args.policy_logit_penalty * network.mean_square(outputs).sum()
            grad_norm = self.optimise(
                self.optimiser, self.members.parameters(i), penalised, t_env,
                parts_of(batch, policy=outputs, q=q), args.policy_grad_norm_clip,
            )  # fmt: skip
            with torch.no_grad():
                # What the agents after it reckon with.
                now = self.draw(self.policy_of(i, obs, avail)[1])
                actions = torch.cat([actions[:, :i], now, actions[:, i + 1 :]], dim=1)
                entropies[i] = entropy.mean()
            for name, value in (("loss_policy", loss.detach()), ("grad_norm", grad_norm)):
                found.setdefault(name, [alphas.new_zeros(())] * args.n_agents)[i] = value
        if args.tune_alpha:
            self.temperature_step(entropies)
        figures = {name: torch.stack(values) for name, values in found.items()}
        return figures | {"policy_entropy": entropies, "alpha": alphas}

    def policy_of(self, i: int, obs: Tensor, avail: Tensor) -> tuple[Tensor, Policy]:
        """What agent i's network puts out, [N, 1, U or 2U], and the policy that it stands for."""
        own = slice(i, i + 1)
        network: Any = self.members(i)
        outputs = network.logits(obs[:, own])
        return outputs, self.mac.policy(outputs, avail[:, own])

    def temperature_step(self, entropies: Tensor) -> None:
        """A step of alpha up where an agent's entropy is less than wanted, and down where it is
        more (Haarnoja et al. 2018, eq. 18).

        Args:
            entropies: [A].
        """
        self.alpha_optimiser.zero_grad()
        (self.temperatures.log_alpha * (entropies - self.target_entropy)).sum().backward()
        self.alpha_optimiser.step()

    def order(self) -> list[int]:
        """Who learns first, second, ..."""
        return turns(self.args)

    def draw(self, policy: Policy) -> Tensor:
        """Differentiable actions [N, A, U], one-hot where they are discrete."""
        if isinstance(policy, MaskedCategorical):
            return policy.rsample(self.args.gumbel_temperature)
        return policy.rsample()

    def entropy(self, policy: Policy, actions: Tensor) -> Tensor:
        """What -log pi is on average, [N, A]: exactly for discrete actions, else of these ones."""
        if isinstance(policy, MaskedCategorical):
            return policy.entropy()
        return -policy.log_prob(actions)

    # -- devices and files -------------------------------------------------------------------------
    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        super().cuda()
        self.members.attach()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        both = {"opt": self.optimiser, "critic_opt": self.critic_optimiser}
        return both | {"alpha_opt": self.alpha_optimiser}

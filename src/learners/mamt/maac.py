"""MAAC: soft actor-critic for several agents with an attention critic (Iqbal and Sha 2019,
"Actor-Attention-Critic").

The base of MAMT: "MAMT" in the docstrings is "Dealing with Non-Stationarity in MARL via
Trust-Region Decomposition" (Li et al., ICLR 2022). An update is one step of the critic, one of the
policies, and a soft update of the target networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from components.distributions import Policy, SquashedGaussian, policy_distribution
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.transitions import Transitions
from controllers.actor_controller import ActorMAC
from learners.base import Learner, log_by_agent, make_optimiser, parts_of
from learners.needs import Needs
from modules.agents.policy_agent import PolicyAgent
from modules.critics import REGISTRY as CRITICS
from modules.critics.attention import AttentionCritic
from utils.ranges import COUNT, FOR_BATCH_NORM, NOT_NEGATIVE, POSITIVE


class PolicyStep(NamedTuple):
    """What a step of the policies computes on: N rows, A agents, K choices of an agent (its U
    actions, or samples).
    """

    obs: Tensor  # [N, A, O]
    avail_actions: Tensor  # [N, A, U]
    replayed: Tensor  # int64 [N, A], or continuous [N, A, U]: the actions of the batch
    outputs: Tensor  # [N, A, U or 2U], of the policy networks, with gradient
    policy: Policy  # the present policies, with gradient
    actions: Tensor  # drawn from them, of the kind of `replayed`
    log_prob: Tensor  # [N, A], of `actions`, with gradient
    samples: Tensor | None  # continuous actions: [N, A, K, U], own choices drawn from the policies
    all_q: Tensor  # [N, A, K], Q_i(o, a_-i, .) of every choice
    q: Tensor  # [N, A], Q_i(o, a)
    baseline: Tensor  # [N, A], b_i, the mean of `all_q` under the policy
    reward_unit: Tensor  # [A], what one unit of the values is in units of the rewards

    @property
    def advantage(self) -> Tensor:
        """Q_i - b_i: [N, A]."""
        return self.q - self.baseline


class MAACLearner(Learner):
    """Attention actor-critic on single transitions; individual or common rewards, discrete or
    continuous actions.

    Subclasses change the bracket of the policies' loss (`policy_bracket`) and what happens before
    it (`before_policy_step`).

    Args:
        mac: an `ActorMAC` with `mlp_policy`.
        scheme, logger: as for every learner.
        args: `alpha_entropy` (1 / MAAC's reward scale), `undiscounted_entropy`,
            `standardise_rewards`, `mc_actions`,
            `target_tau`, `critic` (and what it reads), `attention_logit_penalty`,
            `policy_logit_penalty`, `critic_weight_decay`, `critic_grad_norm_clip` (for each agent:
            the sum of the losses is clipped at A times that), `policy_grad_norm_clip`.

    Raises:
        ConfigError: a setting out of range, or a controller, critic or replay of another kind.
    """

    continuous_actions = True
    needs = Needs(
        mac=ActorMAC,
        agent=PolicyAgent,
        settings={
            "share_params": False,
            "critic": "attention",
            "replay": "transitions",
            "mixer": None,
        },
        why={
            "replay": "it learns from single ones",
            "mixer": "it has a critic instead of mixed action values",
        },
    )
    ranges: ClassVar = {
        "alpha_entropy": NOT_NEGATIVE,
        "critic_hidden_dim": COUNT,
        "attention_heads": COUNT,
        "attention_logit_penalty": NOT_NEGATIVE,
        "critic_weight_decay": NOT_NEGATIVE,
        "critic_grad_norm_clip": POSITIVE,
        "mc_actions": COUNT,
        "policy_hidden_dim": COUNT,
        "policy_logit_penalty": NOT_NEGATIVE,
        "policy_grad_norm_clip": POSITIVE,
        "batch_size": FOR_BATCH_NORM,
    }

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.critic: AttentionCritic = CRITICS[args.critic](scheme, args)
        self.modules["critic"] = self.critic
        self.policy = mac.agent
        self.target_critic = self.with_target(self.critic)
        self.target_policy = self.with_target(self.policy)
        self.params = list(mac.parameters())
        self.critic_params = list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args, args.critic_weight_decay)

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also what the attention critic needs."""
        super().check_settings(args)
        AttentionCritic.check_settings(args)

    def train(
        self, batch: Transitions, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on a batch of transitions; see `Learner.train`. `per_weight` has no meaning
        here.
        """
        for network in (self.policy, self.target_policy, self.critic, self.target_critic):
            network.train()  # batch norm with the statistics of the batch
        figures = self.critic_step(batch, t_env)
        step = self.evaluate_policies(batch)
        figures |= self.before_policy_step(step, t_env)
        figures |= self.policy_step(step, t_env)
        self.soft_update_targets(self.args.target_tau)
        if self.log_due(t_env):
            self.log(figures, step, t_env)

    # -- critic ------------------------------------------------------------------------------------
    def critic_step(self, batch: Transitions, t_env: int) -> dict[str, Tensor]:
        """One step towards the soft targets [eq. 9]; the agents' losses are summed."""
        args = self.args
        targets = self.value_targets(batch)
        out = self.critic(batch["obs"], batch["actions"])
        q = self.critic.taken(out.all_q, batch["actions"])
        losses = (q - targets).pow(2).mean(0)
        # Of every agent and head the mean over rows and other agents, as MAAC has it.
        penalty = out.logits.pow(2).sum() / (len(q) * (args.n_agents - 1))
        loss = losses.sum() + args.attention_logit_penalty * penalty
        grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss, t_env,
            parts_of(batch, targets=targets, q=q),
            max_norm=args.critic_grad_norm_clip * args.n_agents,
            before_clipping=self.critic.scale_shared_grads,
        )  # fmt: skip
        attention = out.attention.detach()
        return {
            "loss_value": losses.detach(),
            "critic_grad_norm": grad_norm,
            "q_taken_mean": q.detach().mean(0),
            "target_mean": targets.mean(0),
            "attention": attention,
        }

    @torch.no_grad()
    def value_targets(self, batch: Transitions) -> Tensor:
        """r_i + gamma (1 - d) (Q_i(o', a') - alpha log pi_i(a'_i|o'_i)) with the target networks,
        a' ~ pi: [N, A].

        With `undiscounted_entropy` the term -alpha log pi_i stands outside: neither discounted nor
        left out at the end of an episode, as in MAAC's public code.
        """
        args = self.args
        rewards = batch.standardised_rewards() if args.standardise_rewards else batch["reward"]
        policy = self.distribution(
            self.target_policy.logits(batch["next_obs"]), batch["next_avail_actions"]
        )
        actions = policy.sample()
        q = self.critic.taken(self.target_critic(batch["next_obs"], actions).all_q, actions)
        bonus = -args.alpha_entropy * policy.log_prob(actions)
        discount = args.gamma * (1 - batch["terminated"])
        if args.undiscounted_entropy:
            return rewards + discount * q + bonus
        return rewards + discount * (q + bonus)

    # -- policies ----------------------------------------------------------------------------------
    def evaluate_policies(self, batch: Transitions) -> PolicyStep:
        """Draws actions from the present policies and values them; only the policies have a
        gradient.
        """
        obs, avail, replayed = batch["obs"], batch["avail_actions"], batch["actions"]
        outputs = self.policy.logits(obs)
        policy = self.distribution(outputs, avail)
        actions = policy.sample()
        with torch.no_grad():
            if isinstance(policy, SquashedGaussian):
                samples = policy.sample(self.args.mc_actions)
                own = torch.cat([actions.unsqueeze(2), samples], dim=2)
                q, all_q = self.critic(obs, actions, own).all_q.tensor_split([1], dim=-1)
                q, baseline = q.squeeze(-1), all_q.mean(-1)
            else:
                samples, all_q = None, self.critic(obs, actions).all_q
                q, baseline = self.critic.taken(all_q, actions), (policy.probs * all_q).sum(-1)
        log_prob = policy.log_prob(actions)
        spread = batch.reward_spread()
        unit = spread if self.args.standardise_rewards else torch.ones_like(spread)
        return PolicyStep(
            obs, avail, replayed, outputs, policy, actions, log_prob, samples, all_q, q, baseline,
            unit,
        )  # fmt: skip

    def policy_step(self, step: PolicyStep, t_env: int) -> dict[str, Tensor]:
        """One step of all policies, each with the gradient of its own loss."""
        args = self.args
        bracket = self.policy_bracket(step).detach()
        losses = (step.log_prob * bracket).mean(0)
        loss = losses + args.policy_logit_penalty * self.policy.mean_square(step.outputs)
        parts = {
            "values": step.all_q,
            "outputs": step.outputs,
            "log_prob": step.log_prob,
            "bracket": bracket,
        }
        grad_norm = self.optimise(
            self.optimiser, self.params, loss, t_env, parts, args.policy_grad_norm_clip
        )
        return {
            "loss_policy": losses.detach(),
            "grad_norm": grad_norm,
            "advantage_abs": step.advantage.abs().mean(0),
        }

    def policy_bracket(self, step: PolicyStep) -> Tensor:
        """What log pi_i(a_i|o_i) is multiplied by in agent i's loss: alpha log pi_i - (Q_i - b_i),
        [N, A].
        """
        return self.args.alpha_entropy * step.log_prob - step.advantage

    def before_policy_step(self, step: PolicyStep, t_env: int) -> dict[str, Tensor]:
        """For subclasses: what is learned between the critic's and the policies' step; figures to
        log.
        """
        return {}

    def distribution(self, outputs: Tensor, avail_actions: Tensor) -> Policy:
        """The policies that outputs [..., U or 2U] stand for."""
        return policy_distribution(outputs, avail_actions, self.args.continuous_actions)

    # -- for people who watch ---------------------------------------------------------------------
    @property
    def explained_by(self) -> tuple[str, ...]:
        return ("critic",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """The critic's values of what each agent could do, their mean under its policy, and whom
        each agent attends to, the mean over the heads.

        At the last step, where nobody acts, of the most probable actions.
        """
        obs, actions, policy = self.watched(batch)
        samples = policy.sample(self.args.mc_actions) if self.args.continuous_actions else None
        out = self.critic(obs, actions, samples)
        attention = Inner(out.attention.mean(0), ("agent", "other agent"), "probability")
        if isinstance(policy, SquashedGaussian):
            return {"value": Inner(out.all_q.mean(-1), ("agent",)), "attention": attention}
        return {
            "value": Inner((policy.probs * out.all_q).sum(-1), ("agent",)),
            "critic's action values": Inner(out.all_q, ("agent", "action")),
            "attention": attention,
        }

    def watched(self, batch: EpisodeBatch) -> tuple[Tensor, Tensor, Policy]:
        """Observations [N, A, O], actions and policies of one recorded episode, all networks with
        their running statistics.
        """
        self.policy.eval()
        self.critic.eval()
        steps = batch.steps()
        obs = steps.pack(batch["obs"])
        policy = self.distribution(self.policy.logits(obs), steps.pack(batch["avail_actions"]))
        actions = steps.pack(batch["actions"])
        actions = actions if self.args.continuous_actions else actions.squeeze(-1)
        return obs, torch.cat([actions[:-1], policy.mode()[-1:]]), policy

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}

    # -- figures -----------------------------------------------------------------------------------
    def log(self, figures: dict[str, Tensor], step: PolicyStep, t_env: int) -> None:
        """Logs means over the agents, and what is one value per agent or pair also as a list
        (`log_by_agent`).

        Further per agent: `policy_entropy` and `attention_entropy`, the mean over rows and heads of
        the entropy of the weights that it gives to the others [nat].
        """
        attention = figures.pop("attention")
        with torch.no_grad():
            # From samples that are there: a run must not depend on how often it logs.
            figures["policy_entropy"] = step.policy.entropy(step.samples).mean(0)
        figures["attention_entropy"] = -torch.xlogy(attention, attention).sum(-1).mean((0, 1))
        for name, value in figures.items():
            self.logger.log_stat(name, value.mean().item(), t_env)
        log_by_agent(self.logger, figures, t_env)

"""Proximal policy optimisation for several agents: MAPPO, IPPO and MA-PPO are this learner with
another critic.

PPO: Schulman et al. 2017. MAPPO (a critic on the state; value normalisation, clipped Huber loss):
Yu et al. 2022. IPPO (a critic on what the agent sees): de Witt et al. 2020.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import Policy
from components.episode_buffer import EpisodeBatch
from components.steps import Steps
from controllers.actor_controller import ActorMAC
from controllers.unroll import sequence_inputs, unroll
from learners.base import Learner, make_optimiser, parts_of
from modules.agents.policy_agent import PolicyAgent
from modules.critics import REGISTRY as CRITICS
from utils.errors import ConfigError
from utils.rl_utils import build_gae_targets
from utils.value_norm import ValueNorm


class Rows(NamedTuple):
    """Episodes as an update computes on them: N filled steps, M of them transitions; K is 1 (one
    value) or A.
    """

    batch: EpisodeBatch
    steps: Steps
    state: Tensor  # [N, S]
    inputs: Tensor  # [N, A, F], of the agent network
    avail: Tensor  # [N, A, U]
    actions: Tensor  # int64 [N, A], continuous ones [N, A, U]; meaningless at the end of an episode
    # float32 [M, A]: 0 where an agent has no choice (one action: a dead unit) and nothing to learn
    choice: Tensor


class Rollout(NamedTuple):
    """What is known about the transitions before the updates, padded to [B, T, ...]."""

    log_prob: Tensor  # [B, T, A], of the actions when they were taken
    advantages: Tensor  # [B, T, K]
    returns: Tensor  # [B, T, K], normalised
    predictions: Tensor  # [B, T, K], normalised


class PPOLearner(Learner):
    """PPO with clipped ratios, generalised advantages and a normalised, clipped value loss with
    Huber's function.

    A batch is the episodes that the present policy has collected; it is used for `ppo_epochs`
    rounds of `ppo_minibatches` updates. With `share_params` the policy loss is a mean over all
    agents; otherwise every agent has a loss, a gradient's norm and a mean and deviation of the
    advantages of its own.

    Args:
        mac: an `ActorMAC`, its policies recurrent or not.
        scheme, logger: as for every learner.
        args: `critic` (name in modules.critics.REGISTRY), `ppo_clip`, `ppo_epochs`,
            `ppo_minibatches`, `gae_lambda`, `entropy_coef`, `huber_delta`, `value_clip`,
            `value_norm`, `normalise_advantages`, and what critics read.

    Raises:
        ConfigError: a setting that does not fit.
    """

    continuous_actions = True

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        _check(mac, args)
        super().__init__(mac, scheme, logger, args)
        self.critic, self.n_values = self.build_critic()
        self.modules["critic"] = self.critic
        if args.value_norm:
            self.value_norm = ValueNorm(self.n_values)
            self.modules["value_norm"] = self.value_norm
        self.params = list(mac.parameters())
        self.critic_params = list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)

    def build_critic(self) -> tuple[nn.Module, int]:
        """The critic, and how many values (K) it gives."""
        if self.args.critic in ("attention", "joint"):
            raise ConfigError(
                f"learner '{self.args.learner}' needs a critic that values what is seen: set "
                "critic=state or "
                f"critic=observation instead of '{self.args.critic}' (for critic=attention choose "
                "ma_ppo)"
            )
        critic = CRITICS[self.args.critic](self.mac._get_input_shape(self.scheme), self.args)
        return critic, critic.n_values

    # -- one training batch ------------------------------------------------------------------------
    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """Several updates on a batch of fresh episodes; see `Learner.train`."""
        self.mac.agent.eval()  # as it acted: a ratio is 1 before the first update
        whole = self.rows(batch)
        rollout = self.rollout(whole)
        figures: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(self.args.ppo_epochs):
            for rows, part in self.minibatches(whole, rollout):
                for name, value in self.update(rows, part, t_env).items():
                    figures[name].append(value.detach().mean())
        if any(True for _ in self.mac.agent.buffers()):
            # Statistics of the inputs (batch norm) move once the ratios are of no more use.
            self.mac.agent.train()
            with torch.no_grad():
                unroll(self.mac, batch, whole.steps, whole.inputs)
        self.log_means(t_env, **{name: torch.stack(values) for name, values in figures.items()})

    def rows(self, batch: EpisodeBatch) -> Rows:
        """The filled steps of a batch."""
        steps = batch.steps()
        avail, actions = steps.pack(batch["avail_actions"]), steps.pack(batch["actions"])
        if self.args.continuous_actions:
            choice = torch.ones(avail[steps.cur].shape[:-1], device=avail.device)
        else:
            actions, choice = actions.squeeze(-1), ((avail[steps.cur] != 0).sum(-1) > 1).float()
        inputs = sequence_inputs(self.mac, batch, steps)
        return Rows(batch, steps, steps.pack(batch["state"]), inputs, avail, actions, choice)

    @torch.no_grad()
    def rollout(self, rows: Rows) -> Rollout:
        """Advantages and value targets under the networks as they are; moves the statistics of the
        values.
        """
        args, steps, batch = self.args, rows.steps, rows.batch
        values = steps.unpack(self.denormalise(self.baselines(rows)))
        rewards, terminated = batch["reward"][:, :-1], batch["terminated"][:, :-1].float()
        advantages, returns = build_gae_targets(
            rewards, steps.mask, values, args.gamma, args.gae_lambda, terminated=terminated
        )
        flat = steps.pack_transitions(returns)
        if args.value_norm:
            self.value_norm.update(flat)
        if args.normalise_advantages:
            advantages = self.standardised(rows, advantages)
        return Rollout(
            log_prob=batch["log_prob"],
            advantages=advantages,
            returns=self._pad(rows, self.value_norm.normalize(flat) if args.value_norm else flat),
            predictions=self._pad(rows, self.predictions(rows)),
        )

    def standardised(self, rows: Rows, advantages: Tensor) -> Tensor:
        """Advantages [B, T - 1, K] at mean 0 and deviation 1 over the steps with a choice, of all
        agents or of each.
        """
        flat = rows.steps.pack_transitions(advantages).expand(-1, self.args.n_agents)
        mean = self.mean(rows, flat)
        spread = self.mean(rows, (flat - mean).square()).sqrt()
        return self._pad(rows, (flat - mean) / (spread + 1e-8))

    def minibatches(self, whole: Rows, rollout: Rollout) -> Iterator[tuple[Rows, Rollout]]:
        """Every episode once, in `ppo_minibatches` random parts."""
        n_episodes = whole.batch.batch_size
        n_parts = min(self.args.ppo_minibatches, n_episodes)
        if n_parts == 1:
            yield whole, rollout
            return
        for episodes in torch.randperm(n_episodes).tensor_split(n_parts):
            yield (
                self.rows(whole.batch[episodes.tolist()]),
                Rollout(*(value[episodes.to(value.device)] for value in rollout)),
            )

    def update(self, rows: Rows, rollout: Rollout, t_env: int) -> dict[str, Tensor]:
        """One step of the policy and one of the critic.

        Returns:
            Figures to log.
        """
        args, pack = self.args, rows.steps.pack_transitions
        policy = self.policy(rows)
        # Densities of continuous actions grow without bound: a ratio of more than e^20 is just "too
        # far".
        log_ratio = (policy.log_prob(rows.actions[rows.steps.cur]) - pack(rollout.log_prob)).clamp(
            max=20.0
        )
        advantages = pack(rollout.advantages)
        loss_policy = self.mean(rows, self.surrogate_losses(log_ratio, advantages))
        entropy = self.mean(rows, policy.entropy())
        parts = parts_of(rows.batch, advantages=advantages, log_ratio=log_ratio)
        loss = loss_policy - args.entropy_coef * entropy
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)

        predictions, returns = self.predictions(rows), pack(rollout.returns)
        loss_value = self.value_losses(predictions, pack(rollout.predictions), returns).mean()
        parts = parts_of(rows.batch, targets=returns, values=predictions)
        critic_grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss_value, t_env, parts
        )
        moved = (log_ratio.exp() - 1).abs() > self.clip_range()
        return {
            "loss_policy": loss_policy,
            "loss_value": loss_value,
            "policy_entropy": entropy,
            "policy_kl": self.mean(rows, log_ratio.expm1() - log_ratio),
            "clip_fraction": self.mean(rows, moved.float()),
            "grad_norm": grad_norm,
            "critic_grad_norm": critic_grad_norm,
            "value_mean": self.denormalise(predictions),
            "target_mean": self.denormalise(returns),
        }

    # -- the parts of the losses, for variants to replace ------------------------------------------
    def clip_range(self) -> float | Tensor:
        """How far a ratio may move from 1: a number, or [A]."""
        return self.args.ppo_clip

    def surrogate_losses(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """The negative of PPO's clipped objective (Schulman et al. 2017, eq. 7).

        Args:
            log_ratio: [M, A], log probability of the actions less the one they were taken with.
            advantages: [M, 1 or A].

        Returns:
            [M, A].
        """
        ratio, clip = log_ratio.exp(), self.clip_range()
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)

    def value_losses(self, predictions: Tensor, old: Tensor, returns: Tensor) -> Tensor:
        """Huber losses [M, K] of normalised values; with `value_clip` of those at most `ppo_clip`
        from the old ones.

        Of the two losses the larger one counts (Yu et al. 2022, appendix).
        """
        args = self.args
        losses = F.huber_loss(predictions, returns, reduction="none", delta=args.huber_delta)
        if not args.value_clip:
            return losses
        near = old + (predictions - old).clamp(-args.ppo_clip, args.ppo_clip)
        return torch.maximum(
            losses, F.huber_loss(near, returns, reduction="none", delta=args.huber_delta)
        )

    def policy(self, rows: Rows, at_ends: bool = False) -> Policy:
        """The agents' policies at the M transitions; with `at_ends` at all N steps."""
        where = slice(None) if at_ends else rows.steps.cur
        outputs = unroll(self.mac, rows.batch, rows.steps, rows.inputs)
        return self.mac.policy(outputs[where], rows.avail[where])

    def baselines(self, rows: Rows) -> Tensor:
        """What advantages are measured from and bootstrapped with: normalised values of all filled
        steps [N, K].
        """
        return self.critic(rows.state, rows.inputs, rows.steps)

    def predictions(self, rows: Rows) -> Tensor:
        """What the critic says about the transitions, to be fitted to their returns: normalised,
        [M, K].
        """
        return self.critic(rows.state, rows.inputs, rows.steps)[rows.steps.cur]

    def mean(self, rows: Rows, values: Tensor) -> Tensor:
        """Mean of [M, A] over the steps with a choice: a scalar, or [A] where agents have weights
        of their own.
        """
        axes = (0, 1) if self.args.share_params else (0,)
        return (values * rows.choice).sum(axes) / rows.choice.sum(axes).clamp(min=1)

    def denormalise(self, values: Tensor) -> Tensor:
        """Normalised values [..., K] in the units of the rewards."""
        return self.value_norm.denormalize(values) if self.args.value_norm else values

    @staticmethod
    def _pad(rows: Rows, values: Tensor) -> Tensor:
        """[M, ...] -> [B, T, ...], zero elsewhere."""
        steps = rows.steps
        return steps.unpack(
            values.new_zeros(steps.n_rows, *values.shape[1:]).index_copy(0, steps.rows_cur, values)
        )

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return {"opt": self.optimiser, "critic_opt": self.critic_optimiser}


class AttentionPPOLearner(PPOLearner):
    """MA-PPO: PPO with MAAC's attention critic, fitted to the returns of the actions taken.

    Agent i's advantages are measured from V_i(o, a_-i) = sum_a pi_i(a|o_i) Q_i(o, a_-i, a): what it
    can expect given what the others do, which is no less a baseline for its own action than V_i(o).
    At the end of an episode that was cut, the actions are drawn from the policies. Continuous
    actions: a mean over `mc_actions` samples of its own.

    Args:
        args: as for `PPOLearner`; `critic: attention`, `attention_heads`, `critic_hidden_dim`,
            `mc_actions`.
    """

    def build_critic(self) -> tuple[nn.Module, int]:
        """The attention critic; one value for each agent."""
        if self.args.critic != "attention":
            raise ConfigError(
                f"learner '{self.args.learner}' needs critic=attention, got '{self.args.critic}'"
            )
        if self.args.mc_actions < 1:
            raise ConfigError(
                f"mc_actions is {self.args.mc_actions}; a mean needs at least 1 sample"
            )
        return CRITICS["attention"](self.scheme, self.args), self.args.n_agents

    def baselines(self, rows: Rows) -> Tensor:
        """V_i(o, a_-i), [N, A]."""
        steps, policy = rows.steps, self.policy(rows, at_ends=True)
        actions = (
            policy.sample()
            .to(rows.actions.dtype)
            .index_copy(0, steps.rows_cur, rows.actions[steps.cur])
        )
        obs = steps.pack(rows.batch["obs"])
        if self.args.continuous_actions:
            return self.critic(obs, actions, policy.sample(self.args.mc_actions)).all_q.mean(-1)
        return (policy.probs * self.critic(obs, actions).all_q).sum(-1)

    def predictions(self, rows: Rows) -> Tensor:
        """Q_i(o, a), [M, A]."""
        steps = rows.steps
        actions = rows.actions[steps.cur]
        all_q = self.critic(steps.pack(rows.batch["obs"])[steps.cur], actions).all_q
        if not self.args.continuous_actions:
            all_q = all_q.gather(-1, actions.unsqueeze(-1))
        return all_q.squeeze(-1)


def _check(mac: Any, args: SimpleNamespace) -> None:
    if not isinstance(mac, ActorMAC):
        raise ConfigError(
            "PPO trains policies and must know how probable actions were: set mac=actor_mac "
            f"instead of '{args.mac}'"
        )
    if args.continuous_actions and not isinstance(mac.agent, PolicyAgent):
        raise ConfigError(
            f"agent '{args.agent}' has policies for discrete actions alone, those of environment "
            f"'{args.env}' are "
            "continuous: choose ma_ppo"
        )
    # In whole collections: what one brings above accumulated_episodes shortens the wait for the
    # next batch.
    fresh = max(args.accumulated_episodes // args.batch_size_run, 1) * args.batch_size_run
    if args.replay != "latest" or args.updates_per_collection != 1 or args.steps_per_update:
        raise ConfigError(
            "PPO learns once from the newest episodes: set replay=latest, "
            "updates_per_collection=1, steps_per_update=0"
        )
    if args.batch_size > fresh:
        raise ConfigError(
            f"PPO learns from episodes of its present policy: batch_size is {args.batch_size}, but "
            f"only {fresh} new "
            "ones are collected in between; raise accumulated_episodes or batch_size_run"
        )
    if args.mixer is not None:
        raise ConfigError(
            "PPO has a critic instead of mixed action values: set mixer=null instead of "
            f"'{args.mixer}'"
        )
    for key in ("ppo_clip", "huber_delta"):
        if vars(args)[key] <= 0.0:
            raise ConfigError(f"{key} is {vars(args)[key]}; it must be greater than 0")
    for key in ("ppo_epochs", "ppo_minibatches"):
        if vars(args)[key] < 1:
            raise ConfigError(f"{key} is {vars(args)[key]}; it must be at least 1")
    if not 0.0 <= args.gae_lambda <= 1.0:
        raise ConfigError(f"gae_lambda is {args.gae_lambda}; choose 0 to 1")

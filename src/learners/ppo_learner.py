"""Proximal policy optimisation for several agents: MAPPO, IPPO and MA-PPO are this learner with
another critic.

PPO: Schulman et al. 2017. MAPPO (a critic on the state; value normalisation, clipped Huber loss):
Yu et al. 2022. IPPO (a critic on what the agent sees): de Witt et al. 2020.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.distributions import Policy, SquashedGaussian
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from components.steps import Steps
from controllers.actor_controller import ActorMAC
from learners.base import Learner, check_fresh, make_optimiser, parts_of, random_parts
from learners.needs import Needs
from modules.agents.policy_agent import PolicyAgent
from modules.critics import REGISTRY as CRITICS
from modules.critics.attention import AttentionCritic
from modules.critics.value import StateCritic
from modules.mixers import RANGES as MIXER_RANGES
from utils.errors import ConfigError
from utils.ranges import COUNT, NOT_NEGATIVE, POSITIVE, PROBABILITY, Range, one_of
from utils.rl_utils import build_gae_targets
from utils.value_norm import ValueNorm


class PackedEpisodes(NamedTuple):
    """Episodes as the networks read them: N filled steps, M of them transitions."""

    batch: EpisodeBatch
    steps: Steps
    state: Tensor  # [N, S]
    inputs: Tensor  # [N, A, F], of the agent network
    avail: Tensor  # [N, A, U]
    actions: Tensor  # int64 [N, A], continuous ones [N, A, U]; meaningless at the end of an episode
    # float32 [M, A]: with `active_masks` 0 where an agent has no choice (one action: a dead unit)
    # and nothing to learn
    choice: Tensor

    def padded(self, values: Tensor) -> Tensor:
        """[M, ...], of the transitions -> [B, T, ...], zero elsewhere."""
        rows = values.new_zeros(self.steps.n_rows, *values.shape[1:])
        return self.steps.unpack(rows.index_copy(0, self.steps.rows_cur, values))


class Rollout(NamedTuple):
    """What the updates go by: the transitions under the networks as they were before the first one.

    Padded to [B, T, ...], so that episodes can be picked. K values per step: 1 or A.
    """

    log_prob: Tensor  # [B, T, A], of the actions when they were taken
    advantages: Tensor  # [B, T, K]; normalised ones [B, T, A]
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
            `value_norm`, `popart`, `normalise_advantages`, `active_masks`, and what critics read.

    Attributes:
        figures: what is logged of an update, in this order.

    Raises:
        ConfigError: a setting that does not fit.
    """

    figures: ClassVar[tuple[str, ...]] = (
        "loss_policy",
        "loss_value",
        "policy_entropy",
        "policy_kl",
        "clip_fraction",
        "grad_norm",
        "critic_grad_norm",
        "value_mean",
        "target_mean",
    )
    continuous_actions = True
    needs = Needs(
        mac=ActorMAC,
        settings={
            "replay": "latest",
            "updates_per_collection": 1,
            "steps_per_update": 0,
            "mixer": None,
        },
        why={
            "mac": "it trains policies and must know how probable their actions were",
            "replay": "it learns from episodes of its present policy",
            "updates_per_collection": "it learns from episodes once",
            "steps_per_update": "it learns from whole episodes, once",
            "mixer": "it has a critic instead of mixed action values",
        },
    )
    ranges: ClassVar = {
        "ppo_clip": POSITIVE,
        "ppo_epochs": COUNT,
        "ppo_minibatches": COUNT,
        "entropy_coef": NOT_NEGATIVE,
        "gae_lambda": PROBABILITY,
        "huber_delta": POSITIVE,
        "critic_hidden_dim": COUNT,
        "policy_hidden_dim": COUNT,
        "critic_mixer": one_of("vdn", "qmix"),
        **MIXER_RANGES,
        "critic": Range(
            lambda name: name not in ("attention", "joint"),
            "one that values what is seen, as state and observation do (for attention choose "
            "ma_ppo)",
        ),
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        if args.continuous_actions:
            why = "other agents have discrete policies alone; or choose ma_ppo"
            Needs(agent=PolicyAgent, why={"agent": why}).check_built(mac, args)
        self.critic, self.n_values = self.build_critic()
        self.modules["critic"] = self.critic
        if args.value_norm:
            self.value_norm = ValueNorm(self.n_values)
            self.modules["value_norm"] = self.value_norm
        self.params = list(mac.parameters())
        self.critic_params = list(self.critic.parameters())
        self.optimiser = make_optimiser(self.params, args)
        self.critic_optimiser = make_optimiser(self.critic_params, args)

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also that a batch is never larger than what one policy has collected."""
        super().check_settings(args)
        check_fresh(args, "PPO")
        if args.popart and not (args.value_norm and args.critic == "state"):
            raise ConfigError(
                "popart rescales a critic's last layer with the statistics of its values: it needs "
                f"value_norm=True and critic=state, got value_norm={args.value_norm} and "
                f"critic={args.critic}"
            )

    def build_critic(self) -> tuple[nn.Module, int]:
        """The critic, and how many values (K) it gives."""
        critic = CRITICS[self.args.critic](self.mac._get_input_shape(self.scheme), self.args)
        return critic, critic.n_values

    # -- fresh episodes -> rollout with advantages -> minibatches -> policy step, value step -------
    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """Several updates on a batch of fresh episodes; see `Learner.train`."""
        self.mac.agent.eval()  # as it acted: a ratio is 1 before the first update
        episodes = self.packed(batch)
        rollout = self.rollout(episodes)
        figures: dict[str, list[Tensor]] = defaultdict(list)
        for _ in range(self.args.ppo_epochs):
            for part, before in self.minibatches(episodes, rollout):
                seen = self.policy_step(part, before, t_env) | self.value_step(part, before, t_env)
                for name in self.figures:
                    figures[name].append(seen[name].detach().mean())
        if any(True for _ in self.mac.agent.buffers()):
            # Statistics of the inputs (batch norm) move once the ratios are of no more use.
            self.mac.agent.train()
            with torch.no_grad():
                self.mac.unroll(batch, episodes.steps, episodes.inputs)
        self.log_means(t_env, **{name: torch.stack(values) for name, values in figures.items()})

    def packed(self, batch: EpisodeBatch) -> PackedEpisodes:
        """The filled steps of a batch."""
        steps = batch.steps()
        avail, actions = steps.pack(batch["avail_actions"]), steps.pack(batch["actions"])
        choice = torch.ones(avail[steps.cur].shape[:-1], device=avail.device)
        if not self.args.continuous_actions:
            actions = actions.squeeze(-1)
            if self.args.active_masks:
                choice = ((avail[steps.cur] != 0).sum(-1) > 1).float()
        state, inputs = steps.pack(batch["state"]), self.mac.sequence_inputs(batch, steps)
        return PackedEpisodes(batch, steps, state, inputs, avail, actions, choice)

    @torch.no_grad()
    def rollout(self, episodes: PackedEpisodes) -> Rollout:
        """Generalised advantages and value targets under the networks as they are.

        The statistics of the values move on. With `normalise_advantages` advantages have mean 0 and
        deviation 1 over the steps with a choice, of all agents or of each.
        """
        args = self.args
        advantages, returns = self.targets_of(episodes)
        if args.value_norm:
            self.move_statistics(returns)
            returns = self.value_norm.normalize(returns)
        if args.normalise_advantages:
            advantages = advantages.expand(-1, args.n_agents)
            mean = self.mean(advantages, episodes.choice)
            spread = self.mean((advantages - mean).square(), episodes.choice).sqrt()
            advantages = (advantages - mean) / (spread + 1e-8)
        learned = (advantages, returns, self.predictions(episodes))
        log_prob = episodes.batch["log_prob"]
        return Rollout(log_prob, *(episodes.padded(value) for value in learned))

    def targets_of(self, episodes: PackedEpisodes) -> tuple[Tensor, Tensor]:
        """Advantages and returns of the transitions, in the unit of the rewards: [M, K] each."""
        args, steps, batch = self.args, episodes.steps, episodes.batch
        values = steps.unpack(self.denormalise(self.baselines(episodes)))
        rewards, terminated = batch["reward"][:, :-1], batch["terminated"][:, :-1].float()
        advantages, returns = build_gae_targets(
            rewards, steps.mask, values, args.gamma, args.gae_lambda, terminated=terminated
        )
        return steps.pack_transitions(advantages), steps.pack_transitions(returns)

    @torch.no_grad()
    def move_statistics(self, returns: Tensor) -> None:
        """Takes returns [M, K] into the statistics of the values.

        With `popart` the critic's last layer changes along, so that denormalised values stay as
        they are (van Hasselt et al. 2016, eq. 5 and 6).
        """
        old_mean, old_var = self.value_norm.running_mean_var()
        self.value_norm.update(returns)
        if not self.args.popart:
            return
        mean, var = self.value_norm.running_mean_var()
        assert isinstance(self.critic, StateCritic)  # see check_settings
        weight, bias = self.critic.fc3.weight, self.critic.fc3.bias
        scale, shift = (old_var / var).sqrt(), (old_mean - mean) / var.sqrt()
        weight.mul_(scale.to(weight).unsqueeze(1))
        bias.mul_(scale.to(bias)).add_(shift.to(bias))

    def minibatches(
        self, episodes: PackedEpisodes, rollout: Rollout
    ) -> Iterator[tuple[PackedEpisodes, Rollout]]:
        """Every episode once, in `ppo_minibatches` random parts."""
        parts = random_parts(episodes.batch.batch_size, self.args.ppo_minibatches)
        if len(parts) == 1:
            yield episodes, rollout
            return
        for part in parts:
            yield (
                self.packed(episodes.batch[part.tolist()]),
                Rollout(*(value[part.to(value.device)] for value in rollout)),
            )

    def policy_step(
        self, episodes: PackedEpisodes, rollout: Rollout, t_env: int
    ) -> dict[str, Tensor]:
        """One step of the policies down PPO's loss, with a bonus for entropy; figures to log."""
        args, steps, choice = self.args, episodes.steps, episodes.choice
        policy = self.policy(episodes)
        log_prob = policy.log_prob(episodes.actions[steps.cur])
        # Densities of continuous actions grow without bound: a ratio of more than e^20 is just "too
        # far".
        log_ratio = (log_prob - steps.pack_transitions(rollout.log_prob)).clamp(max=20.0)
        advantages = steps.pack_transitions(rollout.advantages)
        loss_policy = self.mean(self.surrogate_losses(log_ratio, advantages), choice)
        entropy = self.mean(policy.entropy(), choice)
        parts = parts_of(episodes.batch, advantages=advantages, log_ratio=log_ratio)
        loss = loss_policy - args.entropy_coef * entropy
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        moved = (log_ratio.exp() - 1).abs() > self.clip_range()
        return {
            "loss_policy": loss_policy,
            "policy_entropy": entropy,
            "policy_kl": self.mean(log_ratio.expm1() - log_ratio, choice),
            "clip_fraction": self.mean(moved.float(), choice),
            "grad_norm": grad_norm,
        }

    def value_step(
        self, episodes: PackedEpisodes, rollout: Rollout, t_env: int
    ) -> dict[str, Tensor]:
        """One step of the critic towards the returns, by Huber's loss of normalised values; figures
        to log.

        With `value_clip` a value counts as at most `ppo_clip` from the old one where that makes the
        loss larger (Yu et al. 2022, appendix).
        """
        args, pack = self.args, episodes.steps.pack_transitions
        predictions, old = self.predictions(episodes), pack(rollout.predictions)
        returns = pack(rollout.returns)
        huber = partial(F.huber_loss, reduction="none", delta=args.huber_delta)
        losses = huber(predictions, returns)
        if args.value_clip:
            near = old + (predictions - old).clamp(-args.ppo_clip, args.ppo_clip)
            losses = torch.maximum(losses, huber(near, returns))
        loss_value = losses.mean()
        parts = parts_of(episodes.batch, targets=returns, values=predictions)
        grad_norm = self.optimise(
            self.critic_optimiser, self.critic_params, loss_value, t_env, parts
        )
        return {
            "loss_value": loss_value,
            "critic_grad_norm": grad_norm,
            "value_mean": self.denormalise(predictions),
            "target_mean": self.denormalise(returns),
        }

    # -- what the steps are made of, for variants to replace ---------------------------------------
    def policy(self, episodes: PackedEpisodes, at_ends: bool = False) -> Policy:
        """The agents' policies at the M transitions; with `at_ends` at all N steps."""
        where = slice(None) if at_ends else episodes.steps.cur
        outputs = self.mac.unroll(episodes.batch, episodes.steps, episodes.inputs)
        return self.mac.policy(outputs[where], episodes.avail[where])

    def baselines(self, episodes: PackedEpisodes) -> Tensor:
        """What advantages are measured from and bootstrapped with: normalised values of all filled
        steps [N, K].
        """
        return self.critic(episodes.state, episodes.inputs, episodes.steps)

    def predictions(self, episodes: PackedEpisodes) -> Tensor:
        """What the critic says about the transitions, to be fitted to their returns: normalised,
        [M, K].
        """
        values = self.critic(episodes.state, episodes.inputs, episodes.steps)
        return values[episodes.steps.cur]

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
        # torch's types know two numbers or two tensors, but not that these are of one kind.
        near = ratio.clamp(1 - clip, 1 + clip)  # type: ignore[arg-type]
        return -torch.minimum(ratio * advantages, near * advantages)

    def mean(self, values: Tensor, choice: Tensor) -> Tensor:
        """Mean of [M, A] over the steps with a choice (float32 [M, A], 0 or 1): a scalar, or [A]
        where agents have weights of their own.
        """
        axes = (0, 1) if self.args.share_params else (0,)
        return (values * choice).sum(axes) / choice.sum(axes).clamp(min=1)

    def denormalise(self, values: Tensor) -> Tensor:
        """Normalised values [..., K] in the units of the rewards."""
        return self.value_norm.denormalize(values) if self.args.value_norm else values

    @property
    def explained_by(self) -> tuple[str, ...]:
        return tuple(name for name in ("critic", "value_norm") if name in self.modules)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """The critic's values, in the unit of the rewards."""
        self.mac.agent.eval()
        self.critic.eval()
        values = self.denormalise(self.baselines(self.packed(batch)))
        if self.n_values == 1:
            return {"value": Inner(values.squeeze(-1))}
        return {"value": Inner(values, ("agent",))}

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

    critic: AttentionCritic

    ranges: ClassVar = {
        **PPOLearner.ranges,
        "critic": one_of("attention"),
        "attention_heads": COUNT,
        "mc_actions": COUNT,
    }

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also what the attention critic needs."""
        super().check_settings(args)
        AttentionCritic.check_settings(args)

    def build_critic(self) -> tuple[nn.Module, int]:
        """The attention critic; one value for each agent."""
        return CRITICS["attention"](self.scheme, self.args), self.args.n_agents

    def baselines(self, episodes: PackedEpisodes) -> Tensor:
        """V_i(o, a_-i), [N, A]."""
        steps, policy = episodes.steps, self.policy(episodes, at_ends=True)
        drawn = policy.sample().to(episodes.actions.dtype)
        actions = drawn.index_copy(0, steps.rows_cur, episodes.actions[steps.cur])
        return self.own_choices(steps.pack(episodes.batch["obs"]), actions, policy)[2]

    def predictions(self, episodes: PackedEpisodes) -> Tensor:
        """Q_i(o, a), [M, A]."""
        steps = episodes.steps
        obs, actions = steps.pack(episodes.batch["obs"])[steps.cur], episodes.actions[steps.cur]
        return self.critic.taken(self.critic(obs, actions).all_q, actions)

    def own_choices(
        self, obs: Tensor, actions: Tensor, policy: Policy
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """What each agent could do, given what the others do, and what that is worth.

        Args:
            obs: [N, A, O].
            actions: int64 [N, A], or float [N, A, U].
            policy: of these rows.

        Returns:
            Continuous actions: `mc_actions` samples of each agent's policy [N, A, K, U], else None;
            the values of these, or of all U actions [N, A, K or U]; their mean under the policy
            [N, A].
        """
        if isinstance(policy, SquashedGaussian):
            samples = policy.sample(self.args.mc_actions)
            values = self.critic(obs, actions, samples).all_q
            return samples, values, values.mean(-1)
        values = self.critic(obs, actions).all_q
        return None, values, (policy.probs * values).sum(-1)

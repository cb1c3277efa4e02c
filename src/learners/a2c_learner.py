"""Advantage actor-critic on whole episodes: IA2C, MAA2C and VDAC are this learner with another
critic.

A2C: Mnih et al. 2016. IA2C (a critic on what the agent sees) and MAA2C (a critic on the state),
with n-step returns and a target critic: Papoudakis et al. 2021. VDAC (local values that a mixer
combines): Su et al. 2021.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from learners.ppo_learner import PackedEpisodes, PPOLearner, Rollout
from utils.ranges import NOT_NEGATIVE, Range
from utils.rl_utils import RunningMeanStd, build_gae_targets, build_nstep_targets

ONCE = Range(lambda value: value == 1, "1 (a policy gradient is that of the policy which acted)")


class A2CLearner(PPOLearner):
    """One step of the policies along A grad log pi on fresh episodes, and one of the critic towards
    the returns.

    Returns bootstrap from the target critic, and A is a return less the critic's value.

    Args:
        mac, scheme, logger: as for every learner.
        args: as for `PPOLearner`; `a2c_steps` (rewards of a return; 0: lambda returns with
            `gae_lambda`), `target_tau` (1: the critic is its own target), `standardise_rewards`.

    Raises:
        ConfigError: a setting that does not fit.
    """

    # Nothing is measured from the policy of before: there is one step.
    figures = tuple(
        name for name in PPOLearner.figures if name not in ("policy_kl", "clip_fraction")
    )
    ranges: ClassVar = {
        **PPOLearner.ranges,
        "a2c_steps": NOT_NEGATIVE,
        "ppo_epochs": ONCE,
        "ppo_minibatches": ONCE,
    }

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.target_critic = self.with_target(self.critic)
        self.reward_moments = RunningMeanStd(shape=scheme["reward"]["vshape"])

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """One update on a batch of fresh episodes; see `Learner.train`."""
        super().train(batch, t_env, episode_num, per_weight)
        self.soft_update_targets(self.args.target_tau)

    def rollout(self, episodes: PackedEpisodes) -> Rollout:
        """As for PPO, but a ratio is the probability itself."""
        rollout = super().rollout(episodes)
        return rollout._replace(log_prob=torch.zeros_like(rollout.log_prob))

    def targets_of(self, episodes: PackedEpisodes) -> tuple[Tensor, Tensor]:
        args, steps, batch = self.args, episodes.steps, episodes.batch
        rows = self.target_critic(episodes.state, episodes.inputs, steps)
        values = steps.unpack(self.denormalise(rows))
        rewards, terminated = batch["reward"][:, :-1], batch["terminated"][:, :-1].float()
        if args.standardise_rewards:
            self.reward_moments.update(steps.pack_transitions(rewards))
            rewards = self.reward_moments.standardise(rewards)
        if args.a2c_steps:
            returns = build_nstep_targets(
                rewards, terminated, steps.mask, values, args.gamma, args.a2c_steps
            )
        else:
            _, returns = build_gae_targets(
                rewards, steps.mask, values, args.gamma, args.gae_lambda, terminated=terminated
            )
        returns = steps.pack_transitions(returns)
        return returns - self.denormalise(self.predictions(episodes)), returns

    def surrogate_losses(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """-A log pi (Mnih et al. 2016): log_ratio [M, A], advantages [M, 1 or A] -> [M, A]."""
        return -advantages * log_ratio

"""MAMT-PPO: on-policy PPO in place of mirror descent (Li et al., ICLR 2022, appendix H)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from controllers.actor_controller import ActorMAC
from learners.base import log_by_agent
from learners.mamt.situation import Situation, make_situation
from learners.mamt.trust_region import RANGES, check_split, make_split
from learners.needs import Needs
from learners.ppo_learner import AttentionPPOLearner, PackedEpisodes, Rollout
from modules.agents.policy_agent import PolicyAgent
from utils.errors import ConfigError


class MAMTPPOLearner(AttentionPPOLearner):
    """MA-PPO whose clip range is the agent's own: `ppo_clip` times delta_i / (delta / A).

    An equal split is MA-PPO. Before every step of the policies the trust regions learn from some of
    the batch; the old policies are those that collected it, and how far the present ones are from
    them at the last step is noted (`consecutive_kl`).

    Args:
        mac: an `ActorMAC` with `mlp_policy`.
        scheme, logger: as for every learner.
        args: as for `AttentionPPOLearner`; further `trust_region_batch_size` (so many transitions
            of a batch the trust regions are learned from; 0: all), and what
            `learners.mamt.trust_region` reads.

    Raises:
        ConfigError: a setting that does not fit.
    """

    needs = AttentionPPOLearner.needs | Needs(agent=PolicyAgent, settings={"share_params": False})
    ranges: ClassVar = {**AttentionPPOLearner.ranges, **RANGES}

    def __init__(
        self, mac: ActorMAC, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.split = make_split(args, self.optimise)
        self.modules |= self.split.modules
        # In evaluation mode, as the policies while they are compared with it.
        self.old_policy = copy.deepcopy(mac.agent).requires_grad_(False).eval()
        self._figures: dict[str, Tensor] = {}

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also what the split of the trust region needs."""
        super().check_settings(args)
        if args.coordination_unit == "reward":
            raise ConfigError(
                "coordination_unit=reward needs a replay buffer that knows the rewards' deviation, "
                "mamt_ppo has none: choose values or spread"
            )
        # Episodes have one step at least.
        check_split(args, args.batch_size // args.ppo_minibatches)

    def train(
        self, batch: Any, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> None:
        """Several updates on a batch of fresh episodes; see `Learner.train`."""
        self.old_policy.load_state_dict(self.mac.agent.state_dict())
        super().train(batch, t_env, episode_num, per_weight)
        self._figures = {}

    def policy_step(
        self, episodes: PackedEpisodes, rollout: Rollout, t_env: int
    ) -> dict[str, Tensor]:
        """A round of the trust regions before the step of the policies."""
        situation = self.situation(episodes)
        self._figures = self.split.learn(situation, t_env)
        self._figures |= {
            "trust_region": self.split.sizes(),
            "consecutive_kl": situation.kl.mean(0),
        }
        return super().policy_step(episodes, rollout, t_env)

    def clip_range(self) -> Tensor:
        """[A]."""
        return (
            self.args.ppo_clip
            * self.args.n_agents
            * self.split.sizes()
            / self.args.trust_region_delta
        )

    @torch.no_grad()
    def situation(self, episodes: PackedEpisodes) -> Situation:
        """What the trust regions learn from: random rows, with actions drawn from the present
        policies.
        """
        cur = episodes.steps.cur
        obs = episodes.steps.pack(episodes.batch["obs"])[cur]
        n = self.args.trust_region_batch_size or len(obs)
        picked = torch.randperm(len(obs), device=obs.device)[:n]
        obs, avail, replayed = (
            x[picked] for x in (obs, episodes.avail[cur], episodes.actions[cur])
        )
        outputs = self.mac.agent.logits(obs)
        policy = self.mac.policy(outputs, avail)
        actions = policy.sample()
        samples, values, baselines = self.own_choices(obs, actions, policy)
        return make_situation(
            self.critic,
            obs=obs,
            avail_actions=avail,
            replayed=replayed,
            actions=actions,
            samples=samples,
            outputs=outputs,
            old_outputs=self.old_policy.logits(obs),
            values=values,
            baselines=baselines,
        )

    def log_means(self, t_env: int, **values: Tensor) -> None:
        """Beside PPO's figures those of the trust regions at the last step, per agent and pair as
        lists.
        """
        if self.log_due(t_env):
            for name, value in (values | self._figures).items():
                self.logger.log_stat(name, value.mean().item(), t_env)
            log_by_agent(self.logger, self._figures, t_env)

    # -- devices and files -------------------------------------------------------------------------
    def cuda(self) -> None:
        """Moves all networks to the GPU."""
        super().cuda()
        self.old_policy.cuda()

    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """File name stem -> optimiser."""
        return super().optimisers() | self.split.optimisers

"""MAT: PPO of a transformer that acts for all agents (Wen et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import ClassVar

from torch import Tensor, nn

from controllers.mat_controller import MATMAC
from learners.needs import Needs
from learners.ppo_learner import Figures, PackedEpisodes, PPOLearner, Rollout
from modules.mat import MATAgent
from modules.mat.transformer import RANGES
from utils.ranges import NOT_NEGATIVE


class MATLearner(PPOLearner):
    """PPO whose critic is the encoder and whose policies are the decoder of one network, stepped
    together.

    The loss is the sum of PPO's over all agents, each with its ratio of pi(a_i | o, a_1..a_{i-1})
    and its advantages from V_i, and of `value_coef` times that of the values (Wen et al. 2022,
    section 4.2). In training the actions of the batch are read, so that the policies of all agents
    are computed at once.

    Args:
        mac: a `MATMAC`.
        scheme, logger: as for every learner.
        args: as for `PPOLearner`, `value_coef` and what `MATAgent` reads.

    Raises:
        ConfigError: a setting that does not fit.
    """

    figures: ClassVar = tuple(name for name in PPOLearner.figures if name != "critic_grad_norm")
    critic_in_agent = True
    continuous_agent = MATAgent
    needs = PPOLearner.needs | Needs(
        mac=MATMAC,
        settings={"share_params": True, "critic": "encoder"},
        why={
            "mac": "it trains one network that acts for all agents",
            "share_params": "the transformer is one network for all agents",
            "critic": "the values are the encoder's",
        },
    )
    ranges: ClassVar = {**PPOLearner.ranges, **RANGES, "value_coef": NOT_NEGATIVE}

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """Also that no last action is read where actions are real numbers."""
        super().check_settings(args)
        if args.continuous_actions:
            Needs(settings={"obs_last_action": False}).check_settings(args)

    def build_critic(self) -> tuple[nn.Module, int]:
        """The encoder, as part of the whole; one value for each agent."""
        return self.mac.agent, self.args.n_agents

    def updates(self, episodes: PackedEpisodes, rollout: Rollout, t_env: int) -> Iterator[Figures]:
        """All steps on a batch."""
        for part, before in self.rounds(episodes, rollout):
            yield self.joint_step(part, before, t_env)

    def joint_step(self, episodes: PackedEpisodes, rollout: Rollout, t_env: int) -> Figures:
        """One step of encoder and decoder; figures to log."""
        cur, agent = episodes.steps.cur, self.mac.agent
        encoded = agent.encode(episodes.inputs[cur])
        outputs = agent.decode(encoded.reps, episodes.actions[cur])
        policy = self.mac.policy(outputs, episodes.avail[cur])
        of_policy = self.policy_loss(episodes, rollout, policy)
        of_values = self.value_loss(episodes, rollout, encoded.values)
        loss = of_policy.loss + self.args.value_coef * of_values.loss
        parts = of_policy.parts | of_values.parts
        grad_norm = self.optimise(self.optimiser, self.params, loss, t_env, parts)
        return of_policy.figures | of_values.figures | {"grad_norm": grad_norm}

    def baselines(self, episodes: PackedEpisodes) -> Tensor:
        """V_i(o_1, ..., o_n) of all filled steps, normalised, [N, A]."""
        return self.mac.agent.encode(episodes.inputs).values

    def predictions(self, episodes: PackedEpisodes) -> Tensor:
        """The same of the transitions, [M, A]."""
        return self.baselines(episodes)[episodes.steps.cur]

"""The controller of the actor-critic learners: acts on stochastic policies and notes how probable
its actions were.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.action_selectors import MultinomialActionSelector
from components.distributions import Policy, SquashedGaussian, policy_distribution
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from controllers.basic_controller import ALL, BasicMAC
from utils.errors import ConfigError


class ActorMAC(BasicMAC):
    """Samples from the agents' policies in training; in tests the most probable action
    (`test_greedy`) or a sample.

    `forward` and `unroll` give what the network puts out: logits [..., A, U], or means and log
    standard deviations [..., A, 2U]; `policy` makes distributions of them. While acting the network
    is in evaluation mode, in training episodes too (batch norm then uses its running statistics): a
    learner that wants training mode sets it.

    Discrete actions: the selector `multinomial`, with `epsilon_*` mixing in the uniform policy.
    Continuous ones: samples of a squashed Gaussian, without epsilon.

    Args:
        scheme, groups: of the episode batch.
        args: as for `BasicMAC`, and `continuous_actions`, `test_greedy`.

    Attributes:
        recorded: scheme entries that the collector stores with every step.
        last_record: their values at the last `select_actions`: `log_prob` [len(bs), A], the log
            probability (or density) of the actions under what they were drawn from, epsilon
            included; in tests under the policy.

    Raises:
        ConfigError: an action selector or output type that does not fit.
    """

    recorded: dict[str, dict[str, Any]] = {"log_prob": {"vshape": (), "group": "agents"}}

    def __init__(
        self, scheme: Mapping[str, Any], groups: Mapping[str, int], args: SimpleNamespace
    ) -> None:
        super().__init__(scheme, groups, args)
        if self.agent_output_type != "pi_logits":
            raise ConfigError(
                f"controller '{args.mac}' needs agent_output_type=pi_logits (it acts on policies), "
                f"got agent_output_type={args.agent_output_type}"
            )
        if not isinstance(self.action_selector, MultinomialActionSelector):
            raise ConfigError(
                f"controller '{args.mac}' needs action_selector=multinomial, got "
                f"action_selector={args.action_selector}"
            )
        self.last_record: dict[str, Tensor] = {}

    @torch.no_grad()
    def select_actions(
        self, ep_batch: EpisodeBatch, t_ep: int, t_env: int, bs: Any = ALL, test_mode: bool = False
    ) -> Tensor:
        """Actions of step `t_ep` for the episodes `bs`: int64 [len(bs), A], or float32 [len(bs), A,
        U].
        """
        avail = ep_batch["avail_actions"][bs, t_ep]
        outputs = self.forward(ep_batch, t_ep, test_mode, bs)
        actions, log_prob = self._choose(outputs, avail, t_env, test_mode)
        self.last_record = {"log_prob": log_prob}
        return actions

    def _choose(
        self, outputs: Tensor, avail: Tensor, t_env: int, test_mode: bool
    ) -> tuple[Tensor, Tensor]:
        """Actions of some agents, and the log probabilities that are recorded.

        Args:
            outputs: [B, A, U or 2U].
            avail: [B, A, U].

        Returns:
            int64 [B, A] or float32 [B, A, U], and [B, A].
        """
        policy = self.policy(outputs, avail)
        if isinstance(policy, SquashedGaussian):
            actions = policy.mode() if test_mode and self.args.test_greedy else policy.sample()
            return actions, policy.log_prob(actions)
        selector = self.action_selector
        actions = selector.select_action(policy.probs, avail, t_env, test_mode)
        drawn_from = policy.probs if test_mode else selector.probabilities(policy.probs, avail)
        return actions, drawn_from.gather(-1, actions.unsqueeze(-1)).squeeze(-1).log()

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """The policies: probabilities of all actions, or means and deviations of real numbers."""
        self._set_mode(test_mode=True)
        steps = batch.steps()
        policy = self.policy(self.unroll(batch, steps), steps.pack(batch["avail_actions"]))
        if isinstance(policy, SquashedGaussian):
            return {
                "most probable action": Inner(policy.mode(), ("agent", "action")),
                "deviation before tanh": Inner(policy.normal.stddev, ("agent", "action")),
            }
        return {"probabilities": Inner(policy.probs, ("agent", "action"), "probability")}

    def policy(self, outputs: Tensor, avail_actions: Tensor) -> Policy:
        """The policies that the network's outputs stand for: outputs [..., A, U or 2U],
        avail_actions [..., A, U].
        """
        return policy_distribution(outputs, avail_actions, self.args.continuous_actions)

    def _policy(self, logits: Tensor, avail_actions: Tensor) -> Tensor:
        return logits

    def _set_mode(self, test_mode: bool) -> None:
        if self.agent.training:
            self.agent.eval()

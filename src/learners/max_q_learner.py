"""Weighted QMIX: a monotone joint value that follows an unrestricted one (Rashid et al. 2020).

`hysteretic_qmix: True` is OW-QMIX, False CW-QMIX.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from controllers.basic_controller import BasicMAC
from controllers.unroll import sequence_inputs, unroll
from learners.base import parts_of
from learners.q_learner import QLearner, Rows, episode_errors, weighted_mean
from modules.mixers.qmix_central_no_hyper import QMixerCentralFF
from utils.errors import ConfigError


def central_controller(scheme: Mapping[str, Any], args: SimpleNamespace) -> BasicMAC:
    """The controller of Q*: the inputs of `BasicMAC`, `central_agent` as its network."""
    central_args = copy.copy(args)
    central_args.agent, central_args.agent_output_type = args.central_agent, "q"
    central_args.rnn_hidden_dim = args.central_rnn_hidden_dim
    return BasicMAC(scheme, {"agents": args.n_agents}, central_args)


class MaxQLearner(QLearner):
    """Q_tot is trained towards the returns of the unrestricted Q*, with little weight where it need
    not be right.

    The targets y bootstrap from the target network of Q* at the joint action that is greedy under
    the online Q_tot. Q_tot has no target network of its own.
    """

    def build_targets(self) -> None:
        """Q*, which is trained beside Q_tot, and its target network.

        Raises:
            ConfigError: there is no mixer, or `double_q` is off.
        """
        args = self.args
        if self.mixer is None:
            raise ConfigError("max_q_learner needs a mixer: set mixer=qmix")
        if not args.double_q:
            raise ConfigError(
                "max_q_learner bootstraps at the online network's greedy action: set double_q=True"
            )
        self.central_mac = central_controller(self.scheme, args)
        self.central_mixer = QMixerCentralFF(args)
        self.modules["central_agent"], self.modules["central_mixer"] = (
            self.central_mac.agent,
            self.central_mixer,
        )
        self.params += [*self.central_mac.parameters(), *self.central_mixer.parameters()]
        self.target_central_mac = self.with_target(self.central_mac)
        self.target_central_mixer = self.with_target(self.central_mixer)
        # A controller that builds its inputs in another way keeps them to itself.
        own = ("_build_inputs", "sequence_inputs")
        self._shared_inputs = all(
            getattr(type(self.mac), name, None) is getattr(BasicMAC, name) for name in own
        )

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_error_abs` [B] of Q_tot if `per_weight` is given, see `episode_errors`.
        """
        rows = self.rows(batch)
        steps, state, avail, actions, inputs = rows
        central_inputs = (
            inputs if self._shared_inputs else sequence_inputs(self.central_mac, batch, steps)
        )

        q = unroll(self.mac, batch, steps, inputs)
        q_tot = self.mix(self.mixer, q, actions, avail, state)[steps.cur]
        central_q = unroll(self.central_mac, batch, steps, central_inputs)
        q_star = self.central_values(self.central_mixer, central_q, actions, state)[steps.cur]
        with torch.no_grad():
            greedy = masked_argmax(q, avail)
            target_q = unroll(self.target_central_mac, batch, steps, central_inputs)
            target_greedy = self.central_values(self.target_central_mixer, target_q, greedy, state)
            targets = self.td_targets(batch, rows, target_q, target_greedy)
            is_greedy = (actions == greedy).all(-1, keepdim=True)[steps.cur]
            weights = self.weights(q_tot, targets, target_greedy[steps.cur], is_greedy)

        td_error = q_tot - targets
        loss_td = weighted_mean(0.5 * weights * td_error.pow(2), steps, per_weight)
        loss_central = weighted_mean(0.5 * (q_star - targets).pow(2), steps, per_weight)
        parts = parts_of(batch, **{"targets": targets, "q": q_tot, "central q": q_star})
        grad_norm = self.optimise(self.optimiser, self.params, loss_td + loss_central, t_env, parts)
        self.update_targets_if_due(episode_num)
        self.log_means(
            t_env,
            loss_td=loss_td,
            central_loss=loss_central,
            grad_norm=grad_norm,
            td_error_abs=td_error.abs(),
            q_taken_mean=q_tot,
            target_mean=targets,
            w_to_use=weights,
        )
        return episode_errors(td_error, steps, per_weight)

    def central_values(
        self, mixer: QMixerCentralFF, q: Tensor, actions: Tensor, state: Tensor
    ) -> Tensor:
        """Q*(s, a) of joint actions.

        Args:
            mixer: the online or the target mixer.
            q: [N, A, U * E], outputs of the central agent network.
            actions: int64 [N, A].
            state: [N, S].

        Returns:
            [N, 1].
        """
        q = q.unflatten(-1, (self.args.n_actions, -1))
        index = actions[..., None, None].expand(*actions.shape, 1, q.shape[-1])
        return mixer(q.gather(-2, index).squeeze(-2), state)

    def td_targets(
        self, batch: EpisodeBatch, rows: Rows, q: Tensor, greedy_values: Tensor
    ) -> Tensor:
        """Targets y of Q_tot and Q* alike, [M, 1].

        Args:
            q: [N, A, U * E], outputs of the target central agent network.
            greedy_values: [N, 1], target Q* of the greedy joint actions.
        """
        if not self.args.q_lambda:
            return self.returns(batch, rows.steps, greedy_values)
        taken = self.central_values(self.target_central_mixer, q, rows.actions, rows.state)
        return self.returns(batch, rows.steps, greedy_values, taken)

    def weights(
        self, q_tot: Tensor, targets: Tensor, greedy_values: Tensor, is_greedy: Tensor
    ) -> Tensor:
        """Weights of the squared errors of Q_tot (Rashid et al. 2020, section 5), each 1 or `w`.

        OW-QMIX: 1 where Q_tot is too low. CW-QMIX: 1 where the joint action is the greedy one or
        its target is above the value of the greedy one.

        Args:
            q_tot: [M, 1], of the actions taken.
            targets: [M, 1].
            greedy_values: [M, 1], target Q* of the greedy joint actions.
            is_greedy: bool [M, 1], whether the joint action taken is the greedy one.

        Returns:
            [M, 1].
        """
        full = (
            q_tot < targets if self.args.hysteretic_qmix else is_greedy | (targets > greedy_values)
        )
        return torch.where(full, 1.0, self.args.w)

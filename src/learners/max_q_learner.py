"""Weighted QMIX: a monotone joint value that follows an unrestricted one (Rashid et al. 2020).

`hysteretic_qmix: True` is OW-QMIX, False CW-QMIX.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from learners.joint_values import UnrestrictedValue
from learners.needs import Needs
from learners.parts import Losses
from learners.q_learner import QLearner
from learners.replayed import ReplayedSteps
from utils.errors import ConfigError
from utils.ranges import NOT_NEGATIVE, POSITIVE, PROBABILITY


class MaxQLearner(QLearner):
    """Q_tot is trained towards the returns of the unrestricted Q*, with little weight where it need
    not be right.

    The targets y bootstrap from the target network of Q* at the joint action that is greedy under
    the online Q_tot. Q_tot has no target network of its own.

    Attributes:
        q_star: Q*, whose four networks have PyMARL2's names here too (`central_mac`, ...).

    Raises:
        ConfigError: there is no mixer, `double_q` is off, or a setting is out of range.
    """

    needs = Needs(
        settings={"double_q": True},
        why={"double_q": "it bootstraps at the online network's greedy action"},
    )
    ranges: ClassVar = {
        **QLearner.ranges, **UnrestrictedValue.ranges, "w": PROBABILITY,
        "qmix_loss": NOT_NEGATIVE, "central_loss": POSITIVE,
    }  # fmt: skip
    figures_checked: ClassVar = {**QLearner.figures_checked, "central q": "central_loss"}

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """See `QLearner.check_settings`; and that there is a mixer."""
        super().check_settings(args)
        if args.mixer is None:
            raise ConfigError(f"learner '{args.learner}' needs a mixer: set mixer=qmix")

    def build_targets(self) -> None:
        """Q*, which is trained beside Q_tot, and its target network."""
        self.q_star = UnrestrictedValue(self.mac, self.scheme, self.args)
        self.central_mac, self.central_mixer = self.q_star.mac, self.q_star.mixer
        self.target_central_mac = self.q_star.target_mac
        self.target_central_mixer = self.q_star.target_mixer
        self.modules |= self.q_star.modules
        self.params += self.q_star.params
        self.targets += self.q_star.targets

    def losses_of(self, batch: EpisodeBatch, per_weight: Tensor | None) -> Losses:
        """The losses of Q_tot and Q* on some episodes, the mean over their transitions."""
        rows = ReplayedSteps.of(batch, self.mac, per_weight, self.args.td_lambda_pymarl)
        q = rows.unroll(self.mac)
        with torch.no_grad():
            outputs = self.q_star.target_outputs(rows)
        return self.losses_of_values(rows, q, masked_argmax(q, rows.avail), outputs)

    def losses_of_values(
        self, rows: ReplayedSteps, q: Tensor, greedy: Tensor, outputs: Tensor
    ) -> Losses:
        """The losses of Q_tot and Q*, the mean over transitions.

        Args:
            q: [N, A, U], the agents' values.
            greedy: int64 [N, A], the joint actions at which targets bootstrap.
            outputs: of Q*'s target network, see `FollowedValue.target_outputs`.
        """
        cur = rows.steps.cur
        values = self.mix(self.mixer, q, rows.actions, rows)
        q_star = self.q_star.taken(rows, values)[cur]
        q_tot = values[cur]
        with torch.no_grad():
            best, targets = self.q_star.targets_of(rows, outputs, greedy.unsqueeze(0))
            is_greedy = (rows.actions == greedy).all(-1, keepdim=True)[cur]
            weights = self.weights(q_tot, targets, best[0, cur], is_greedy)

        td_error = q_tot - targets
        # PyMARL2's form: a half on the central loss alone.
        loss_td = rows.mean(weights * td_error.pow(2))
        loss_central = 0.5 * self.q_star.losses(q_star, targets, rows)["central_loss"]
        figures = {
            "loss_td": loss_td,
            "central_loss": loss_central,
            "td_error_abs": td_error.detach().abs(),
            "q_taken_mean": q_tot,
            "target_mean": targets,
            "w_to_use": weights,
        }
        loss = self.args.qmix_loss * loss_td + self.args.central_loss * loss_central
        return Losses(loss, figures, rows.errors(td_error))

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

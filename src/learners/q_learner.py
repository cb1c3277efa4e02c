"""Q-learning with value decomposition: IQL, VDN, QMIX, Qatten and QPLEX are this learner with
another mixer.

VDN: Sunehag et al. 2018; QMIX: Rashid et al. 2018; Qatten: Yang et al. 2020; QPLEX: Wang et al.
2021. The keys `td_lambda` (0 for one-step targets), `q_lambda` and `double_q` choose the targets;
`hysteretic_beta` below 1 makes an independent learner optimistic (Matignon et al. 2007; 0:
distributed Q-learning, Lauer and Riedmiller 2000).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from learners.auxiliary import RANGES as AUXILIARY_RANGES
from learners.auxiliary import REGISTRY as AUXILIARY_LOSSES
from learners.auxiliary import AuxiliaryLoss
from learners.base import Learner, make_optimiser, parts_of
from learners.parts import Losses, in_parts
from learners.replayed import ReplayedSteps, joint_value
from modules.agents.hpn_agent import RANGES as HPN_RANGES
from modules.comm import RANGES as COMM_RANGES
from modules.mixers import RANGES as MIXER_RANGES
from modules.mixers import make_mixer
from utils.errors import ConfigError
from utils.ranges import PROBABILITY


class QLearner(Learner):
    """TD learning of a joint value that a mixer builds from the agents' values.

    Without a mixer and without parameter sharing the agents learn as if each were alone: nothing of
    an agent's loss, gradient or clipping depends on another agent's data or weights.

    `auxiliary_loss` names what is minimised beside the TD loss (`learners.auxiliary`): losses on
    what agents that talk to one another say.

    A subclass may replace `build_targets` (where targets come from), `targets_of` (what they are),
    `losses_of` (all that an update minimises) and `td_losses` (how errors count).

    Raises:
        ConfigError: individual rewards or `hysteretic_beta` with a mixer, or a setting out of
            range.
    """

    weights_episodes = True
    shares_updates = True
    ranges: ClassVar = {
        "hysteretic_beta": PROBABILITY,
        **MIXER_RANGES,
        **COMM_RANGES,
        **HPN_RANGES,
        **AUXILIARY_RANGES,
    }
    # What is searched for the culprit if an update is not finite: name -> its figure.
    figures_checked: ClassVar = {"targets": "target_mean", "q": "q_taken_mean"}

    def __init__(
        self, mac: Any, scheme: Mapping[str, Any], logger: Any, args: SimpleNamespace
    ) -> None:
        super().__init__(mac, scheme, logger, args)
        self.params = list(mac.parameters())
        self.mixer: Any = None if args.mixer is None else make_mixer(args.mixer, args)
        self.decentralised = self.mixer is None and not args.share_params
        if self.mixer is not None:
            self.modules["mixer"] = self.mixer
            self.params += list(self.mixer.parameters())
        self.auxiliary: AuxiliaryLoss | None = None
        if args.auxiliary_loss is not None:
            self._add_auxiliary_loss(AUXILIARY_LOSSES[args.auxiliary_loss](mac, args))
        if getattr(getattr(mac, "agent", None), "draws", False):
            self.shares_updates = False  # several threads would draw in any order
        self.build_targets()
        self.optimiser = make_optimiser(self.params, args)

    def _add_auxiliary_loss(self, loss: AuxiliaryLoss) -> None:
        self.auxiliary = loss
        self.modules |= loss.modules
        self.params += [param for each in loss.modules.values() for param in each.parameters()]
        self.targets += loss.targets
        self.shares_updates = self.shares_updates and loss.of_parts

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """See `Learner.check_settings`; and that a mixer has one reward and symmetric errors."""
        super().check_settings(args)
        if args.mixer is not None and not args.common_reward:
            raise ConfigError(
                f"mixer '{args.mixer}' learns one joint value: set common_reward=True, or use iql"
            )
        if args.mixer is not None and args.hysteretic_beta != 1.0:
            raise ConfigError(
                "hysteretic_beta is for independent learners: set mixer=null instead of "
                f"'{args.mixer}'"
            )
        if args.auxiliary_loss is None:
            return
        own = cls.train is not QLearner.train or cls.losses_of is not QLearner.losses_of
        if own:
            raise ConfigError(
                f"learner '{args.learner}' has losses of its own: set auxiliary_loss=null instead "
                f"of '{args.auxiliary_loss}'"
            )
        AUXILIARY_LOSSES[args.auxiliary_loss].needs.check_settings(args)

    def build_targets(self) -> None:
        """The networks that the targets come from, and the parameters of those that are trained for
        it.
        """
        self.target_mac = self.with_target(self.mac)
        self.target_mixer: Any = None if self.mixer is None else self.with_target(self.mixer)

    def train(
        self, batch: EpisodeBatch, t_env: int, episode_num: int, per_weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One update on a batch of episodes; see `Learner.train`.

        Returns:
            `td_errors_abs` [B] if `per_weight` is given, see `episode_errors`.
        """
        # Parts would count their transitions without those that only PyMARL's mask has.
        threads = 1 if self.args.td_lambda_pymarl else self.threads
        losses = in_parts(self.losses_of, batch, per_weight, self.params, threads)
        return self.step(batch, losses, t_env, episode_num)

    def losses_of(self, batch: EpisodeBatch, per_weight: Tensor | None) -> Losses:
        """The loss of some episodes, the mean over their transitions."""
        rows = ReplayedSteps.of(batch, self.mac, per_weight, self.args.td_lambda_pymarl)
        if self.auxiliary is None:
            q = rows.unroll(self.mac)
            with torch.no_grad():
                targets = self.targets_of(rows, q, rows.unroll(self.target_mac))
            return self.losses_to(rows, q, targets)
        online = rows.talk(self.mac)
        with torch.no_grad():
            target = rows.talk(self.target_mac)
            targets = self.targets_of(rows, online.q, target.q)
        losses = self.losses_to(rows, online.q, targets)
        return losses.plus(self.auxiliary.losses(rows, online, target))

    def targets_of(self, rows: ReplayedSteps, q: Tensor, target_q: Tensor) -> Tensor:
        """Targets of the values of the actions taken, [M, 1 or A]; q and target_q [N, A, U]."""
        greedy = masked_argmax(q if self.args.double_q else target_q, rows.avail)
        best = self.mix(self.target_mixer, target_q, greedy, rows)
        if not self.args.q_lambda:
            return rows.returns(self.args, best)
        taken = self.mix(self.target_mixer, target_q, rows.actions, rows)
        return rows.returns(self.args, best, taken)

    def losses_to(self, rows: ReplayedSteps, q: Tensor, targets: Tensor) -> Losses:
        """The loss of the values q [N, A, U] of the actions taken against `targets` [M, 1 or A]."""
        q_taken = self.mix(self.mixer, q, rows.actions, rows)[rows.steps.cur]
        td_error = q_taken - targets
        loss = rows.mean(self.td_losses(td_error), per_agent=self.decentralised)
        figures = {
            "loss_td": loss,
            "td_error_abs": td_error.detach().abs(),
            "q_taken_mean": q_taken,
            "target_mean": targets,
        }
        return Losses(loss, figures, rows.errors(td_error))

    def step(
        self,
        batch: EpisodeBatch,
        losses: Losses,
        t_env: int,
        episode_num: int,
        **figures: Tensor,
    ) -> dict[str, Tensor]:
        """One step of the optimiser, the targets' copy where it is due, and the log.

        Args:
            figures: more to log.

        Returns:
            That of `train`.
        """
        grad_norm = self.optimise_losses(batch, losses, t_env)
        self.update_targets_if_due(episode_num)
        self.log_means(t_env, grad_norm=grad_norm, **losses.figures, **figures)
        return losses.errors

    def optimise_losses(self, batch: EpisodeBatch, losses: Losses, t_env: int) -> Tensor:
        """One step of the optimiser; the gradient's norm before clipping."""
        checked = {name: losses.figures[key] for name, key in self.figures_checked.items()}
        parts = parts_of(batch, **checked)
        return self.optimise(self.optimiser, self.params, losses.loss, t_env, parts)

    @property
    def explained_by(self) -> tuple[str, ...]:
        return () if self.mixer is None else ("mixer",)

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """The value of the greedy joint action: the mixer's, or each agent's own."""
        rows = ReplayedSteps.of(batch, self.mac)
        q = rows.unroll(self.mac)
        values = self.mix(self.mixer, q, masked_argmax(q, rows.avail), rows)
        if self.mixer is None:
            return {"value": Inner(values, ("agent",))}
        return {"value": Inner(values.squeeze(-1))}

    def td_losses(self, td_error: Tensor) -> Tensor:
        """Half the squared errors of the same shape, those of estimates above their target weighted
        by beta.

        Hysteretic Q-learning, DAC's eq. 19; beta = 1 is plain Q-learning, 0 distributed Q-learning
        (eq. 17).

        Args:
            td_error: [M, 1 or A], estimate minus target.
        """
        losses, beta = 0.5 * td_error.pow(2), self.args.hysteretic_beta
        return losses if beta == 1.0 else torch.where(td_error > 0, beta * losses, losses)

    def mix(self, mixer: Any, q: Tensor, actions: Tensor, rows: ReplayedSteps) -> Tensor:
        """The value of joint actions (int64 [N, A]) by the agents' values q [N, A, U]: [N, 1], or
        [N, A] without a mixer.
        """
        return joint_value(mixer, q, actions, rows.avail, rows.state)

"""Q-learning of distributions: quantiles of the joint return, mixed of the agents' quantiles.

RiskQ (Shen et al. 2023) with the mixer of Qatten; with the sum it is the quantile mixture of DDN.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from components.action_selectors import masked_argmax
from components.episode_buffer import EpisodeBatch
from components.inner import Explained, Inner
from learners.needs import Needs
from learners.parts import Losses
from learners.q_learner import QLearner
from learners.replayed import ReplayedSteps, check_hidden_states
from modules.agents.quantile_agent import QuantileAgent
from modules.risk import risk_weights
from utils.ranges import one_of


class QuantileLearner(QLearner):
    """`QLearner` of W quantiles in place of a value, with agents that act by a risk measure psi.

    Quantile w of the joint return is the mixer's value of the agents' quantiles w. The mixer is
    linear in them with positive weights, so that psi of the joint return is highest where psi is
    highest for each agent (RIGM: Shen et al. 2023, definition 1 and theorem 4). Targets are
    TD(lambda) returns quantile by quantile, at the actions that are best by psi.

    Args:
        mac, scheme, logger: as for every learner.
        args: what `QuantileAgent` and `QLearner` read, and `quantile_loss_axis`.

    Raises:
        ConfigError: a setting out of range, a mixer that is not linear, or agents without
            quantiles.
    """

    needs = Needs(
        agent=QuantileAgent,
        settings={"mixer": ("qatten", "vdn"), "auxiliary_loss": None, "q_lambda": False},
        why={
            "mixer": "the agents' best actions by risk are the best joint one under a linear mixer",
            "auxiliary_loss": "its agents do not talk",
            "q_lambda": "errors of quantiles are no corrections of returns",
        },
    )
    ranges: ClassVar = {
        **QLearner.ranges,
        **QuantileAgent.ranges,
        "quantile_loss_axis": one_of("predicted", "target"),
    }

    def __init__(self, mac: Any, scheme: Any, logger: Any, args: SimpleNamespace) -> None:
        check_hidden_states(mac, args)
        super().__init__(mac, scheme, logger, args)

    @classmethod
    def check_settings(cls, args: SimpleNamespace) -> None:
        """See `QLearner.check_settings`; and that the measure knows its parameter."""
        super().check_settings(args)
        risk_weights(args.risk_measure, args.risk_parameter, args.n_quantiles)

    def outputs_of(self, rows: ReplayedSteps, mac: Any) -> Tensor:
        """Sorted quantiles, [N, A, U, W]."""
        return rows.unroll_quantiles(mac)

    def utilities(self, outputs: Tensor) -> Tensor:
        """psi of quantiles [N, A, U, W]: [N, A, U]."""
        return self.mac.agent.worth(outputs)

    def mix(self, mixer: Any, q: Tensor, actions: Tensor, rows: ReplayedSteps) -> Tensor:
        """Quantiles of the return of joint actions (int64 [N, A]) by those of the agents' actions q
        [N, A, U, W]: [N, W].
        """
        index = actions[..., None, None].expand(*actions.shape, 1, q.shape[-1])
        chosen = q.gather(-2, index).squeeze(-2)  # [N, A, W]
        return mixer.of_several(chosen.movedim(-1, 0), rows.state).squeeze(-1).t()

    def losses_to(self, rows: ReplayedSteps, q: Tensor, targets: Tensor) -> Losses:
        """The loss of quantiles q [N, A, U, W] against those of the targets [M, W]."""
        quantiles = self.mix(self.mixer, q, rows.actions, rows)[rows.steps.cur]
        losses = quantile_losses(quantiles, targets, self.args.quantile_loss_axis)
        loss = rows.mean(losses)
        td_error = (quantiles - targets).detach().mean(-1, keepdim=True)
        figures = {
            "loss_td": loss,
            "td_error_abs": td_error.abs(),
            "q_taken_mean": quantiles,
            "target_mean": targets,
            "quantile_spread": (quantiles[:, -1] - quantiles[:, 0]).detach(),
        }
        return Losses(loss, figures, rows.errors(td_error))

    @torch.no_grad()
    def explain(self, batch: EpisodeBatch) -> Explained:
        """Of the joint action that is best by psi: the mean return, psi and the quantiles."""
        rows = ReplayedSteps.of(batch, self.mac)
        q = self.outputs_of(rows, self.mac)
        best = masked_argmax(self.utilities(q), rows.avail)
        quantiles = self.mix(self.mixer, q, best, rows)
        return {
            "value": Inner(quantiles.mean(-1)),
            "value by risk": Inner(self.utilities(quantiles)),
            "quantiles of the return": Inner(quantiles, ("quantile",)),
        }


def quantile_losses(quantiles: Tensor, targets: Tensor, axis: str = "predicted") -> Tensor:
    """The losses of quantile regression with Huber's function (Dabney et al. 2018, eq. 10):
    sum over w of the mean over v of |tau_w - 1(d_vw <= 0)| huber(d_vw), d_vw = y_v - z_w, where
    tau_w = (w + 1/2) / W.

    Args:
        quantiles: z, [M, W], with gradient.
        targets: y, [M, V].
        axis: "target" has tau_v in place of tau_w, as RiskQ's public code; V is W then. It gives
            all quantiles the same loss.

    Returns:
        [M, 1].
    """
    d = targets.unsqueeze(1) - quantiles.unsqueeze(2)  # [M, W, V]
    w = quantiles.shape[-1]
    tau = (torch.arange(w, device=d.device) + 0.5) / w
    tau = tau.unsqueeze(1) if axis == "predicted" else tau
    huber = F.huber_loss(d, torch.zeros_like(d), reduction="none")
    return ((tau - (d <= 0).to(d)).abs() * huber).mean(-1).sum(-1, keepdim=True)

"""NDQ's losses: codes that tell the receiver what to do, and are short (Wang et al. 2020)."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from components.action_selectors import masked_argmax
from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk
from modules.comm.ndq import NDQAgent
from modules.layers import Linear
from utils.ranges import NOT_NEGATIVE


class NDQLoss(AuxiliaryLoss):
    """Expressiveness: a network infers the receiver's greedy action (under the target network) from
    its input and the codes to it. Compactness: the codes' distance from N(0, 1). Entropy: minus the
    log density of the codes under N(0, 1).

    Each is the sum over agents (and entries), mean over transitions.

    Args:
        mac: the learner's controller.
        args: `ndq_weight` (of all three), `ndq_beta` (of compactness), `ndq_entropy_weight`, and
            what `NDQAgent` reads.
    """

    needs = AuxiliaryLoss.needs | Needs(agent=NDQAgent)
    ranges: ClassVar = {
        "ndq_weight": NOT_NEGATIVE,
        "ndq_beta": NOT_NEGATIVE,
        "ndq_entropy_weight": NOT_NEGATIVE,
    }

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, args)
        size = args.n_agents * args.ndq_message_dim
        self.inference = nn.Sequential(
            Linear(mac.agent.n_inputs + size, 4 * size, rectify=True),
            Linear(4 * size, 4 * size, rectify=True),
            Linear(4 * size, args.n_actions),
        )
        self.modules = {"inference": self.inference}

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`expressiveness_loss`, `compactness_loss`, `entropy_loss`; see `AuxiliaryLoss.losses`."""
        return self.losses_about(rows, online, masked_argmax(target.q, rows.avail))

    def losses_about(self, rows: ReplayedSteps, online: Talk, best: Tensor) -> dict[str, Tensor]:
        """The same for codes that shall tell their receivers these actions, int64 [N, A]."""
        cur, args = rows.steps.cur, self.args
        best = best[cur]
        logits = self.inference(online.heard[cur])
        surprise = F.cross_entropy(logits.flatten(0, 1), best.flatten(), reduction="none")
        mean, code = online.said.seen["mean"][cur], online.said.messages[cur]
        # -log N(m; 0, 1) of every entry
        densities = 0.5 * code.pow(2) + 0.5 * math.log(2 * math.pi)
        losses = {
            "expressiveness_loss": (1.0, surprise.view_as(best)),
            "compactness_loss": (args.ndq_beta, 0.5 * mean.pow(2).flatten(1)),
            "entropy_loss": (args.ndq_entropy_weight, densities.flatten(1)),
        }
        return {
            name: args.ndq_weight * weight * rows.mean(loss.sum(-1, keepdim=True))
            for name, (weight, loss) in losses.items()
        }

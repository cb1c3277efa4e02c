"""T2MAC's loss: the selector learns which messages make their receiver more certain (Sun et al.
2024).
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk
from modules.comm.t2mac import T2MACAgent, fuse, uncertainty
from utils.ranges import NOT_NEGATIVE, PROBABILITY


class SelectorLoss(AuxiliaryLoss):
    """Binary cross entropy of the selector's links, all of them, sent or not.

    A link from i to j is worth it where fusing e_ij with e_j lowers the uncertainty of j by more
    than `t2mac_least_gain`.

    Args:
        mac: the learner's controller.
        args: `t2mac_least_gain`, `t2mac_selector_weight`.
    """

    needs = AuxiliaryLoss.needs | Needs(agent=T2MACAgent)
    ranges: ClassVar = {
        "t2mac_least_gain": PROBABILITY,
        "t2mac_selector_weight": NOT_NEGATIVE,
    }

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`selector_loss`; see `AuxiliaryLoss.losses`."""
        cur, seen = rows.steps.cur, online.said.seen
        worth = self.worth(seen["evidence"][cur].detach(), seen["told"][cur].detach())
        losses = F.binary_cross_entropy_with_logits(
            seen["logits"][cur], worth.float(), reduction="none"
        )
        n_agents = worth.shape[-1]
        others = 1 - torch.eye(n_agents, device=losses.device)
        pairs = max(n_agents * (n_agents - 1), 1)
        mean = (losses * others).sum((1, 2)).unsqueeze(-1) / pairs
        return {"selector_loss": self.args.t2mac_selector_weight * rows.mean(mean)}

    def worth(self, own: Tensor, told: Tensor) -> Tensor:
        """Which links are worth it: e_j [M, A, U], e_ij [M, A, A, U] -> bool [M, A, A]."""
        alone = own.unsqueeze(1).expand_as(told)
        with_message = fuse(torch.stack([alone, told]), dim=0)
        gain = uncertainty(alone) - uncertainty(with_message)
        return gain > self.args.t2mac_least_gain

"""The state, reconstructed from what the agents say: the loss of QMIX-Comm."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk
from modules.comm.latent import LatentAgent, StateDecoder


class StateLoss(AuxiliaryLoss):
    """Mean squared error of the state that a decoder makes of the latent (S2Q, section 4.3)."""

    needs = AuxiliaryLoss.needs | Needs(agent=LatentAgent)

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, args)
        self.decoder = StateDecoder(args)
        self.modules = {"decoder": self.decoder}

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`state_loss`; see `AuxiliaryLoss.losses`."""
        cur = rows.steps.cur
        errors = F.mse_loss(
            self.decoder.reconstruct(online.heard[cur]), rows.state[cur], reduction="none"
        )
        return {"state_loss": rows.mean(errors.mean(-1, keepdim=True))}

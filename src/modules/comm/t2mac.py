"""T2MAC: utilities as evidence, fused with that of teammates who have something to say (Sun et al.
2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.comm.agent import Remember, Said, TalksOfMemory
from modules.mixers.parts import hypernet
from utils.ranges import COUNT, PROBABILITY, Range


def uncertainty(evidence: Tensor) -> Tensor:
    """u = K / S of evidence e [..., K], where S is the sum of all e + 1: [...], 1 for none at all.

    The belief in each of the K choices is e / S; beliefs and u add up to 1.
    """
    n = evidence.shape[-1]
    return n / (evidence.sum(-1) + n)


def fuse(evidence: Tensor, dim: int) -> Tensor:
    """Dempster's rule of combination, of all the evidence [..., K] along an axis.

    For two sources with beliefs b, b' and uncertainties u, u' it gives beliefs in proportion to
    b b' + b u' + b' u and uncertainty in proportion to u u'. As b / u = e / K, one plus e / K is
    the product of those of the sources; no evidence, e = 0, changes nothing.
    """
    n = evidence.shape[-1]
    return n * torch.expm1(torch.log1p(evidence / n).sum(dim))


class T2MACAgent(TalksOfMemory):
    """Utilities are evidence, one's own and what teammates send.

    Agent i makes evidence e_ij >= 0 for the actions of each teammate j, and sends it where its
    selector finds it worth it. Agent j fuses what it gets with its own evidence e_j:
    Q_j = e_j + w (e*_j - e_j), with e*_j the evidence of all sources together.

    Args:
        input_shape: F.
        args: see `CommAgent`; `t2mac_hidden_dim`, `t2mac_fusion_weight` (w),
            `t2mac_send_probability` (of the selector, above which a message is sent).
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "t2mac_hidden_dim": COUNT,
        "t2mac_fusion_weight": PROBABILITY,
        "t2mac_send_probability": PROBABILITY,
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args)
        h, width = args.rnn_hidden_dim, args.t2mac_hidden_dim
        self.message = hypernet(h, width, args.n_agents * args.n_actions)
        self.selector = hypernet(h, width, args.n_agents)

    def evidence(self, hidden: Tensor) -> Tensor:
        """e_j, [N, A, H] -> [N, A, U]."""
        return F.softplus(self.head(hidden))

    def say(self, own: Tensor) -> Said:
        """Hidden states [N, A, H] -> evidence [N, A, A, U], zero where nothing is sent."""
        told = F.softplus(self.message(own)).unflatten(-1, (self.n_agents, -1))
        logits = self.selector(own.detach())
        itself = torch.eye(self.n_agents, dtype=torch.bool, device=own.device)
        links = (torch.sigmoid(logits) > self.args.t2mac_send_probability) & ~itself
        seen = {"told": told, "logits": logits, "links": links}
        return Said(told * links.unsqueeze(-1), seen)

    def hear(self, hidden: Tensor, said: Said, remember: Remember) -> tuple[Tensor, Tensor]:
        """Utilities [N, A, U], and all the evidence e* that the agents have."""
        own = self.evidence(hidden)
        together = fuse(torch.cat([own.unsqueeze(1), said.messages], dim=1), dim=1)
        said.seen["evidence"] = own
        return torch.lerp(own, together, self.args.t2mac_fusion_weight), together

    def numbers(self, said: Said) -> Tensor:
        """See `CommAgent.numbers`; links that are not selected send nothing."""
        return said.seen["links"].sum((1, 2)) * said.messages.shape[-1]

"""S2Q's decoder: from the latent to the state and to the choice of k."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from modules.comm.latent import StateDecoder
from modules.layers import Linear


class LatentDecoder(StateDecoder):
    """D: the latent to a reconstruction of the state and to the logits of a distribution over 0..K
    (S2Q, section 4.3).

    Args:
        args: see `StateDecoder`; `s2q_k` (K).
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__(args)
        self.choice = Linear(args.encoder_hidden_dim, args.s2q_k + 1)

    def choice_logits(self, z: Tensor) -> Tensor:
        """z [..., Z] -> logits [..., K + 1]."""
        return self.choice(self.features(z))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] -> (state [..., S], logits [..., K + 1])."""
        h = self.features(z)
        return self.state(h), self.choice(h)

"""S2Q's encoder and decoder: from what all agents remember to a latent, from it to the state and to
the choice of k.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import GRU, Linear
from modules.mixers.parts import state_size
from utils.ranges import COUNT, Range, check_ranges, one_of

if TYPE_CHECKING:
    from components.steps import Steps


class LatentEncoder(nn.Module):
    """E: the agents' hidden states, concatenated, to the latent z (S2Q, appendix C.1).

    `encoder_type: mlp` has two hidden ReLU layers; `rnn` a GRU layer before them.

    Args:
        n_in: entries of the concatenated hidden states, A * H.
        args: `encoder_type`, `encoder_hidden_dim`, `latent_dim` (Z).

    Raises:
        ConfigError: an unknown `encoder_type`, a size below 1.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "encoder_type": one_of("mlp", "rnn"),
        "encoder_hidden_dim": COUNT,
        "latent_dim": COUNT,
    }

    def __init__(self, n_in: int, args: SimpleNamespace) -> None:
        super().__init__()
        check_ranges(vars(args), self.ranges)
        width = args.encoder_hidden_dim
        self.rnn = GRU(n_in, width) if args.encoder_type == "rnn" else None
        self.net = nn.Sequential(
            Linear(n_in if self.rnn is None else width, width, rectify=True),
            nn.Identity(),  # the place of a ReLU, for the names in older model files
            Linear(width, width, rectify=True),
            nn.Identity(),
            Linear(width, args.latent_dim),
        )

    def init_hidden(self, batch_size: int) -> Tensor:
        """Its own memory before the first step: [B, `encoder_hidden_dim`], or [B, 0] for an mlp."""
        weight = next(self.net.parameters())
        return weight.new_zeros(batch_size, 0 if self.rnn is None else self.rnn.n_hidden)

    def step(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: x [B, n_in], hidden as from `init_hidden` -> (z [B, Z], hidden)."""
        if self.rnn is not None:
            x = hidden = self.rnn(x, hidden)
        return self.net(x), hidden

    def unroll(self, x: Tensor, steps: Steps) -> Tensor:
        """All filled steps: x [N, n_in] -> z [N, Z]."""
        return self.net(x if self.rnn is None else self.rnn.unroll(x, steps.sizes))


class LatentDecoder(nn.Module):
    """D: the latent to a reconstruction of the state and to the logits of a distribution over 0..K
    (S2Q, section 4.3).

    Args:
        args: `state_shape` (S), `latent_dim` (Z), `encoder_hidden_dim` (of the hidden layer),
            `s2q_k` (K).
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.hidden = Linear(args.latent_dim, args.encoder_hidden_dim)
        self.state = Linear(args.encoder_hidden_dim, state_size(args))
        self.choice = Linear(args.encoder_hidden_dim, args.s2q_k + 1)

    def choice_logits(self, z: Tensor) -> Tensor:
        """z [..., Z] -> logits [..., K + 1]."""
        return self.choice(F.relu(self.hidden(z)))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z [..., Z] -> (state [..., S], logits [..., K + 1])."""
        h = F.relu(self.hidden(z))
        return self.state(h), self.choice(h)

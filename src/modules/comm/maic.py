"""MAIC: agents that model their teammates and send them incentives (Yuan et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from modules.comm.agent import Remember, Said, TalksOfMemory, gaussian, leaky
from modules.layers import Linear
from utils.ranges import COUNT, POSITIVE, PROBABILITY, Range, one_of


class MAICAgent(TalksOfMemory):
    """Agent i models teammate j by a Gaussian latent z_ij, makes of it a message that is added to
    j's utilities, and weights its messages by attention: Q_j = q_j + sum over i of a_ij m_ij.

    In training z is sampled; in tests it is the mean, and weights below `maic_gate` / A are 0: that
    link is silent then.

    With `maic_speaker: sender` i makes the message of its own hidden state and sends a_ij m_ij, U
    numbers. With `receiver` it sends a_ij and z_ij, and j makes the message of its hidden state, as
    the authors' code does.

    Args:
        input_shape: F.
        args: see `CommAgent`; `maic_latent_dim` (D), `maic_hidden_dim`, `maic_attention_dim`,
            `maic_least_variance`, `maic_gate`, `maic_speaker`.
    """

    draws = True
    others: Tensor  # [A, A], 0 on the diagonal, else 1
    ranges: ClassVar[Mapping[str, Range]] = {
        "maic_latent_dim": COUNT,
        "maic_hidden_dim": COUNT,
        "maic_attention_dim": COUNT,
        "maic_least_variance": POSITIVE,
        "maic_gate": PROBABILITY,
        "maic_speaker": one_of("sender", "receiver"),
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args)
        h, d, width = args.rnn_hidden_dim, args.maic_latent_dim, args.maic_hidden_dim
        self.model = leaky(h, width, 2 * args.n_agents * d, norm=True)
        self.message = leaky(h + d, width, args.n_actions)
        self.query = Linear(h, args.maic_attention_dim)
        self.key = Linear(d, args.maic_attention_dim)
        others = 1 - torch.eye(args.n_agents)
        self.register_buffer("others", others, persistent=False)

    def weights(self, hidden: Tensor, z: Tensor) -> Tensor:
        """a_ij, the attention of i to its teammates: hidden [N, A, H], z [N, A, A, D] -> [N, A, A].

        The weights of each sender sum to 1; a_ii is 0.
        """
        queries, keys = self.query(hidden).unsqueeze(2), self.key(z)
        scores = (queries * keys).sum(-1) / math.sqrt(keys.shape[-1])
        return torch.softmax(scores.masked_fill(self.others == 0, -1e9), dim=-1) * self.others

    def say(self, own: Tensor) -> Said:
        """Hidden states [N, A, H] -> what is sent, [N, A, A, U or 1 + D]."""
        mean, std = (
            x.unflatten(-1, (self.n_agents, -1))
            for x in gaussian(self.model(own), self.args.maic_least_variance)
        )
        z = mean + std * torch.randn_like(std) if self.training else mean
        weights = self.weights(own, z)
        if not self.training:
            weights = weights * (weights >= self.args.maic_gate / self.n_agents)
        seen = {"mean": mean, "std": std, "z": z, "weights": weights}
        if self.args.maic_speaker == "receiver":
            return Said(torch.cat([weights.unsqueeze(-1), z], dim=-1), seen)
        speaking = own.unsqueeze(2).expand(-1, -1, self.n_agents, -1)
        return Said(weights.unsqueeze(-1) * self.message(torch.cat([speaking, z], dim=-1)), seen)

    def hear(self, hidden: Tensor, said: Said, remember: Remember) -> tuple[Tensor, Tensor]:
        """Utilities [N, A, U], and what the messages add to them."""
        told = said.messages
        if self.args.maic_speaker == "receiver":
            listening = hidden.unsqueeze(1).expand(-1, self.n_agents, -1, -1)
            told = told[..., :1] * self.message(torch.cat([listening, told[..., 1:]], dim=-1))
        # A message from an agent to itself has no weight.
        added = told.sum(1)
        return self.head(hidden) + added, added

    def numbers(self, said: Said) -> Tensor:
        """See `CommAgent.numbers`; silent links send nothing."""
        return (said.seen["weights"] != 0).sum((1, 2)) * said.messages.shape[-1]

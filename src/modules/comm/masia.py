"""MASIA: all messages aggregated into one representation, of which every agent takes its part (Guan
et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor

from modules.comm.agent import Remember, Said, TalksOfSight
from modules.layers import GRU, Linear
from utils.ranges import COUNT, Range


class MASIAAgent(TalksOfSight):
    """Everybody sends what it sees to everybody, and everybody encodes it all in the same way.

    The encoder: self-attention over the senders, then a GRU and a linear layer for each of them,
    whose outputs side by side are z. Agent i's recurrent network reads [embedding of o_i, w_i z,
    index of i] with a gate w_i = sigmoid(linear(x_i)). x_i is the agent's own input;
    its index is no part of the message, because who sent it is known.

    The hidden states of the encoder's GRU are those of all senders; every receiver holds all of
    them, and they are stored once, sender by sender.

    Args:
        input_shape: F.
        args: see `CommAgent`; `masia_latent_dim` (of each sender's part of z),
            `masia_attention_dim`, `masia_encoder_dim`, `masia_obs_dim`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "masia_latent_dim": COUNT,
        "masia_attention_dim": COUNT,
        "masia_encoder_dim": COUNT,
        "masia_obs_dim": COUNT,
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        self.latent_size = args.n_agents * args.masia_latent_dim
        n_index = args.n_agents * args.obs_agent_id
        super().__init__(
            input_shape,
            args,
            n_read=args.masia_obs_dim + self.latent_size + n_index,
            n_remembered=args.masia_encoder_dim,
        )
        self.n_sent = input_shape - n_index
        self.query = Linear(input_shape, args.masia_attention_dim)
        self.key = Linear(input_shape, args.masia_attention_dim)
        self.value = Linear(input_shape, args.masia_encoder_dim)
        self.encoder_rnn = GRU(args.masia_encoder_dim, args.masia_encoder_dim)
        self.latent = Linear(args.masia_encoder_dim, args.masia_latent_dim)
        self.gate = Linear(input_shape, self.latent_size)
        self.embedding = Linear(self.n_sent, args.masia_obs_dim)

    def say(self, own: Tensor) -> Said:
        """What the agents see, [N, A, 1, F less the index]."""
        return Said(own[..., : self.n_sent].unsqueeze(2))

    def hear(self, inputs: Tensor, said: Said, remember: Remember) -> Tensor:
        """[N, A, F']; z [N, A * `masia_latent_dim`] is left in `said.seen`."""
        index = inputs[..., self.n_sent :]  # the same in every row, known to all
        z = self.aggregate(torch.cat([said.messages.squeeze(2), index], dim=-1), remember)
        said.seen["z"] = z
        part = torch.sigmoid(self.gate(inputs)) * z.unsqueeze(1)
        return torch.cat([self.embedding(inputs[..., : self.n_sent]), part, index], dim=-1)

    def aggregate(self, x: Tensor, remember: Remember) -> Tensor:
        """x_1..x_A [N, A, F] -> z [N, A * `masia_latent_dim`]."""
        queries, keys = self.query(x), self.key(x)
        attention = torch.softmax(queries @ keys.mT / math.sqrt(keys.shape[-1]), dim=-1)
        attended = attention @ self.value(x)
        return self.latent(remember(self.encoder_rnn, attended.flatten(0, 1))).view(len(x), -1)

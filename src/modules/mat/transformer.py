"""The multi-agent transformer: an encoder of all observations, a decoder of one action after the
other.

"MAT" is the paper "Multi-Agent Reinforcement Learning is a Sequence Modeling Problem" (Wen et al.,
NeurIPS 2022). The sequence are the agents of one time step, in their order; there is no memory of
earlier steps. D is `mat_embed_dim`.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.ranges import COUNT, Range, check_ranges
from utils.th_utils import orthogonal_init_

RANGES: dict[str, Range] = {"mat_embed_dim": COUNT, "mat_heads": COUNT, "mat_blocks": COUNT}
SMALL, RECTIFIED = 0.01, math.sqrt(2)  # scales of orthogonal weights, the latter before a GELU


def _linear(n_in: int, n_out: int, gain: float = SMALL, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    orthogonal_init_(layer, gain)
    return layer


def _two_layers(width: int, n_out: int, norm: bool) -> nn.Sequential:
    first = [_linear(width, width, RECTIFIED), nn.GELU(), *([nn.LayerNorm(width)] if norm else [])]
    return nn.Sequential(*first, _linear(width, n_out))


class Encoded(NamedTuple):
    """What the encoder makes of N rows of observations."""

    reps: Tensor  # [N, A, D]
    values: Tensor  # [N, A], V(o_1, ..., o_n) as agent i's place in the sequence tells it


class Attention(nn.Module):
    """Scaled dot-product attention with `heads` heads and a layer behind them.

    Args:
        width: D.
        causal: agent i attends to the agents 0 to i alone.
    """

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (_linear(width, width) for _ in range(4))

    def forward(self, query: Tensor, source: Tensor) -> Tensor:
        """Queries [N, a, D] of a sequence [N, a, D] -> [N, a, D]."""

        def by_head(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = map(by_head, (self.query(query), self.key(source), self.value(source)))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Attention to all agents, then two layers; a residual and a LayerNorm after each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads, causal=False)
        self.layers = _two_layers(width, width, norm=False)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, A, D] -> [N, A, D]."""
        x = self.norm1(x + self.attention(x, x))
        return self.norm2(x + self.layers(x))


class DecoderBlock(nn.Module):
    """Attention to the earlier agents' actions, then of an agent's encoding to what that gives,
    then two layers.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.among_actions = Attention(width, heads, causal=True)
        self.from_reps = Attention(width, heads, causal=True)
        self.layers = _two_layers(width, width, norm=False)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, x: Tensor, reps: Tensor) -> Tensor:
        """[N, a, D], [N, a, D] -> [N, a, D]."""
        x = self.norm1(x + self.among_actions(x, x))
        x = self.norm2(reps + self.from_reps(reps, x))
        return self.norm3(x + self.layers(x))


class MATAgent(nn.Module):
    """The transformer of all agents: `mat`.

    What it puts out for agent i depends on the observations of all agents and on the actions of
    the agents 0 to i - 1: acting is centralised.

    Args:
        input_shape: F, entries of an agent's input.
        args: `n_actions`, `continuous_actions`, `mat_embed_dim`, `mat_heads`, `mat_blocks`.

    Raises:
        ConfigError: a size below 1, or heads that do not divide the width.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        check_ranges(vars(args), RANGES)
        width, heads = args.mat_embed_dim, args.mat_heads
        if width % heads:
            raise ConfigError(f"mat_heads ({heads}) must divide mat_embed_dim ({width})")
        self.n_actions, self.continuous = args.n_actions, args.continuous_actions
        self.observe = nn.Sequential(
            nn.LayerNorm(input_shape),
            _linear(input_shape, width, RECTIFIED),
            nn.GELU(),
            nn.LayerNorm(width),
        )
        self.encoder = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(args.mat_blocks)))
        self.value = _two_layers(width, 1, norm=True)
        # The first input says "nobody has acted yet".
        self.embed = nn.Sequential(
            _linear(args.n_actions + 1, width, RECTIFIED, bias=False),
            nn.GELU(),
            nn.LayerNorm(width),
        )
        self.decoder = nn.ModuleList(DecoderBlock(width, heads) for _ in range(args.mat_blocks))
        n_out = 2 * args.n_actions if args.continuous_actions else args.n_actions
        self.head = _two_layers(width, n_out, norm=True)

    def encode(self, inputs: Tensor) -> Encoded:
        """Inputs of all agents [N, A, F]."""
        reps = self.encoder(self.observe(inputs))
        return Encoded(reps, self.value(reps).squeeze(-1))

    def decode(self, reps: Tensor, actions: Tensor) -> Tensor:
        """What stands for the policies of the first a agents.

        Args:
            reps: [N, a, D], of these agents.
            actions: int64 [N, a - 1 or more], or continuous ones [N, a - 1 or more, U]; those of
                agent a - 1 and of later agents are not read.

        Returns:
            [N, a, U], or [N, a, 2U].
        """
        earlier = actions[:, : reps.shape[1] - 1]
        if not self.continuous:
            earlier = F.one_hot(earlier, self.n_actions).to(reps)
        # [N, a, 1 + U]: the start, then the actions one place later.
        start = torch.zeros_like(reps[:, :1, :1]) + 1.0
        x = self.embed(
            F.pad(start, (0, self.n_actions, 0, earlier.shape[1])) + F.pad(earlier, (1, 0, 1, 0))
        )
        for block in self.decoder:
            x = block(x, reps)
        return self.head(x)

    def init_hidden(self) -> Tensor:
        """[1, 0]: there is no memory."""
        return next(self.parameters()).new_zeros(1, 0)

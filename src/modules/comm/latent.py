"""A latent that every agent computes of what all of them remember, and what it is read with.

S2Q, S2Q-Comm and QMIX-Comm share it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.comm.agent import Remember, Said, TalksOfMemory
from modules.layers import GRU, Linear, StackedLinear, linear
from modules.mixers.parts import state_size
from utils.ranges import COUNT, Range, check_ranges, one_of

if TYPE_CHECKING:
    from components.steps import Steps

MERGES = one_of("concat", "add")


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


class StateDecoder(nn.Module):
    """The latent to a reconstruction of the state.

    Args:
        args: `state_shape` (S), `latent_dim` (Z), `encoder_hidden_dim` (of the hidden layer).
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.hidden = Linear(args.latent_dim, args.encoder_hidden_dim)
        self.state = Linear(args.encoder_hidden_dim, state_size(args))

    def features(self, z: Tensor) -> Tensor:
        """z [..., Z] -> the hidden layer [..., `encoder_hidden_dim`]."""
        return F.relu(self.hidden(z))

    def reconstruct(self, z: Tensor) -> Tensor:
        """z [..., Z] -> state [..., S]."""
        return self.state(self.features(z))


class ReadsLatent:
    """An agent network whose last layer reads a latent beside the recurrent layer's output.

    Attributes:
        merge: `concat` (the latent is concatenated to the output) or `add` (mapped to its size and
            added).
    """

    merge: str
    hidden_dim: int
    groups: int
    fc2: Linear | StackedLinear

    def build_head(self, args: SimpleNamespace, merge: str) -> None:
        """Layers for a latent of `args.latent_dim` entries, in place of a head without one."""
        self.merge = merge
        if merge == "concat":
            n_in = self.hidden_dim + args.latent_dim
            self.fc2 = linear(n_in, args.n_actions, self.groups, head=True)
        else:
            self.fc_message = linear(args.latent_dim, self.hidden_dim, self.groups)

    def head_of_rows(self, rows: Tensor, z: Tensor) -> Tensor:
        """Utilities of rows [..., R, H] that hear z [..., R, Z] or [R, Z]."""
        if self.merge == "concat":
            rows = torch.cat([rows, z.expand(*rows.shape[:-1], -1)], dim=-1)
        else:
            rows = rows + self.fc_message(z)
        return self.fc2(rows)


class LatentAgent(ReadsLatent, TalksOfMemory):
    """The agents of QMIX-Comm: everybody sends its hidden state, everybody encodes all of them.

    It is S2Q-Comm's channel with one value function: the
    hidden states are detached, so that no gradient of the latent reaches the recurrent layers.

    Args:
        input_shape: F.
        args: see `CommAgent`; `comm_merge`, and what `LatentEncoder` reads.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"comm_merge": MERGES, **LatentEncoder.ranges}

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(
            input_shape,
            args,
            n_remembered=args.encoder_hidden_dim * (args.encoder_type == "rnn"),
        )
        self.build_head(args, args.comm_merge)
        self.encoder = LatentEncoder(args.n_agents * args.rnn_hidden_dim, args)

    def say(self, own: Tensor) -> Said:
        """Hidden states [N, A, H] -> themselves, [N, A, 1, H]."""
        return Said(own.detach().unsqueeze(2))

    def hear(self, hidden: Tensor, said: Said, remember: Remember) -> tuple[Tensor, Tensor]:
        """Utilities [N, A, U] and the latent [N, Z]."""
        x = said.messages.flatten(1)
        z = self.encoder.net(x if self.encoder.rnn is None else remember(self.encoder.rnn, x))
        to_each = z.unsqueeze(1).expand(-1, self.n_agents, -1)
        return self.from_rows(self.head_of_rows(self.to_rows(hidden), self.to_rows(to_each))), z

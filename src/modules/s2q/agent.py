"""The agent networks of S2Q: K + 1 of them side by side, all reading the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

from torch import Tensor

from modules.comm.latent import MERGES, ReadsLatent
from modules.recurrent import Agent, RNNAgent
from utils.ranges import NOT_NEGATIVE, Range, check_ranges


class _Stacked(Agent):
    """Layout of K + 1 agent networks computed as one: a leading axis [K + 1], K = `args.s2q_k`.

    With `share_params: False` every agent has weights of its own in every one of them.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args)
        self.n_values = args.s2q_k + 1
        self._shared = args.share_params
        self.groups *= self.n_values

    def to_rows(self, x: Tensor) -> Tensor:
        """[K + 1, N, A, F], or [N, A, F] that all of them read -> what the layers take (see
        `modules.layers`).
        """
        if self._shared:
            rows = x.flatten(-3, -2)
            return rows.squeeze(0) if x.dim() == 4 and self.n_values == 1 else rows
        rows = x.transpose(-3, -2)
        return (rows if x.dim() == 4 else rows.expand(self.n_values, *rows.shape)).flatten(0, 1)

    def from_rows(self, x: Tensor) -> Tensor:
        """Inverse of `to_rows`: -> [K + 1, N, A, F]."""
        if self._shared:
            return x.reshape(self.n_values, -1, self.n_agents, x.shape[-1])
        return x.unflatten(0, (self.n_values, self.n_agents)).transpose(1, 2)

    def row_sizes(self, sizes: list[int]) -> list[int]:
        """Rows per time step in the layout of `to_rows`."""
        return [n * self.n_agents for n in sizes] if self._shared else sizes


class S2QAgent(ReadsLatent, RNNAgent, _Stacked):
    """Utilities of the K + 1 sub-value functions of S2Q, each fc1 - ReLU - GRU - fc2.

    With `args.s2q_comm` the head also reads a message z that is the same for all agents:
    concatenated to the GRU's output (`s2q_comm_merge: concat`), or mapped to its size and added to
    it (`add`).

    Args:
        input_shape: F.
        args: `n_agents`, `n_actions`, `rnn_hidden_dim`, `share_params`, `s2q_k`, `s2q_comm`,
            `s2q_comm_merge`, `latent_dim`.

    Raises:
        ConfigError: an unknown `s2q_comm_merge`, a negative `s2q_k`.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "s2q_k": NOT_NEGATIVE,
        "s2q_comm_merge": MERGES,
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        check_ranges(vars(args), self.ranges)
        super().__init__(input_shape, args)
        self.comm = args.s2q_comm
        if self.comm:
            self.build_head(args, args.s2q_comm_merge)

    def init_hidden(self) -> Tensor:
        """Hidden states before the first step, [K + 1, H]."""
        return self.fc1.weight.new_zeros(self.n_values, self.hidden_dim)

    def step_hidden(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """One time step: inputs [B, A, F], hidden [K + 1, B, A, H] -> hidden [K + 1, B, A, H]."""
        x = self.fc1(self.to_rows(inputs))
        return self.from_rows(self.rnn(x, self.to_rows(hidden)))

    def head(self, hidden: Tensor, message: Tensor | None = None) -> Tensor:
        """Utilities.

        Args:
            hidden: [K + 1, N, A, H].
            message: z [N, Z], read with `s2q_comm` only.

        Returns:
            [K + 1, N, A, U].
        """
        rows = self.to_rows(hidden)
        if not self.comm:
            return self.from_rows(self.fc2(rows))
        assert message is not None
        z = self.to_rows(message.unsqueeze(1).expand(-1, self.n_agents, -1))
        return self.from_rows(self.head_of_rows(rows, z))

    def step(
        self, inputs: Tensor, hidden: Tensor, message: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs [B, A, F], hidden [K + 1, B, A, H] -> (utilities [K + 1, B, A, U], hidden [K + 1,
        B, A, H]).
        """
        hidden = self.step_hidden(inputs, hidden)
        return self.head(hidden, message), hidden

    def forward(
        self, inputs: Tensor, hidden_state: Tensor, message: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The same as `step`."""
        return self.step(inputs, hidden_state, message)

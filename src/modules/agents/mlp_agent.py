"""A feed-forward agent for tasks without a history."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor

from modules.layers import linear
from modules.recurrent import Agent

if TYPE_CHECKING:
    from components.steps import Steps


class MLPAgent(Agent):
    """fc1 - ReLU - fc2 - ReLU - fc3; same interface as `RNNAgent`, its hidden state is passed
    through unchanged.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace, n_out: int | None = None) -> None:
        super().__init__(input_shape, args)
        self.fc1 = linear(input_shape, self.hidden_dim, self.groups, rectify=True)
        self.fc2 = linear(self.hidden_dim, self.hidden_dim, self.groups, rectify=True)
        n_out = args.n_actions if n_out is None else n_out
        self.fc3 = linear(self.hidden_dim, n_out, self.groups, head=True)

    def init_hidden(self) -> Tensor:
        """[1, H]; never used by the network."""
        return self.fc1.weight.new_zeros(1, self.hidden_dim)

    def unroll_hidden(self, inputs: Tensor, steps: Steps | None = None) -> Tensor:
        """Inputs [N, A, F] -> features before the head [N, A, H]."""
        return self.from_rows(self.fc2(self.fc1(self.to_rows(inputs))))

    def head(self, features: Tensor) -> Tensor:
        """[N, A, H] -> [N, A, U]."""
        return self.from_rows(self.fc3(self.to_rows(features)))

    def unroll(self, inputs: Tensor, steps: Steps | None = None) -> Tensor:
        """Inputs [N, A, F] -> outputs [N, A, U]; every step by itself."""
        return self.head(self.unroll_hidden(inputs))

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, A, F] -> (outputs [B, A, U], hidden unchanged)."""
        return self.unroll(inputs), hidden

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL's step: inputs [B * A, F] -> ([B * A, U], hidden unchanged)."""
        out = self.unroll(inputs.reshape(-1, self.n_agents, inputs.shape[-1]))
        return out.reshape(-1, out.shape[-1]), hidden_state

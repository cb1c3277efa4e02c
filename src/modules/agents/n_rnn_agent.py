"""PyMARL2's variant of the recurrent agent."""

from __future__ import annotations

from torch import Tensor

from modules.recurrent import RNNAgent


class NRNNAgent(RNNAgent):
    """`RNNAgent` whose `forward` keeps the agent axis."""

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL2's step: inputs [B, A, F], hidden [B, A, H] -> ([B, A, U], [B, A, H])."""
        return self.step(inputs, hidden_state.reshape(*inputs.shape[:2], -1))

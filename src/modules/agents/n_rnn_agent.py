"""PyMARL2's variant of the recurrent agent."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor

from modules.layers import layer_norm
from modules.recurrent import RNNAgent
from utils.th_utils import orthogonal_init_


class NRNNAgent(RNNAgent):
    """`RNNAgent` whose `forward` keeps the agent axis, with PyMARL2's two options.

    Args:
        input_shape: F.
        args: see `Agent`; `use_layer_norm` (what the last layer reads is normalised),
            `use_orthogonal` (both linear layers begin orthogonal, the last one scaled by `gain`).
        n_out: outputs per agent; the number of actions unless given.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace, n_out: int | None = None) -> None:
        super().__init__(input_shape, args, n_out)
        self.layer_norm = layer_norm(self.hidden_dim, self.groups) if args.use_layer_norm else None
        if args.use_orthogonal:
            orthogonal_init_(self.fc1)
            orthogonal_init_(self.fc2, gain=args.gain)

    def outputs(self, hidden: Tensor) -> Tensor:
        return self.fc2(hidden if self.layer_norm is None else self.layer_norm(hidden))

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL2's step: inputs [B, A, F], hidden [B, A, H] -> ([B, A, U], [B, A, H])."""
        return self.step(inputs, hidden_state.reshape(*inputs.shape[:2], -1))

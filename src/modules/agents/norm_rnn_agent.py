"""A recurrent agent with layer normalisation."""

from __future__ import annotations

import math
from types import SimpleNamespace

from torch import Tensor

from modules.layers import NormedLayers, layer_norm
from modules.recurrent import RNNAgent
from utils.th_utils import orthogonal_init_


class NormRNNAgent(RNNAgent):
    """Linear layers with layer norm and ReLU, a GRU layer, a linear layer: `norm_rnn`.

    The network of PQN (Gallici et al. 2024) has the norm before the ReLU, that of the public MAPPO
    (Yu et al. 2022) has it behind the ReLU, on the inputs and behind the GRU.

    Args:
        input_shape: F.
        args: see `Agent`; `norm_layers` (linear layers before the GRU), `norm_place`,
            `norm_inputs`, `norm_memory` (what the last layer reads is normalised), `use_orthogonal`
            (all layers begin with orthogonal weights and zero biases, the last one scaled by
            `gain`).
        n_out: outputs per agent; the number of actions unless given.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace, n_out: int | None = None) -> None:
        super().__init__(input_shape, args, n_out)
        layers = NormedLayers(
            input_shape, self.hidden_dim, args.norm_layers, self.groups, args.norm_place,
            args.norm_inputs,
        )  # fmt: skip
        self.fc1 = layers  # type: ignore[assignment]  # in place of one layer
        self.layer_norm = layer_norm(self.hidden_dim, self.groups) if args.norm_memory else None
        if args.use_orthogonal:
            for layer in layers.layers:
                orthogonal_init_(layer, gain=math.sqrt(2))  # that of a ReLU
            self.rnn.init_orthogonal_()
            orthogonal_init_(self.fc2, gain=args.gain)

    def init_hidden(self) -> Tensor:
        """The hidden state before the first step, [1, H]."""
        return self.fc2.weight.new_zeros(1, self.hidden_dim)

    def outputs(self, hidden: Tensor) -> Tensor:
        return self.fc2(hidden if self.layer_norm is None else self.layer_norm(hidden))

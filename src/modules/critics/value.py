"""State-value critics of PPO: from what they read at N steps to normalised values.

All are built as `Critic(input_shape, args)`, where `input_shape` is F, the entries of an agent's
input, and called as `critic(state [N, S], inputs [N, A, F], steps)` -> [N, n_values].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from modules.layers import GRU, NormedLayers, layer_norm, linear
from modules.recurrent import Agent
from utils.th_utils import orthogonal_init_

if TYPE_CHECKING:
    from components.steps import Steps


class ValueLayers:
    """The layers that the critics below have in common, for a module to have.

    Two linear layers with ReLU, or one and a GRU layer, before the head. With `critic_layer_norm`
    the public MAPPO's: layer norm of the inputs, two linear layers with ReLU and layer norm behind
    it, with `critic_recurrent` a GRU layer with layer norm behind it, too.
    """

    def add_layers(self, n_in: int, n_out: int, args: SimpleNamespace, groups: int = 1) -> None:
        """Adds layers from n_in entries to n_out values.

        Args:
            args: `critic_hidden_dim`, `critic_recurrent`, `critic_layer_norm`, `use_orthogonal`
                (all layers begin with orthogonal weights and zero biases).
            groups: independent sets of layers.
        """
        hidden, self.recurrent = args.critic_hidden_dim, args.critic_recurrent
        normed = args.critic_layer_norm
        self.fc1: nn.Module = (
            NormedLayers(n_in, hidden, 2, groups, "after", norm_inputs=True)
            if normed
            else linear(n_in, hidden, groups)
        )
        if self.recurrent:
            self.rnn = GRU(hidden, hidden, groups)
        elif not normed:
            self.fc2 = linear(hidden, hidden, groups)
        self.normed = normed
        self.fc3 = linear(hidden, n_out, groups)
        if normed and self.recurrent:
            self.memory_norm = layer_norm(hidden, groups)
        if args.use_orthogonal:
            first = self.fc1.layers if isinstance(self.fc1, NormedLayers) else [self.fc1]
            for layer in [*first, *([] if self.recurrent or normed else [self.fc2])]:
                orthogonal_init_(layer, gain=math.sqrt(2))  # that of a ReLU
            orthogonal_init_(self.fc3)
            if self.recurrent:
                self.rnn.init_orthogonal_()

    def values(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """[(G,) R, n_in] -> [(G,) R, n_out]; `sizes` are the rows of every step."""
        x = self.fc1(x) if self.normed else F.relu(self.fc1(x))
        if self.recurrent:
            x = self.rnn.unroll(x, sizes)
            x = self.memory_norm(x) if self.normed else x
        elif not self.normed:
            x = F.relu(self.fc2(x))
        return self.fc3(x)


class StateCritic(nn.Module, ValueLayers):
    """V(s), the central critic of MAPPO (Yu et al. 2022).

    Args:
        input_shape: not read.
        args: `state_shape`, those of `ValueLayers.add_layers`, `common_reward` (False: one value
            for each agent), `n_agents`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_values = 1 if args.common_reward else args.n_agents
        self.add_layers(args.state_shape, self.n_values, args)

    def forward(self, state: Tensor, inputs: Tensor, steps: Steps) -> Tensor:
        """[N, 1] with a common reward, else [N, A]."""
        return self.values(state, steps.sizes)


class ObservationCritic(Agent, ValueLayers):
    """V_i of what agent i has seen, the critic of IPPO (de Witt et al. 2020), recurrent as the
    policy may be.

    Args:
        input_shape: F.
        args: those of `ValueLayers.add_layers`, `share_params` (one critic for all agents),
            `n_agents`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__(input_shape, args)
        self.n_values = args.n_agents
        self.add_layers(input_shape, 1, args, self.groups)

    def forward(self, state: Tensor, inputs: Tensor, steps: Steps) -> Tensor:
        """[N, A]."""
        values = self.values(self.to_rows(inputs), self.row_sizes(steps.sizes))
        return self.from_rows(values).squeeze(-1)

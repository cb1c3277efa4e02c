"""The agent network of DAC: action values for every context."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from modules.layers import StackedLinear
from modules.recurrent import RNNAgent
from utils.ranges import COUNT, Range, check_ranges, one_of

if TYPE_CHECKING:
    from components.steps import Steps


class NormalHead(nn.Module):
    """One linear layer on [features, context], with weights for each agent (DAC, Fig. 4b)."""

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_features = args.rnn_hidden_dim
        self.fc = StackedLinear(
            args.rnn_hidden_dim + args.dac_m, args.n_actions, args.n_agents, head=True
        )

    def forward(self, features: Tensor) -> Tensor:
        """Values in all contexts: features [A, N, H] -> [A, N, m, U]."""
        values, by_context = self._parts(features)
        return values.unsqueeze(2) + by_context.unsqueeze(1)

    def given(self, features: Tensor, contexts: Tensor) -> Tensor:
        """Values in one context each: features [A, N, H], contexts [A, N, m] -> [A, N, U]."""
        values, by_context = self._parts(features)
        return torch.baddbmm(values, contexts, by_context)

    def _parts(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """What the features add [A, N, U] and what every context adds [A, m, U]."""
        weight = self.fc.weight
        by_features, by_context = weight.split(
            [self.n_features, weight.shape[-1] - self.n_features], dim=-1
        )
        return torch.baddbmm(self.fc.bias.unsqueeze(1), features, by_features.mT), by_context.mT


class HyperHead(nn.Module):
    """A linear layer whose weights and bias two hypernetworks make from the context, for each agent
    (DAC, Fig. 4c).

    The hypernetworks are linear: from a one-hot context they can make any weights. They are
    initialised so that the layer starts in the range of an `nn.Linear`.
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        n_features, n_actions = args.rnn_hidden_dim, args.n_actions
        self.n_actions = n_actions
        self.hyper_w = StackedLinear(args.dac_m, n_actions * n_features, args.n_agents)
        self.hyper_b = StackedLinear(args.dac_m, n_actions, args.n_agents, head=True)
        # Weights and biases of a hypernetwork add up: each has half of the range.
        bound = 0.5 / math.sqrt(n_features)
        for param in self.parameters():
            nn.init.uniform_(param, -bound, bound)

    def forward(self, features: Tensor) -> Tensor:
        """Values in all contexts: features [A, N, H] -> [A, N, m, U]."""
        # Row c of the transposed weights is what the one-hot context c makes of them.
        weights = self.hyper_w.weight.mT + self.hyper_w.bias.unsqueeze(1)
        biases = self.hyper_b.weight.mT + self.hyper_b.bias.unsqueeze(1)
        n_agents, n_rows, n_features = features.shape
        weights = weights.reshape(n_agents, -1, n_features)
        values = torch.baddbmm(biases.reshape(n_agents, 1, -1), features, weights.mT)
        return values.view(n_agents, n_rows, -1, self.n_actions)

    def given(self, features: Tensor, contexts: Tensor) -> Tensor:
        """Values in one context each: features [A, N, H], contexts [A, N, m] -> [A, N, U]."""
        return (self(features) * contexts.unsqueeze(-1)).sum(2)


HEADS = {"normal_net": NormalHead, "hyper_net": HyperHead}


class DACAgent(RNNAgent):
    """Q(s, a, c) of DAC: fc1 - ReLU - GRU - fc2 - head (appendix C.1), every agent with weights of
    its own.

    The contexts enter at the head, so that all before it is computed once for all of them.

    Args:
        input_shape: F.
        args: `n_agents` (A), `n_actions` (U), `rnn_hidden_dim` (H), `share_params` (False), `dac_m`
            (m), `dac_head` ("normal_net" or "hyper_net").

    Raises:
        ConfigError: an unknown head, less than one context.
    """

    ranges: ClassVar[Mapping[str, Range]] = {"dac_m": COUNT, "dac_head": one_of(*HEADS)}

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        check_ranges(vars(args), self.ranges)
        super().__init__(input_shape, args, n_out=args.rnn_hidden_dim)
        self.q_head = HEADS[args.dac_head](args)

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs [B, A, F], hidden [B, A, H] -> (values in all contexts [B, A, m, U], hidden [B, A,
        H]).
        """
        features, hidden = super().step(inputs, hidden)
        return self.q_head(features.transpose(0, 1)).transpose(0, 1), hidden

    def unroll_features(self, inputs: Tensor, steps: Steps) -> Tensor:
        """What the head reads at all filled steps: inputs [N, A, F] -> [A, N, H]."""
        return super().head(self.unroll_hidden(inputs, steps)).transpose(0, 1)

    def unroll(self, inputs: Tensor, steps: Steps) -> Tensor:
        """Inputs [N, A, F] -> values in all contexts [N, A, m, U]."""
        return self.q_head(self.unroll_features(inputs, steps)).transpose(0, 1)

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """The same as `step`."""
        return self.step(inputs, hidden_state)

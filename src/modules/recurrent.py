"""PyMARL's recurrent agent, and what all agent networks share.

It lies outside `modules.agents` because the networks of single families build on it, and that
package on them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor, nn

from modules.layers import GRU, linear

if TYPE_CHECKING:
    from components.steps import Steps


class Agent(nn.Module):
    """Base of the agent networks.

    With `args.share_params` all agents use the same weights; otherwise every agent has its own,
    computed side by side as batched products. Subclasses build their layers with `modules.layers`
    and `self.groups`.

    Args:
        input_shape: F, entries of one agent's input.
        args: `n_agents`, `n_actions`, `rnn_hidden_dim`, `share_params`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        super().__init__()
        self.args = args
        self.n_agents = args.n_agents
        self.hidden_dim = args.rnn_hidden_dim
        self.groups = 1 if args.share_params else args.n_agents

    def to_rows(self, x: Tensor) -> Tensor:
        """[N, A, F] -> what the layers take: [N * A, F] with shared weights, else [A, N, F]."""
        return x.flatten(0, 1) if self.groups == 1 else x.transpose(0, 1)

    def from_rows(self, x: Tensor) -> Tensor:
        """Inverse of `to_rows`: -> [N, A, F]."""
        return x.view(-1, self.n_agents, x.shape[-1]) if self.groups == 1 else x.transpose(0, 1)

    def row_sizes(self, sizes: list[int]) -> list[int]:
        """Rows per time step in the layout of `to_rows`."""
        return [n * self.n_agents for n in sizes] if self.groups == 1 else sizes


class RNNAgent(Agent):
    """fc1 - ReLU - GRU - fc2, with PyMARL's parameter names.

    Args:
        input_shape: F.
        args: see `Agent`.
        n_out: outputs per agent; the number of actions unless given.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace, n_out: int | None = None) -> None:
        super().__init__(input_shape, args)
        self.fc1 = linear(input_shape, self.hidden_dim, self.groups, rectify=True)
        self.rnn = GRU(self.hidden_dim, self.hidden_dim, self.groups)
        n_out = args.n_actions if n_out is None else n_out
        self.fc2 = linear(self.hidden_dim, n_out, self.groups, head=True)

    def init_hidden(self) -> Tensor:
        """The hidden state before the first step, [1, H]."""
        return self.fc1.weight.new_zeros(1, self.hidden_dim)

    def step(self, inputs: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """One time step: inputs [B, A, F], hidden [B, A, H] -> (outputs [B, A, U], hidden [B, A,
        H]).
        """
        x = self.fc1(self.to_rows(inputs))
        h = self.rnn(x, self.to_rows(hidden))
        return self.from_rows(self.outputs(h)), self.from_rows(h)

    def outputs(self, hidden: Tensor) -> Tensor:
        """The last layer, on hidden states in the layout of `to_rows`."""
        return self.fc2(hidden)

    def unroll_hidden(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All filled steps: inputs [N, A, F] -> hidden states [N, A, H]."""
        x = self.fc1(self.to_rows(inputs))
        return self.from_rows(self.rnn.unroll(x, self.row_sizes(steps.sizes)))

    def head(self, hidden: Tensor) -> Tensor:
        """[N, A, H] -> [N, A, U]."""
        return self.from_rows(self.outputs(self.to_rows(hidden)))

    def unroll(self, inputs: Tensor, steps: Steps) -> Tensor:
        """All filled steps: inputs [N, A, F] -> outputs [N, A, U]."""
        return self.head(self.unroll_hidden(inputs, steps))

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        """PyMARL's step: inputs [B * A, F], hidden [B, A, H] or [B * A, H] -> ([B * A, U], [B * A,
        H]).
        """
        inputs = inputs.reshape(-1, self.n_agents, inputs.shape[-1])
        out, h = self.step(inputs, hidden_state.reshape(*inputs.shape[:2], -1))
        return out.reshape(-1, out.shape[-1]), h.reshape(-1, h.shape[-1])

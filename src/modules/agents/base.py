"""What all agent networks share: the layout of their inputs and the choice of shared or own weights."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn


class Agent(nn.Module):
    """Base of the agent networks.

    With `args.share_params` all agents use the same weights; otherwise every agent has its own, computed side by side
    as batched products. Subclasses build their layers with `modules.layers` and `self.groups`.

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

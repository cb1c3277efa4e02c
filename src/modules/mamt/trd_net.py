"""The trust-region decomposition network (TRD-Net)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.kernels.linear import affine
from modules.layers import Linear, StackedBatchNorm, StackedLinear

WIDTH = 128  # of the embeddings
SMALL_WIDTH = 32  # of the embeddings of action and trust region


class TRDNet(nn.Module):
    """Estimates the divergence of consecutive joint policies from the local trust regions (MAMT,
    figures 1 and 11).

    Every agent is a node, the coordination coefficients are the weights of the edges. Observation
    and action go through layers of the agent's own, for they may differ in size and meaning; all
    else is shared.

    Args:
        obs_sizes, action_sizes: of every agent; the padding behind them is not read.
        n_actions: U, entries of an action with padding.
        convolutions: rounds of message passing.
    """

    def __init__(
        self,
        obs_sizes: Sequence[int],
        action_sizes: Sequence[int],
        n_actions: int,
        convolutions: int = 2,
    ) -> None:
        super().__init__()
        n = len(obs_sizes)
        self.obs = StackedLinear(max(obs_sizes), WIDTH, n, in_sizes=obs_sizes)
        self.action_norm = StackedBatchNorm(n_actions, n)
        self.action = StackedLinear(n_actions, SMALL_WIDTH, n, in_sizes=action_sizes)
        self.region = Linear(1, SMALL_WIDTH)
        self.merge = Linear(WIDTH + 2 * SMALL_WIDTH, WIDTH)
        self.convolutions = nn.ModuleList(Linear(WIDTH, WIDTH) for _ in range(convolutions))
        self.pair = Linear(2 * WIDTH, WIDTH)
        self.divergence = Linear(WIDTH, 1)

    def forward(self, obs: Tensor, actions: Tensor, sizes: Tensor, coefficients: Tensor) -> Tensor:
        """KL_i, the part of the joint divergence that the network ascribes to agent i.

        Args:
            obs: [N, A, O].
            actions: [N, A, U], one-hot or continuous.
            sizes: delta_i, [A].
            coefficients: C, [N, A, A].

        Returns:
            [N, A], not negative, differentiable in `sizes`.
        """
        nodes = self._embed(obs, actions, sizes)
        # A row without edges has no messages, only itself.
        weights = coefficients / coefficients.sum(-1, keepdim=True).clamp(
            min=torch.finfo(obs.dtype).tiny
        )
        weights = weights + torch.eye(weights.shape[-1], dtype=obs.dtype, device=obs.device)
        for convolution in self.convolutions:
            nodes = F.leaky_relu(convolution(weights @ nodes))
        # A layer on the concatenation of i and j is the sum of a layer on i and one on j.
        of_first, of_second = self.pair.weight.split(WIDTH, dim=-1)
        first, second = affine(nodes, of_first, self.pair.bias), affine(nodes, of_second)
        hidden = F.leaky_relu_(first.unsqueeze(-2) + second.unsqueeze(-3))
        divergences = F.softplus(self.divergence(hidden).squeeze(-1))
        return (coefficients * divergences).sum(-1)

    def _embed(self, obs: Tensor, actions: Tensor, sizes: Tensor) -> Tensor:
        """The input layer: [N, A, `WIDTH`]."""
        of_obs, of_action, of_region = self.merge.weight.split(
            [WIDTH, SMALL_WIDTH, SMALL_WIDTH], dim=-1
        )
        seen = F.leaky_relu(self.obs(obs.transpose(0, 1)))
        done = F.leaky_relu(self.action(self.action_norm(actions.transpose(0, 1))))
        region = F.leaky_relu(self.region(sizes.unsqueeze(-1)))
        # The trust regions are the same in all rows.
        per_agent = affine(region, of_region, self.merge.bias).unsqueeze(1)
        nodes = affine(seen, of_obs) + affine(done, of_action) + per_agent
        return F.leaky_relu(nodes).transpose(0, 1)

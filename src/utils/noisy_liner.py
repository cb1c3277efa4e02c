"""PyMARL2's import path (and spelling) of a linear layer whose weights are noisy."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class NoisyLinear(nn.Module):
    """y = (u_w + s_w * e) x + u_b + s_b * e' with new Gaussian e, e' at every call in training
    mode, and without noise in evaluation mode (Fortunato et al. 2018, independent noise).

    Args:
        in_features, out_features: numbers of inputs and outputs.
        bias: must be True, as in PyMARL2, whose layer cannot do without.
        device: where the layer will be; the noise is drawn where its weights are.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: str = "cpu"
    ) -> None:
        super().__init__()
        if not bias:
            raise ValueError("a noisy layer has a bias")
        self.in_features, self.out_features, self.device = in_features, out_features, device
        self.u_w = nn.Parameter(torch.empty(out_features, in_features))
        self.s_w = nn.Parameter(torch.empty(out_features, in_features))
        self.u_b = nn.Parameter(torch.empty(out_features))
        self.s_b = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Means uniform up to +-sqrt(3 / in_features), noise of scale 0.017 (the paper's)."""
        bound = math.sqrt(3 / self.in_features)
        self.u_w.uniform_(-bound, bound)
        self.u_b.uniform_(-bound, bound)
        self.s_w.fill_(0.017)
        self.s_b.fill_(0.017)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if not self.training:
            return F.linear(x, self.u_w, self.u_b)
        weight = self.u_w + self.s_w * torch.randn_like(self.s_w)
        bias = self.u_b + self.s_b * torch.randn_like(self.s_b)
        return F.linear(x, weight, bias)

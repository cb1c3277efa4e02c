"""Self-attention among the members of a set, PyMARL2's layer for agents that attend to agents."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """Scaled dot-product attention of every member to all (Vaswani et al. 2017), without biases and
    without a layer behind the heads. The parameters have PyMARL2's names.

    Args:
        input_size: F.
        heads: number H of heads.
        embed_size: E, entries of a head's queries, keys and values.
    """

    def __init__(self, input_size: int, heads: int, embed_size: int) -> None:
        super().__init__()
        self.input_size, self.heads, self.emb_size = input_size, heads, embed_size
        for name in ("tokeys", "toqueries", "tovalues"):
            self.add_module(name, nn.Linear(input_size, embed_size * heads, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, F] -> [B, N, H * E], the heads one after the other."""

        def by_head(layer: str) -> Tensor:
            y = self.get_submodule(layer)(x)
            return y.unflatten(-1, (self.heads, self.emb_size)).transpose(1, 2)

        queries, keys, values = map(by_head, ("toqueries", "tokeys", "tovalues"))
        heads = F.scaled_dot_product_attention(queries, keys, values)
        return torch.flatten(heads.transpose(1, 2), start_dim=2)

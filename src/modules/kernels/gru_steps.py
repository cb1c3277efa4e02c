"""A GRU step by step, by operations that have gradients of any order.

What the faster ways use where a gradient of their gradient is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell(of_input: Tensor, of_hidden: Tensor, h: Tensor) -> Tensor:
    """One step [..., H] from W_i x + b_i and W_h h + b_h, [..., 3H] each, and the hidden state."""
    i_r, i_z, i_n = of_input.chunk(3, -1)
    h_r, h_z, h_n = of_hidden.chunk(3, -1)
    candidate = torch.tanh(i_n + torch.sigmoid(i_r + h_r) * h_n)
    return torch.lerp(candidate, h, torch.sigmoid(i_z + h_z))


def _by_steps(tensors: Sequence[Tensor], sizes: Sequence[int]) -> Tensor:
    """`modules.layers.GRU.unroll`: (x, weight_ih, weight_hh, bias_ih, bias_hh) -> [(G,) R, H]."""
    x, weight_ih, weight_hh, bias_ih, bias_hh = tensors
    bias_ih, bias_hh = bias_ih.unsqueeze(-2), bias_hh.unsqueeze(-2)
    h = x.new_zeros(*x.shape[:-2], sizes[0], weight_hh.shape[-1])
    out = []
    for x_t in x.split(list(sizes), -2):
        h = h.narrow(-2, 0, x_t.shape[-2])
        h = cell(x_t @ weight_ih.mT + bias_ih, h @ weight_hh.mT + bias_hh, h)
        out.append(h)
    return torch.cat(out, -2)


def gradients(tensors: Sequence[Tensor], sizes: Sequence[int], grad: Tensor) -> list[Tensor | None]:
    """The gradients of x, weight_ih, weight_hh, bias_ih, bias_hh, with a graph of their own.

    Args:
        tensors: these five.
        grad: of the hidden states, [(G,) R, H].

    Returns:
        None for what needs none.
    """
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    with torch.enable_grad():
        found = iter(
            torch.autograd.grad(_by_steps(tensors, sizes), wanted, grad, create_graph=True)
        )
    return [next(found) if tensor.requires_grad else None for tensor in tensors]

"""A mixer that is linear in the utilities, so that means over actions pass through it."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from modules.layers import Linear
from modules.mixers.parts import as_rows, context_rows, state_size


class LinearMixer(nn.Module):
    """Q_tot = sum_i k_i(s) Q_i, k_i >= 0, sum_i k_i = 1 (Wang et al. 2021, "DOP", section 4).

    k_i(s) is sum_e |W1(s)|_ie |w2(s)|_e, divided by its sum over the agents.

    Args:
        args: `n_agents` (A), `state_shape` (S), `mixing_embed_dim` (entries e).
    """

    takes_actions = False

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.n_agents, self.state_dim = args.n_agents, state_size(args)
        self.hyper_w1 = Linear(self.state_dim, args.n_agents * args.mixing_embed_dim)
        self.hyper_w2 = Linear(self.state_dim, args.mixing_embed_dim)

    def weights(self, states: Tensor) -> Tensor:
        """k, [N, S] -> [N, A]."""
        w1 = self.hyper_w1(states).abs().unflatten(-1, (self.n_agents, -1))
        k = (w1 * self.hyper_w2(states).abs().unsqueeze(-2)).sum(-1)
        return k / k.sum(-1, keepdim=True).clamp(min=torch.finfo(k.dtype).tiny)

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Utilities [..., A], states [..., S] -> [..., 1]."""
        q = as_rows(agent_qs, self.n_agents)
        s = context_rows(states, self.state_dim, q.shape[0])
        return (q * self.weights(s)).sum(-1).view(*agent_qs.shape[:-1], 1)

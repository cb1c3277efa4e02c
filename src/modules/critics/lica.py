"""PyMARL2's critic of LICA, for its learner."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LICACritic(nn.Module):
    """Q of the joint policy: two layers whose weights and biases come from the state (Zhou et al.
    2020).

    Args:
        scheme: not read.
        args: `n_agents`, `n_actions`, `state_shape`, `lica_mixing_embed_dim` (units of the layer in
            between), `hypernet_embed_dim` (units of the networks that make the weights).
    """

    output_type = "q"

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__()
        self.args, self.n_agents, self.n_actions = args, args.n_agents, args.n_actions
        shape = args.state_shape
        self.state_dim = int(shape) if isinstance(shape, int) else prod(shape)
        self.embed, width = args.lica_mixing_embed_dim, args.hypernet_embed_dim
        self.n_joint = args.n_agents * args.n_actions

        def hyper(n_out: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Linear(self.state_dim, width), nn.ReLU(), nn.Linear(width, n_out)
            )

        self.hyper_w_1, self.hyper_w_final = hyper(self.embed * self.n_joint), hyper(self.embed)
        self.hyper_b_1 = nn.Linear(self.state_dim, self.embed)
        self.hyper_b_2 = hyper(1)

    def forward(self, act: Tensor, states: Tensor) -> Tensor:
        """Probabilities [B, T, A, U] and states [B, T, S] -> [B, T, 1]."""
        s, joint = states.reshape(-1, self.state_dim), act.reshape(-1, 1, self.n_joint)
        w1 = self.hyper_w_1(s).view(-1, self.n_joint, self.embed)
        h = F.relu(torch.bmm(joint, w1).squeeze(1) + self.hyper_b_1(s))
        q = (h * self.hyper_w_final(s)).sum(-1, keepdim=True) + self.hyper_b_2(s)
        return q.view(states.shape[0], -1, 1)

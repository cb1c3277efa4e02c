"""The unrestricted joint value of weighted QMIX."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from modules.mixers.parts import context_rows, hypernet, state_size


class QMixerCentralFF(nn.Module):
    """Q* = f(q_1, ..., q_A, s) + V(s), f with three hidden ReLU layers (Rashid et al. 2020): not
    monotone.

    Args:
        args: `n_agents` (A), `state_shape` (S), `central_action_embed` (E, values per agent and
            action), `central_mixing_embed_dim` (width of the hidden layers).
    """

    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.state_dim = state_size(args)
        self.qs_dim = args.n_agents * args.central_action_embed
        width = args.central_mixing_embed_dim
        self.net = nn.Sequential(
            nn.Linear(self.qs_dim + self.state_dim, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )
        self.V = hypernet(self.state_dim, width, 1)

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        """Joint value of the actions whose utilities are given.

        Args:
            agent_qs: [..., A, E], [..., A * E], or [..., A] where E = 1.
            states: [..., S].

        Returns:
            [..., 1], with the leading axes of `states`.
        """
        q = agent_qs.reshape(-1, self.qs_dim)
        s = context_rows(states, self.state_dim, q.shape[0])
        q_tot = self.net(torch.cat([q, s], dim=-1)) + self.V(s)
        return q_tot.view(*states.shape[:-1], 1)

"""MAIC's losses: what an agent thinks of a teammate tells what it does; few links are enough (Yuan
et al. 2022).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from components.action_selectors import masked_argmax
from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps
from modules.comm.agent import Talk, gaussian, leaky
from modules.comm.maic import MAICAgent
from utils.ranges import NOT_NEGATIVE


class MAICLoss(AuxiliaryLoss):
    """Mutual information of z_ij and j's action, bounded from below, and entropy of the weights.

    The bound is the KL divergence from N(z_ij | h_i) to q(z_ij | h_i, a_j), a_j the greedy action.

    Args:
        mac: the learner's controller.
        args: `maic_mi_weight`, `maic_entropy_weight`, and what `MAICAgent` reads.
    """

    needs = AuxiliaryLoss.needs | Needs(agent=MAICAgent)
    ranges: ClassVar = {"maic_mi_weight": NOT_NEGATIVE, "maic_entropy_weight": NOT_NEGATIVE}

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, args)
        self.agent: MAICAgent = mac.agent
        self.posterior = leaky(
            args.rnn_hidden_dim + args.n_actions,
            args.maic_hidden_dim,
            2 * args.maic_latent_dim,
            norm=True,
        )
        self.modules = {"posterior": self.posterior}

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`mi_loss` and `entropy_loss`; see `AuxiliaryLoss.losses`."""
        cur, seen = rows.steps.cur, online.said.seen
        hidden, z = seen["hidden"][cur], seen["z"][cur]
        greedy = masked_argmax(online.q, rows.avail)[cur]
        divergence = self.divergence(hidden, seen["mean"][cur], seen["std"][cur], greedy)
        weights = self.agent.weights(hidden.detach(), z.detach())
        # Bounded from below where a weight is 0, so that the gradient is a number.
        entropy = -(weights * weights.clamp(min=1e-10).log2()).sum(-1)
        return {
            "mi_loss": self.args.maic_mi_weight * rows.mean(divergence),
            "entropy_loss": self.args.maic_entropy_weight * rows.mean(entropy),
        }

    def divergence(self, hidden: Tensor, mean: Tensor, std: Tensor, actions: Tensor) -> Tensor:
        """KL divergences, mean over the pairs of different agents.

        Args:
            hidden: [M, A, H].
            mean, std: [M, A, A, D], of z_ij.
            actions: int64 [M, A].

        Returns:
            [M, 1].
        """
        n_agents = hidden.shape[1]
        h_i = hidden.unsqueeze(2).expand(-1, -1, n_agents, -1)
        a_j = F.one_hot(actions, self.args.n_actions).to(hidden).unsqueeze(1)
        parameters = self.posterior(torch.cat([h_i, a_j.expand(-1, n_agents, -1, -1)], dim=-1))
        inferred = gaussian(parameters, self.args.maic_least_variance)
        # Checking the arguments would make a device wait.
        given, known = (Normal(*pair, validate_args=False) for pair in ((mean, std), inferred))
        divergence = kl_divergence(given, known).sum(-1)
        pairs = max(n_agents * (n_agents - 1), 1)
        return (divergence * self.agent.others).sum((1, 2)).unsqueeze(-1) / pairs

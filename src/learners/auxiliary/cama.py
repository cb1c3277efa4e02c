"""CAMA's losses: attention that tells what was done, messages about what it leaves out (Shao et al.
2023).
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from learners.auxiliary.base import AuxiliaryLoss
from learners.needs import Needs
from learners.replayed import ReplayedSteps, transition_weights
from modules.comm.agent import Talk
from modules.comm.cama import CAMAAgent
from modules.mixers.parts import hypernet
from utils.ranges import NOT_NEGATIVE, PROBABILITY


class CAMALoss(AuxiliaryLoss):
    """Inverse: a network tells by f_i of a step and the next one what agent i did, where it had a
    choice. Information: z_i shall hold little of what f_i says already, the divergence of p(z_i |
    f_j, g_i), with another row's f_j, from p(z_i | f_i, g_i); and much of f_i and g_i (InfoNCE),
    that is be told apart by them from the messages of the same time step in all other episodes and
    of all other agents. Entropy: messages shall be uncertain.

    Args:
        mac: the learner's controller.
        args: `cama_inverse_weight`, `cama_information_weight` (w), `cama_beta` (InfoNCE counts w (1
            - beta)), `cama_entropy_weight`.
    """

    needs = AuxiliaryLoss.needs | Needs(agent=CAMAAgent)
    ranges: ClassVar = {
        "cama_inverse_weight": NOT_NEGATIVE,
        "cama_information_weight": NOT_NEGATIVE,
        "cama_beta": PROBABILITY,
        "cama_entropy_weight": NOT_NEGATIVE,
    }
    of_parts = False  # InfoNCE compares the episodes of a batch

    def __init__(self, mac: Any, args: SimpleNamespace) -> None:
        super().__init__(mac, args)
        self.agent: CAMAAgent = mac.agent
        self.inverse = hypernet(2 * args.cama_embed_dim, args.rnn_hidden_dim, args.n_actions)
        self.modules = {"inverse": self.inverse}

    def losses(self, rows: ReplayedSteps, online: Talk, target: Talk) -> dict[str, Tensor]:
        """`inverse_loss`, `redundancy_loss`, `distinction_loss`, `message_entropy_loss`; see
        `AuxiliaryLoss.losses`.
        """
        args, cur, seen = self.args, rows.steps.cur, online.said.seen
        f, z = seen["f"], seen["z"][cur].detach()
        mean, log_variance = seen["mean"][cur], seen["log_variance"][cur]
        weights = z.new_ones(len(z), 1)
        if rows.per_weight is not None:
            weights = transition_weights(rows.per_weight.to(z), rows.steps)

        taken = self.inverse(torch.cat([f[cur], f[rows.steps.nxt]], dim=-1))
        actions = rows.actions[cur]
        inverse = F.cross_entropy(taken.flatten(0, 1), actions.flatten(), reduction="none")
        choice = (rows.avail[cur] != 0).sum(-1) > 1
        inverse = (weights * choice * inverse.view_as(actions)).sum() / choice.sum().clamp(min=1)

        divergence = self.redundancy(f[cur], seen["g"][cur], mean.detach(), log_variance.detach())
        redundancy = (weights * divergence).mean()
        entropy = 0.5 * (1 + math.log(2 * math.pi) + log_variance).sum(-1)
        information = args.cama_information_weight
        return {
            "inverse_loss": args.cama_inverse_weight * inverse,
            "redundancy_loss": information * redundancy,
            "distinction_loss": -information
            * (1 - args.cama_beta)
            * self.distinction(rows, z, mean, log_variance, weights),
            "message_entropy_loss": -args.cama_entropy_weight * (weights * entropy).mean(),
        }

    def redundancy(self, f: Tensor, g: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
        """Divergence of p(z_i | f_j, g_i) from p(z_i | f_i, g_i), [M, A], with the f of another row
        and agent, drawn without replacement.

        That is the expectation of the difference of their logarithms over the messages z_i.

        Args:
            mean, log_variance: of p(z_i | f_i, g_i), [M, A, D], which get no gradient.
        """
        shuffled = f.flatten(0, 1)[torch.randperm(f.shape[0] * f.shape[1], device=f.device)]
        other, other_log = self.agent.message(shuffled.view_as(f), g)
        square = (log_variance.exp() + (mean - other).square()) * (-other_log).exp()
        return 0.5 * (other_log - log_variance + square - 1).sum(-1)

    def distinction(
        self, rows: ReplayedSteps, z: Tensor, mean: Tensor, log_variance: Tensor, weights: Tensor
    ) -> Tensor:
        """InfoNCE's bound of the information, mean over time steps: the mean of log(n p_i(z_i) /
        sum_j p_j(z_i)) over the n messages of a time step.

        Args:
            z, mean, log_variance: [M, A, D].
            weights: [M, 1].
        """
        bounds = []
        # Transitions of a time step stand together: as many as episodes reach the next one.
        sizes = [n for n in rows.steps.sizes[1:] if n]
        split = (x.split(sizes) for x in (z, mean, log_variance, weights.expand(-1, z.shape[1])))
        for z_t, mean_t, log_variance_t, weights_t in zip(*split, strict=True):
            drawn, m, v = (x.flatten(0, 1) for x in (z_t, mean_t, log_variance_t))
            # [n, n]: message i under the distribution of j; terms of the square as products, which
            # need no [n, n, D].
            precision = (-v).exp()
            square = drawn.square() @ precision.T - 2 * drawn @ (m * precision).T
            log_p = -0.5 * (square + (m.square() * precision + v).sum(-1))
            told = torch.log_softmax(log_p, dim=-1).diagonal() + math.log(len(drawn))
            bounds.append((weights_t.flatten() * told).mean())
        return torch.stack(bounds).mean()

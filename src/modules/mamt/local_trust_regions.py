"""The sizes of the agents' trust regions as parameters."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A local trust region is never smaller or larger (MAMT, table 3).
SMALLEST, LARGEST = 0.01, 100.0


class LocalRegions(nn.Module):
    """delta_i > 0, one per agent, learned on a logarithmic scale and kept in [`SMALLEST`,
    `LARGEST`].

    Args:
        n_agents: A.
        total: delta, what the sizes should not exceed together; every agent starts with delta / A.
    """

    def __init__(self, n_agents: int, total: float) -> None:
        super().__init__()
        self.total = total
        self.log_sizes = nn.Parameter(torch.full((n_agents,), math.log(total / n_agents)))
        self.clip_()

    def sizes(self) -> Tensor:
        """delta_i: [A]."""
        return self.log_sizes.exp()

    def excess(self, sizes: Tensor) -> Tensor:
        """By how much the sizes [A] are together more than delta (MAMT, section 3.2): a scalar, at
        least 0.
        """
        return F.relu(sizes.sum() - self.total)

    @torch.no_grad()
    def clip_(self) -> None:
        """Puts every size back into its range."""
        self.log_sizes.clamp_(math.log(SMALLEST), math.log(LARGEST))

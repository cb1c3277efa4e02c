"""NDQ: short random codes for every teammate (Wang et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from modules.comm.agent import Remember, Said, TalksOfSight
from modules.layers import Linear
from utils.ranges import COUNT, NOT_NEGATIVE, Range


class NDQAgent(TalksOfSight):
    """Agent i sends j a code m_ij ~ N(mu_ij, 1) of D numbers, made of its present input alone; j's
    recurrent network reads its own input and all codes to it, the one from itself included.

    In tests the codes are the means (`ndq_test_mean`) or samples, and entries whose mean is below
    `ndq_cut` in size are not sent.

    Args:
        input_shape: F.
        args: see `CommAgent`; `ndq_message_dim` (D), `ndq_hidden_dim`, `ndq_test_mean`, `ndq_cut`.
    """

    draws = True
    ranges: ClassVar[Mapping[str, Range]] = {
        "ndq_message_dim": COUNT,
        "ndq_hidden_dim": COUNT,
        "ndq_cut": NOT_NEGATIVE,
    }

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        size, width = args.n_agents * args.ndq_message_dim, args.ndq_hidden_dim
        super().__init__(input_shape, args, n_read=input_shape + size)
        self.encoder = nn.Sequential(
            Linear(input_shape, width, rectify=True),
            Linear(width, width, rectify=True),
            Linear(width, size),
        )

    def say(self, own: Tensor) -> Said:
        """Inputs [N, A, F] -> codes [N, A, A, D]."""
        mean = self.encoder(own).unflatten(-1, (self.n_agents, -1))
        if self.training:
            return Said(mean + torch.randn_like(mean), {"mean": mean})
        code = mean if self.args.ndq_test_mean else mean + torch.randn_like(mean)
        itself = torch.eye(self.n_agents, dtype=torch.bool, device=own.device).unsqueeze(-1)
        sent = (mean.abs() >= self.args.ndq_cut) | itself
        return Said(code * sent, {"mean": mean, "sent": sent & ~itself})

    def hear(self, inputs: Tensor, said: Said, remember: Remember) -> Tensor:
        """[N, A, F + A * D]."""
        return torch.cat([inputs, said.messages.transpose(1, 2).flatten(2)], dim=-1)

    def numbers(self, said: Said) -> Tensor:
        """See `CommAgent.numbers`; entries that are cut are not sent."""
        if "sent" not in said.seen:
            return super().numbers(said)
        return said.seen["sent"].sum((1, 2, 3))

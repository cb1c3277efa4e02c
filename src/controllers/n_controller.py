"""PyMARL2's controller: agents whose `forward` keeps the agent axis."""

from __future__ import annotations

from torch import Tensor

from controllers.basic_controller import BasicMAC


class NMAC(BasicMAC):
    """`BasicMAC` for agents that take [B, A, F] instead of [B * A, F]."""

    def _agent_layout(self, inputs: Tensor) -> Tensor:
        return inputs

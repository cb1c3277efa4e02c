"""Value-decomposition networks: the joint value is the sum of the utilities."""

from __future__ import annotations

from types import SimpleNamespace

from torch import Tensor, nn


class VDNMixer(nn.Module):
    """Q_tot = sum_i Q_i (Sunehag et al. 2018). No parameters.

    Args:
        args: not used; every mixer can be built with it.
        groups: any number; a leading axis [G] is one more leading axis.
    """

    takes_actions = False

    def __init__(self, args: SimpleNamespace | None = None, groups: int = 1) -> None:
        super().__init__()

    def forward(self, agent_qs: Tensor, states: object = None) -> Tensor:
        """Sum over agents.

        Args:
            agent_qs: [..., A].
            states: not used.

        Returns:
            [..., 1].
        """
        return agent_qs.sum(dim=-1, keepdim=True)

    def of_several(self, agent_qs: Tensor, states: object = None) -> Tensor:
        """Joint values of J sets of utilities in every state: [J, N, A] -> [J, N, 1]."""
        return self(agent_qs)

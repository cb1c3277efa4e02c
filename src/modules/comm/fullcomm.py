"""FullComm: every agent sees what all of them see (a baseline of Guan et al. 2022)."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

from modules.comm.agent import Remember, Said, TalksOfSight, obs_size


class FullCommAgent(TalksOfSight):
    """Everybody sends its observation to everybody at every step.

    The recurrent network of agent i reads [o_1, ..., o_A, rest of its own input], the observations
    in the order of the agents.

    Args:
        input_shape: F.
        args: see `CommAgent`.
    """

    def __init__(self, input_shape: int, args: SimpleNamespace) -> None:
        others = (args.n_agents - 1) * obs_size(input_shape, args)
        super().__init__(input_shape, args, n_read=input_shape + others)

    def say(self, own: Tensor) -> Said:
        """Observations, [N, A, 1, O]."""
        return Said(own[..., : self.n_obs].unsqueeze(2))

    def hear(self, inputs: Tensor, said: Said, remember: Remember) -> Tensor:
        """[N, A, A * O + F - O]."""
        everything = said.messages.flatten(1).unsqueeze(1).expand(-1, self.n_agents, -1)
        return torch.cat([everything, inputs[..., self.n_obs :]], dim=-1)

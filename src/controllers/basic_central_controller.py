"""PyMARL2's name for the controller of an unrestricted joint value."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from controllers.basic_controller import ALL, BasicMAC


def central_args(args: SimpleNamespace) -> SimpleNamespace:
    """The settings with the network of an unrestricted joint value as the agents' network."""
    central = copy.copy(args)
    central.agent, central.agent_output_type = args.central_agent, "q"
    central.rnn_hidden_dim = args.central_rnn_hidden_dim
    return central


class CentralBasicMAC(BasicMAC):
    """The inputs of `BasicMAC`, `central_agent` as its network, E = `central_action_embed` values
    per action.

    Args:
        scheme: of the episode batch.
        args: as for `BasicMAC`, and `central_agent`, `central_rnn_hidden_dim`.
    """

    def __init__(self, scheme: Mapping[str, Any], args: SimpleNamespace) -> None:
        super().__init__(scheme, {"agents": args.n_agents}, central_args(args))

    def forward(
        self, ep_batch: EpisodeBatch, t: int, test_mode: bool = False, bs: Any = ALL
    ) -> Tensor:
        """Values of step t, [len(bs), A, U, E]."""
        values = super().forward(ep_batch, t, test_mode, bs)
        return values.unflatten(-1, (self.args.n_actions, -1))

    def save_models(self, path: str) -> None:
        """Writes `central_agent.th` into a folder."""
        torch.save(self.agent.state_dict(), f"{path}/central_agent.th")

    def load_models(self, path: str, trained_agents: int = 0) -> None:
        """Reads `central_agent.th` from a folder."""
        if trained_agents:
            raise ValueError("an unrestricted joint value is that of one number of agents")
        weights = torch.load(f"{path}/central_agent.th", map_location="cpu", weights_only=True)
        self.agent.load_state_dict(weights)

"""What agents that learn one after the other share: their networks, and whose turn it is."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch

from controllers.actor_controller import ActorMAC
from modules.agents import REGISTRY as AGENTS
from modules.stacks import Members


def members_of(mac: ActorMAC, scheme: Mapping[str, Any], args: SimpleNamespace) -> Members:
    """The agents' networks one by one, in the controller's memory.

    Raises:
        ConfigError: agents that have weights in common.
    """
    one = vars(args) | {"n_agents": 1, "share_params": True}
    one["env_info"] = {"obs_sizes": (args.obs_shape,), "action_sizes": (args.n_actions,)}
    network = AGENTS[args.agent](mac._get_input_shape(scheme), SimpleNamespace(**one))
    return Members(mac.agent, network, args.n_agents)


def turns(args: SimpleNamespace) -> list[int]:
    """Who learns first, second, ...: `agent_order` random (drawn anew) or fixed."""
    if args.agent_order == "fixed":
        return list(range(args.n_agents))
    return torch.randperm(args.n_agents).tolist()

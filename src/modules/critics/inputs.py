"""What the critics of PyMARL2 read of a batch of episodes, entry by entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def entries(scheme: Mapping[str, Any], key: str) -> int:
    """Size of a scheme's entry."""
    shape = scheme[key]["vshape"]
    return int(shape) if isinstance(shape, int) else int(shape[0])


def states(batch: Any, ts: slice, n_agents: int) -> Tensor:
    """The state of steps `ts` for every agent, [B, T, A, S]."""
    return batch["state"][:, ts].unsqueeze(2).expand(-1, -1, n_agents, -1)


def others_actions(batch: Any, ts: slice) -> Tensor:
    """One-hot actions of all agents [B, T, A, A * U], an agent's own ones zero."""
    done = batch["actions_onehot"][:, ts]  # [B, T, A, U]
    n_agents = done.shape[2]
    others = 1 - torch.eye(n_agents, device=done.device)
    return (done.unsqueeze(2) * others.unsqueeze(-1)).flatten(3)


def last_actions(batch: Any, ts: slice) -> Tensor:
    """One-hot actions of all agents at the step before, [B, T, A, A * U]; zero at step 0."""
    done = batch["actions_onehot"]
    before = torch.cat([torch.zeros_like(done[:, :1]), done[:, :-1]], dim=1)[:, ts]
    return before.flatten(2).unsqueeze(2).expand(-1, -1, done.shape[2], -1)


def numbers(batch: Any, ts: slice, n_agents: int) -> Tensor:
    """The agents' one-hot numbers, [B, T, A, A]."""
    like = batch["state"][:, ts]
    return torch.eye(n_agents, device=like.device).expand(*like.shape[:2], -1, -1)


def step(t: int | None) -> slice:
    """Step t alone, or all steps."""
    return slice(None) if t is None else slice(t, t + 1)

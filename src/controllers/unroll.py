"""Whole sequences through any controller, also one written for PyMARL that knows single steps
only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from components.episode_buffer import EpisodeBatch
from components.steps import Steps


def unroll_by_steps(mac: Any, batch: EpisodeBatch, steps: Steps) -> Tensor:
    """`mac.forward` called for every step in turn: [N, A, U]."""
    mac.init_hidden(batch.batch_size)
    outputs = [mac.forward(batch, t) for t in range(len(steps.sizes))]
    return pack_steps(outputs, batch, steps)


def pack_steps(per_step: list[Tensor], batch: EpisodeBatch, steps: Steps) -> Tensor:
    """A list of [B, A, F], one per step of the longest episode, -> [N, A, F]."""
    stacked = torch.stack(per_step, dim=1)
    return steps.pack(F.pad(stacked, (0, 0, 0, 0, 0, batch.max_seq_length - len(per_step))))


def sequence_inputs(mac: Any, batch: EpisodeBatch, steps: Steps) -> Tensor | None:
    """The inputs of all filled steps [N, A, F], to be shared by networks that read the same; None
    if `mac` has none.
    """
    return mac.sequence_inputs(batch, steps) if hasattr(mac, "sequence_inputs") else None


def unroll(mac: Any, batch: EpisodeBatch, steps: Steps, inputs: Tensor | None = None) -> Tensor:
    """Outputs of all filled steps, [N, A, U], by `mac.unroll` where there is one, else step by
    step.
    """
    return (
        mac.unroll(batch, steps, inputs)
        if hasattr(mac, "unroll")
        else unroll_by_steps(mac, batch, steps)
    )

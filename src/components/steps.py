"""The filled steps of a batch of episodes as rows: what the learners compute on."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor


class Steps:
    """Index of the filled steps of B ragged episodes.

    Rows are time-major with the longest episode first: the rows of step 0 of all episodes, then
    those of step 1 of the episodes that have one, and so on (torch's PackedSequence layout). An
    episode of L transitions has L + 1 filled steps, the last of which has no action and no reward.

    Args:
        lengths: int [B], filled steps of every episode, on the CPU.
        max_steps: T, the time axis of the padded tensors.
        device: where the index tensors live.

    Attributes:
        sizes: number of rows of every step, never increasing.
        n_rows: N, all filled steps.
        n_transitions: M, the filled steps that have a successor.
        cur: slice or int64 [M]: the rows with a successor.
        nxt: slice: the successors of `cur`, in the same order.
    """

    def __init__(self, lengths: Tensor, max_steps: int, device: torch.device | str = "cpu") -> None:
        if int(lengths.min()) < 1 or int(lengths.max()) > max_steps:
            raise ValueError(f"episode lengths must lie in 1..{max_steps}, got {lengths.tolist()}")
        self.lengths, self.max_steps, self.device = lengths, max_steps, torch.device(device)
        self.batch_size = len(lengths)
        # NumPy: for tables as small as these its calls cost a fraction of torch's.
        order = np.argsort(-lengths.numpy(), kind="stable")
        ordered = lengths.numpy()[order]
        time = np.arange(ordered[0])[:, None]
        filled = time < ordered
        sizes = filled.sum(1)
        self.sizes: list[int] = sizes.tolist()
        self.n_rows = int(sizes.sum())
        self.n_transitions = self.n_rows - self.batch_size
        self._flat = torch.from_numpy((order * max_steps + time)[filled]).to(device)
        self.nxt = slice(self.batch_size, self.n_rows)
        self._last = np.flatnonzero((time + 1 == ordered)[filled])
        if self.sizes[-1] == self.batch_size:
            self.cur: slice | Tensor = slice(0, self.n_transitions)
        else:
            has_next = time + 1 < ordered
            self.cur = torch.from_numpy(np.flatnonzero(has_next[filled])).to(device)

    def pack(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """[B, T, ...] -> [N, ...], written to `out` where that is given."""
        return torch.index_select(x.flatten(0, 1), 0, self._flat, out=out)

    def unpack(self, rows: Tensor) -> Tensor:
        """[N, ...] -> [B, T, ...], zero where nothing is filled."""
        out = rows.new_zeros(self.batch_size * self.max_steps, *rows.shape[1:])
        return out.index_copy(0, self._flat, rows).view(
            self.batch_size, self.max_steps, *rows.shape[1:]
        )

    @cached_property
    def rows_cur(self) -> Tensor:
        """`cur` as int64 [M]."""
        return torch.arange(self.n_rows, device=self.device)[self.cur]

    @cached_property
    def rows_last(self) -> Tensor:
        """int64 [B]: the rows without a successor, in the order of the rows."""
        return torch.from_numpy(self._last).to(self.device)

    @cached_property
    def _flat_cur(self) -> Tensor:
        return self._flat[self.cur]

    def pack_transitions(self, x: Tensor) -> Tensor:
        """[B, T - 1 or T, ...] -> [M, ...]: the entries of the steps that have a successor."""
        if x.shape[1] == self.max_steps:
            return x.flatten(0, 1).index_select(0, self._flat_cur)
        # One column less: every earlier episode shifts the flat position by one.
        flat = self._flat_cur
        return x.flatten(0, 1).index_select(
            0, flat - torch.div(flat, self.max_steps, rounding_mode="floor")
        )

    @cached_property
    def mask(self) -> Tensor:
        """float32 [B, T - 1, 1]: 1 where a transition exists."""
        time = torch.arange(1, self.max_steps, device=self.device)
        return (time < self.lengths.to(self.device).unsqueeze(1)).float().unsqueeze(-1)

    @cached_property
    def previous(self) -> Tensor:
        """int64 [N]: the row of the same episode one step earlier; a row of step 0 points to
        itself.
        """
        before = torch.arange(self.n_rows, device=self.device)
        before[self.nxt] = before[self.cur].clone()
        return before

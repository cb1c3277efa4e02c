"""Transforms of stored fields into the form that networks read."""

from __future__ import annotations

import torch
from torch import Tensor


class Transform:
    """Interface: what a field becomes, and its shape and dtype then."""

    def transform(self, tensor: Tensor) -> Tensor:
        """The field's new values."""
        raise NotImplementedError

    def infer_output_info(
        self, vshape_in: tuple[int, ...], dtype_in: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape (of one entry, without the batch's axes) and dtype after `transform`."""
        raise NotImplementedError


class OneHot(Transform):
    """Integers [..., 1] to one-hot vectors [..., out_dim], float32.

    Args:
        out_dim: number of classes.
    """

    def __init__(self, out_dim: int) -> None:
        self.out_dim = out_dim

    def transform(self, tensor: Tensor) -> Tensor:
        """[..., 1], any integer type -> [..., out_dim] float32.

        Raises:
            RuntimeError: an entry is not in [0, out_dim).
        """
        out = torch.zeros(
            *tensor.shape[:-1], self.out_dim, dtype=torch.float32, device=tensor.device
        )
        return out.scatter_(-1, tensor.long(), 1.0)

    def infer_output_info(
        self, vshape_in: tuple[int, ...], dtype_in: torch.dtype
    ) -> tuple[tuple[int, ...], torch.dtype]:
        """`((out_dim,), torch.float32)`."""
        return (self.out_dim,), torch.float32

"""How tensors are handed to a kernel."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

SIZE = ctypes.c_int64


def usable(*tensors: Tensor) -> bool:
    """Whether kernels read these: float32 in main memory, no stand-ins of torch.func."""
    return (
        all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and not torch._C._are_functorch_transforms_active()
    )


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's first entry is; null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())

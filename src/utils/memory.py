"""Memory behaviour of the process."""

from __future__ import annotations

import ctypes
import sys

# glibc's mallopt parameters.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next allocation instead of giving it back to the
    kernel.

    A learner's update allocates and frees the same sequence-sized tensors every time; given back,
    they cost tens of thousands of page faults per update.

    Returns:
        Whether the C library took the setting (others than glibc do not).
    """
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt") or not hasattr(libc, "gnu_get_libc_version"):
        return False
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))

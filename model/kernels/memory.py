"""How the C library treats the memory of large temporary tensors."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters (malloc.h) and the largest mmap threshold that glibc takes on 64 bits.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep what a step frees for the next one.

    By default it gives temporaries of a few MB back to the system, and every step pays thousands of page
    faults for getting them again: a third of a prefill step. Without effect on other C libraries.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES)

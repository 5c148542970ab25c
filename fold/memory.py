"""Memory that a proof takes and gives back: float64 weights are twice as large as the model."""

import contextlib
import ctypes
import gc

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's mallopt(3)."""
LARGE = 8 << 20
"""Bytes. Smaller blocks given back at once save little, and cost the time that fresh pages take."""


def release_large_blocks() -> None:
    """From now on, have glibc give large blocks back to the system as they are freed.

    By default it comes to keep blocks of up to 32 MB for itself, and between them holes that fit no weight.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, LARGE)


def release_memory() -> None:
    """Give back what is not needed any more: graphs hold themselves in cycles, and glibc keeps what was freed."""
    gc.collect()
    return_freed()


def return_freed() -> None:
    """Give the system what glibc keeps of what was freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)

"""Memory as the system gives it: what a proof takes and gives back, and in which pages a service has it."""

import contextlib
import ctypes
import gc
import os
import sys
from pathlib import Path

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's mallopt(3)."""
LARGE = 8 << 20
"""Bytes. Smaller blocks given back at once save little, and cost the time that fresh pages take."""

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Whether Linux gives pages of 2 MB instead of 4 KB: always, never, or to who asks by madvise(2)."""
HUGE_PAGES_TUNABLE = "glibc.malloc.hugetlb"

GROWN = 16 << 20
"""Bytes that the process must have grown by since it last gave memory back."""
PAGE = os.sysconf("SC_PAGESIZE")
_released = [0]
"""How large it was then."""


def release_large_blocks() -> None:
    """From now on, have glibc give large blocks back to the system as they are freed.

    By default it comes to keep blocks of up to 32 MB for itself, and between them holes that fit no weight.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        ctypes.CDLL("libc.so.6").mallopt(MMAP_THRESHOLD, LARGE)


def start_with_huge_pages() -> None:
    """Start this process anew, with the same id and arguments, so that glibc asks for huge pages, where Linux gives
    them to who asks. Returns where that is so already, or cannot be.

    Weights and activations lie on tens of thousands of small pages, and the processor remembers the places of two
    thousand. glibc reads its tunables only at the start.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    with contextlib.suppress(OSError):  # no Linux, or no right to look
        if HUGE_PAGES_TUNABLE in tunables or "[madvise]" not in HUGE_PAGES.read_text():
            return
        os.environ["GLIBC_TUNABLES"] = f"{tunables}:{HUGE_PAGES_TUNABLE}=1".lstrip(":")
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def release_memory() -> None:
    """Give back what is not needed any more, if there may be much: graphs hold themselves in cycles, and glibc keeps
    what was freed.

    To look for cycles among all that PyTorch holds takes a fifth of a second, as long as all steps of a small proof.
    """
    if _resident() < _released[0] + GROWN:
        return
    gc.collect()
    return_freed()
    _released[0] = _resident()


def _resident() -> int:
    """Bytes of this process in memory; more than any growth where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return sys.maxsize


def return_freed() -> None:
    """Give the system what glibc keeps of what was freed."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)

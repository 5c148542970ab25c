"""Tricks with memory, as glibc and Linux offer them. With other systems they do nothing.

1. `huge_pages`: the service has pages of 2 MB. Runs of ResNet-18 take 3 to 5 % less time, for 7 MB and 0.2 s
   at the start. Off: `GLIBC_TUNABLES=glibc.malloc.hugetlb=0`.
2. `release_memory` and `return_freed`: between the steps of a proof, and after a model is retired, what was freed goes
   back to the system. A certificate of ResNet-50 takes at most 3.8 times the model's size, not more than 7 times; a
   service that has retired a model of 100 MB keeps 85 MB in all, not 300 to 490. Off, but for the collection of cycles:
   `GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072`.

A tunable that the user has set is left as it is.
"""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
"""Whether Linux gives pages of 2 MB instead of 4 KB: always, never, or to programs that ask by madvise(2)."""
GROWN = 16 << 20
"""Bytes that the process must have grown by since it last gave memory back."""
PAGE = os.sysconf("SC_PAGESIZE")

_released = [0]
"""Resident bytes when memory was last given back."""


def huge_pages() -> dict[str, str]:
    """The variable with which glibc asks for huge pages; empty if Linux does not give them on request, or if the user
    has set this tunable.

    Weights and activations lie on tens of thousands of small pages, and a processor's TLB holds the addresses of two
    thousand. glibc reads its tunables only at the start.
    """
    with contextlib.suppress(OSError):  # no Linux, or no right to look
        if not _user_has_set("hugetlb") and "[madvise]" in HUGE_PAGES.read_text():
            before = os.environ.get("GLIBC_TUNABLES", "")
            return {"GLIBC_TUNABLES": f"{before}:glibc.malloc.hugetlb=1".lstrip(":")}
    return {}


def collect_once() -> None:
    """Collect garbage, and leave what remains out of later collections: for a process that ends after one model.

    Most of it is PyTorch, whose objects take a quarter of a second in each collection.
    """
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Return unused memory to the system, if the process has grown by more than `GROWN`. Graphs are in reference
    cycles, and glibc keeps what was freed.

    Finding cycles among all objects of PyTorch takes a fifth of a second, as long as all steps of a small proof.
    """
    resident = resident_bytes()
    if resident is not None and resident < _released[0] + GROWN:
        return
    gc.collect()
    return_freed()
    _released[0] = resident_bytes() or 0


def return_freed() -> None:
    """Return the freed memory that glibc keeps to the system."""
    if not _user_has_set("trim_threshold"):
        with contextlib.suppress(OSError, AttributeError):  # another C library has no malloc_trim
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _user_has_set(tunable: str) -> bool:
    return f"glibc.malloc.{tunable}=" in os.environ.get("GLIBC_TUNABLES", "")


def resident_bytes() -> int | None:
    """Bytes of this process in memory; None where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return None

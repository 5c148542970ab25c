"""The processors that this process may use: those of its affinity, which a cpuset limits too, within the quotas of its
control groups (versions 1 and 2), and at most OMP_NUM_THREADS, by which Ray and other schedulers tell a process its
share of the machine.

Libraries that count the processors of the machine start more threads than a container can run: these wait for each
other, and the whole container stands still when its quota is used up. ONNX Runtime even pins its threads to processors
outside of the affinity, unless it is told their number.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from fold.runtime.cgroups import control_groups

TOPOLOGY = Path("/sys/devices/system/cpu")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Variables by which PyTorch and numpy are told their numbers of threads, once, when they are imported."""
WITHOUT_SPINNING = {"OMP_WAIT_POLICY": "PASSIVE", "OPENBLAS_NUM_THREADS": "1"}
"""Threads without work sleep. By default PyTorch's and numpy's spin between two operators, on cores that others need;
numpy's only way out is to have no others."""


def cores() -> int:
    """Processors that this process may use all the time, at least 1: of its affinity, within a container's limit, and
    no more than OMP_NUM_THREADS."""
    return min([_allowed(), *_share()])


def physical_cores() -> int:
    """The same, but processors that share a core count once: they would only wait for each other in one operator."""
    siblings = {_siblings(number) for number in _affinity()}
    return max(1, min([len(siblings), *_quotas(), *_share()]))


def thread_limits() -> dict[str, str]:
    """Variables for a process whose quota is less than its affinity, unless they are set. Libraries see the latter."""
    if _allowed() == len(_affinity()):
        return {}
    return {name: str(_allowed()) for name in THREADS if name not in os.environ}


def _allowed() -> int:
    return max(1, min([len(_affinity()), *_quotas()]))


def _share() -> Iterator[int]:
    """OMP_NUM_THREADS, or the first of its list, which has a number for each level of nested threads."""
    with contextlib.suppress(ValueError):  # not set, or nonsense
        if (share := int(os.environ.get("OMP_NUM_THREADS", "").partition(",")[0])) > 0:
            yield share


def stop_spinning() -> None:
    """Set `WITHOUT_SPINNING` for what this process imports from now on. What the user has set stays."""
    for name, value in WITHOUT_SPINNING.items():
        os.environ.setdefault(name, value)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(processor: int) -> str:
    """The processors of one core, such as `0,4`; itself where the system does not tell."""
    try:
        return (TOPOLOGY / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(processor)


def _quotas() -> Iterator[int]:
    """Whole processors that the control groups of this process allow."""
    for version, folder in control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):  # not mounted, or "max"
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0 and int(period) > 0:
                yield int(quota) // int(period)

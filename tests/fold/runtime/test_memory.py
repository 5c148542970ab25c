"""What a proof took goes back to the system, cycles are not looked for where there is little to find, a service has
huge pages where Linux gives them, and tunables that the user has set stay."""

import ctypes
import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from fold.runtime.memory import GROWN, release_memory, return_freed


class Holder:
    """Holds itself, as graphs do, so that only a collection frees it."""

    def __init__(self, size: int) -> None:
        self.content = np.ones(size, np.uint8)
        self.itself = self


def test_memory_is_given_back_where_there_is_some() -> None:
    gc.disable()
    try:
        release_memory()
        large, small = Holder(3 * GROWN), Holder(8)
        lost_large, lost_small = weakref.ref(large), weakref.ref(small)
        del large
        release_memory()
        assert lost_large() is None
        del small
        release_memory()
        assert lost_small() is not None, "too little to look for"
    finally:
        gc.enable()
        gc.collect()


@pytest.mark.parametrize(
    ("tunables", "expected"),
    [(None, True), ("glibc.malloc.hugetlb=1", True), ("glibc.malloc.trim_threshold=131072", False)],
)
def test_freed_memory_stays_where_the_user_has_set_the_tunable(
    tunables: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed: list[int] = []

    class Glibc:
        def __init__(self, name: str) -> None:
            self.malloc_trim = trimmed.append

    monkeypatch.setattr(ctypes, "CDLL", Glibc)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if tunables is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    return_freed()
    assert bool(trimmed) is expected


START = """
import os, sys
from pathlib import Path
from fold.runtime import memory, start_tuned
memory.HUGE_PAGES = Path(sys.argv[1])
start_tuned()
print(os.getpid(), sys.argv[2:], os.environ.get("GLIBC_TUNABLES"))
"""


@pytest.mark.parametrize(
    ("policy", "before", "after"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.check=0", "glibc.malloc.check=0:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),
    ],
)
def test_a_process_starts_anew_as_itself_where_huge_pages_must_be_asked_for(
    policy: str | None, before: str | None, after: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "enabled"
    if policy is not None:
        file.write_text(policy)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    if before is not None:
        environment["GLIBC_TUNABLES"] = before
    command = [sys.executable, "-c", START, str(file), "a b", ""]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    told, _ = process.communicate()
    assert told == f"{process.pid} ['a b', ''] {after}\n"
    assert process.returncode == 0

"""Memory of requests: one budget for all bytes in flight, and buffers that take from it and give back by themselves.

Bodies, what they unpack to, tensors that are read from JSON, strings, and decoded images count. A request that does not
fit is answered with 503, before its body is read if that is too large. So many large requests at a time are refused,
and the process is not killed.

Freed memory goes back to the system: glibc keeps what was freed below the top of its heap, so it is asked to return
that. Bodies of 10 MB on 25 new connections left 250 MB behind without it, and none with it. Off:
`GLIBC_TUNABLES=glibc.malloc.trim_threshold=131072`.
"""

import mmap
import os
import resource
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from sys import getsizeof
from weakref import finalize

import numpy as np

from fold.runtime import control_groups
from service.errors import SHORT, OutOfMemoryError

SHARE = 4
"""The default is the memory that there is divided by this: models, libraries and the runtime's arenas need the rest."""
COUNTED = 1 << 16
"""Bytes. A body up to this size does not count, nor do objects that take no more: accounting would cost more than
reading it."""
VALUE, CONTAINER, STRING = 48, 88, 72
"""Bytes of a value in a list, of a list or object, and of a string in a list and an array, beside its characters."""
ROOM = 16 << 20
"""Bytes that must be free before a piece of JSON is parsed, where the process has a limit of addresses. A piece takes a
tenth of it. orjson crashes if it gets no memory for an object."""
TRIMMED = 32 << 20
"""Bytes that are freed before the allocator is asked to return them."""


Body = bytes | bytearray
"""A small body is `bytes`, a large one a `Buffer`."""


class Budget:
    """`limit` in bytes. Only the event loop's thread and threads of requests take; any thread may give."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._peak = 0
        self._given = deque[int]()
        """What was given back and is not subtracted yet. A finalizer may run anywhere, so it must not take the lock."""
        self._lock = threading.Lock()
        self._freed = 0
        self._addresses_limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY

    @property
    def used(self) -> int:
        with self._lock:
            self._settle()
            return self._used

    @property
    def peak(self) -> int:
        """The most that was in use at one time since `restart_peak` was called."""
        return self._peak

    def restart_peak(self) -> None:
        with self._lock:
            self._settle()
            self._peak = self._used

    def take(self, size: int) -> None:
        """Raises `OutOfMemoryError` if `size` more bytes are too many."""
        with self._lock:
            self._settle()
            if self._used + size > self.limit:
                raise OutOfMemoryError(
                    f"{size} bytes do not fit: requests may take {self.limit} (BNFOLD_MAX_BYTES_IN_FLIGHT), "
                    f"{self._used} are in use; try again later"
                )
            self._used += size
            self._peak = max(self._peak, self._used)

    def give(self, size: int) -> None:
        self._given.append(size)

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """`size` bytes while the block runs."""
        self.take(size)
        try:
            yield
        finally:
            self.give(size)

    def check_room(self) -> None:
        """Raises `OutOfMemoryError` if the process is about to reach its limit of addresses."""
        if self._addresses_limited:
            try:
                mmap.mmap(-1, ROOM).close()
            except (OSError, ValueError, MemoryError) as error:
                raise OutOfMemoryError(SHORT) from error

    def take_freed(self) -> bool:
        """Whether so much was given back since this last said so that `return_freed` is worth its milliseconds."""
        with self._lock:
            self._settle()
            much = self._freed >= TRIMMED
            self._freed *= not much
            return much

    def _settle(self) -> None:
        while self._given:
            size = self._given.popleft()
            self._used -= size
            self._freed += size


class Buffer(bytearray):
    """Bytes that count until nothing refers to them, neither this object nor arrays that are views of it."""

    __slots__ = ("_budget", "_taken")

    def __init__(self, budget: Budget, expected: int = 0) -> None:
        """Empty. `expected` bytes are taken now, and more where it grows beyond them."""
        super().__init__()
        self._budget = budget
        self._taken = 0
        self.expect(expected)

    def expect(self, size: int) -> None:
        """Take what `size` bytes in all need. Raises `OutOfMemoryError`."""
        if size > self._taken:
            self._budget.take(size - self._taken)
            self._taken = size

    def add(self, part: Body) -> None:
        """Raises `OutOfMemoryError`, and `MemoryError` if the system has none."""
        self.expect(len(self) + len(part))
        self += part

    def __del__(self) -> None:
        with suppress(AttributeError):  # the first bytes were refused
            self._budget.give(self._taken)


class Estimate:
    """What Python's objects take that are made of a request. It counts until it is closed, or with an array."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._size = self._taken = 0

    def add(self, size: int) -> None:
        """Raises `OutOfMemoryError`."""
        self._size += size
        if self._size > COUNTED:
            self._budget.take(self._size - self._taken)
            self._taken = self._size

    def add_json(self, piece: Body) -> None:
        """The values of a JSON text, or of a piece of one. Raises `OutOfMemoryError`."""
        containers, strings = piece.count(b"[") + piece.count(b"{"), piece.count(b'"') // 2
        values = piece.count(b",") + containers + 1
        characters = _characters(piece) if strings else 0
        self.add(VALUE * values + CONTAINER * containers + (STRING - VALUE) * strings + characters)

    def keep_with(self, array: np.ndarray) -> None:
        """Count until nothing refers to the memory of `array`."""
        if self._taken:
            owner = array if array.base is None else array.base
            finalize(owner, self._budget.give, self._taken).atexit = False
        self._size = self._taken = 0

    def close(self) -> None:
        self._budget.give(self._taken)
        self._size = self._taken = 0


def _characters(text: Body) -> int:
    """Bytes of the strings in a JSON text at most: each is as wide as its widest character."""
    if b"\\u" in text:
        return 4 * len(text)
    return len(text) if text.isascii() else getsizeof(str(text, "utf-8", "replace"))


def default_limit() -> int:
    """Bytes: a share of the memory of its control groups, of the machine's, or of the addresses that this process may
    still use, whichever is least."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for version, folder in control_groups("memory"):
        with suppress(OSError, ValueError):  # not mounted, or "max"
            found.append(int((folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).read_text()))
    addresses = resource.getrlimit(resource.RLIMIT_AS)[0]
    if addresses != resource.RLIM_INFINITY:
        with suppress(OSError):
            addresses -= int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        found.append(max(addresses, 0))
    return min(found) // SHARE

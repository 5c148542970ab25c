"""The stub libraries of CUDA in this process: what they count, and how they are made to fail (libraries/*.c)."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

RUNTIME, CUDNN = "libcudart.so.13", "libcudnn.so.9"


class Counts(ctypes.Structure):
    """Of the runtime. `allocations` and `bytes` are of the device's memory, `pinned` counts page-locked blocks;
    `waiting` copies are held, and `given_up` were held too long."""

    launches: int
    allocations: int
    bytes: int
    copies: int
    graph_launches: int
    captures: int
    pinned: int
    waiting: int
    given_up: int
    _fields_ = tuple((name, ctypes.c_long) for name in __annotations__)


class CudnnCounts(ctypes.Structure):
    """Of cuDNN: plans that were built, convolutions that ran, heuristics that were asked, by mode."""

    plans: int
    plans_with_tensor_cores: int
    runs: int
    asked_mode_a: int
    asked_mode_b: int
    asked_fallback: int
    _fields_ = tuple((name, ctypes.c_long) for name in __annotations__)


def loaded() -> bool:
    """Whether it is the stubs that the system's loader finds."""
    try:
        return hasattr(ctypes.CDLL(RUNTIME), "stub_counts")
    except OSError:
        return False


def counts() -> Counts:
    found = Counts()
    ctypes.CDLL(RUNTIME).stub_counts(ctypes.byref(found))
    return found


def cudnn_counts() -> CudnnCounts:
    found = CudnnCounts()
    ctypes.CDLL(CUDNN).stub_cudnn_counts(ctypes.byref(found))
    return found


@contextmanager
def failing(code: int) -> Iterator[None]:
    """Every call of the runtime fails."""
    library = ctypes.CDLL(RUNTIME)
    library.stub_fail(code)
    try:
        yield
    finally:
        library.stub_fail(0)


@contextmanager
def failing_convolutions(status: int, *, code_at_wait: int = 0) -> Iterator[None]:
    """Every convolution fails with a status of cuDNN, and whoever waits for the device with a code of CUDA."""
    runtime, cudnn = ctypes.CDLL(RUNTIME), ctypes.CDLL(CUDNN)
    cudnn.stub_cudnn_fail(status)
    runtime.stub_fail_at_wait(code_at_wait)
    try:
        yield
    finally:
        cudnn.stub_cudnn_fail(0)
        runtime.stub_fail_at_wait(0)


@contextmanager
def memory_for(more: int) -> Iterator[None]:
    """The device has memory for so many bytes more."""
    library = ctypes.CDLL(RUNTIME)
    library.stub_limit(ctypes.c_long(counts().bytes + more))
    try:
        yield
    finally:
        library.stub_limit(ctypes.c_long(-1))


@contextmanager
def held_copies() -> Iterator[None]:
    """Each copy waits for `let_a_copy_pass`, or for 20 seconds."""
    library = ctypes.CDLL(RUNTIME)
    library.stub_hold_copies(1)
    try:
        yield
    finally:
        library.stub_hold_copies(0)


def let_a_copy_pass() -> None:
    ctypes.CDLL(RUNTIME).stub_let_a_copy_pass()

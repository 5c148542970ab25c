"""Memory that a GPU reads and writes by itself: page-locked, so that a copy needs no staging by the driver."""

import ctypes
import re
import weakref
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
PORTABLE = 1
"""`cudaHostAllocPortable`: locked for every device."""


def pageable(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Ordinary memory, zeroed."""
    return np.zeros(shape, dtype)


def pinned(device: int) -> Allocate | None:
    """What allocates page-locked memory, zeroed; None where this process has not loaded the CUDA runtime."""
    runtime = _cuda_runtime()
    if runtime is None:
        return None

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = prod(shape) * dtype.itemsize
        address = ctypes.c_void_p()
        runtime.cudaSetDevice(device)  # of this thread: a first call sets the whole library up on device 0 otherwise
        if size == 0 or runtime.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), PORTABLE):
            return pageable(shape, dtype)  # the machine locks no more: slower, and as right
        buffer = (ctypes.c_byte * size).from_address(address.value or 0)
        weakref.finalize(buffer, runtime.cudaFreeHost, address)
        array: np.ndarray = np.frombuffer(memoryview(buffer), dtype).reshape(shape)  # holds the buffer
        array[...] = 0
        return array

    return allocate


def _cuda_runtime() -> ctypes.CDLL | None:
    """The library that ONNX Runtime has loaded: another copy would know nothing of its device."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\S*/libcudart\.so\S*", maps)
    return None if found is None else ctypes.CDLL(found[0])

"""Memory that a GPU reads and writes by itself: page-locked, so that a copy needs no staging by the driver."""

import ctypes
import weakref
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from fold.runtime import loaded_library

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], np.ndarray]
PORTABLE = 1
"""`cudaHostAllocPortable`: locked for every device."""


def pageable(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Ordinary memory, zeroed."""
    return np.zeros(shape, dtype)


def pinned(device: int) -> Allocate | None:
    """A function that allocates page-locked memory, zeroed; None if this process has not loaded the CUDA runtime."""
    runtime = loaded_library("libcudart")  # ONNX Runtime's: another copy would know nothing of its device
    if runtime is None:
        return None

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        size = prod(shape) * dtype.itemsize
        address = ctypes.c_void_p()
        runtime.cudaSetDevice(device)  # of this thread: a first call sets the whole library up on device 0 otherwise
        if size == 0 or runtime.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), PORTABLE):
            return pageable(shape, dtype)  # the machine locks no more: slower, but correct
        buffer = (ctypes.c_byte * size).from_address(address.value or 0)
        weakref.finalize(buffer, runtime.cudaFreeHost, address)
        array: np.ndarray = np.frombuffer(memoryview(buffer), dtype).reshape(shape)  # holds the buffer
        array[...] = 0
        return array

    return allocate

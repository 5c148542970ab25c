"""Calls of CUDA's own runtime: page-locked buffers, and copies during which other threads run.

ONNX Runtime's own copies, `OrtValue.update_inplace` and `OrtValue.numpy`, hold the interpreter until they are done. A
function that ctypes calls does not.
"""

import ctypes
import weakref
from math import prod
from typing import Any

import numpy as np

from fold.runtime import ProviderUnavailableError, loaded_library

PORTABLE = 1
"""`cudaHostAllocPortable`: locked for every device."""
TO_DEVICE, TO_HOST = 1, 2
"""`cudaMemcpyHostToDevice` and `cudaMemcpyDeviceToHost`."""


class CudaRuntime:
    """The runtime that ONNX Runtime has loaded, on one device: another copy of the library would know nothing of it."""

    def __init__(self, device: int) -> None:
        """Raises `ProviderUnavailableError` if this process has not loaded the runtime."""
        library = loaded_library("libcudart")
        if library is None:
            raise ProviderUnavailableError(
                f"device cuda:{device}: this ONNX Runtime does not load libcudart; install bnfold[gpu], or set "
                "BNFOLD_BUCKETS=off"
            )
        library.cudaGetErrorString.restype = ctypes.c_char_p
        self.device = device
        self._library = library

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Page-locked memory, zeroed, which the device reads and writes by itself; ordinary memory if the machine locks
        no more."""
        size = prod(shape) * dtype.itemsize
        address = ctypes.c_void_p()
        self._library.cudaSetDevice(self.device)  # of this thread: a first call sets device 0 up otherwise
        if size == 0 or self._library.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(size), PORTABLE):
            return np.zeros(shape, dtype)
        buffer = (ctypes.c_byte * size).from_address(address.value or 0)
        # Not at the end of the process: a thread may still copy, and the system frees it anyway.
        weakref.finalize(buffer, self._library.cudaFreeHost, address).atexit = False
        array: np.ndarray = np.frombuffer(memoryview(buffer), dtype).reshape(shape)  # holds the buffer
        array[...] = 0
        return array

    def to_device(self, address: int, array: np.ndarray) -> None:
        """Copy to the device, and return when it is done. `array` is contiguous."""
        self._copy(address, array.ctypes.data, array.nbytes, TO_DEVICE)

    def to_host(self, array: np.ndarray, address: int) -> None:
        """Copy from the device, and return when it is done. `array` is contiguous."""
        self._copy(array.ctypes.data, address, array.nbytes, TO_HOST)

    def _copy(self, to: int, source: int, size: int, kind: int) -> None:
        """Raises `RuntimeError` in ONNX Runtime's words."""
        code = self._library.cudaSetDevice(self.device) or self._library.cudaMemcpy(
            ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), kind
        )
        if code:
            raise RuntimeError(f"CUDA failure {code}: {self._library.cudaGetErrorString(code).decode()}")

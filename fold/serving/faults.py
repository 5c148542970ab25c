"""Faults of the device, told from the exception of a run: out of memory, which passes, or lost, which does not.

ONNX Runtime raises one class for all of them, so the text decides, and a GPU is asked itself: ONNX Runtime cannot
allocate on a lost device either, and says of cuDNN only that it failed. The codes are CUDA's runtime errors; after
those that are listed as lost, every later call of the process fails as well (CUDA Runtime API, cudaError_t).
"""

import re

from fold.errors import BnfoldError
from fold.runtime import ask_device, runtime_code

_NO_MEMORY = re.compile(
    r"out of memory|CUDA failure 2:|Failed to allocate memory|BFCArena::AllocateRaw|STATUS_ALLOC_FAILED|std::bad_alloc|"
    r"_ALLOCATION_FAILED|Available memory of \d+ is smaller than requested|Failed to find a free memory block",
    re.IGNORECASE,
)
_CUDNN = re.compile(r"CUDNN_BACKEND_API_FAILED|CUDNN_STATUS_(INTERNAL_ERROR|EXECUTION_FAILED)\b")
"""What cuDNN says that has no memory, or fails in another way."""
_LITTLE = 64 << 20
"""Bytes that are free on a device on which cuDNN's failures are for want of memory."""
_LOST_CODES = frozenset({46, 100, 101, 214, 219, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
"""No device, an uncorrectable memory error, an illegal access, an assertion in a kernel, a launch that failed."""
_LOST_WORDS = re.compile(
    r"illegal memory access|unspecified launch failure|device-side assert|uncorrectable|no CUDA-capable device|"
    r"GPU is lost|fallen off the bus",
    re.IGNORECASE,
)


class DeviceMemoryError(BnfoldError):
    """The device has no memory for the batch; it may have some for another."""

    def __init__(self, code: str) -> None:
        super().__init__(f"no memory on the device: {code}; send fewer rows, or try again")


class DeviceLostError(BnfoldError):
    """The device does not answer any more, for as long as this process lives."""

    def __init__(self, code: str) -> None:
        super().__init__(f"the device is lost: {code}; the process must be started anew")
        self.code = code


def device_fault(error: Exception, gpu: int | None) -> DeviceMemoryError | DeviceLostError | None:
    """What to raise for an exception of a run on a GPU, by its number, or on the CPU (None). None for a fault of the
    graph or its inputs."""
    text, code = str(error), runtime_code(error)
    wrong, free = (0, _LITTLE) if gpu is None else ask_device(gpu)
    if wrong in _LOST_CODES:
        return DeviceLostError(f"CUDA failure {wrong}")
    if _NO_MEMORY.search(text) or (free < _LITTLE and _CUDNN.search(text)):
        return DeviceMemoryError(code)
    codes = {int(found) for found in re.findall(r"CUDA (?:failure|error)[ :]+(\d+)", text)}
    return DeviceLostError(code) if codes & _LOST_CODES or _LOST_WORDS.search(text) else None

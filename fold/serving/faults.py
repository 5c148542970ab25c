"""Faults of the device, told from the exception of a run: out of memory, which passes, or lost, which does not.

ONNX Runtime raises one class for all of them, so the text decides. The codes are CUDA's runtime errors; after those
that are listed as lost, every later call of the process fails as well (CUDA Runtime API, cudaError_t).
"""

import re

from fold.errors import BnfoldError

_NO_MEMORY = re.compile(
    r"out of memory|CUDA failure 2:|Failed to allocate memory|BFCArena::AllocateRaw|STATUS_ALLOC_FAILED|std::bad_alloc|"
    r"Available memory of \d+ is smaller than requested|Failed to find a free memory block",
    re.IGNORECASE,
)
_LOST_CODES = frozenset({46, 100, 101, 214, 219, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
"""No device, an uncorrectable memory error, an illegal access, an assertion in a kernel, a launch that failed."""
_LOST_WORDS = re.compile(
    r"illegal memory access|unspecified launch failure|device-side assert|uncorrectable|no CUDA-capable device|"
    r"GPU is lost|fallen off the bus",
    re.IGNORECASE,
)


class DeviceMemoryError(BnfoldError):
    """The device has no memory for the batch; it may have some for another."""


class DeviceLostError(BnfoldError):
    """The device does not answer any more, for as long as this process lives."""


def device_fault(error: Exception) -> type[BnfoldError] | None:
    """The class for an exception of a run; None for a fault of the graph or its inputs."""
    text = str(error)
    if _NO_MEMORY.search(text):
        return DeviceMemoryError
    codes = {int(code) for code in re.findall(r"CUDA (?:failure|error)[ :]+(\d+)", text)}
    return DeviceLostError if codes & _LOST_CODES or _LOST_WORDS.search(text) else None

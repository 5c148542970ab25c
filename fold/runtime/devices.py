"""Devices: which there are, and what the process has loaded for them. All of ctypes on CUDA is here."""

from pathlib import Path
from typing import TYPE_CHECKING

from fold.errors import BnfoldError

if TYPE_CHECKING:
    import onnxruntime as ort
import ctypes
import re
from typing import Literal

import onnxruntime as ort

Provider = str
"""`auto`, `cpu`, `cuda`, or `cuda:1` for the second device."""


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names for them."""


class ProviderUnavailableError(BnfoldError):
    """A provider was asked for by name and this machine or this build of ONNX Runtime does not have it."""


def resolve_provider(provider: Provider) -> Literal["cpu", "cuda"]:
    """`auto` is CUDA where this build of ONNX Runtime has it and a device answers, else the CPU."""
    if provider == "cpu":
        return "cpu"
    if provider != "auto":
        device_number(provider)
        return "cuda"
    return "cuda" if PROVIDERS["cuda"] in ort.get_available_providers() and cuda_devices() else "cpu"


def device_number(provider: Provider) -> int:
    """Which GPU: 1 for `cuda:1`, 0 where none is named. Raises `BnfoldError` for what names no device."""
    match re.fullmatch(r"(?:auto|cpu|cuda(?::([0-9]{1,3}))?)", provider):
        case None:
            raise BnfoldError(f"device {provider}: expected auto, cpu, cuda, or cuda:1 for the second GPU")
        case found:
            return int(found[1] or 0)


def cuda_devices() -> int:
    """How many CUDA devices the driver sees; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def pci_bus_id(number: int) -> str:
    """Where a CUDA device sits, such as 0000:41:00.0: the name under which other libraries know it, too."""
    driver = ctypes.CDLL("libcuda.so.1")
    text, device = ctypes.create_string_buffer(32), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetPCIBusId(text, len(text), device):
        raise ProviderUnavailableError(f"device cuda:{number}: the driver does not tell where it is")
    return text.value.decode()


def loaded_library(name: str) -> ctypes.CDLL | None:
    """The shared library that this process has loaded already, and no other copy of it; None if it has none."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"\S*/{re.escape(name)}\.so\S*", maps)
    return None if found is None else ctypes.CDLL(found[0])


def loaded_cudnn() -> str | None:
    """The version of cuDNN that this process has really loaded, such as 9.12.0; None if it has none.

    ONNX Runtime's CUDA provider loads it when a convolution asks for it, and does without where it is not found.
    """
    library = loaded_library("libcudnn")
    if library is None:
        return None
    get_version = library.cudnnGetVersion
    get_version.restype = ctypes.c_size_t
    number = int(get_version())  # 91200 since version 9, 8907 before
    major = 10_000 if number >= 10_000 else 1_000
    return f"{number // major}.{number % major // 100}.{number % 100}"

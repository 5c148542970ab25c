"""Devices: how they are named, which there are, and what this process has loaded for them. All of ctypes on CUDA is
here, but for buffers and copies (fold.serving.cuda_runtime)."""

import ctypes
import re
import sys
from pathlib import Path
from typing import Literal

import onnxruntime as ort

from fold.errors import BnfoldError

Provider = str
"""`auto`, `cpu`, `cuda`, or `cuda:1` for the second device."""

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names for them."""

DRIVER = "libcuda.so.1"


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
    """The number of the GPU: 1 for `cuda:1`, 0 where none is named. Raises `BnfoldError` for a name of no device."""
    match re.fullmatch(r"(?:auto|cpu|cuda(?::([0-9]{1,3}))?)", provider):
        case None:
            raise BnfoldError(f"device {provider}: expected auto, cpu, cuda, or cuda:1 for the second GPU")
        case found:
            return int(found[1] or 0)


def cuda_devices() -> int:
    """The number of CUDA devices that the driver sees; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def gpu_name() -> str | None:
    """The driver's name of the first CUDA device, which ONNX Runtime takes by default; None if there is none."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        return None
    device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetName(name, 256, device):
        return None
    return name.value.decode(errors="replace")


def gpu_memory(provider: Provider) -> int:
    """Bytes of memory that a CUDA device has. Raises `ProviderUnavailableError` if the driver does not tell."""
    device, total = ctypes.c_int(0), ctypes.c_size_t()
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise ProviderUnavailableError(f"device {provider}: there is no driver ({error})") from error
    code = driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), device_number(provider))
    if code or driver.cuDeviceTotalMem_v2(ctypes.byref(total), device):
        raise ProviderUnavailableError(f"device {provider}: the driver does not tell its memory")
    return total.value


def pci_bus_id(number: int) -> str:
    """The address of a CUDA device on the bus, such as 0000:41:00.0, by which other libraries name it, too."""
    driver = ctypes.CDLL(DRIVER)
    text, device = ctypes.create_string_buffer(32), ctypes.c_int(0)
    if driver.cuDeviceGet(ctypes.byref(device), number) or driver.cuDeviceGetPCIBusId(text, len(text), device):
        raise ProviderUnavailableError(f"device cuda:{number}: the driver does not tell where it is")
    return text.value.decode()


def ask_device(number: int) -> tuple[int, int]:
    """CUDA's code of what is wrong with a device, 0 for nothing, and the bytes that are free on it.

    After an illegal access of a kernel, and other errors that stay, every call of the runtime has such a code.
    """
    runtime, free, total = loaded_library("libcudart"), ctypes.c_size_t(), ctypes.c_size_t()
    if runtime is None:
        return 0, sys.maxsize
    code = runtime.cudaSetDevice(number) or runtime.cudaDeviceSynchronize()
    return code or runtime.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total)), free.value


def loaded_library(name: str) -> ctypes.CDLL | None:
    """The shared library that this process has loaded already, and no other copy of it; None if it has none."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"\S*/{re.escape(name)}\.so\S*", maps)
    return None if found is None else ctypes.CDLL(found[0])


def loaded_cudnn() -> str | None:
    """The version of cuDNN that this process has loaded, such as 9.12.0; None if it has none.

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

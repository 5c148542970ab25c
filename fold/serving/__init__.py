"""A published version as it serves: opened in ONNX Runtime on its device, warmed up, and tried on its canary."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.serving.faults import DeviceLostError, DeviceMemoryError, device_fault
    from fold.serving.options import SessionOptions

__all__ = ["DeviceLostError", "DeviceMemoryError", "SessionOptions", "device_fault"]

__getattr__ = lazy_names(
    __name__,
    {
        "DeviceLostError": "faults",
        "DeviceMemoryError": "faults",
        "SessionOptions": "options",
        "device_fault": "faults",
    },
)

"""A published version as it serves: opened in ONNX Runtime on its device, warmed up, and tried on its canary."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.serving.faults import DeviceLostError, DeviceMemoryError
    from fold.serving.options import SessionOptions
    from fold.serving.placement import FACTS
    from fold.serving.refusals import CertificateError
    from fold.serving.session import ModelSession

__all__ = ["FACTS", "CertificateError", "DeviceLostError", "DeviceMemoryError", "ModelSession", "SessionOptions"]

__getattr__ = lazy_names(
    __name__,
    {
        "CertificateError": "refusals",
        "DeviceLostError": "faults",
        "DeviceMemoryError": "faults",
        "FACTS": "placement",
        "ModelSession": "session",
        "SessionOptions": "options",
    },
)

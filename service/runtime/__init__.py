"""One version of a model in ONNX Runtime, and the device that it runs on."""

from service.runtime.placement import FACTS
from service.runtime.session import CertificateError, ModelSession

__all__ = ["FACTS", "CertificateError", "ModelSession"]

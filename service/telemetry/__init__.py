"""Metrics, logs and traces of the service."""

from service.telemetry.logs import AccessLog, Identity, ThrottledLog, access_log, configure_logging, identity
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import traced
from service.telemetry.traffic import Traffic

__all__ = [
    "AccessLog",
    "Identity",
    "Metrics",
    "ThrottledLog",
    "Traffic",
    "access_log",
    "configure_logging",
    "identity",
    "traced",
]

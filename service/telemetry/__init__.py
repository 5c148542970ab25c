"""Metrics, logs and traces of the service."""

from service.telemetry.logs import AccessLog, Identity, ThrottledLog, access_log, configure_logging, identity
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import traced

__all__ = ["AccessLog", "Identity", "Metrics", "ThrottledLog", "access_log", "configure_logging", "identity", "traced"]

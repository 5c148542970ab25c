"""Metrics, logs and traces of the service."""

from service.telemetry.logs import AccessLog, Identity, access_log, configure_logging, identity
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import traced

__all__ = ["AccessLog", "Identity", "Metrics", "access_log", "configure_logging", "identity", "traced"]

"""Traces by OpenTelemetry, with `bnfold[otel]` and the setting `tracing`: a span for each request, in the client's
trace, exported as the standard OTEL_… variables say."""

import os

from starlette.types import ASGIApp

from fold.errors import BnfoldError


def traced(app: ASGIApp) -> ASGIApp:
    """`app` with a span around each request. Raises `BnfoldError` if OpenTelemetry is not installed."""
    try:
        from opentelemetry import trace  # noqa: PLC0415  # an extra
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise BnfoldError(f"tracing needs {error.name}; install bnfold[otel], or serve without it") from error
    os.environ.setdefault("OTEL_SERVICE_NAME", "bnfold")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    traced: ASGIApp = OpenTelemetryMiddleware(app, exclude_spans=["send", "receive"])
    return traced

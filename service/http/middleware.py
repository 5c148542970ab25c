"""What stands in front of the application by choice: CORS, traces, the access log. Nothing of it by default, for each
costs a part of every request."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.headers import LENGTH_HEADER
from service.settings import Settings
from service.telemetry import AccessLog


def front(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` behind what the settings ask for. Raises `BnfoldError` where that is not installed."""
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[LENGTH_HEADER.decode(), "retry-after", "x-request-id"],
        )
    if settings.tracing:
        from service.telemetry import traced  # noqa: PLC0415  # an extra

        app = traced(app)
    return AccessLog(app) if settings.access_log else app

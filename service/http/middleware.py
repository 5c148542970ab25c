"""Optional middleware: CORS, traces, the access log. All are off by default, because each slows every request and turns
off the fast path."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from service.headers import LENGTH_HEADER
from service.settings import Settings
from service.telemetry import AccessLog


def add_middleware(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` wrapped in the middleware that the settings ask for; `app` itself if they ask for none.

    Raises `BnfoldError` if a package is missing."""
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

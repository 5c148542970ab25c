"""Optional middleware: CORS, traces, the access log. All are off by default, because each slows every request and turns
off the fast path."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.errors import error_body
from service.headers import LENGTH_HEADER
from service.settings import Settings
from service.telemetry import AccessLog


class Cors(CORSMiddleware):
    """Starlette's, with refusals as `{"error": …}`."""

    def preflight_response(self, request_headers: Headers) -> Response:
        answer = super().preflight_response(request_headers)
        if answer.status_code == 200:
            return answer
        refused = bytes(answer.body).decode().removeprefix("Disallowed CORS ")
        body = error_body(f"CORS: not allowed here: {refused}; expected an origin of BNFOLD_CORS_ORIGINS, GET or POST")
        headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
        return Response(body, answer.status_code, headers, media_type="application/json")


def add_middleware(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` wrapped in the middleware that the settings ask for; `app` itself if they ask for none.

    Raises `BnfoldError` if a package is missing."""
    origins = [origin.strip() for origin in settings.cors_origins.split(",") if origin.strip()]
    if origins:
        app = Cors(
            app,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=[LENGTH_HEADER.decode(), "retry-after", "x-request-id"],
        )
    if settings.tracing:
        from service.telemetry import traced  # noqa: PLC0415  # an extra

        app = traced(app)
    return AccessLog(app) if settings.access_log else app

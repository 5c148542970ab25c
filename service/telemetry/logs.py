"""The log on stderr, as text or as JSON, and the access log with a line for each request.

A request is identified by its `X-Request-Id`, by the trace of its `traceparent` (W3C Trace Context), or by a random
number that it gets here. The content of tensors, tokens and bodies is never logged.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fold.errors import printable
from service.settings import LogFormat

REQUEST_ID = b"x-request-id"
ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")

Identity = dict[str, str]
"""`request_id`, and `trace_id` and `parent_id` where the client sent a trace."""

access_log = logging.getLogger("bnfold.access")
_current: ContextVar[Identity | None] = ContextVar("request", default=None)


class _Lines(logging.Formatter):
    """Text: the message in one line, and the traceback of a failure."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        record.message = printable(record.message)
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        identity = _identity(record)
        return f"{text} [request {identity['request_id']}]" if identity else text


class _Objects(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode(errors="backslashreplace").decode(),  # a path may be no UTF-8
            **_identity(record),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def _identity(record: logging.LogRecord) -> Identity:
    return getattr(record, "identity", None) or _current.get() or {}


def configure_logging(form: LogFormat) -> None:
    """Send the logs of the service, uvicorn and gRPC to stderr in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Objects() if form == "json" else _Lines())
    for name in ("bnfold", "uvicorn.error", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
    logging.getLogger("bnfold").setLevel(logging.INFO)


def identity(headers: Iterable[tuple[bytes, bytes]]) -> Identity:
    """What identifies a request with these headers. A header is used only if it is well formed."""
    found: Identity = {}
    for name, value in headers:
        if name == REQUEST_ID and ID.fullmatch(text := value.decode("latin-1")):
            found["request_id"] = text
        elif name == b"traceparent" and (match := TRACEPARENT.fullmatch(value.decode("latin-1").strip())):
            found["trace_id"], found["parent_id"] = match[1], match[2]
    found.setdefault("request_id", found.get("trace_id") or os.urandom(8).hex())
    return found


class ThrottledLog:
    """Warnings that clients can cause: at most `LINES` a second. The next line says how many were left out."""

    LINES = 3

    def __init__(self, name: str) -> None:
        self._log = logging.getLogger(name)
        self._second = -1
        self._lines = self._left_out = 0

    def warning(self, text: str, *arguments: object, now: float | None = None) -> None:
        """`now` is in seconds, of a clock that never goes back."""
        second = int(time.monotonic() if now is None else now)
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > self.LINES:
            self._left_out += 1
            return
        left_out, self._left_out = self._left_out, 0
        more = f" (lines left out before this one: {left_out})" if left_out else ""
        self._log.warning(f"bnfold: {text}{more}", *arguments)


class AccessLog:
    """Middleware that logs a line for each answered request, and returns its `X-Request-Id` to the client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = identity(scope["headers"])
        token = _current.set(known)
        began, status, size = time.perf_counter(), 499, 0  # 499 stays if the client leaves before the answer

        async def answer(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (REQUEST_ID, known["request_id"].encode())]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            _current.reset(token)
            milliseconds = round(1000 * (time.perf_counter() - began), 3)
            client = (scope.get("client") or ("-",))[0]
            path = ascii(scope["path"])[1:-1]
            fields = {
                "client": client,
                "method": scope["method"],
                "path": path,
                "status": status,
                "bytes": size,
                "milliseconds": milliseconds,
            }
            access_log.info(
                "%s %s %s %d %d bytes %g ms",
                client,
                scope["method"],
                path,
                status,
                size,
                milliseconds,
                extra={"fields": fields, "identity": known},
            )

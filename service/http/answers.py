"""Answers by ASGI, and the answer to a request that failed."""

import logging

from starlette.types import Send

from service.errors import SHORT, OutOfMemoryError, ServiceError, error_body
from service.headers import JSON, Headers
from service.repository import Model
from service.telemetry import Metrics, identity

Answer = tuple[int, Headers, bytes]

log = logging.getLogger("bnfold")


def failure(metrics: Metrics, route: str, model: Model | None, error: Exception, sent: Headers) -> Answer:
    """The answer to a request that failed. Counts the error, and logs it if it is a fault of the service.

    `sent` are the headers of the request."""
    if isinstance(error, MemoryError):
        error = OutOfMemoryError(SHORT)
    if not isinstance(error, ServiceError):
        log.error("%s failed", route, exc_info=error, extra={"identity": identity(sent)})
        error = ServiceError("internal error; the service's log has the details")
    metrics.failed(route, model, error)
    return error.status, *error_answer(error)


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_answer(error: ServiceError) -> tuple[Headers, bytes]:
    body = error_body(str(error))
    return [JSON, (b"content-length", b"%d" % len(body)), *error.headers()], body

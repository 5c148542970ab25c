"""Errors in gRPC: a status code, the message, and HTTP's headers as trailing metadata."""

from typing import Any, NoReturn

from grpc import StatusCode

from service.errors import DeadlineError, ServiceError

INTERNAL = "internal error; the service's log has the details"
"""The message for every exception that is not a `ServiceError`."""
TEXT = 1000
"""Characters of an error that are sent: they go into a header, and clients accept 8 KiB of headers."""

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata, which says when a client whose policy retries the status may do so (gRFC A6)."""

_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    499: StatusCode.CANCELLED,
    501: StatusCode.UNIMPLEMENTED,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}


def code_of(error: ServiceError) -> StatusCode:
    if isinstance(error, DeadlineError):
        return StatusCode.DEADLINE_EXCEEDED
    return _CODES.get(error.status, StatusCode.INTERNAL)


async def abort(context: Any, error: ServiceError) -> NoReturn:
    """End the call with `error`. Always raises, which ends its handler."""
    metadata = [(name.decode(), value.decode()) for name, value in error.headers()]
    metadata += [(PUSHBACK, f"{value}000") for name, value in metadata if name == "retry-after"]
    await context.abort(code_of(error), str(error)[:TEXT], tuple(metadata))
    raise AssertionError("abort raises")

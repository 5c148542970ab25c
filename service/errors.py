"""The errors that clients are told. Each class has its HTTP status, and `kind`, the label under which /metrics counts
it.

The text goes to the client as `{"error": …}`, so it says what was received, what was expected and what to do.
"""

from typing import Any

import orjson

from fold.serving import DeviceLostError, DeviceMemoryError
from service.headers import Headers

SHOWN = 80
"""Characters of a value that an error repeats."""


class ServiceError(Exception):
    """An error whose text the client is told. Subclasses set the status and the kind."""

    status = 500
    kind = "internal"

    def headers(self) -> Headers:
        """Headers that the status needs in addition."""
        return []


class BadRequestError(ServiceError):
    status = 400
    kind = "bad_request"


class UnreadableError(BadRequestError):
    """The body is no JSON."""


class UnauthorizedError(ServiceError):
    """The request brought no known token."""

    status = 401
    kind = "unauthorized"

    def headers(self) -> Headers:
        return [(b"www-authenticate", b"Bearer")]


class ForbiddenError(ServiceError):
    status = 403
    kind = "forbidden"


class NotFoundError(ServiceError):
    status = 404
    kind = "not_found"


class MethodError(ServiceError):
    status = 405
    kind = "method"

    def __init__(self, method: str, path: str, allowed: str) -> None:
        super().__init__(f"{method} {path}: this path takes {allowed}")
        self.allowed = allowed

    def headers(self) -> Headers:
        return [(b"allow", self.allowed.encode())]


class NotAcceptableError(ServiceError):
    """The answer cannot be given in a form that the request accepts."""

    status = 406
    kind = "not_acceptable"


class TooLargeError(ServiceError):
    status = 413
    kind = "too_large"


class UnsupportedError(ServiceError):
    status = 415
    kind = "unsupported"

    def __init__(self, text: str, encodings: str = "") -> None:
        """`encodings` are those that would be read, where it is the body's that is not (RFC 9110, 15.5.16)."""
        super().__init__(text)
        self._encodings = encodings

    def headers(self) -> Headers:
        return [(b"accept-encoding", self._encodings.encode())] if self._encodings else []


class BusyError(ServiceError):
    """The queue is full. An answer now is better than a time-out later."""

    status = 429
    kind = "queue_full"

    def __init__(self, text: str, retry_after: int = 1) -> None:
        """`retry_after` is in whole seconds."""
        super().__init__(text)
        self.retry_after = retry_after

    def headers(self) -> Headers:
        return [(b"retry-after", b"%d" % self.retry_after)]


class ClientGoneError(ServiceError):
    """The client has left. The status is nginx's; it is counted and never sent."""

    status = 499
    kind = "client_gone"


class ComputeError(ServiceError):
    status = 500
    kind = "compute"


class NotOfferedError(ServiceError):
    status = 501
    kind = "not_offered"


class NotReadyError(ServiceError):
    status = 503
    kind = "not_ready"


SHORT = "the service is short of memory; try again later"


class OutOfMemoryError(ServiceError):
    """The request does not fit into the memory that is left. Another server, or this one later, may have more."""

    status = 503
    kind = "memory"

    def headers(self) -> Headers:
        return [(b"retry-after", b"1")]


class DeviceError(ServiceError):
    """A run failed because of its device: it has no memory for the batch, or it is lost."""

    status = 503

    def __init__(self, error: DeviceMemoryError | DeviceLostError) -> None:
        super().__init__(str(error))
        self.kind = "device_lost" if isinstance(error, DeviceLostError) else "device_memory"


class OutOfFilesError(NotReadyError):
    """The process has no file descriptor left; it may have one soon."""

    kind = "out_of_files"

    def __init__(self) -> None:
        super().__init__(
            "the service has no file descriptors left; try again later, or raise the limit of open files (ulimit -n)"
        )


class DeadlineError(ServiceError):
    status = 503
    kind = "deadline"


class OverdueError(ServiceError):
    """A check that was begun took longer than allowed."""

    status = 504
    kind = "overdue"


def error_body(text: str) -> bytes:
    return orjson.dumps({"error": text})


def shown(value: Any) -> str:
    """A value from a request as an error repeats it: quoted, printable and short."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

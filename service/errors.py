"""What the service refuses or cannot do: each error carries its HTTP status, and one function turns it into an answer.

The text goes to the client as `{"error": …}`, so it says what came, what was expected and what to do. `kind` is the
label under which /metrics counts it.
"""

from typing import Any

import orjson

from service.headers import Headers

SHOWN = 80


class ServiceError(Exception):
    """Something the client is told. Subclasses set the status and the kind."""

    status = 500
    kind = "internal"

    def headers(self) -> Headers:
        """Headers that the status asks for beside the usual ones."""
        return []


class BadRequestError(ServiceError):
    status = 400
    kind = "bad_request"


class UnauthorizedError(ServiceError):
    """The request brought no token, or none that is known."""

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
    """The answer has no form that the request's Accept asks for."""

    status = 406
    kind = "not_acceptable"


class TooLargeError(ServiceError):
    status = 413
    kind = "too_large"


class UnsupportedError(ServiceError):
    status = 415
    kind = "unsupported"


class BusyError(ServiceError):
    """The queue is full: better told now than by a time-out later."""

    status = 429
    kind = "queue_full"

    def __init__(self, text: str, retry_after: int = 1) -> None:
        """`retry_after` in whole seconds."""
        super().__init__(text)
        self.retry_after = retry_after

    def headers(self) -> Headers:
        return [(b"retry-after", b"%d" % self.retry_after)]


class ClientGoneError(ServiceError):
    """Nobody is left to answer. The status is nginx's and is only counted, never sent."""

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


class DeadlineError(ServiceError):
    status = 503
    kind = "deadline"


class OverdueError(ServiceError):
    """What was begun took longer than it may."""

    status = 504
    kind = "overdue"


def error_body(text: str) -> bytes:
    return orjson.dumps({"error": text})


def shown(value: Any) -> str:
    """A value from a request as an error may repeat it: quoted, printable, and never longer than a line."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

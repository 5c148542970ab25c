"""An infer request in its usual form, from its last byte to the answer, without ASGI in between.

A whole body of declared length, not compressed, on a connection where nothing else is under way: that is how clients
send nearly all of them, and then ASGI's task, messages and two writes cost as much as the model. Everything else
about the request, and every other request, goes the common way (service.infer).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import Headers

JOINED = 1 << 16
"""Bytes of a body that is copied behind its head, for one write costs less than two."""

Target = tuple[str, str | None]
RawHeaders = list[tuple[bytes, bytes]]
Answer = Callable[[int, Headers, bytes], None]


class Direct(Protocol):
    """Who computes."""

    max_body_bytes: int

    def begin(self, target: Target, headers: RawHeaders, body: bytes, exchange: "Exchange") -> None:
        """Give the exchange its answer, once, now or later."""

    def lose(self, target: Target) -> None:
        """Count a request whose client left before its body was complete."""


class Event:
    """What uvicorn wakes its cycles with; nobody sleeps here."""

    def set(self) -> None:
        """Nothing."""


EVENT = Event()


class Exchange:
    """Stands where uvicorn keeps its cycle, and has of that what uvicorn looks at."""

    __slots__ = (
        "_connection",
        "_parts",
        "disconnected",
        "headers",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
        "target",
        "withdraw",
    )

    def __init__(self, connection: Any, target: Target, headers: RawHeaders) -> None:
        self.target = target
        self.headers = headers
        self.withdraw: Callable[[], object] | None = None
        """Takes the request out of the queue, where it is in one."""
        self.message_event = EVENT
        self.disconnected = self.response_started = self.response_complete = False
        self.keep_alive = self.more_body = True
        self._connection = connection
        self._parts: list[bytes] = []

    def add(self, part: bytes) -> None:
        self._parts.append(part)

    @property
    def body(self) -> bytes:
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer, unless the client has gone."""
        transport = self._connection.transport
        self.response_started = self.response_complete = True
        self.withdraw = None
        if transport.is_closing():
            return
        lines = [STATUS_LINE[status]]
        for name, value in self._connection.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
            if name == b"connection":  # close, once the service is stopping
                self.keep_alive = False
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        lines.append(b"\r\n")
        if len(body) <= JOINED:
            lines.append(body)
            transport.write(b"".join(lines))
        else:
            transport.write(b"".join(lines))
            transport.write(body)
        if not self.keep_alive:
            transport.close()
        self._connection.on_response_complete()


def infer_target(path: str) -> Target | None:
    """Model and version that an infer path names; None for every other path."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


@lru_cache(maxsize=1024)
def target_of(url: bytes) -> Target | None:
    """Model and version of an infer URL that needs no decoding; None for every other."""
    if not url.isascii() or b"%" in url or b"?" in url or b"#" in url:
        return None
    return infer_target(url.decode())


def is_usual(headers: RawHeaders, max_body_bytes: int) -> bool:
    """Whether the body is whole and plain, and known to be within the limit. The common way says what is wrong."""
    length = None
    for name, value in headers:
        if name == b"content-length":
            length = value
        elif name in (b"content-encoding", b"transfer-encoding", b"expect", b"upgrade"):
            return False
    return length is not None and length.isdigit() and len(length) < 16 and 0 < int(length) <= max_body_bytes

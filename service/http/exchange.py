"""The fast path: an infer or predict request from its last byte to its answer, without ASGI.

It serves the form in which clients send nearly all requests: the whole body, of declared length and not compressed, on
a connection that does nothing else meanwhile. For these, ASGI's task, messages and two writes would cost as much as the
model. An `Exchange` is one such request with its answer; every other request goes the usual way, by ASGI to the same
endpoints (`service.http.routes`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.budget import COUNTED, Buffer
from service.headers import Headers
from service.http.head_cache import HeadCache, ModelPath, RequestHead, Route

JOINED = 1 << 16
"""Bytes of a body that is copied behind its head, because one write costs less than two."""
OK = STATUS_LINE[200]


class FastEndpoint(Protocol):
    """An endpoint that answers without ASGI."""

    def begin(self, head: RequestHead, body: bytes | bytearray, exchange: "Exchange") -> None:
        """Give the exchange its answer, once, now or later."""

    def admit(self, head: RequestHead, exchange: "Exchange") -> Buffer | None:
        """Where the bytes of a large body go; None if the request was refused, which it is before its body is read."""

    def refuse(self, head: RequestHead, exchange: "Exchange", error: Exception) -> None:
        """Give the exchange an error as its answer."""

    def lose(self, target: ModelPath) -> None:
        """Count a request whose client left before its body was complete."""


@dataclass(frozen=True, slots=True)
class FastPath:
    """What a connection needs to take requests past ASGI."""

    head_cache: HeadCache
    endpoints: Mapping[Route, FastEndpoint]


class Event:
    """What uvicorn sets to wake its request cycles. No exchange sleeps on it."""

    def set(self) -> None:
        """Nothing."""


class DefaultHeaders:
    """The headers that uvicorn adds to every answer, as bytes. uvicorn makes a new list of them each second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._count = 0
        self._bytes = b"\r\n"
        self._closes = False

    def lines(self, headers: Headers) -> tuple[bytes, bool]:
        """The headers with the empty line that ends a head, and whether they close the connection: they do once the
        service stops."""
        if headers is not self._headers or len(headers) != self._count:
            self._headers, self._count = headers, len(headers)
            self._bytes = header_lines(headers) + b"\r\n"
            self._closes = any(name == b"connection" for name, _ in headers)
        return self._bytes, self._closes


class Exchange:
    """One request on the fast path. It takes the place of uvicorn's request cycle, and has what uvicorn reads of it."""

    __slots__ = (
        "_body",
        "_connection",
        "disconnected",
        "head",
        "keep_alive",
        "more_body",
        "response_complete",
        "withdraw",
    )

    message_event = Event()

    def __init__(self, connection: Any, head: RequestHead) -> None:
        self.head = head
        self.withdraw: Callable[[], object] | None = None
        """Takes the request out of the queue, where it is in one."""
        self.response_complete = False
        self.keep_alive = self.more_body = True
        self._connection = connection
        self._body: bytes | bytearray | None = None
        """What has come of the body, until it is taken."""

    @property
    def response_started(self) -> bool:
        return self.response_complete

    @property
    def sole_connection(self) -> bool:
        """Whether its connection is the only one: no other request can come over HTTP beside it."""
        return len(self._connection.connections) == 1

    def admit(self, endpoint: FastEndpoint) -> None:
        """Take memory for a large body, or refuse the request."""
        if self.head.body_bytes > COUNTED:
            self._body = endpoint.admit(self.head, self)

    def add(self, part: bytes) -> None:
        """A part of the body; what follows a refusal is dropped."""
        if self.response_complete:
            return
        if type(self._body) is bytes:
            self._body = bytearray(self._body)
        if self._body is None:
            self._body = part
        else:
            self._body += part

    def take_body(self) -> bytes | bytearray:
        """The whole body. It is not kept here, because a connection keeps its last exchange."""
        body, self._body = self._body, None
        if type(body) is bytearray:
            return bytes(body)  # a small one
        return b"" if body is None else body

    def lose(self) -> None:
        """Drop what came of a body whose client has left."""
        self._body = None

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer, unless the client has left."""
        self.send(STATUS_LINE[status] + header_lines(headers), body)

    def send(self, start: bytes, body: bytes) -> None:
        """The same; `start` is the status line and the headers as bytes."""
        connection = self._connection
        transport = connection.transport
        self.response_complete = True
        self.withdraw = None
        if transport.is_closing():
            return
        default, closes = connection.default_headers.lines(connection.server_state.default_headers)
        if len(body) <= JOINED:
            transport.write(b"".join((start, default, body)))
        else:
            transport.write(start + default)
            transport.write(body)
        if closes or not self.keep_alive:
            transport.close()
        connection.on_response_complete()


def header_lines(headers: Headers) -> bytes:
    """The headers as bytes, a line each."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])

"""An infer or predict request in its usual form, from its last byte to the answer, without ASGI in between.

A whole body of declared length, not compressed, on a connection where nothing else is under way: that is how clients
send nearly all of them, and then ASGI's task, messages and two writes cost as much as the model. Everything else
about the request, and every other request, goes the common way (`service.http.routes`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.headers import Headers
from service.http.head_cache import Endpoint, HeadCache, ModelPath, RequestHead
from service.http.headers import header_lines

JOINED = 1 << 16
"""Bytes of a body that is copied behind its head, for one write costs less than two."""


class Computes(Protocol):
    """An endpoint that can be asked directly."""

    def begin(self, head: RequestHead, body: bytes, exchange: "Exchange") -> None:
        """Give the exchange its answer, once, now or later."""

    def lose(self, target: ModelPath) -> None:
        """Count a request whose client left before its body was complete."""


@dataclass(frozen=True, slots=True)
class Direct:
    """Who is asked directly, and the heads of requests that do."""

    heads: HeadCache
    endpoints: Mapping[Endpoint, Computes]


class Event:
    """What uvicorn wakes its cycles with; nobody sleeps here."""

    def set(self) -> None:
        """Nothing."""


class Usual:
    """The headers that uvicorn puts into every answer, as bytes. It makes a new list of them each second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._count = 0
        self._bytes = b"\r\n"
        self._closes = False

    def lines(self, headers: Headers) -> tuple[bytes, bool]:
        """With the empty line that ends a head, and whether they close the connection, as once the service stops."""
        if headers is not self._headers or len(headers) != self._count:
            self._headers, self._count = headers, len(headers)
            self._bytes = header_lines(headers) + b"\r\n"
            self._closes = any(name == b"connection" for name, _ in headers)
        return self._bytes, self._closes


class Exchange:
    """Stands where uvicorn keeps its cycle, and has of that what uvicorn looks at."""

    __slots__ = (
        "_connection",
        "_parts",
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
        self._parts: list[bytes] = []

    @property
    def response_started(self) -> bool:
        return self.response_complete

    @property
    def sole_connection(self) -> bool:
        """Whether its connection is the only one: no other request can come over HTTP beside it."""
        return len(self._connection.connections) == 1

    def add(self, part: bytes) -> None:
        self._parts.append(part)

    @property
    def body(self) -> bytes:
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer, unless the client has gone."""
        self.send(STATUS_LINE[status] + header_lines(headers), body)

    def send(self, start: bytes, body: bytes) -> None:
        """The same, with status and headers as bytes."""
        connection = self._connection
        transport = connection.transport
        self.response_complete = True
        self.withdraw = None
        if transport.is_closing():
            return
        usual, closes = connection.usual.lines(connection.server_state.default_headers)
        if len(body) <= JOINED:
            transport.write(b"".join((start, usual, body)))
        else:
            transport.write(start + usual)
            transport.write(body)
        if closes or not self.keep_alive:
            transport.close()
        connection.on_response_complete()

"""One connection as this service takes it: uvicorn's, with limits, this service's form of errors, and word of clients
that left.

uvicorn waits for a request for as long as it takes, and reads a head of any size. Here both have an end, which a sweep
over all connections sees to now and then: a timer for each request would cost more than parsing it. And what is asked
most, to infer, goes past ASGI where it comes in its usual form (service.http.exchange).
"""

from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import error_body
from service.http.exchange import Direct, Exchange, Usual
from service.http.head_cache import RequestHead
from service.operations import WITHDRAW


@dataclass(frozen=True, slots=True)
class Limits:
    """`header_bytes` of a request's head; `request_seconds` for a whole request to arrive, or for a client to go on
    reading its answer; `idle_seconds` between two requests; `connections` at a time."""

    header_bytes: int
    request_seconds: float
    idle_seconds: float
    connections: int


class HttpConnection(HttpToolsProtocol):
    def __init__(self, *args: Any, limits: Limits, direct: Direct | None, usual: Usual, **options: Any) -> None:
        """`direct` answers requests without ASGI; None where something stands in front of the application."""
        super().__init__(*args, **options)
        self.usual = usual
        self._limits = limits
        self._direct = None if self.root_path else direct
        self._between = True
        """Whether the parser awaits the first byte of a request."""
        self._start = b""
        """The head that the chunk begins with that is being parsed; empty for any but the first in it."""
        self._waiting_since: float | None = None
        """Since when the first request is awaited or one has been coming; None at other times."""
        self._idle_since: float | None = None
        """Since when nothing is under way after an answer."""
        self._stalled_since: float | None = None
        """Since when the client does not read."""
        self._head = -1
        """Bytes of an unfinished head, -1 if it is finished."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self.refuse(503, f"{self._limits.connections} connections are open already; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return
        direct = type(cycle) is Exchange
        withdraw = cycle.withdraw if direct else self.scope.get("state", {}).get(WITHDRAW)
        if withdraw is not None:
            withdraw()
        elif direct and cycle.more_body and self._direct is not None:
            self._direct.endpoints[cycle.head.endpoint].lose(cycle.head.target)

    def data_received(self, data: bytes) -> None:
        if self._between and self._direct is not None:
            start = data[: data.find(b"\r\n\r\n") + 4]
            head = self._direct.heads.find(start)
            if head is not None and len(data) == len(start) + head.body_bytes and self._is_free():
                self._idle_since = self._waiting_since = None
                self.cycle = exchange = Exchange(self, head)  # type: ignore[assignment]  # has what is looked at
                exchange.more_body = False
                self._direct.endpoints[head.endpoint].begin(head, data[len(start) :], exchange)
                return
            self._start = start
        super().data_received(data)
        self._start = b""
        if self._head >= 0:
            self._head += len(data)
            if self._head > self._limits.header_bytes:
                self.refuse(431, f"the head has more than the {self._limits.header_bytes} bytes that are taken")

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head = 0
        self._between = False
        self._idle_since = None
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()

    def on_headers_complete(self) -> None:
        self._head = -1
        start, self._start = self._start, b""
        head = self._usual_head(start)
        if head is not None:
            self.cycle = Exchange(self, head)  # type: ignore[assignment]  # has what is looked at
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope of ASGI
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _is_free(self) -> bool:
        """Whether nothing else is under way here."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _usual_head(self, start: bytes) -> RequestHead | None:
        """What was parsed, if it goes past ASGI. `start` are its bytes, empty if they did not come in one piece."""
        if (
            self._direct is None
            or not self._is_free()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or not self.parser.should_keep_alive()
        ):
            return None
        head = self._direct.heads.read(self.url, self.headers)
        if head is not None:
            self._direct.heads.remember(start, head)
        return head

    def on_body(self, body: bytes) -> None:
        cycle: Any = self.cycle
        if type(cycle) is Exchange:
            cycle.add(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._waiting_since = None
        self._between = True
        cycle: Any = self.cycle
        if type(cycle) is Exchange and self._direct is not None:
            cycle.more_body = False
            self._direct.endpoints[cycle.head.endpoint].begin(cycle.head, cycle.body, cycle)
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but for the timer that it sets after each answer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
        else:
            self._idle_since = self.loop.time()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stalled_since = None

    def sweep(self, now: float) -> None:
        """End what has taken too long."""
        overdue = now - self._limits.request_seconds
        if self._stalled_since is not None and self._stalled_since < overdue:
            self.transport.abort()
        elif self._idle_since is not None and self._idle_since < now - self._limits.idle_seconds:
            self.transport.close()
        elif self._waiting_since is not None and self._waiting_since < overdue and not self.transport.is_closing():
            seconds = self._limits.request_seconds
            self.refuse(408, f"no whole request came within {seconds:g} seconds")

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, "the request is not valid HTTP")

    def refuse(self, status: int, text: str) -> None:
        """Answer what cannot become a request, or not in time, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error_body(text)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

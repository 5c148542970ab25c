"""uvicorn's connection, with limits, JSON errors and disconnect detection; requests of the fast path leave it here.

uvicorn waits for a request without end, and reads a head of any size. Here both have a limit, which one sweep over all
connections checks several times a second: a timer for each request would cost more than parsing the request. Infer and
predict requests in their common form go past ASGI (`service.http.exchange`).

This class overrides methods and reads attributes of uvicorn's that are not public, so pyproject.toml bounds the
versions of uvicorn and httptools.
"""

import logging
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import error_body
from service.http.exchange import DefaultHeaders, Exchange, FastPath
from service.http.head_cache import RequestHead
from service.operations import WITHDRAW

log = logging.getLogger("bnfold")


@dataclass(frozen=True, slots=True)
class Limits:
    """`header_bytes` of a request's head; `request_seconds` for a whole request to arrive, or for a client that has
    stopped reading its answer; `idle_seconds` between two requests; `connections` at a time."""

    header_bytes: int
    request_seconds: float
    idle_seconds: float
    connections: int


class HttpConnection(HttpToolsProtocol):
    def __init__(
        self, *args: Any, limits: Limits, fast_path: FastPath | None, default_headers: DefaultHeaders, **options: Any
    ) -> None:
        """`fast_path` answers requests without ASGI; None where middleware has to see every request."""
        super().__init__(*args, **options)
        self.default_headers = default_headers
        self._limits = limits
        self._fast_path = None if self.root_path else fast_path
        self._running: Any = None
        """What ASGI is answering. uvicorn keeps in `cycle` only the last request that came."""
        self._between = True
        """Whether the next byte is the first of a request."""
        self._start = b""
        """The head at the beginning of the chunk that is being parsed; empty once that head was parsed."""
        self._waiting_since: float | None = None
        """Time since when a request has been arriving, or the first one is awaited; None otherwise. Times are the event
        loop's, in seconds."""
        self._idle_since: float | None = None
        """Time of the last answer, while no request follows it."""
        self._stalled_since: float | None = None
        """Time since when the client has not read."""
        self._head = -1
        """Bytes of an unfinished head, -1 if it is finished."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self.refuse(503, f"{self._limits.connections} connections are open already; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        running = self._running
        if running is not None and not running.response_complete:  # it must not write what is left of its answer
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            return
        fast = type(cycle) is Exchange
        withdraw = cycle.withdraw if fast else self.scope.get("state", {}).get(WITHDRAW)
        if withdraw is not None:
            withdraw()
        elif fast and cycle.more_body and self._fast_path is not None:
            self._fast_path.endpoints[cycle.head.route].lose(cycle.head.target)

    def data_received(self, data: bytes) -> None:
        if self._between and self._fast_path is not None:
            start = data[: data.find(b"\r\n\r\n") + 4]
            head = self._fast_path.head_cache.find(start)
            if head is not None and len(data) == len(start) + head.body_bytes and self._is_free():
                self._idle_since = self._waiting_since = None
                self.cycle = exchange = Exchange(self, head)  # type: ignore[assignment]  # has what uvicorn reads
                exchange.more_body = False
                self._fast_path.endpoints[head.route].begin(head, data[len(start) :], exchange)
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
        head = self._fast_head(start)
        if head is not None:
            self.cycle = Exchange(self, head)  # type: ignore[assignment]  # has what uvicorn reads
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope of ASGI
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _is_free(self) -> bool:
        """Whether no other request of this connection is being answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _fast_head(self, start: bytes) -> RequestHead | None:
        """The head that was parsed, if the request takes the fast path. `start` are its bytes; empty if they did not
        come in one piece."""
        if (
            self._fast_path is None
            or not self._is_free()
            or self.parser.get_method() != b"POST"
            or self.parser.get_http_version() != "1.1"
            or not self.parser.should_keep_alive()
        ):
            return None
        head = self._fast_path.head_cache.parse(self.url, self.headers)
        if head is not None:
            self._fast_path.head_cache.add(start, head)
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
        if type(cycle) is Exchange and self._fast_path is not None:
            cycle.more_body = False
            self._fast_path.endpoints[cycle.head.route].begin(cycle.head, cycle.body, cycle)
        else:
            super().on_message_complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """As uvicorn's, without the timer that it sets after each answer."""
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
        """Close the connection if it has taken too long. `now` is the event loop's time."""
        overdue = now - self._limits.request_seconds
        if self._stalled_since is not None and self._stalled_since < overdue:
            self._stalled_since = None
            log.warning(
                "bnfold: a client read nothing of its answer for %g seconds; its connection was closed",
                self._limits.request_seconds,
            )
            self.transport.abort()
        elif self._idle_since is not None and self._idle_since < now - self._limits.idle_seconds:
            self.transport.close()
        elif self._waiting_since is not None and self._waiting_since < overdue and not self.transport.is_closing():
            seconds = self._limits.request_seconds
            self.refuse(408, f"no whole request came within {seconds:g} seconds")

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, "the request is not valid HTTP")

    def refuse(self, status: int, text: str) -> None:
        """Answer what is no request, or did not arrive in time, and close."""
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = error_body(text)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

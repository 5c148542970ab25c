"""uvicorn's connection, with limits, JSON errors and disconnect detection; requests of the fast path leave it here.

uvicorn waits for a request without end, and reads a head of any size. Here both have a limit, which one sweep over all
connections checks several times a second: a timer for each request would cost more than parsing the request. Infer and
predict requests in their common form go past ASGI (`service.http.exchange`).

This class overrides methods and reads attributes of uvicorn's that are not public, so pyproject.toml bounds the
versions of uvicorn and httptools.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import error_body
from service.http.exchange import DefaultHeaders, Exchange, FastPath, header_lines
from service.http.framing import Fault, fault_of
from service.http.head_cache import RequestHead
from service.http.sockets import reset_when_closed
from service.operations import WITHDRAW
from service.telemetry import ThrottledLog

LINGER_SECONDS = 1.0
"""How long a refused client is listened to, without reading what it sends. If the connection were closed at once, the
kernel would answer what still comes with a reset, and the client would lose the refusal (RFC 9112, 9.6)."""

log = ThrottledLog("bnfold")


class RefusedError(Exception):
    """Ends the parsing of a request that has been refused."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`header_bytes` of a request's head; `request_seconds` for a whole request to arrive, or for a client that has
    stopped reading its answer; `idle_seconds` between two requests; `connections` at a time. `on_crowd` is called for
    each connection beyond them."""

    header_bytes: int
    request_seconds: float
    idle_seconds: float
    connections: int
    on_crowd: Callable[[], None] = lambda: None


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
        """Bytes of an unfinished head that came with earlier chunks, -1 if it is finished."""
        self._chunk = 0
        """Bytes of the chunk that is being parsed."""
        self._pipelined = False
        """Whether the chunk began with an earlier request than the one that is being parsed."""
        self._resumes = False
        """Whether the parser is being told where in a request it stands."""
        self._refusal: Fault | None = None
        """The last answer of this connection, once something came that is no request."""
        self._lingers_since: float | None = None
        """Time since when this answer has been sent."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._waiting_since = self.loop.time()
        if len(self.connections) > self._limits.connections:
            self._limits.on_crowd()
            self.refuse(503, f"{self._limits.connections} connections are open already; try again later")

    def connection_lost(self, exc: Exception | None) -> None:
        running = self._running
        if running is not None and not running.response_complete:  # it must not write what is left of its answer
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)
        cycle: Any = self.cycle
        fast = type(cycle) is Exchange
        if fast:
            cycle.lose()
            self.cycle = None  # type: ignore[assignment]  # a reference cycle would keep both until a collection
        if cycle is None or cycle.response_complete:
            return
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
        if self._refusal is not None:  # what follows is no request, either
            return
        self._chunk, self._pipelined = len(data), False
        try:
            self._parse(data)
        except HttpParserError as error:
            if self._refusal is None:
                self.refuse(400, "the request is not valid HTTP", reason=str(error))
            return
        self._start = b""
        if self._head >= 0:
            # Where a pipelined head began is not known, so of this chunk the whole lines count that were parsed.
            self._head += self._parsed_head_bytes() if self._pipelined else len(data)
            if self._head > self._limits.header_bytes:
                self._refuse_head()

    def _parse(self, data: bytes) -> None:
        """Feed the parser. Requests to upgrade are read as any others (RFC 9110, 7.8), but the parser stops behind
        their heads: a new one goes on, which is told how the body is delimited."""
        while True:
            try:
                self.parser.feed_data(data)
                return
            except HttpParserUpgrade as stopped:
                data = data[stopped.args[0] :]
                framing = [h for h in self.headers if h[0] in (b"content-length", b"transfer-encoding")]
                self.parser = HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn
                self._resumes = True
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + header_lines(framing) + b"\r\n")

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._head = 0
        self._between = False
        self._idle_since = None
        if self._waiting_since is None:
            self._waiting_since = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head < 0:  # trailers of a body in chunks are no headers (RFC 9110, 6.5.1)
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self._resumes:
            self._resumes, self._head = False, -1
            return
        start, self._start = self._start, b""
        head = self._known_head(start)
        if head is None:
            self._check_head()
            head = self._fast_head(start)
        self._head = -1
        if head is not None:
            self.cycle = exchange = Exchange(self, head)  # type: ignore[assignment]  # has what uvicorn reads
            if self._fast_path is not None:
                exchange.admit(self._fast_path.endpoints[head.route])
            return
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()  # makes the scope of ASGI
        self.url, self.expect_100_continue = url, expects
        self.headers += headers
        super().on_headers_complete()

    def _check_head(self) -> None:
        """Refuse the request that begins with the head that was parsed, and raise `RefusedError`, if it is none."""
        if self._head + self._chunk > self._limits.header_bytes < self._parsed_head_bytes():
            self._refuse_head()
            raise RefusedError
        fault = fault_of(self.parser.get_method(), self.parser.get_http_version(), self.headers)
        if fault is not None:
            self.refuse(*fault, reason=fault[1])
            raise RefusedError

    def _is_free(self) -> bool:
        """Whether no other request of this connection is being answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.flow.write_paused

    def _known_head(self, start: bytes) -> RequestHead | None:
        """The head that was parsed, if its bytes `start` are in the cache: then it was checked before."""
        return self._fast_path.head_cache.find(start) if start and self._fast_path and self._is_free() else None

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
            try:
                cycle.add(body)
            except MemoryError as error:
                cycle.lose()
                if self._fast_path is not None:
                    self._fast_path.endpoints[cycle.head.route].refuse(cycle.head, cycle, error)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # the parser stops here, and the body is still to come
            return
        self._waiting_since = None
        self._between = self._pipelined = True
        cycle: Any = self.cycle
        cycle.more_body = False
        if type(cycle) is Exchange and self._fast_path is not None:
            if not cycle.response_complete:
                self._fast_path.endpoints[cycle.head.route].begin(cycle.head, cycle.take_body(), cycle)
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
        elif self._refusal is not None:
            self._send_refusal(*self._refusal)
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
            seconds = self._limits.request_seconds
            log.warning("a client read nothing of its answer for %g seconds; its connection was closed", seconds)
            reset_when_closed(self.transport.get_extra_info("socket"))
            self.transport.abort()
        elif self._lingers_since is not None:
            if self._lingers_since < now - LINGER_SECONDS:
                self.transport.close()
        elif self._idle_since is not None and self._idle_since < now - self._limits.idle_seconds:
            self.transport.close()
        elif self._waiting_since is not None and self._waiting_since < overdue and not self.transport.is_closing():
            seconds = self._limits.request_seconds
            self.refuse(408, f"no whole request came within {seconds:g} seconds")

    def shutdown(self) -> None:
        """As uvicorn's; also closes what lingers."""
        if self._lingers_since is not None:
            self.transport.close()
        else:
            super().shutdown()

    def _parsed_head_bytes(self) -> int:
        return len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers])

    def _refuse_head(self) -> None:
        text = f"the head has more than the {self._limits.header_bytes} bytes that are taken"
        self.refuse(431, text, reason=text)

    def refuse(self, status: int, text: str, *, reason: str = "") -> None:
        """Answer what is no request, or did not arrive in time, after all requests before it; then close. With a
        `reason` it is logged."""
        if self._refusal is not None or self.transport.is_closing():
            return
        if reason:
            client = self.client[0] if self.client else "-"
            log.warning("a request of %s was refused with %d: %s", client, status, reason)
        self._refusal = status, text
        self._between = False
        self._waiting_since = self._idle_since = None
        cycle: Any = self.cycle
        if cycle is None or cycle.response_complete:
            # An answer that came before its body was complete was the answer to this request.
            self._send_refusal(status, "" if cycle is not None and cycle.more_body else text)
        elif cycle.more_body:
            self._drop(cycle)

    def _drop(self, cycle: Any) -> None:
        """Let go of the request that was being received: the refusal is its answer."""
        if self.pipeline and self.pipeline[0][0] is cycle:  # requests before it are still to be answered
            self.pipeline.popleft()
            return
        if type(cycle) is not Exchange:
            cycle.disconnected = True
            cycle.message_event.set()
        assert self._refusal is not None
        status, text = self._refusal
        self._send_refusal(status, "" if cycle.response_started else text)

    def _send_refusal(self, status: int, text: str) -> None:
        """Send the last answer, unless `text` is empty, and close the connection once the client has had the time to
        read it."""
        if text:
            body = error_body(text)
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(STATUS_LINE[status] + head + body)
        if len(self.connections) > self._limits.connections or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._lingers_since = self.loop.time()

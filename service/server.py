"""uvicorn as this service runs it: a port that is ours before anything is loaded, and an end that loses no request.

On SIGTERM or SIGINT the service stops being ready and goes on serving for the grace time, closing each connection with
its answer; then it lets nobody new in, answers those who are in, and leaves. A second signal means now.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from fold.errors import BnfoldError
from service.errors import error_body
from service.infer import WITHDRAW
from service.settings import Settings

BACKLOG = 2048
SETTLE_SECONDS = 0.2
"""For connections that were being made when the door closed: a round trip, and the time to accept them."""
NEW_SECONDS = 1.0
"""How long a client that came in last may take to send its request."""
TICK_SECONDS = 0.02
SO_ATTACH_FILTER = 26
"""Linux's; Python has no name for it."""


def bind(host: str, port: int) -> socket.socket:
    """A socket with that address, which does not listen yet. Raises `BnfoldError` if it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise BnfoldError(f"host {host!r}: {error.strerror}; expected an address of this machine") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a restart need not wait for old connections
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise _cannot_bind(host, port, error) from error
    return listener


def _cannot_bind(host: str, port: int, error: OSError) -> BnfoldError:
    if error.errno == errno.EADDRINUSE:
        return BnfoldError(f"port {port} on {host} is taken; stop what listens there, or choose another with --port")
    if error.errno == errno.EACCES:
        return BnfoldError(f"port {port} on {host} is not for this user; choose one above 1023 with --port")
    return BnfoldError(f"port {port} on {host}: {os.strerror(error.errno or 0)}; choose another with --host and --port")


def run(
    app: ASGIApp,
    listener: socket.socket,
    settings: Settings,
    *,
    on_start: Callable[[str], None],
    on_stop: Callable[[], None],
) -> int:
    """Serve `app` until a signal, 0 then. `on_start` gets the URL once it answers, `on_stop` comes with the signal."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        timeout_graceful_shutdown=max(1, round(settings.timeout_seconds)),
    )
    server = Server(config, settings.grace_seconds, on_start, on_stop)
    try:
        server.run(sockets=[listener])
    except OSError as error:  # two processes may bind an address, but only one of them may listen
        raise _cannot_bind(settings.host, settings.port, error) from error
    finally:
        listener.close()
    return 0


class Protocol(HttpToolsProtocol):
    """HTTP with this service's form of errors, and with word of clients that left."""

    def send_400_response(self, msg: str) -> None:
        body = error_body("the request is not valid HTTP")
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[400] + head + body)
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is not None and not self.cycle.response_complete:
            withdraw = self.scope.get("state", {}).get(WITHDRAW)
            if withdraw is not None:
                withdraw()


class Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, grace: float, on_start: Callable[[str], None], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._grace = grace
        self._on_start = on_start
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end, and the process would not exit with 0
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            self._on_start(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers.append((b"connection", b"close"))
        await self._wait(self._grace, lambda: True)
        for listener in sockets or ():
            refuse_new_connections(listener)
        await self._wait(SETTLE_SECONDS, lambda: True)
        # uvicorn closes connections without a request under way, and a new one has none only because it is new
        await self._wait(NEW_SECONDS, lambda: any(c.cycle is None for c in self._connections()))
        await super().shutdown(sockets)

    async def _wait(self, seconds: float, needed: Callable[[], bool]) -> None:
        """Serve on for `seconds`, while it is needed and nobody says now."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.force_exit and needed():
            await asyncio.sleep(min(TICK_SECONDS, left))

    def _connections(self) -> list["Protocol"]:
        return [connection for connection in self.server_state.connections if isinstance(connection, Protocol)]


def refuse_new_connections(listener: socket.socket) -> None:
    """Let nobody new in, while those whom the kernel let in already are still accepted.

    Closing a port resets every connection that was made but not accepted yet, and under load there are always some. So
    the kernel is told to drop what asks for a new one (a segment with SYN); such a client asks again a second later and
    finds the port closed. Where there are no such filters, a request that comes in this very moment may be reset.
    """
    if sys.platform != "linux":
        return
    program = b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (0x30, 0, 0, 13),  # load the byte of the TCP header that holds the flags
            (0x45, 0, 1, 0x02),  # is SYN set?
            (0x06, 0, 0, 0),  # yes: keep nothing of the segment
            (0x06, 0, 0, 0xFFFF),  # no: keep it
        )
    )
    code = ctypes.create_string_buffer(program)
    with contextlib.suppress(OSError):
        listener.setsockopt(
            socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
        )

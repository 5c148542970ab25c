"""uvicorn as this service runs it: a port that is ours before anything is loaded, and an end that loses no request.

On SIGTERM or SIGINT the service stops being ready and goes on serving for the grace time, closing each connection with
its answer; then it lets nobody new in, answers those who are in, and leaves. A second signal means now.
"""

import asyncio
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Protocol as Interface

import uvicorn
from starlette.types import ASGIApp

from fold.errors import BnfoldError
from service.http.connection import HttpConnection, Limits
from service.http.exchange import DefaultHeaders, FastPath
from service.http.sockets import cannot_bind, hear, refuse_new_connections
from service.settings import Settings

BACKLOG = 2048
SETTLE_SECONDS = 0.2
"""For connections that were being made when the door closed: a round trip, and the time to accept them."""
NEW_SECONDS = 1.0
"""How long a client that came in last may take to send its request."""
FILES = 256
"""Open beside the connections: models, libraries, a collector's own."""
TICK_SECONDS = 0.02
TICKS_OF_SWEEP = 5
"""uvicorn ticks ten times a second."""


class Beside(Interface):
    """Another server in the same event loop."""

    async def open(self) -> None:
        """Take the port."""

    async def start(self) -> str:
        """Serve. Returns the URL."""

    async def drain(self) -> None:
        """Take nothing new, and return when all that was taken is answered."""

    async def stop(self) -> None:
        """Now."""


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    settings: Settings,
    *,
    fast_path: FastPath | None,
    beside: Beside | None,
    on_start: Callable[[str], None],
    on_stop: Callable[[], None],
) -> int:
    """Serve `app` until a signal, then return 0. `fast_path` answers requests past `app`; `beside` runs as long.

    `on_start` gets the URLs once they answer; `on_stop` is called at the signal.
    """
    _allow_files(settings.max_connections + FILES)
    limits = Limits(
        settings.max_header_bytes, settings.request_seconds, settings.keep_alive_seconds, settings.max_connections
    )
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(HttpConnection, limits=limits, fast_path=fast_path, default_headers=DefaultHeaders()),  # type: ignore[arg-type]  # uvicorn calls it as it would call the class
        ws="none",
        lifespan="on",
        backlog=BACKLOG,
        root_path=settings.root_path,
        access_log=False,
        server_header=False,
        log_config=None,
        log_level="warning",
        ssl_certfile=settings.tls_certificate,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=max(1, round(settings.timeout_seconds)),
    )
    server = Server(config, settings.grace_seconds, beside, on_start, on_stop)
    try:
        _load(config, settings)
        server.run(sockets=[listener])
    except OSError as error:  # two processes may bind an address, but only one of them may listen
        raise cannot_bind(settings.host, settings.port, "--port", error) from error
    finally:
        listener.close()
    return 0


def _allow_files(wanted: int) -> None:
    """Each connection is a file, and many systems start a process with room for a thousand."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _load(config: uvicorn.Config, settings: Settings) -> None:
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise BnfoldError("settings: tls_certificate and tls_key go together; expected both or neither")
    try:
        config.load()
    except (ssl.SSLError, FileNotFoundError, PermissionError) as error:
        files = f"{settings.tls_certificate} and {settings.tls_key}"
        raise BnfoldError(f"TLS: {files} are no certificate chain with its key, in PEM: {error.strerror}") from error


class Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        grace: float,
        beside: Beside | None,
        on_start: Callable[[str], None],
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._grace = grace
        self._patience = config.timeout_graceful_shutdown or 0
        self._beside = beside
        self._on_start = on_start
        self._on_stop = on_stop

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again at the end, and the process would not exit with 0
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._beside is not None:
            await self._beside.open()
        await super().startup(sockets)
        urls = []
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            urls.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
        if self._beside is not None:
            urls.append(await self._beside.start())
        self._on_start(" and ".join(urls))

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_OF_SWEEP == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                connection.sweep(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers.append((b"connection", b"close"))
        await self._wait(self._grace, lambda: True)
        for listener in sockets or ():
            refuse_new_connections(listener)
        draining = None if self._beside is None else asyncio.create_task(self._beside.drain())
        await self._wait(SETTLE_SECONDS, self._hear)
        # uvicorn closes connections without a request under way, and a new one has none only because it is new
        await self._wait(NEW_SECONDS, lambda: self._hear() and any(c.cycle is None for c in self._connections()))
        if self._beside is not None and draining is not None:
            await self._wait(self._patience, lambda: not draining.done())
            await self._beside.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # the interpreter's own end would abort over a run that goes on
            logging.shutdown()
            os._exit(0)

    async def _wait(self, seconds: float, needed: Callable[[], bool]) -> None:
        """Serve on for `seconds`, while it is needed and nobody says now."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.force_exit and needed():
            await asyncio.sleep(min(TICK_SECONDS, left))

    def _hear(self) -> bool:
        """Take the port's limit off the connections that inherited it."""
        for connection in self._connections():
            hear(connection.transport.get_extra_info("socket"))
        return True

    def _connections(self) -> list[HttpConnection]:
        return [connection for connection in self.server_state.connections if isinstance(connection, HttpConnection)]

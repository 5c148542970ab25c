"""Runs uvicorn, and stops it without losing a request.

On SIGTERM or SIGINT the service stops being ready and goes on serving for the grace time, and closes each connection
after its answer. Then it refuses new connections, answers the requests that it has, and exits with 0. A second signal
ends it at once.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from threading import current_thread, main_thread
from types import FrameType
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from fold.runtime import return_freed
from service.batching import on_thread
from service.budget import Budget
from service.http.connection import HttpConnection, Limits
from service.http.exchange import DefaultHeaders, FastPath
from service.http.sockets import cannot_bind, hear, refuse_new_connections
from service.settings import Settings
from service.tls import LOOK_SECONDS, Certificate

log = logging.getLogger("bnfold")

BACKLOG = 2048
SETTLE_SECONDS = 0.2
"""For connections that were being made when the port began to refuse: a round trip, and the time to accept them."""
NEW_SECONDS = 1.0
"""How long a client that connected last may take to send its request."""
FILES = 256
"""Files that are open beside the connections: models, libraries, sockets of a trace exporter."""
CROWD_SECONDS = 60.0
"""The least time between two lines about too many connections."""
TICK_SECONDS = 0.02
TICKS_OF_SWEEP = 5
"""Connections are checked once in so many ticks; uvicorn ticks ten times a second."""
TICKS_OF_TRIM = 10
"""Memory that requests have freed is returned to the system once in so many ticks at most."""


class GrpcServer(Protocol):
    """The gRPC server, which runs in the same event loop."""

    async def open(self) -> None:
        """Take the port."""

    async def start(self) -> str:
        """Serve. Returns the URL."""

    async def drain(self) -> None:
        """Refuse new calls, and return when all accepted ones are answered."""

    async def stop(self) -> None:
        """End at once."""


def run_server(
    app: ASGIApp,
    listener: socket.socket,
    settings: Settings,
    *,
    fast_path: FastPath | None,
    grpc: GrpcServer | None,
    certificate: Certificate | None,
    on_start: Callable[[str], None],
    on_stop: Callable[[], None],
    budget: Budget,
) -> int:
    """Serve `app` until a signal, then return 0. `fast_path` answers requests past `app`; `grpc` serves as long. With a
    certificate it speaks HTTPS only.

    `on_start` gets the URLs once they answer; `on_stop` is called at the signal.
    """
    connections = _room_for(settings.max_connections)
    limits = Limits(
        settings.max_header_bytes,
        settings.request_seconds,
        settings.keep_alive_seconds,
        connections,
        CrowdLog(connections).tell,
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
        timeout_graceful_shutdown=max(1, round(settings.timeout_seconds)),
    )
    config.load()
    config.ssl = None if certificate is None else certificate.context
    server = Server(config, settings.grace_seconds, grpc, certificate, on_start, on_stop, budget)
    try:
        server.run(sockets=[listener])
    except OSError as error:  # two processes can bind an address, but only one can listen
        raise cannot_bind(settings.host, settings.port, "--port", error) from error
    finally:
        listener.close()
    return 0


def _room_for(connections: int) -> int:
    """Raise the limit of open files for so many connections: each is one, and many systems allow a process a thousand.
    Returns how many have room. A connection for which there is no file cannot be told so."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    room = max(1, soft - min(FILES, soft // 4))
    if room < connections:
        text = "bnfold: at most %d connections are taken, not %d: %d files may be open; raise the limit (ulimit -n)"
        log.warning(text, room, connections, soft)
    return min(room, connections)


class CrowdLog:
    """One line when connections are refused because too many are open, and no other for a minute."""

    def __init__(self, connections: int) -> None:
        self._connections = connections
        self._silent_until = 0.0

    def tell(self) -> None:
        now = time.monotonic()
        if now >= self._silent_until:
            self._silent_until = now + CROWD_SECONDS
            text = "bnfold: %d connections are open, and further ones are answered with 503"
            log.warning(text, self._connections)


class Server(uvicorn.Server):
    def __init__(
        self,
        config: uvicorn.Config,
        grace: float,
        grpc: GrpcServer | None,
        certificate: Certificate | None,
        on_start: Callable[[str], None],
        on_stop: Callable[[], None],
        budget: Budget,
    ) -> None:
        super().__init__(config)
        self._grace = grace
        self._stop_seconds = config.timeout_graceful_shutdown or 0
        self._grpc = grpc
        self._certificate = certificate
        self._hung_up = False
        """Whether SIGHUP came since the last look at the certificate."""
        self._looked_at = time.monotonic()
        self._looking: asyncio.Task[None] | None = None
        self._on_start = on_start
        self._on_stop = on_stop
        self._budget = budget

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's handler would raise the signal again at the end, and the process would not exit with 0
        self.force_exit = self.should_exit
        self.should_exit = True
        self._on_stop()

    def handle_hangup(self, sig: int, frame: FrameType | None) -> None:
        """SIGHUP: read the certificate again. It ends nothing."""
        self._hung_up = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if current_thread() is main_thread():
            signal.signal(signal.SIGHUP, self.handle_hangup)
        if self._grpc is not None:
            await self._grpc.open()
        await super().startup(sockets)
        urls = []
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            scheme = "http" if self._certificate is None else "https"
            urls.append(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}")
        if self._grpc is not None:
            urls.append(await self._grpc.start())
        self._on_start(" and ".join(urls))

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_OF_SWEEP == 0:
            now = asyncio.get_running_loop().time()
            for connection in self._connections():
                connection.sweep(now)
        if counter % TICKS_OF_TRIM == 0 and self._budget.take_freed():
            asyncio.get_running_loop().run_in_executor(None, return_freed)
        if self._certificate is not None:
            self._look_at(self._certificate)
        return await super().on_tick(counter)

    def _look_at(self, certificate: Certificate) -> None:
        """Renew it, if it is time or SIGHUP came: on a thread, because its files may be far away."""
        if self._looking is not None and not self._looking.done():
            return
        if self._hung_up or time.monotonic() - self._looked_at >= LOOK_SECONDS:
            look = partial(certificate.renew, at_once=self._hung_up)
            self._hung_up, self._looked_at = False, time.monotonic()
            self._looking = asyncio.create_task(on_thread("look at the certificate", look))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.server_state.default_headers.append((b"connection", b"close"))
        await self._wait(self._grace, lambda: True)
        for listener in sockets or ():
            refuse_new_connections(listener)
        draining = None if self._grpc is None else asyncio.create_task(self._grpc.drain())
        await self._wait(SETTLE_SECONDS, self._hear)
        # uvicorn closes idle connections, and would take one that has not sent its first request for idle
        await self._wait(NEW_SECONDS, lambda: self._hear() and any(c.cycle is None for c in self._connections()))
        if self._grpc is not None and draining is not None:
            await self._wait(self._stop_seconds, lambda: not draining.done())
            await self._grpc.stop()
        await super().shutdown(sockets)
        if self.force_exit:  # a normal exit would abort the process if a run is not done
            logging.shutdown()
            os._exit(0)

    async def _wait(self, seconds: float, needed: Callable[[], bool]) -> None:
        """Go on serving for `seconds`, or until `needed` is false or a second signal comes."""
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

"""The gRPC server: in HTTP's event loop, on a port of its own, with the same limits and the same way to stop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from fold.errors import BnfoldError

os.environ.setdefault(
    "GRPC_VERBOSITY", "NONE"
)  # before the import; gRPC's core would write lines of its own form to stderr

import grpc
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from service.grpc.calls import Calls
from service.grpc.handlers import Guard, Handlers
from service.grpc.messages import POOL, SERVICE
from service.operations import Shared
from service.settings import Settings
from service.tls import Certificate

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
HEALTH_SERVICES = ("", SERVICE)
"""The services whose health can be asked for: the whole server, and the protocol."""
PING_MS = 30_000
"""How long a connection may be silent before it is pinged, and how long the reply may take."""
MIN_PING_MS = 5_000
"""The shortest time between two pings of a client."""
NO_LIMIT = (1 << 31) - 1
PATIENCE_SECONDS = 1.0
"""How long to wait for clients that go on calling although they are refused."""


class GrpcServer:
    def __init__(
        self,
        shared: Shared,
        is_ready: Callable[[], bool],
        listener: socket.socket,
        certificate: Certificate | None,
    ) -> None:
        """`listener` holds the port, and is closed once the server has taken it."""
        self._shared = shared
        self._certificate = certificate
        self._listener = listener
        self.port: int = listener.getsockname()[1]
        self._calls = Calls(shared, is_ready)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Take the port, before anything that takes time. Raises `BnfoldError` if it is taken."""
        settings, access = self._shared.settings, self._shared.access
        self._loop = asyncio.get_running_loop()
        self._handlers = Handlers(self._calls, access_log=settings.access_log)
        self._health = health.aio.HealthServicer()
        self._server = aio.server(
            options=_options(settings),
            interceptors=[Guard(access, self._shared.metrics)] if access.guarded else None,
            maximum_concurrent_rpcs=settings.max_connections,
        )
        self._server.add_generic_rpc_handlers((self._handlers.generic(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        _add_reflection(self._server)
        try:
            self._add_port()
        except RuntimeError as error:
            raise BnfoldError(
                f"port {self.port} on {settings.host} is taken; stop what listens there, or choose another with "
                "--grpc-port"
            ) from error
        finally:
            self._listener.close()

    async def start(self) -> str:
        """Serve. Returns the URL."""
        for name in HEALTH_SERVICES:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return f"{'grpc' if self._certificate is None else 'grpcs'}://{self._address}"

    def stop_being_ready(self) -> None:
        """Tell clients that watch the health service. May be called by a signal handler."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self._health.enter_graceful_shutdown()))

    async def drain(self) -> None:
        """Refuse new calls, and return when all accepted ones are answered.

        gRPC's own stop would cancel calls that arrive meanwhile, which does not tell clients why. Here they are refused
        with a message, and the server stops when no client calls any more.
        """
        self._handlers.close()
        await self._handlers.answered()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._handlers.quiet(), PATIENCE_SECONDS)

    async def stop(self) -> None:
        """Stop at once."""
        await self._server.stop(None)

    def _add_port(self) -> None:
        host, port = self._listener.getsockname()[:2]
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if self._certificate is None:
            self._server.add_insecure_port(self._address)
        else:
            self._server.add_secure_port(self._address, _credentials(self._certificate))


def _credentials(certificate: Certificate) -> Any:
    """gRPC asks before each handshake for another pair than it has; None is none."""
    given = certificate.pem

    def fetch() -> Any:
        nonlocal given
        if certificate.pem == given:
            return None
        given = certificate.pem
        return grpc.ssl_server_certificate_configuration([given])

    return grpc.dynamic_ssl_server_credentials(grpc.ssl_server_certificate_configuration([given]), fetch, False)


def _options(settings: Settings) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 0),  # otherwise two services could share a port unnoticed
        ("grpc.max_receive_message_length", settings.max_body_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.max_header_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_header_bytes),
        ("grpc.max_connection_idle_ms", 1000 * max(settings.keep_alive_seconds, 1)),
        ("grpc.keepalive_time_ms", PING_MS),
        ("grpc.keepalive_timeout_ms", PING_MS),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", MIN_PING_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        # Calls that arrive faster than they are taken wait in gRPC's core, which by default cancels some of them from
        # the thousandth on. Those that are too many are refused with a status, by `maximum_concurrent_rpcs`.
        ("grpc.server.max_pending_requests", NO_LIMIT),
        ("grpc.server.max_pending_requests_hard_limit", NO_LIMIT),
    ]


def _add_reflection(server: Any) -> None:
    """Serve reflection for the protocol, health and itself; their descriptors go into the pool of the protocol."""
    for module in (health_pb2, reflection_pb2):
        POOL.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    names = (SERVICE, HEALTH, reflection.SERVICE_NAME)
    servicer = reflection.aio.ReflectionServicer(names, pool=POOL)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)

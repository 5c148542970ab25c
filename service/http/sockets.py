"""The port: bound before anything is loaded, and closed at the end without a reset.

Closing a listening socket resets every connection that the kernel has accepted and Python has not, and under load there
are always some. So at a stop the port first refuses new connections, in a way that only the kernel offers: it drops all
packets that arrive with an IP time to live (TTL) below 255, which clients start at 64 or 128. A client whose packet was
dropped sends it again, and finds the port closed. Connections that were being made inherit the limit, and are heard
again as soon as they are accepted.

What it is worth: with 24 clients that connect anew for each request, about 20 of them lose one at a stop without it,
and none with it. To turn it off, set `TTL_AT_STOP` to 0. Systems other than Linux ignore it. A socket filter (BPF) that
drops segments with SYN does no better and needs CAP_NET_ADMIN, which containers lack.
"""

import contextlib
import errno
import os
import socket
import struct
import sys

from fold.errors import BnfoldError

TTL_AT_STOP = 255
"""The highest TTL that there is: what has passed a router, or was sent with the usual TTL, is below it."""
MINIMAL_TTL = ((socket.IPPROTO_IP, 21), (socket.IPPROTO_IPV6, 73))
"""IP_MINTTL and IPV6_MINHOPCOUNT of Linux, which Python does not name; an IPv6 port may accept IPv4 as well."""


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that holds this address and does not listen yet. `option` is the command line's for another port.

    Raises `BnfoldError` if the address is taken, not allowed, or not of this machine.
    """
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
        raise cannot_bind(host, port, option, error) from error
    return listener


def cannot_bind(host: str, port: int, option: str, error: OSError) -> BnfoldError:
    """The error in one line, with what to do."""
    if error.errno == errno.EADDRINUSE:
        return BnfoldError(f"port {port} on {host} is taken; stop what listens there, or choose another with {option}")
    if error.errno == errno.EACCES:
        return BnfoldError(f"port {port} on {host} is not for this user; choose one above 1023 with {option}")
    reason = os.strerror(error.errno or 0)
    return BnfoldError(f"port {port} on {host}: {reason}; choose another with --host and {option}")


def refuse_new_connections(listener: socket.socket) -> None:
    """Let the kernel drop what asks for a new connection, and leave those that it has accepted in the queue."""
    _drop_below(listener, TTL_AT_STOP)


def hear(connection: socket.socket) -> None:
    """Take off the limit that an accepted connection may have inherited from the port."""
    _drop_below(connection, 0)


def reset_when_closed(connection: socket.socket) -> None:
    """Let the kernel drop what the client has not read. It would keep it, up to 4 MB, and try to send it for two
    minutes."""
    with contextlib.suppress(OSError):  # the client has left
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _drop_below(target: socket.socket, ttl: int) -> None:
    """Have the kernel drop packets with a lower TTL (IPv4) or hop limit (IPv6); 0 drops none."""
    if sys.platform != "linux":
        return
    for level, option in MINIMAL_TTL:
        with contextlib.suppress(OSError):  # an IPv4 socket has no hop limit
            target.setsockopt(level, option, ttl)

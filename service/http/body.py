"""Reads a request's body: complete, within the size limit, and decompressed.

The limit holds before and after decompression: a few kilobytes of gzip can unpack to gigabytes.
"""

import asyncio
import zlib
from contextlib import suppress
from typing import Any

from starlette.types import Receive, Scope

from service.budget import COUNTED, Body, Budget, Buffer
from service.errors import BadRequestError, ClientGoneError, TooLargeError, UnsupportedError

INLINE = 1 << 16
"""Bytes. What unpacks to no more than this is unpacked on the event loop, because a thread would cost more."""
PIECE = 1 << 18
"""Bytes that are unpacked at a time: the interpreter is free meanwhile, and is needed to store them."""
PLAIN_BODY = 1 << 16
"""Bytes of a body that holds no tensors."""

MEMBER = 1 << 14
"""Bytes that the members of a gzip body hold at least, on average: millions of empty ones would take minutes."""
GZIP = b"\x1f\x8b"
"""The first bytes of each member of a gzip body."""
_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def request_headers(scope: Scope) -> dict[bytes, bytes]:
    """The value of each header by its lower-case name; the last one if a header is repeated."""
    return dict(scope["headers"])


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int, budget: Budget) -> Body:
    """The body, unpacked. Raises `TooLargeError` as soon as it is known to exceed `limit` bytes, `OutOfMemoryError` as
    soon as it is known to exceed what is left of the budget, `ClientGoneError` if the client leaves,
    `UnsupportedError` for another Content-Encoding, `BadRequestError` if it cannot be unpacked."""
    length = headers.get(b"content-length", b"")
    declared = int(length) if length.isdigit() else 0
    if declared > limit:
        raise TooLargeError(f"the body has {declared} bytes, at most {limit} are taken")
    buffer = Buffer(budget, declared) if declared > COUNTED else None
    message = await receive()
    body: Body = message.get("body", b"")
    if message.get("more_body"):
        body = await _read_rest(Buffer(budget) if buffer is None else buffer, body, receive, limit)
    elif message["type"] == "http.disconnect":
        raise ClientGoneError("the client left before its body was complete")
    elif len(body) > limit:
        raise _too_large(limit)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else await _unpack(body, encoding.strip().lower(), limit, budget)


async def _read_rest(body: Buffer, first: Body, receive: Receive, limit: int) -> Buffer:
    body.add(first)
    more = True
    while more:
        if len(body) > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its body was complete")
        body.add(message.get("body", b""))
        more = message.get("more_body", False)
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body has more than the {limit} bytes that are taken")


async def _unpack(body: Body, encoding: bytes, limit: int, budget: Budget) -> Body:
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOW:
        name = encoding.decode("latin-1")
        text = f"Content-Encoding {name!r} is not read here; expected gzip, deflate or none"
        raise UnsupportedError(text, encodings="gzip, deflate")
    if len(body) <= INLINE:
        stream = zlib.decompressobj(_WINDOW[encoding])
        with suppress(zlib.error):  # which is told below
            plain = stream.decompress(body, min(INLINE, limit))
            if stream.eof and not stream.unused_data:
                return plain
    return await asyncio.to_thread(_inflate, body, encoding, limit, Buffer(budget))


def _inflate(body: Body, encoding: bytes, limit: int, plain: Buffer) -> Buffer:
    """Unpack `body` into `plain`, in pieces: the interpreter is needed only between two of them."""
    name = encoding.decode()
    stream: Any = zlib.decompressobj(_WINDOW[encoding])
    view, given, rest = memoryview(body), 0, b""
    members = 16 + limit // MEMBER
    while True:
        if not rest:
            rest = bytes(view[given : given + PIECE])
            given += len(rest)
        try:
            part = stream.decompress(rest, PIECE)
        except zlib.error as error:
            raise BadRequestError(f"the body is not valid {name}: {error}") from error
        plain.add(part)
        if len(plain) > limit:
            raise TooLargeError(f"the body unpacks to more than the {limit} bytes that are taken")
        if not stream.eof:
            if not part and given == len(body):
                raise BadRequestError(f"the body is not valid {name}: it ends too early")
            rest = stream.unconsumed_tail
            continue
        left = len(stream.unused_data) + len(body) - given
        if not left:
            return plain
        given = len(body) - left
        members -= 1
        if not members:
            raise BadRequestError(f"the body is {name} of too many members for its size; compress it as one")
        if encoding == b"deflate" or view[given : given + 2] != GZIP:
            raise BadRequestError(f"the body is not valid {name}: {left} bytes follow its end")
        stream, rest = zlib.decompressobj(_WINDOW[encoding]), b""  # a further member

"""Reads a request's body: complete, within the size limit, and decompressed.

The limit holds before and after decompression: a few kilobytes of gzip can unpack to gigabytes.
"""

import asyncio
import zlib
from typing import Any

from starlette.types import Receive, Scope

from service.errors import BadRequestError, ClientGoneError, TooLargeError, UnsupportedError

INLINE = 1 << 16
"""Bytes. Compressed bodies up to this size are unpacked on the event loop, because a thread would cost more."""

_WINDOW = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}


def request_headers(scope: Scope) -> dict[bytes, bytes]:
    """The value of each header by its lower-case name; the last one if a header is repeated."""
    return dict(scope["headers"])


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int) -> bytes:
    """The body, unpacked. Raises `TooLargeError` as soon as it is known to exceed `limit` bytes, `ClientGoneError` if
    the client leaves, `UnsupportedError` for another Content-Encoding, `BadRequestError` if it cannot be unpacked."""
    declared = headers.get(b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > limit:
        raise TooLargeError(f"the body has {int(declared)} bytes, at most {limit} are taken")
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        body = await _read_rest(body, receive, limit)
    elif message["type"] == "http.disconnect":
        raise ClientGoneError("the client left before its body was complete")
    elif len(body) > limit:
        raise _too_large(limit)
    encoding = headers.get(b"content-encoding")
    return body if encoding is None else await _unpack(body, encoding.strip().lower(), limit)


async def _read_rest(first: bytes, receive: Receive, limit: int) -> bytes:
    parts, size, more = [first], len(first), True
    while more:
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its body was complete")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    if size > limit:
        raise _too_large(limit)
    return b"".join(parts)


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"the body has more than the {limit} bytes that are taken")


async def _unpack(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding in (b"", b"identity"):
        return body
    if encoding not in _WINDOW:
        name = encoding.decode("latin-1")
        text = f"Content-Encoding {name!r} is not read here; expected gzip, deflate or none"
        raise UnsupportedError(text, encodings="gzip, deflate")
    if len(body) <= INLINE:
        return _inflate(body, encoding, limit)
    return await asyncio.to_thread(_inflate, body, encoding, limit)


def _inflate(body: bytes, encoding: bytes, limit: int) -> bytes:
    name = encoding.decode()
    stream: Any = zlib.decompressobj(_WINDOW[encoding])
    try:
        plain: bytes = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise BadRequestError(f"the body is not valid {name}: {error}") from error
    if len(plain) > limit:
        raise TooLargeError(f"the body unpacks to more than the {limit} bytes that are taken")
    if not stream.eof:
        raise BadRequestError(f"the body is not valid {name}: it ends too early")
    if stream.unused_data:
        raise BadRequestError(f"the body is not valid {name}: {len(stream.unused_data)} bytes follow its end")
    return plain

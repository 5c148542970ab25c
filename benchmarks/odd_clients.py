"""Clients that no load test has and every service meets: they leave in the middle of a body, ask to upgrade, pipeline,
and send what is refused. Each goes on until it is told to stop, beside the clients of the soak.

What they ask for rightly must be answered rightly; what is wrong must be refused with 4xx or 503.
"""

import asyncio
import gzip
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable

Check = Callable[[bytes, bytes], None]
"""Gets the head and the body of an answer, and notes what is wrong with it."""

PAUSE = 0.02
"""Seconds between two turns of a client, so that all of them take a small share of the service."""
LEFT_BYTES = 1 << 20
"""Of a body of twice that length, before the client leaves."""
PIPELINED = 20

DEEP = b"[" * 100_000
MANY = b'{"inputs": [' + b"[]," * 300_000 + b"[]]}"
BOMB = gzip.compress(bytes(80 << 20))


class OddClients:
    def __init__(self, port: int, path: str, request: bytes, check: Check) -> None:
        """`request` is one that is right, head and body; `check` gets its answers."""
        self._port = port
        self._path = path.encode()
        self._request = request
        self._check = check
        self.turns: Counter[str] = Counter()
        self.failures: list[str] = []

    async def run(self, done: asyncio.Event) -> None:
        clients = (self._leave, self._upgrade, self._pipeline, self._send_nonsense, self._send_bomb, self._stop_in_head)
        await asyncio.gather(*(self._repeat(client, done) for client in clients))

    async def _repeat(self, client: Callable[[], Awaitable[None]], done: asyncio.Event) -> None:
        name = client.__name__.removeprefix("_")
        while not done.is_set():
            try:
                await client()
            except (OSError, EOFError, AssertionError) as error:
                self.failures.append(f"{name}: {error!r}")
            self.turns[name] += 1
            await asyncio.sleep(PAUSE)

    async def _leave(self) -> None:
        _, writer = await self._connect()
        writer.write(self._head(2 * LEFT_BYTES) + bytes(LEFT_BYTES))
        await writer.drain()
        writer.transport.abort()

    async def _upgrade(self) -> None:
        """As `curl --http2` and Java's HttpClient ask for HTTP/2."""
        reader, writer = await self._connect()
        upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        head, body = self._request.split(b"\r\n\r\n", 1)
        writer.write(head + b"\r\n" + upgrade + b"\r\n" + body)
        self._check(*await _answer(reader))
        writer.close()

    async def _pipeline(self) -> None:
        reader, writer = await self._connect()
        writer.write(self._request * PIPELINED)
        for _ in range(PIPELINED):
            self._check(*await _answer(reader))
        writer.close()

    async def _send_nonsense(self) -> None:
        """Several on one connection: nested too deep, of too many parts, of another type."""
        for body in (DEEP, MANY, json.dumps({"inputs": "none"}).encode(), b"\xff" * 1000):
            await self._refused(self._head(len(body)) + body)

    async def _send_bomb(self) -> None:
        await self._refused(self._head(len(BOMB), b"Content-Encoding: gzip\r\n") + BOMB)

    async def _stop_in_head(self) -> None:
        _, writer = await self._connect()
        writer.write(b"POST " + self._path + b" HTTP/1.1\r\nHost: odd\r\nContent-")
        await writer.drain()
        writer.close()

    async def _refused(self, request: bytes) -> None:
        reader, writer = await self._connect()
        writer.write(request)
        head, body = await _answer(reader)
        assert re.match(rb"HTTP/1.1 (4\d\d|503) ", head), head
        assert b'"error"' in body, body[:200]
        writer.close()

    def _head(self, length: int, more: bytes = b"") -> bytes:
        return b"POST %s HTTP/1.1\r\nHost: odd\r\n%sContent-Length: %d\r\n\r\n" % (self._path, more, length)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port)


async def _answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    return head, await reader.readexactly(int(length[1]) if length else 0)

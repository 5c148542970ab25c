"""One connection by a raw socket, for what no client library sends."""

import socket
from typing import Any

import numpy as np

from support.service.serving import PATIENCE


class Client:
    """One connection, and the bytes that were received and not read yet."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.socket = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received = b""

    def read(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next answer."""
        head = self._until(lambda got: got.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in got else None)
        length = next(int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        return int(head.split(b" ")[1]), head, self._until(lambda got: length if len(got) >= length else None)

    def total(self) -> float:
        """The sum that the next answer holds."""
        status, _, body = self.read()
        assert status == 200, body
        return float(np.frombuffer(body[-4:], np.float32)[0])

    def _until(self, end_of: Any) -> bytes:
        while (end := end_of(self.received)) is None:
            more = self.socket.recv(65536)
            assert more, f"closed after {self.received!r}"
            self.received += more
        taken, self.received = self.received[:end], self.received[end:]
        return taken

    def ends(self) -> bool:
        """Whether the other end closes and sends no more."""
        return not self.received and not self.socket.recv(65536)

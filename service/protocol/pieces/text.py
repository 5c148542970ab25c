"""A JSON text and pieces of it."""

from collections.abc import Generator
from typing import Any, TypeVar

import numpy as np
import orjson

from service.budget import Body
from service.protocol.jsontext import ESCAPE, QUOTE, SQUARE, parse_bare_tokens

PIECE = 1 << 16
"""Bytes of a piece. The slowest JSON of this size, empty lists, takes orjson 5 ms, and numbers take it 0.2 ms."""

WHOLE, MOST_LISTS = 1 << 18, 1 << 13
"""Bytes of JSON that are parsed at once if they hold no more lists and objects. This takes some milliseconds, and in
pieces twice as many."""

T = TypeVar("T")
Steps = Generator[None, None, T]


def is_long(body: Body, size: int) -> bool:
    """Whether the JSON in the first `size` bytes of a body is to be read in pieces."""
    if size <= PIECE or size > WHOLE:
        return size > PIECE
    return occurrences(np.frombuffer(body, np.uint8, size) & SQUARE, "[") > MOST_LISTS


class Text:
    """The bytes `begin` to `end` of a JSON text; `whole` is the length of that, from which errors count. `size` are the
    bytes of a piece."""

    def __init__(self, content: memoryview, begin: int, end: int, size: int = PIECE) -> None:
        self.begin = begin
        self.end = end
        self.whole = len(content)
        self.size = size
        self._content = content

    @classmethod
    def of(cls, body: Body, end: int, size: int = PIECE) -> "Text":
        """The first bytes of a body."""
        return cls(memoryview(body)[:end], 0, end, size)

    def part(self, begin: int, end: int) -> "Text":
        return Text(self._content, begin, end, self.size)

    def begins(self) -> range:
        """Where pieces begin that are cut anywhere."""
        return range(self.begin, self.end, self.size)

    def piece(self, begin: int, size: int | None = None) -> bytes:
        """At most `size` bytes from position `begin`."""
        return bytes(self._content[begin : min(begin + (size or self.size), self.end)])

    def beyond(self, begin: int, size: int) -> bytes:
        """The same of the whole text."""
        return bytes(self._content[begin : begin + size])


class Strings:
    """Follows strings through successive pieces."""

    def __init__(self) -> None:
        self.inside = False
        self.escaped = False
        """Whether the first byte of the next piece is escaped."""

    def find(self, piece: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The bytes of the piece, with escaped ones replaced; whether each is outside of strings, where a quote that
        ends one is; and the positions of the quotes that begin and end strings."""
        if self.escaped:
            piece, self.escaped = b"_" + piece[1:], False
        if b"\\" in piece:
            piece = ESCAPE.sub(b"__", piece)
            self.escaped = piece.endswith(b"\\")
        codes = np.frombuffer(piece, np.uint8)
        quotes = np.flatnonzero(codes == QUOTE)
        outside = (np.arange(len(quotes) + 1) + self.inside) % 2 == 0
        self.inside = not outside[-1]
        return codes, np.repeat(outside, np.diff(quotes, prepend=0, append=len(codes))), quotes


def occurrences(codes: np.ndarray, character: str) -> int:
    """How often a character is in bytes. `bytes.count` takes three times as long, and ten where it is often."""
    return int(np.count_nonzero(codes == ord(character)))


def loads(piece: bytes) -> Any:
    """The value of a whole JSON text. Raises `ValueError` if it is no JSON, and `MemoryError`."""
    try:
        return orjson.loads(piece)
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):
            raise MemoryError from error
        if b"NaN" not in piece and b"Infinity" not in piece:
            raise
    return parse_bare_tokens(piece)

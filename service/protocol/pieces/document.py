"""Reads a large JSON object without its large arrays of numbers, which are then read straight into tensors.

First the text is scanned: what it holds is counted, before any of it is parsed, and arrays of numbers are found. They
stand behind a key and have neither strings nor objects in them. A name stands for each in the rest of the text, which
is parsed as usual.
"""

import codecs
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.budget import Estimate
from service.errors import BadRequestError, UnreadableError
from service.protocol.jsontext import deeper_than
from service.protocol.pieces.capacity import Capacity
from service.protocol.pieces.text import Steps, Strings, Text, loads
from service.protocol.pieces.tree import read_tree

LARGE = 4096
"""Bytes of an array that is read apart from the rest."""
SPACE = 64
"""Bytes in which the brackets of an array are looked for, beside the key and the next member."""

_NAME = secrets.token_hex(8)
"""Begins the names of arrays in the rest of a text; no client knows it."""
_BEFORE = re.compile(rb"\s*:\s*(?=\[)")
_BEHIND = re.compile(rb"\]\s*,?\s*$")


@dataclass(slots=True)
class Bulk:
    """An array of numbers that was not parsed yet."""

    text: Text
    depth: int = 0
    """Lists within lists, once they are known."""
    read: bool = False

    def __repr__(self) -> str:
        """As errors repeat values, which they cut off."""
        start = self.text.piece(self.text.begin, LARGE)
        start = start[: start.rfind(b",")]
        try:
            return repr(loads(start + b"]" * (start.count(b"[") - start.count(b"]"))))
        except (ValueError, BadRequestError):
            return start.decode()

    def validate(self, estimate: Estimate) -> Steps[None]:
        """Read an array of which nothing is needed. Raises `BadRequestError` if it is no JSON."""
        yield from read_tree(self.text, estimate, keep=False, within=True)
        yield from self.measure_depth()

    def measure_depth(self) -> Steps[None]:
        """Find how deep the array is nested, which is valid JSON."""
        self.read = True
        depth = 0
        for begin in self.text.begins():
            codes = np.frombuffer(self.text.piece(begin), np.uint8)
            levels = np.cumsum((codes == ord("[")).astype(np.int8) - (codes == ord("]")), dtype=np.int32) + depth
            depth, self.depth = int(levels[-1]), max(self.depth, int(levels.max()))
            yield


@dataclass(slots=True)
class Document:
    """A JSON object in which `Bulk`s stand for large arrays of numbers."""

    content: dict[str, Any]
    bulks: list[Bulk]
    text: Text
    _rest: list[bytes] = field(default_factory=list)
    """The text around the bulks."""

    def finish(self, estimate: Estimate, max_depth: int) -> Steps[None]:
        """Read the bulks of which nothing was needed. Raises `BadRequestError` if one is no JSON, or if the text is
        nested deeper than `max_depth`."""
        for bulk in self.bulks:
            if not bulk.read:
                yield from bulk.validate(estimate)
        parts = [self._rest[0]]
        for bulk, rest in zip(self.bulks, self._rest[1:], strict=True):
            parts += [b"[" * bulk.depth, b"]" * bulk.depth, rest]
        text = b"".join(parts)
        yield
        if deeper_than(text, max_depth):
            raise BadRequestError(f"the JSON is nested deeper than {max_depth} levels, the most that is taken here")


def read_document(text: Text, capacity: Capacity, estimate: Estimate, expected: str) -> Steps[Document]:
    """Raises `BadRequestError` if the text is no JSON or no object (`expected` says of what kind), or has more in it
    than any request, and `OutOfMemoryError`."""
    bulks = yield from _scan(text, capacity)
    rest, begin = [], text.begin
    for bulk in bulks:
        rest.append(text.beyond(begin, bulk.text.begin - begin))
        begin = bulk.text.end
    rest.append(text.beyond(begin, text.end - begin))
    names = {f"{_NAME}{number}": bulk for number, bulk in enumerate(bulks)}
    named = b"".join(
        [part for name, piece in zip(names, rest, strict=False) for part in (piece, b'"%b"' % name.encode())]
    )
    content = yield from _parse(named + rest[-1], text, estimate)
    if not isinstance(content, dict):
        raise BadRequestError(f"the body is a JSON {type(content).__name__}; expected {expected}")
    _place(content, names)
    for key in ("inputs", "instances"):
        items = content.get(key)
        if type(items) is list and bulks:
            for item in items:
                if type(item) is dict:
                    _place(item, names)
    return Document(content, bulks, text, rest)


def _parse(rest: bytes, text: Text, estimate: Estimate) -> Steps[Any]:
    """The value of the text without its bulks. Whatever is wrong with it is told as of the whole text."""
    try:
        if len(rest) <= text.size:
            estimate.add_json(rest)
            return loads(rest)
        return (yield from read_tree(Text.of(rest, len(rest), text.size), estimate))
    except (ValueError, BadRequestError):
        yield from read_tree(text, estimate, keep=False)
        raise


def _place(holder: dict[str, Any], names: dict[str, Bulk]) -> None:
    for key, value in holder.items():
        if type(value) is str and value in names:
            holder[key] = names[value]


def _scan(text: Text, capacity: Capacity) -> Steps[list[Bulk]]:
    """The large arrays of numbers, in order. Raises `BadRequestError` as soon as there is too much of something, and if
    the text is not UTF-8."""
    decoder, strings, marks = codecs.getincrementaldecoder("utf-8")(), Strings(), Marks()
    count_commas = capacity.values is not None and (text.end - text.begin) // 2 > capacity.values
    commas = lists = objects = quotes = 0
    for begin in text.begins():
        piece = text.piece(begin)
        try:
            if not piece.isascii() or decoder.getstate()[0]:
                decoder.decode(piece, final=begin + len(piece) == text.end)
        except UnicodeDecodeError:
            raise UnreadableError(
                "the body is not JSON: str is not valid UTF-8: surrogates not allowed: line 1 column 1 (char 0)"
            ) from None
        if strings.inside or b'"' in piece or b"{" in piece or b"}" in piece:
            first_ends = strings.inside
            codes, outside, found = strings.find(piece)
            braces = np.flatnonzero(((codes == ord("{")) | (codes == ord("}"))) & outside)
            commas += int(((codes == ord(",")) & outside).sum()) if count_commas else 0
            lists += int(((codes == ord("[")) & outside).sum())
            objects += int((codes[braces] == ord("{")).sum())
            quotes += len(found)
            marks.add(found + begin, braces + begin, first_ends=first_ends)
        else:
            commas += piece.count(b",") if count_commas else 0
            lists += piece.count(b"[")
        capacity.check(commas, lists, objects, quotes // 2)
        yield
    return [bulk for begin, end in marks.gaps(text.end) if (bulk := _bulk(text, begin, end)) is not None]


class Marks:
    """Positions of quotes and braces, of which the first `MOST` are kept."""

    MOST = 1 << 16
    """A text with more is one of strings or small objects."""

    def __init__(self) -> None:
        self._count = 0
        self._ends = [np.empty(0, np.int64)]
        """Quotes that end strings."""
        self._all = [np.empty(0, np.int64)]

    def add(self, quotes: np.ndarray, braces: np.ndarray, *, first_ends: bool) -> None:
        self._count += len(quotes) + len(braces)
        if self._count <= self.MOST:
            self._ends.append(quotes[0 if first_ends else 1 :: 2])
            self._all += (quotes, braces)

    def gaps(self, end: int) -> list[tuple[int, int]]:
        """Where a string ends and the next mark is far; `end` is the last mark. Empty if there were too many marks."""
        if self._count > self.MOST:
            return []
        everything = np.sort(np.concatenate([*self._all, [end]]))
        following = np.diff(everything)
        starts = everything[:-1][following >= LARGE]
        ends = everything[1:][following >= LARGE]
        behind_strings = np.isin(starts, np.concatenate(self._ends))
        return list(zip((starts[behind_strings] + 1).tolist(), ends[behind_strings].tolist(), strict=True))


def _bulk(text: Text, begin: int, end: int) -> Bulk | None:
    """The array between the end of a key and the next string or object, if one is there."""
    before = _BEFORE.match(text.piece(begin, SPACE))
    behind = _BEHIND.search(text.part(begin, end).piece(end - SPACE, SPACE))
    if before is None or behind is None:
        return None
    return Bulk(text.part(begin + before.end(), end - SPACE + behind.start() + 1))

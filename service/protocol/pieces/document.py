"""Reads a large JSON object without its large arrays of numbers, which are then read straight into tensors.

First the text is scanned: what it holds is counted, before any of it is parsed, and arrays of numbers are found. They
stand behind a key and have neither strings nor objects in them. A name stands for each in the rest of the text, which
is parsed as usual.
"""

import codecs
import re
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.budget import Estimate
from service.errors import BadRequestError, UnreadableError
from service.protocol.jsontext import Nesting, bracket_places, too_deep
from service.protocol.pieces.capacity import Capacity
from service.protocol.pieces.text import Steps, Strings, Text, loads, occurrences
from service.protocol.pieces.tree import read_tree

LARGE = 4096
"""Bytes of an array that is read apart from the rest."""
SPACE = 64
"""Bytes in which the brackets of an array are looked for, beside the key and the next member."""

_NAME = secrets.token_hex(8)
"""Begins the names of arrays in the rest of a text; no client knows it."""
_BEFORE = re.compile(rb"\s*:\s*(?=\[)")
_BEHIND = re.compile(rb"\]\s*,?\s*$")
_NONE = np.empty(0, np.int64)


@dataclass(slots=True)
class Bulk:
    """An array of numbers that was not parsed yet."""

    text: Text
    read: bool = False

    def __repr__(self) -> str:
        """As errors repeat values, which they cut off."""
        start = self._start()
        try:
            return repr(loads(start))
        except (ValueError, BadRequestError):
            return start.decode()

    def first(self) -> Any:
        """The first element, as errors repeat it; None if the array is no JSON."""
        try:
            return next(iter(loads(self._start())), None)
        except (ValueError, BadRequestError):
            return None

    def _start(self) -> bytes:
        """An array of the first elements."""
        start = self.text.piece(self.text.begin, LARGE)
        start = start[: start.rfind(b",")]
        return start + b"]" * (start.count(b"[") - start.count(b"]"))

    def validate(self, estimate: Estimate) -> Steps[None]:
        """Read an array of which nothing is needed. Raises `BadRequestError` if it is no JSON."""
        self.read = True
        yield from read_tree(self.text, estimate, keep=False, within=True)


@dataclass(frozen=True, slots=True)
class Document:
    """A JSON object in which `Bulk`s stand for large arrays of numbers; `depth` is that of the whole text."""

    content: dict[str, Any]
    bulks: list[Bulk]
    depth: int

    def finish(self, estimate: Estimate, max_depth: int) -> Steps[None]:
        """Read the bulks of which nothing was needed. Raises `BadRequestError` if one is no JSON, or if the text is
        nested deeper than `max_depth`."""
        for bulk in self.bulks:
            if not bulk.read:
                yield from bulk.validate(estimate)
        if self.depth > max_depth:
            raise too_deep(max_depth)


def read_document(text: Text, capacity: Capacity, estimate: Estimate, expected: str) -> Steps[Document]:
    """Raises `BadRequestError` if the text is no JSON or no object (`expected` says of what kind), or has more in it
    than any request, and `OutOfMemoryError`."""
    bulks, depth = yield from _scan(text, capacity)
    names = {f"{_NAME}{number}": bulk for number, bulk in enumerate(bulks)}
    content = yield from _parse(text, names, estimate)
    if not isinstance(content, dict):
        raise BadRequestError(f"the body is a JSON {type(content).__name__}; expected {expected}")
    _place(content, names)
    for key in ("inputs", "instances"):
        items = content.get(key)
        if type(items) is list and names:
            for item in items:
                if type(item) is dict:
                    _place(item, names)
    return Document(content, list(names.values()), depth)


def _parse(text: Text, names: dict[str, Bulk], estimate: Estimate) -> Steps[Any]:
    """The value of the text with a name for each bulk. `names` is emptied if that is no JSON: either the text is none,
    which is told as of the whole, or one of them is the beginning of an array that has a string in it."""
    if names:
        named = yield from _named(text, names)
        try:
            return (yield from read_tree(Text.of(named, len(named), text.size), estimate))
        except BadRequestError:
            names.clear()
    return (yield from read_tree(text, estimate))


def _named(text: Text, names: dict[str, Bulk]) -> Steps[bytearray]:
    """The text with the names in the place of the bulks."""
    named, begin = bytearray(), text.begin
    for name, bulk in names.items():
        yield from _copy(text.part(begin, bulk.text.begin), named)
        named += b'"%b"' % name.encode()
        begin = bulk.text.end
    yield from _copy(text.part(begin, text.end), named)
    return named


def _copy(part: Text, named: bytearray) -> Steps[None]:
    for begin in part.begins():
        named += part.piece(begin)
        yield


def _place(holder: dict[str, Any], names: dict[str, Bulk]) -> None:
    for key, value in holder.items():
        if type(value) is str and value in names:
            holder[key] = names[value]


def _scan(text: Text, capacity: Capacity) -> Steps[tuple[list[Bulk], int]]:
    """The large arrays of numbers, in order, and how deep the text is nested. Raises `BadRequestError` as soon as there
    is too much of something, and if the text is not UTF-8."""
    decoder, strings, marks, nesting = codecs.getincrementaldecoder("utf-8")(), Strings(), Marks(), Nesting()
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
        first_ends, places = strings.inside, bracket_places(piece)
        if first_ends or b'"' in piece:
            codes, outside, found = strings.find(piece)
            places = places[outside[places]]
            commas += occurrences(codes[outside], ",") if count_commas else 0
        else:
            codes, found = np.frombuffer(piece, np.uint8), _NONE
            commas += occurrences(codes, ",") if count_commas else 0
        brackets = codes[places]
        braces = places[(brackets == ord("{")) | (brackets == ord("}"))]
        lists += occurrences(brackets, "[")
        objects += occurrences(brackets, "{")
        quotes += len(found)
        marks.add(found + begin, braces + begin, first_ends=first_ends)
        capacity.check(commas, lists, objects, quotes // 2)
        nesting.add(brackets)
        yield
    bulks = [bulk for begin, end in marks.gaps(text.end) if (bulk := _bulk(text, begin, end)) is not None]
    return bulks, nesting.deepest


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

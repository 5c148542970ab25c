"""Parses any JSON text piece by piece, to the same value and with the same errors as if it were parsed at once.

A piece ends before a comma outside of strings. The containers that are open at its beginning are opened in front of it,
and those that are open at its end are closed behind it, so each piece is a whole text for orjson:

    {"a": [[1, 2], [3,   4], [5]], "b": 0}     in two pieces, cut behind the 3:
    {"a": [[1, 2], [3    ]]}
    {K:   [[0,           4], [5]], "b": 0}     0 and K stand for what came before

Then the values of the second piece are added to the containers that are open.
"""

import secrets
from codecs import getincrementaldecoder
from json import JSONDecodeError
from typing import Any, NamedTuple

import numpy as np
import orjson

from service.budget import Estimate
from service.errors import BadRequestError, UnreadableError
from service.protocol.pieces.text import PIECE, Steps, Strings, Text, loads

BEFORE = secrets.token_hex(8)
"""The key that stands for the members of an object in earlier pieces; no client knows it."""
DEEPEST = 1024
"""Containers within containers that orjson reads."""
GAP = 1 << 18
"""Bytes without a comma, beside strings: no number and no space between two is so long."""
LONGEST = 4 << 20
"""Bytes of a string. It is parsed in one step, of about 2 ms a megabyte."""
MOST_CONTAINERS, MOST_VALUES = 1 << 18, 1 << 22
"""Lists and objects, and values, of a text that are kept. The collector of cycles looks at all the first in one step of
some 20 ms, and all the second are freed in one."""
SPACE = 256
"""Bytes before a cut in which it is looked for what precedes the comma."""
_KEY = b'"%b":' % BEFORE.encode()
_DELTA = np.zeros(256, np.int8)
_DELTA[list(b"[{")] = 1
_DELTA[list(b"]}")] = -1


class Open(NamedTuple):
    """A container that is open at the end of a piece. `key` is the quoted key in front of it; empty in a list."""

    kind: str
    key: bytes


class Cut(NamedTuple):
    """Where a piece ends, and the containers that are open there. Levels below `same` are those open before it, -1 if
    the piece is no JSON. `containers` begin in it, and it has `values`."""

    end: int
    stack: list[Open]
    same: int
    containers: int = 0
    values: int = 0


class Tree:
    """The containers that are open, the outermost first; `value` is the whole."""

    def __init__(self, *, keep: bool) -> None:
        self.value: Any = None
        self.stack: list[Open] = []
        self._keep = keep
        self._open: list[Any] = []

    def prefix(self) -> bytes:
        """Opens the containers again, and continues behind a comma in the innermost."""
        parts = [b"[" if kind == "[" else b"{" + _KEY for kind, _ in self.stack]
        return b"".join(parts) + b"0," if parts else b""

    def add(self, parsed: Any, cut: Cut | None) -> None:
        """Add what a piece was parsed to. `cut` is None for the last one."""
        if self._keep:
            if self._open:
                self._merge(parsed)
            else:
                self.value = parsed
                self._open = []
        if cut is None:
            return
        self.stack = cut.stack
        if self._keep:
            del self._open[cut.same :]
            for opened in cut.stack[cut.same :]:
                if not self._open:
                    self._open.append(self.value)
                    continue
                outer = self._open[-1]
                self._open.append(outer[orjson.loads(opened.key)] if type(outer) is dict else outer[-1])

    def _merge(self, parsed: Any) -> None:
        innermost = len(self._open) - 1
        for level, container in enumerate(self._open):
            if type(container) is list:
                first = parsed[0]
                container.extend(parsed[1:])
            else:
                first = parsed.pop(BEFORE)
                container.update(parsed)
            if level < innermost:
                parsed = first


def read_tree(text: Text, estimate: Estimate, *, keep: bool = True, within: bool = False) -> Steps[Any]:
    """The value of `text`; None if it is not to be kept. With `within`, the text is the value of an object's member.

    Raises `BadRequestError` if it is no JSON, and `OutOfMemoryError`.
    """
    tree, containers, values = Tree(keep=keep), 0, 0
    before, behind = (b"{" + _KEY, b"}") if within else (b"", b"")
    begin = text.begin
    while True:
        piece, cut = text.piece(begin), None
        last = begin + len(piece) == text.end
        if not last:
            cut = _cut(piece, tree.stack)
            if cut is None:
                piece, cut = yield from _long(text, begin, tree.stack)
        if cut is not None:
            piece = piece[: cut.end]
            if cut.same < 0 or piece[-SPACE:].rstrip()[-1:] in (b"[", b"{"):
                raise (yield from _error(text, begin, before + tree.prefix()))  # closed behind it, it might be valid
            containers, values = containers + cut.containers, values + cut.values
        if keep:
            if containers > MOST_CONTAINERS or values > MOST_VALUES:
                raise BadRequestError(
                    f"the JSON has more than {MOST_CONTAINERS} lists and objects, or more than {MOST_VALUES} values, "
                    "beside regular arrays of numbers; send tensors as binary data"
                )
            estimate.add_json(piece)
        closing = b"".join([b"]" if kind == "[" else b"}" for kind, _ in reversed(cut.stack)]) if cut else b""
        try:
            parsed = loads(b"".join((before, tree.prefix(), piece, closing, behind)))
        except (ValueError, BadRequestError):
            raise (yield from _error(text, begin, before + tree.prefix())) from None
        tree.add(parsed[BEFORE] if within else parsed, cut)
        if cut is None:
            return tree.value
        begin += cut.end + 1
        yield


def _cut(piece: bytes, stack: list[Open]) -> Cut | None:
    """Where to end a piece that begins outside of strings: its last comma that is within a container."""
    codes, outside, quotes = Strings().find(piece)
    commas = np.flatnonzero((codes == ord(",")) & outside)
    if not len(commas):
        return None
    end = int(commas[-1])
    delta = np.where(outside[:end], _DELTA[codes[:end]], 0)
    depth = np.cumsum(delta, dtype=np.int32) + len(stack)
    levels = int(depth[-1]) if end else len(stack)
    lowest = min(int(depth.min()), len(stack)) if end else len(stack)
    if not 1 <= levels <= DEEPEST or lowest < 0:
        return Cut(end, [], -1)
    same = min(lowest, levels)
    opened = list(stack[:same])
    for level in range(same + 1, levels + 1):
        at = int(np.flatnonzero((delta == 1) & (depth == level))[-1])
        inner = quotes[quotes < at]
        key = b""
        if opened and opened[-1].kind == "{":
            if len(inner) < 2:
                return Cut(end, [], -1)
            key = piece[int(inner[-2]) : int(inner[-1]) + 1]
        opened.append(Open(chr(codes[at]), key))
    return Cut(end, opened, same, int(np.count_nonzero(delta == 1)), len(commas))


def _long(text: Text, begin: int, stack: list[Open]) -> Steps[tuple[bytes, Cut | None]]:
    """A longer piece, where there is no comma to cut before. What is within a string is not looked at again."""
    strings, parts, looked_at, size = Strings(), [], b"", 0
    while True:
        part = text.piece(begin + size)
        parts.append(part)
        size += len(part)
        if size > LONGEST:
            raise BadRequestError(
                f"the JSON has a string of more than {LONGEST} bytes, the most that is taken; send it as binary data"
            )
        last = begin + size == text.end
        within = strings.inside and not strings.escaped
        codes, outside, quotes = strings.find(part)
        if not within or len(quotes) or strings.escaped:
            looked_at += part
            if not last and ((codes == ord(",")) & outside).any():
                cut = _cut(looked_at, stack)
                if cut is not None:
                    return b"".join(parts), cut._replace(end=size - len(looked_at) + cut.end)
        if last:
            return b"".join(parts), None
        if len(looked_at) > GAP:
            raise BadRequestError(f"the JSON has more than {GAP} bytes without a comma, not counting strings")
        yield


def _error(text: Text, begin: int, prefix: bytes) -> Steps[BadRequestError]:
    """What is wrong behind `begin`, with the place in the whole text."""
    size = 2 * text.size
    while True:
        piece = text.beyond(begin, size)
        decoder = getincrementaldecoder("utf-8")("replace")
        decoder.decode(piece)
        piece = piece[: len(piece) - len(decoder.getstate()[0])]  # without a part of a character
        try:
            loads(prefix + piece)
        except JSONDecodeError as error:
            where, message = error.pos - len(prefix), error.msg
        except BadRequestError as error:  # of a text with NaN or Infinity
            if not isinstance(error.__cause__, JSONDecodeError):
                return error
            where, message = error.__cause__.pos - len(prefix), error.__cause__.msg
        else:
            return _not_json("it ends in another way than it begins")
        if begin + len(piece) == text.whole or where < len(piece.decode(errors="replace")) - 1:
            break
        size *= 2
        yield
    if where < 0:  # the comma before the piece
        begin, where = begin + where, 0
    lines, column, characters = 0, 0, 0
    for start in range(0, begin, PIECE):
        part = text.beyond(start, min(PIECE, begin - start))
        lines, column, characters = _after(part, lines, column, characters)
        yield
    rest = piece.decode(errors="replace")[:where].encode()
    lines, column, characters = _after(rest, lines, column, characters)
    return _not_json(f"{message}: line {lines + 1} column {column + 1} (char {characters})")


def _after(part: bytes, lines: int, column: int, characters: int) -> tuple[int, int, int]:
    """Lines, column and characters behind `part`. A byte that continues a character is none."""
    count = len(part) - int(((np.frombuffer(part, np.uint8) & 0xC0) == 0x80).sum())
    found = part.count(b"\n")
    tail = part[part.rfind(b"\n") + 1 :]
    in_tail = len(tail) - int(((np.frombuffer(tail, np.uint8) & 0xC0) == 0x80).sum())
    return lines + found, (in_tail if found else column + count), characters + count


def _not_json(reason: str) -> BadRequestError:
    return UnreadableError(f"the body is not JSON: {reason}")

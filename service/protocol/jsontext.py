"""JSON with what tensors need beyond it: bare `NaN` and `Infinity` in and out, numpy arrays out, bounded nesting.

orjson is several times faster than the standard library but refuses the bare tokens and writes non-finite numbers as
null, which would lose them silently. So it does the work, and the standard library takes over for exactly those texts.
"""

import json
import math
import re
from typing import Any

import numpy as np
import orjson

from service.budget import Body
from service.errors import BadRequestError, UnreadableError

ESCAPE = re.compile(rb"\\.", re.DOTALL)
QUOTE = ord('"')
SQUARE = np.uint8(0xFF ^ ord("[") ^ ord("{"))
"""The bits that a brace has in common with its bracket."""

MOST_LETTERS = 16
"""Letters that are looked at in a text that may hold no booleans."""


def parse_json(text: Body, max_depth: int) -> Any:
    """The value that `text` stands for. Raises `BadRequestError` if it is no JSON or nested deeper than
    `max_depth`, and `MemoryError`."""
    try:
        value = orjson.loads(text if type(text) is bytes else memoryview(text))  # it refuses subclasses
    except orjson.JSONDecodeError as error:
        if error.msg.startswith("Not enough memory"):
            raise MemoryError from error
        if b"NaN" not in text and b"Infinity" not in text:
            raise UnreadableError(f"the body is not JSON: {error}") from error
        value = parse_bare_tokens(text)
    if deeper_than(text, max_depth):
        raise too_deep(max_depth)
    return value


def parse_object(text: Body, max_depth: int, expected: str) -> dict[str, Any]:
    """As `parse_json`, for a text that must be an object; `expected` says of what kind."""
    value = parse_json(text, max_depth)
    if not isinstance(value, dict):
        raise BadRequestError(f"the body is a JSON {type(value).__name__}; expected {expected}")
    return value


def parse_bare_tokens(text: Body) -> Any:
    """As `parse_json`, by the standard library, which knows NaN and Infinity. Raises `BadRequestError`."""

    def finite(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            raise ValueError(f"number {number[:40]} is beyond double precision")
        return value

    try:
        value = json.loads(text.decode(), parse_float=finite)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair, which is no text
    except RecursionError as error:
        raise BadRequestError("the JSON is nested too deeply to be read") from error
    except ValueError as error:
        raise UnreadableError(f"the body is not JSON: {error}") from error
    return value


def deeper_than(text: Body, limit: int) -> bool:
    """Whether valid JSON nests deeper than `limit`."""
    codes = np.frombuffer(text, np.uint8)
    places = bracket_places(text)
    if len(places) <= 2 * limit:
        return False
    unescaped = np.frombuffer(ESCAPE.sub(b"__", text), np.uint8) if b"\\" in text else codes
    quotes = np.flatnonzero(unescaped == QUOTE)
    nesting = Nesting()
    nesting.add(codes[places[np.searchsorted(quotes, places) % 2 == 0]])
    return nesting.deepest > limit


def bracket_places(text: Body) -> np.ndarray:
    """Where brackets and braces are."""
    if b"[" not in text and b"]" not in text and b"{" not in text and b"}" not in text:  # a tenth of the time
        return np.empty(0, np.int64)
    square = np.frombuffer(text, np.uint8) & SQUARE
    return np.flatnonzero((square == ord("[")) | (square == ord("]")))


class Nesting:
    """Follows the brackets and braces of a text."""

    def __init__(self) -> None:
        self.deepest = 0
        self._level = 0

    def add(self, brackets: np.ndarray) -> None:
        """The next ones, as bytes."""
        if len(brackets):
            # A backslash lies between the two brackets.
            levels = np.cumsum(ord("\\") - (brackets & SQUARE).astype(np.int64)) + self._level
            self._level = int(levels[-1])
            self.deepest = max(self.deepest, int(levels.max()))


def too_deep(limit: int) -> BadRequestError:
    return BadRequestError(f"the JSON is nested deeper than {limit} levels, the most that is taken here")


def may_hold_booleans(text: Body) -> bool:
    """Whether true or false may be in a JSON text. It is searched for letters of theirs, of which numbers have none."""
    for letter, word in ((b"u", b"true"), (b"l", b"false")):
        place = -1
        for _ in range(MOST_LETTERS):
            place = text.find(letter, place + 1)
            if place < 0:
                break
            if text[max(place - 2, 0) : place - 2 + len(word)] == word:
                return True
        else:
            return True
    return False


def render_json(value: Any) -> bytes:
    """JSON of plain values and of what `json_array` gives."""
    return orjson.dumps(value)


def json_array(array: np.ndarray) -> Any:
    """`array` in a form that `render_json` writes in full: non-finite numbers become the bare tokens."""
    if array.dtype.kind == "V":  # BF16, of which float32 holds every value
        array = array.astype(np.float32)
    if array.ndim and array.flags.c_contiguous and array.dtype.kind != "O":
        text = orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)
        if b"null" not in text:
            return orjson.Fragment(text)
    plain = array.tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return orjson.Fragment(json.dumps(plain, separators=(",", ":")))
    return plain


def written_json(text: bytes) -> Any:
    """JSON text as a value for `render_json`."""
    return orjson.Fragment(text)


def render_verdict(value: dict[str, Any]) -> bytes:
    """JSON of a small document whose plain numbers may be NaN or infinite, which a failed proof's are."""
    return json.dumps(value, ensure_ascii=False).encode()

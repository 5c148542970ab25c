"""Tensors from JSON, in pieces: an array in the text goes straight into a buffer, without objects for all its numbers.

A piece of the text is parsed by orjson, its lists are checked against the shape, and its numbers are packed. What does
not fit the shape is read as a tree of lists if it is small, so that the usual checks say what is wrong. Of a large one
there would be millions of objects, which take long to free, and which the collector of cycles looks at in one step.
"""

import re
from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import numpy as np

from fold.artifact import DTYPES
from service.budget import Budget, Buffer, Estimate
from service.errors import BadRequestError
from service.protocol.datatypes import NOT_IN_JSON, WIRE
from service.protocol.pieces.document import Bulk
from service.protocol.pieces.text import WHOLE, Steps, Text, loads, occurrences
from service.protocol.pieces.tree import read_tree
from service.protocol.tensors import check_lists, from_json, numbers, pack

SLICE = 1 << 14
"""Values of a list that are packed at a time."""
SPACE = 256
"""Bytes in which the brackets at the beginning of an array are looked for."""
ANY = 1 << 62
"""Stands for the length of an axis that only the text tells."""

_OPENING = re.compile(rb"\s*((?:\[\s*)+)")
_NOT_STRUCTURE = bytes(set(range(256)) - set(b"[],"))


class _IrregularError(Exception):
    """The array is not nested as the shape says, or holds other values; `done` numbers before are right."""

    def __init__(self, done: int) -> None:
        super().__init__()
        self.done = done


def nesting(bulk: Bulk) -> int:
    """Lists within lists at the beginning of the array."""
    opening = _OPENING.match(bulk.text.piece(bulk.text.begin, SPACE))
    return opening[1].count(b"[") if opening else 0


def row_shape(bulk: Bulk, axes: int) -> Steps[tuple[int, ...]]:
    """The sizes of the innermost axes of the array's first element, as its brackets and commas tell; they are right if
    it is regular."""
    structure, searched = bytearray(), 0
    for begin in bulk.text.begins():
        structure += bulk.text.piece(begin).translate(None, _NOT_STRUCTURE)
        yield
        if structure.find(b"]" * axes, searched) >= 0:
            break
        searched = max(len(structure) - axes, 0)
    codes = np.frombuffer(structure, np.uint8)
    counts = [occurrences(codes[: structure.find(b"]" * axis)], ",") + 1 for axis in range(1, axes + 1)]
    return tuple(whole // part for whole, part in reversed(list(zip(counts, [1, *counts], strict=False))))


def count_of(bulk: Bulk) -> Steps[int]:
    """Elements of the array, lists or numbers; its brackets are counted and not checked."""
    commas = depth = 0
    for begin in bulk.text.begins():
        piece = bulk.text.piece(begin)
        if b"[" in piece or b"]" in piece:
            codes = np.frombuffer(piece, np.uint8)
            changes = (codes == ord("[")).astype(np.int8) - (codes == ord("]"))
            levels = np.cumsum(changes, dtype=np.int32) + depth
            commas += int(((codes == ord(",")) & (levels == 1)).sum())
            depth = int(levels[-1])
        elif depth == 1:
            commas += occurrences(np.frombuffer(piece, np.uint8), ",")
        yield
    return commas + 1


def array_of(
    name: str,
    bulk: Bulk,
    datatype: str,
    shape: tuple[int, ...],
    budget: Budget,
    estimate: Estimate,
    before_tree: Steps[None] | None = None,
) -> Steps[np.ndarray | list[Any]]:
    """The array as one of `shape`, whose first axis may be `ANY`. A list where it does not fit and is small;
    `before_tree` may refuse it before. `name` is that of the input.

    Raises `BadRequestError` if the text is no JSON, or large and does not fit, and `OutOfMemoryError`.
    """
    bulk.read = True
    try:
        buffer = yield from _fill(bulk.text, datatype, shape, Buffer(budget))
    except _IrregularError as error:
        done = error.done
    else:
        array = np.frombuffer(buffer, DTYPES["BF16"] if datatype == "BF16" else WIRE[datatype])
        return array.reshape(-1 if shape[0] == ANY else shape[0], *shape[1:])
    if before_tree is not None:
        yield from before_tree
    small = bulk.text.end - bulk.text.begin <= WHOLE
    tree: list[Any] = yield from read_tree(bulk.text, estimate, keep=small, within=True)
    if not small:
        raise BadRequestError(
            f"input {name!r}: behind its first {done} numbers the data is nested in another way, or has other values "
            f"than {datatype} takes"
        )
    return tree


def _fill(text: Text, datatype: str, shape: tuple[int, ...], buffer: Buffer) -> Steps[Buffer]:
    """The numbers of an array that is nested as `shape` says, packed. Raises `_IrregularError` if it is not."""
    begin = text.begin
    depth = done = 0
    whole = [prod(shape[axis:]) for axis in range(len(shape))]
    if not whole or not all(shape):
        raise _IrregularError(done)
    while True:
        # 1. A piece ends before its last comma.
        piece = text.piece(begin)
        last = begin + len(piece) == text.end
        end = len(piece) if last else piece.rfind(b",")
        if end < 1:
            raise _IrregularError(done)
        piece = piece[:end]
        edges = piece[:64].lstrip()[:1] + piece[-64:].rstrip()[-1:]
        deeper = depth + _opened(piece)
        # 2. It begins where a comma of a regular array can be, with a value.
        if depth != _levels(done, whole) or edges[:1] in (b"]", b"") or edges[-1:] == b"[" or deeper < 0:
            raise _IrregularError(done)
        # 3. Its lists have the lengths of the shape, and its values the datatype.
        try:
            parsed = loads(b"".join((b"[" * depth, piece, b"]" * deeper)))
            flat = _flatten(parsed, shape, whole, done, deeper)
            buffer.add(pack(datatype, flat, piece))
        except (ValueError, TypeError, BadRequestError) as error:
            raise _IrregularError(done) from error
        done += len(flat)
        if last:
            break
        begin, depth = begin + end + 1, deeper
        yield
    if deeper or (done % prod(shape[1:]) if shape[0] == ANY else done != whole[0]):
        raise _IrregularError(done)
    return buffer


def _opened(piece: bytes) -> int:
    """Lists that begin in it and do not end in it, less those that only end in it."""
    if b"[" not in piece and b"]" not in piece:
        return 0
    codes = np.frombuffer(piece, np.uint8)
    return occurrences(codes, "[") - occurrences(codes, "]")


def _levels(done: int, whole: list[int]) -> int:
    """Lists that are open behind a comma that follows `done` numbers; `whole` are the numbers of a list by axis."""
    return (1 + sum(done % size != 0 for size in whole[1:])) if done else 0


def _flatten(parsed: Any, shape: tuple[int, ...], whole: list[int], done: int, deeper: int) -> Sequence[Any]:
    """The numbers in a piece. Raises `_IrregularError` if a list in it has another length than the shape says.

    The first list at each axis continues one with elements in earlier pieces, and the last goes on in the next piece at
    the first `deeper` axes.
    """
    level: list[Any] = [parsed]
    for axis, size in enumerate(shape):
        inner = whole[axis + 1] if axis + 1 < len(whole) else 1
        lengths = list(map(len, level))
        expected = [size - done // inner % size, *[size] * (len(level) - 1)]
        goes_on = axis < deeper and lengths[-1] <= expected[-1]
        if lengths[:-1] != expected[:-1] or not (goes_on or lengths[-1] == expected[-1] or size == ANY):
            raise _IrregularError(done)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level


def tensor_of(
    name: str, datatype: str, shape: tuple[int, ...], count: int, data: Any, budget: Budget, estimate: Estimate
) -> Steps[np.ndarray]:
    """As `from_json`, for `data` that is a `Bulk` or a list."""
    if datatype not in NOT_IN_JSON and type(data) is Bulk:
        form = shape if nesting(data) == len(shape) else (count,)
        data = yield from array_of(name, data, datatype, form, budget, estimate)
    if type(data) is np.ndarray:
        return data.reshape(shape)
    if datatype in NOT_IN_JSON or type(data) is not list or len(data) == 0:
        return from_json(name, datatype, shape, count, data)
    flat = (yield from flatten_list(name, data, shape)) if type(data[0]) is list else data
    if len(flat) != count:
        return from_json(name, datatype, shape, count, flat)
    packed = yield from packed_list(f"input {name!r}", datatype, flat)
    return packed.reshape(shape)


def flatten_list(name: str, data: list[Any], shape: tuple[int, ...]) -> Steps[list[Any]]:
    """As `flatten`, for a long list."""
    level: list[Any] = [data]
    for axis, size in enumerate(shape):
        flat: list[Any] = []
        for begin in range(0, len(level), max(SLICE // (size or 1), 1)):
            part = level[begin : begin + max(SLICE // (size or 1), 1)]
            check_lists(name, part, axis, shape)
            if len(level) == 1:
                flat = part[0]
            else:
                flat += chain.from_iterable(part)
            yield
        level = flat
    return level


def packed_list(what: str, datatype: str, flat: list[Any]) -> Steps[np.ndarray]:
    """As `numbers`, for a long list."""
    if len(flat) <= SLICE:
        return numbers(what, datatype, flat)
    parts = []
    for begin in range(0, len(flat), SLICE):
        parts.append(numbers(what, datatype, flat[begin : begin + SLICE], first=begin))
        yield
    return np.concatenate(parts)

"""One tensor between the wire and numpy: raw little-endian bytes, and JSON lists, flat or nested.

Sizes are compared as Python integers before anything is allocated, so a false shape costs nothing. JSON values must be
of the datatype's kind: numpy by itself would turn null into NaN, "1" into 1.0 and true into 1 without a warning.
"""

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from fold.artifact import DTYPES
from service.budget import Body, Budget
from service.errors import BadRequestError, shown
from service.protocol.datatypes import NAMES, NOT_IN_JSON, WIRE
from service.protocol.strings import read_strings, write_strings

MAX_RANK = 32
MAX_BYTES = 1 << 46
"""More than any body can hold, and far below where numpy's own sizes overflow."""

_JSON_TYPES: dict[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "i": frozenset({int}),
    "u": frozenset({int}),
    "f": frozenset({int, float}),
    "V": frozenset({int, float}),  # BF16
    "O": frozenset({str}),
}
_PACKED = {
    **{"BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q"},
    **{"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d", "BF16": "d"},
}
"""The format characters of `struct`. For a list it takes a third of numpy's time, and it refuses numbers out of range.
It has none for BF16."""
_EXPECTED = {
    "b": "true or false",
    "i": "whole numbers",
    "u": "whole numbers from 0",
    "f": "numbers",
    "V": "numbers",
    "O": "strings",
}


def wire_dtype(name: str, datatype: Any) -> np.dtype[Any]:
    try:
        return WIRE[datatype]
    except (KeyError, TypeError):
        known = ", ".join(WIRE)
        raise BadRequestError(
            f"input {name!r}: datatype {shown(datatype)} is not served; expected one of {known}"
        ) from None


def checked_shape(name: str, shape: Any, itemsize: int) -> tuple[tuple[int, ...], int]:
    """The shape as a tuple, and its number of elements."""
    if type(shape) is not list or len(shape) > MAX_RANK:
        raise BadRequestError(f"input {name!r}: shape is {shown(shape)}; expected a list of at most {MAX_RANK} numbers")
    count = extent = 1
    for size in shape:
        if type(size) is not int or size < 0:
            raise BadRequestError(f"input {name!r}: shape {shown(shape)}; expected whole numbers from 0")
        count *= size
        extent *= size or 1  # a zero must not hide a dimension that numpy could not represent
    if extent * itemsize > MAX_BYTES:
        raise BadRequestError(f"input {name!r}: shape {shown(shape)} is more than any request can hold")
    return tuple(shape), count


def check_size(name: str, datatype: str, shape: tuple[int, ...], count: int, size: Any) -> int:
    """`size` itself, the bytes that the request says the tensor has. Raises if the tensor cannot have so many."""
    if datatype == "BYTES":
        if type(size) is not int or size < 0:
            raise BadRequestError(f"input {name!r}: binary_data_size is {shown(size)}; expected a whole number")
        return size
    needed = count * WIRE[datatype].itemsize
    if type(size) is not int or size != needed:
        raise BadRequestError(
            f"input {name!r}: binary_data_size is {shown(size)}, shape {list(shape)} of {datatype} is {needed} bytes"
        )
    return size


def from_bytes(
    name: str,
    datatype: str,
    shape: tuple[int, ...],
    count: int,
    body: Body | memoryview,
    offset: int,
    size: int,
    budget: Budget,
) -> np.ndarray:
    """`count` elements of `body`, a view where that can be; `size` went through `check_size` and is there. Raises
    `BadRequestError`, and `OutOfMemoryError` for strings."""
    if datatype == "BYTES":
        return read_strings(name, shape, count, body, offset, size, budget)
    dtype = WIRE[datatype]
    if count == 0:
        return np.empty(shape, dtype)
    array = np.ndarray(shape, dtype, body, offset)
    if dtype.kind == "b":
        check_booleans(name, array)
    return array


def check_booleans(name: str, array: np.ndarray) -> None:
    """Raise `BadRequestError` for a byte that is no boolean: kernels may compute anything with it."""
    largest = array.view(np.uint8).max(initial=0)
    if largest > 1:
        raise BadRequestError(f"input {name!r}: a BOOL is one byte, 0 or 1; {largest} came")


def to_bytes(array: np.ndarray) -> Any:
    """What `from_bytes` reads, as a buffer: the array itself where its memory is that already."""
    datatype = NAMES[array.dtype]
    return write_strings(array) if datatype == "BYTES" else np.ascontiguousarray(array, WIRE[datatype])


def from_json(
    name: str, datatype: str, shape: tuple[int, ...], count: int, data: Any, *, booleans: bool = True
) -> np.ndarray:
    """An array of the elements of `data`, which is a flat list or one nested as `shape` says. `booleans`: see
    `numbers`."""
    if datatype in NOT_IN_JSON:
        raise BadRequestError(f"input {name!r}: {datatype} has no form in JSON; send it as binary data")
    if type(data) is not list:
        raise BadRequestError(f"input {name!r}: data is a JSON {type(data).__name__}; expected a list")
    flat = flatten(name, data, shape) if data and type(data[0]) is list else data
    if len(flat) != count:
        raise BadRequestError(f"input {name!r}: data has {len(flat)} elements, shape {list(shape)} needs {count}")
    return numbers(f"input {name!r}", datatype, flat, booleans=booleans).reshape(shape)


def numbers(what: str, datatype: str, flat: Sequence[Any], *, first: int = 0, booleans: bool = True) -> np.ndarray:
    """A flat array of `datatype` from JSON values. Errors name `what` they are, and their place from `first` on.

    `booleans` says whether some of them may be true or false. Without these, packing refuses values of other types."""
    dtype = DTYPES[datatype]
    if booleans or dtype.kind in "bO":
        _check_types(what, datatype, flat, first)
    if datatype == "BYTES":
        return np.array(flat, dtype)
    try:
        packed = struct.pack(f"<{len(flat)}{_PACKED[datatype]}", *flat)
    except (OverflowError, struct.error):
        _check_types(what, datatype, flat, first)
        raise _beyond(what, datatype) from None
    if datatype != "BF16":
        return np.ndarray(len(flat), WIRE[datatype], packed)
    wide = np.ndarray(len(flat), WIRE["FP64"], packed)
    array = wide.astype(dtype)
    if np.isinf(array).sum() != np.isinf(wide).sum():
        raise _beyond(what, datatype)
    return array


def _check_types(what: str, datatype: str, flat: Sequence[Any], first: int) -> None:
    kind = DTYPES[datatype].kind
    right = _JSON_TYPES[kind]
    if not right.issuperset(map(type, flat)):
        position = next(i for i, value in enumerate(flat) if type(value) not in right)
        raise BadRequestError(
            f"{what}: element {first + position} is {shown(flat[position])}; {datatype} expects {_EXPECTED[kind]}"
        )


def pack(datatype: str, flat: Sequence[Any], text: bytes) -> bytes:
    """The bytes of `numbers`, of values that `text` has outside of strings. Its characters tell their types, where
    `numbers` must look at each.

    Raises `BadRequestError`, whose text is not for clients."""
    kind = DTYPES[datatype].kind
    if datatype == "BF16" or kind not in "fiu" or b"u" in text or b"f" in text:  # true, null; false, Infinity
        return numbers("", datatype, flat).tobytes()
    if kind != "f" and (b"." in text or b"e" in text or b"E" in text):
        return numbers("", datatype, flat).tobytes()
    try:
        return struct.pack(f"<{len(flat)}{_PACKED[datatype]}", *flat)
    except (OverflowError, struct.error):
        raise _beyond("", datatype) from None


def _beyond(what: str, datatype: str) -> BadRequestError:
    return BadRequestError(f"{what}: a number is beyond the range of {datatype}")


def flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """The elements of lists that are nested exactly as `shape` says, one level at a time."""
    level = [data]
    for axis in range(len(shape)):
        check_lists(name, level, axis, shape)
        level = level[0] if len(level) == 1 else list(chain.from_iterable(level))
    return level


def check_lists(name: str, level: list[Any], axis: int, shape: tuple[int, ...]) -> None:
    """Raise `BadRequestError` for what is no list in `level`, or not as long as the shape says for this axis."""
    size = shape[axis]
    for part in level:
        if type(part) is not list:
            raise BadRequestError(
                f"input {name!r}: data is nested {axis} deep in places; shape {list(shape)} expects more"
            )
        if len(part) != size:
            raise BadRequestError(
                f"input {name!r}: a list on axis {axis} has {len(part)} elements, shape {list(shape)} says {size}"
            )

"""BYTES tensors: Python's strings, which count as memory of requests as long as their array does.

In binary each string stands behind its length, four bytes little endian. A length is compared with the bytes that are
left before a string is cut out, so a false one costs nothing.
"""

import struct
from collections.abc import Iterable, Iterator
from sys import getsizeof

import numpy as np

from fold.arrays import Arrays
from service.budget import STRING, Body, Budget, Estimate
from service.errors import BadRequestError

_LENGTH = struct.Struct("<I")
_EMPTY = getsizeof("")


def read_strings(
    name: str, shape: tuple[int, ...], count: int, body: Body | memoryview, offset: int, size: int, budget: Budget
) -> np.ndarray:
    """The `count` strings of `size` bytes of `body`; the caller knows that the body is that long. Raises
    `BadRequestError` and `OutOfMemoryError`."""
    where = f"input {name!r}, BYTES"
    if size < count * _LENGTH.size:
        raise BadRequestError(
            f"{where}: {size} bytes came; {count} strings of shape {list(shape)} take at least {count * _LENGTH.size}"
        )
    return array_of_strings(_strings(where, count, body, offset, size), shape, count, size, budget)


def _strings(where: str, count: int, body: Body | memoryview, offset: int, size: int) -> Iterator[str]:
    end = offset + size
    for index in range(count):
        start = offset + _LENGTH.size
        if start > end:
            raise BadRequestError(f"{where}: the tensor's {size} bytes end before string {index} of {count}")
        (length,) = _LENGTH.unpack_from(body, offset)
        offset = start + length
        if offset > end:
            raise BadRequestError(f"{where}: string {index} has {length} bytes, only {end - start} of {size} are left")
        yield decode_text(f"{where}: string {index}", body[start:offset])
    if offset != end:
        raise BadRequestError(f"{where}: {end - offset} bytes are left over behind {count} strings, of {size} in all")


def array_of_strings(
    strings: Iterable[str], shape: tuple[int, ...], count: int, size: int, budget: Budget
) -> np.ndarray:
    """`count` strings, which have `size` bytes of UTF-8 in all. They count before they are made, and until nothing
    refers to the array. Raises `OutOfMemoryError`."""
    estimate = Estimate(budget)
    try:
        estimate.add(STRING * count + size)
        made = list(strings)
        wider = sum(map(getsizeof, made)) - _EMPTY * count - size  # characters of two or four bytes
        estimate.add(max(wider, 0))
        array = np.array(made, np.object_)
        estimate.keep_with(array)
    finally:
        estimate.close()
    return array.reshape(shape)


def count_strings(inputs: Arrays, text: Body, budget: Budget) -> None:
    """Let the strings in `inputs`, which were read from a JSON text, count. Raises `OutOfMemoryError`."""
    estimate = Estimate(budget)
    estimate.add_json(text)
    keep_strings(inputs, estimate)


def keep_strings(inputs: Arrays, estimate: Estimate) -> None:
    """Let the objects of a JSON text count on with the strings in `inputs`, if there are any."""
    array = next((array for array in inputs.values() if array.dtype.kind == "O"), None)
    if array is None:
        estimate.close()
    else:
        estimate.keep_with(array)


def decode_text(what: str, content: Body | memoryview) -> str:
    try:
        return str(content, "utf-8")
    except UnicodeDecodeError as error:
        raise BadRequestError(f"{what} is not UTF-8, which ONNX's strings are: {error}") from error


def write_strings(array: np.ndarray) -> bytes:
    parts = []
    for string in array.reshape(-1).tolist():
        content = string.encode()
        parts += [_LENGTH.pack(len(content)), content]
    return b"".join(parts)

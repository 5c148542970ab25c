"""BYTES tensors as they travel in binary: each string behind its length, four bytes little endian.

A length is compared with the bytes that are left before a string is cut out, so a false one costs nothing.
"""

import struct

import numpy as np

from service.budget import Body
from service.errors import BadRequestError

_LENGTH = struct.Struct("<I")


def read_strings(
    name: str, shape: tuple[int, ...], count: int, body: Body | memoryview, offset: int, size: int
) -> np.ndarray:
    """The `count` strings of `size` bytes of `body`; the caller knows that the body is that long."""
    where = f"input {name!r}, BYTES"
    if size < count * _LENGTH.size:
        raise BadRequestError(
            f"{where}: {size} bytes came; {count} strings of shape {list(shape)} take at least {count * _LENGTH.size}"
        )
    strings = []
    end = offset + size
    for index in range(count):
        start = offset + _LENGTH.size
        if start > end:
            raise BadRequestError(f"{where}: the tensor's {size} bytes end before string {index} of {count}")
        (length,) = _LENGTH.unpack_from(body, offset)
        offset = start + length
        if offset > end:
            raise BadRequestError(f"{where}: string {index} has {length} bytes, only {end - start} of {size} are left")
        strings.append(decode_text(f"{where}: string {index}", body[start:offset]))
    if offset != end:
        raise BadRequestError(f"{where}: {end - offset} bytes are left over behind {count} strings, of {size} in all")
    return np.array(strings, np.object_).reshape(shape)


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

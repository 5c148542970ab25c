"""Reads and writes `.npy` bodies: numpy's file format for one array. Arrays of objects are refused, so nothing is
unpickled.

The shape and type in the header are checked against the body's length before an array is made; the array is a view of
the body.
"""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fold.errors import first_line
from service.budget import Body
from service.errors import BadRequestError, NotAcceptableError
from service.protocol import NAMES, check_booleans, checked_shape

CONTENT_TYPE = "application/x-npy"
MAX_HEADER = 10_000
"""Characters of the header, which is a Python literal that numpy evaluates."""
PREFIX = 64
"""Bytes of the format's name, its version and the header's length, with room."""

_READERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def is_npy(content_type: str, body: Body) -> bool:
    """Whether the body is declared as an array, or has no declared type and begins like one."""
    octets = content_type in ("", "application/octet-stream")
    return content_type == CONTENT_TYPE or (octets and body.startswith(npy.MAGIC_PREFIX))


def read_npy(name: str, body: Body) -> np.ndarray:
    """The array for the input `name`, in this machine's byte order and in C order. Raises `BadRequestError`."""
    file = BytesIO(body[: MAX_HEADER + PREFIX])
    try:
        version = npy.read_magic(file)
    except ValueError as error:
        raise BadRequestError(f"the body is no .npy: {first_line(error)}") from error
    if version not in _READERS:
        raise BadRequestError(f"the body is a .npy of version {version[0]}.{version[1]}; expected 1.0 or 2.0")
    try:
        shape, fortran, dtype = _READERS[version](file, max_header_size=MAX_HEADER)
    except MemoryError:
        raise
    except Exception as error:  # evaluating the literal may raise many kinds of errors
        raise BadRequestError(f"the header of the .npy cannot be read: {first_line(error)}") from error
    native = dtype.newbyteorder("=")
    if native.hasobject or native not in NAMES:
        raise BadRequestError(f"the .npy is of {dtype.str}, which is not read here; expected numbers or booleans")
    lengths, count = checked_shape(name, list(shape), dtype.itemsize)
    left = len(body) - file.tell()
    if count * dtype.itemsize != left:
        raise BadRequestError(
            f"the .npy has {left} bytes behind its header, shape {list(shape)} of {NAMES[native]} is "
            f"{count * dtype.itemsize} bytes"
        )
    array = np.frombuffer(body, dtype, count, file.tell()) if count else np.empty(0, dtype)
    if dtype.kind == "b":
        check_booleans(name, array)
    array = array.reshape(lengths[::-1]).T if fortran else array.reshape(lengths)
    return np.ascontiguousarray(array, native).reshape(lengths)


def write_npy(array: np.ndarray) -> bytes:
    check_npy(array.dtype)
    file = BytesIO()
    npy.write_array(file, np.ascontiguousarray(array).reshape(array.shape), allow_pickle=False)
    return file.getvalue()


def check_npy(dtype: np.dtype[Any]) -> None:
    """Raise `NotAcceptableError` for a type that the format cannot name."""
    if dtype.kind in "OV":
        raise NotAcceptableError(f"{NAMES[dtype]} has no form in .npy; ask for JSON, or for binary tensors by infer")


def wants_npy(accept: str, outputs: int) -> bool:
    """Whether the client wants a .npy. Raises `NotAcceptableError` if it accepts nothing else and the model has several
    outputs."""
    if "npy" not in accept.lower():
        return False
    kinds = [kind.split(";")[0].strip().lower() for kind in accept.split(",")]
    if CONTENT_TYPE not in kinds:
        return False
    if outputs == 1:
        return True
    if {"application/json", "application/*", "*/*"}.isdisjoint(kinds):
        raise NotAcceptableError(f"the model has {outputs} outputs and a .npy holds one; accept application/json")
    return False

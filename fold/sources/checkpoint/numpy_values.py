"""Rebuilds numpy scalars and arrays in a checkpoint without numpy's own unpickling.

Checkpoints often hold accuracies as numpy scalars and states of random generators as arrays.
`numpy.dtype.__setstate__` takes flags from the file that make numpy read memory as pointers. So stand-ins are unpickled
instead, which accept only plain numbers.
"""

import re
from typing import Any

import numpy as np

PLAIN_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c(8|16))")


class StoredDtype:
    """A dtype of plain numbers, by its name and its byte order."""

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        if not isinstance(name, str) or not PLAIN_DTYPE.fullmatch(name):
            raise ValueError(f"a numpy dtype {name!r} is not a plain number")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class StoredArray:
    """An array that gets its shape, dtype and bytes after its creation."""

    def __init__(self, kind: object, shape: object, code: object) -> None:
        self.array = np.zeros(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, StoredDtype) or not isinstance(data, bytes):
            raise TypeError("a numpy array of plain numbers was expected")
        flat = np.frombuffer(data, dtype.dtype).copy()
        self.array = flat.reshape(shape, order="F" if fortran else "C")


class StoredKind:
    """Stands for `numpy.ndarray`, which pickles name and `StoredArray` does not need."""


def stored_scalar(dtype: StoredDtype, data: bytes) -> Any:
    """One number."""
    if not isinstance(dtype, StoredDtype) or not isinstance(data, bytes):
        raise TypeError("a plain number was expected")
    return np.frombuffer(data, dtype.dtype, count=1)[0]


STAND_INS = [
    (StoredDtype, "numpy.dtype"),
    (StoredKind, "numpy.ndarray"),
    *(
        (stand_in, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")  # before and after numpy 2
        for stand_in, name in ((StoredArray, "_reconstruct"), (stored_scalar, "scalar"))
    ),
    (StoredArray, "fold.sources.checkpoint.numpy_values.StoredArray"),
]


def restored(content: Any) -> Any:
    """`content` with arrays and dtypes in place of their stand-ins, inside mappings, lists and tuples.

    Each container is visited once, however often it is shared: 28 lists that hold the next one twice are 2^28 places.
    """
    return _restored(content, {})


def _restored(content: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    if id(content) in seen:
        return seen[id(content)][1]
    if isinstance(content, StoredArray):
        return content.array
    if isinstance(content, StoredDtype):
        return content.dtype
    if isinstance(content, dict | list | tuple):
        seen[id(content)] = (content, content)  # the first keeps it alive, so that no other object gets its id
    if isinstance(content, dict):
        for key, value in content.items():
            content[key] = _restored(value, seen)
    elif isinstance(content, list):
        content[:] = [_restored(value, seen) for value in content]
    elif type(content) is tuple:
        made = tuple(_restored(value, seen) for value in content)
        seen[id(content)] = (content, made)
        return made
    elif hasattr(content, "__dict__") and type(content).__name__ == "Namespace":
        _restored(vars(content), seen)
    return content

"""The inputs and outputs of a model. Every request is checked against them before it is queued.

After this check requests share batches, so it keeps a bad request away from the others: name, datatype, rank, every
fixed dimension, and the number of rows.
"""

from collections.abc import Sequence

from fold.arrays import Arrays
from fold.artifact import DTYPES, Manifest, TensorSpec
from service.batching import Lane
from service.errors import BadRequestError, shown
from service.protocol.datatypes import NAMES
from service.protocol.header_cache import HeaderCache


class Signature:
    """The inputs and outputs of one version, by name, and whether the first axis of all of them is the batch."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, batched: bool) -> None:
        self.inputs = {spec.name: spec for spec in inputs}
        self.outputs = {spec.name: spec for spec in outputs}
        self.batched = batched
        self.header_cache = HeaderCache()
        self.has_texts = any(spec.datatype == "BYTES" for spec in inputs)
        """Whether an input holds strings, each of which takes time."""
        self._checks = [(s.name, DTYPES[s.datatype], s.shape, s.shape[1:], -1 in s.shape[1:]) for s in inputs]
        self._one_lane = batched and not any(free for *_, free in self._checks)

    @classmethod
    def of(cls, manifest: Manifest) -> "Signature":
        return cls(manifest.inputs, manifest.outputs, batched=manifest.batched)

    def check(self, arrays: Arrays, max_rows: int) -> int:
        """The number of rows, 1 for a model without a batch axis. Raises `BadRequestError` if `arrays` don't fit."""
        if arrays.keys() != self.inputs.keys():
            self._refuse_names(arrays)
        rows = -1
        for name, dtype, shape, row_shape, free in self._checks:
            array = arrays[name]
            if array.dtype != dtype:
                came = NAMES.get(array.dtype, str(array.dtype))
                raise BadRequestError(f"input {name!r}: datatype {came} came, {NAMES[dtype]} is expected")
            if not self.batched:
                fits = _fits(array.shape, shape)
            elif free:
                fits = array.ndim > 0 and _fits(array.shape[1:], row_shape)
            else:
                fits = array.ndim > 0 and array.shape[1:] == row_shape
            if not fits:
                raise BadRequestError(
                    f"input {name!r}: shape {list(array.shape)} came, {list(shape)} is expected (-1 is free)"
                )
            if self.batched and len(array) != rows:
                if rows >= 0:
                    counts = ", ".join(f"{n!r} has {len(arrays[n])}" for n, *_ in self._checks)
                    raise BadRequestError(f"the inputs disagree on the number of rows: {counts}; expected one number")
                rows = len(array)
        if rows > max_rows:
            raise BadRequestError(f"{rows} rows came, at most {max_rows} are taken; send them in several requests")
        return rows if self.batched else 1

    def lane(self, arrays: Arrays) -> Lane:
        """Requests with an equal lane may share a batch: their dimensions beside the batch are the same."""
        return () if self._one_lane else tuple(arrays[name].shape[1:] for name, *_ in self._checks)

    def _refuse_names(self, arrays: Arrays) -> None:
        expected = ", ".join(repr(name) for name in self.inputs)
        for name in arrays:
            if name not in self.inputs:
                raise BadRequestError(f"no input is named {shown(name)}; expected {expected}")
        missing = ", ".join(repr(name) for name in self.inputs if name not in arrays)
        raise BadRequestError(f"input {missing} is missing; expected {expected}")


def _fits(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(e in (-1, s) for s, e in zip(shape, expected, strict=True))

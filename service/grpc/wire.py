"""Reads a ModelInferRequest as a message without tensors, and the tensors as views of its bytes.

protobuf copies raw tensors twice, and makes a Python object of each number of typed contents: a second for 60 MB, in
which no other thread can have the interpreter. Here what is large is a view, varints become arrays in pieces, and
protobuf parses the rest. The encoding: https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor

from service.budget import Budget, Buffer
from service.errors import BadRequestError
from service.grpc.messages import ModelInferRequest, malformed, parse

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types. There were two more, of which no client makes use."""
SIZES = {FIXED64: 8, FIXED32: 4}
INPUTS, RAW = 5, 7
"""Fields of a ModelInferRequest: `inputs` and `raw_input_contents`."""
CONTENTS = 5
"""Of an input: its typed contents."""
MOST_FIELDS = 1 << 18
"""Of a message. Each takes a microsecond."""
LONGEST_VARINT = 10
PIECE = 1 << 16
"""Bytes of varints that are read at a time."""

_TYPED = ModelInferRequest.DESCRIPTOR.fields_by_name["inputs"].message_type.fields_by_name["contents"].message_type
_KINDS = {
    FieldDescriptor.TYPE_FLOAT: FIXED32,
    FieldDescriptor.TYPE_DOUBLE: FIXED64,
    FieldDescriptor.TYPE_BYTES: LENGTH_DELIMITED,
}
ELEMENTS: dict[int, tuple[str, int]] = {f.number: (f.name, _KINDS.get(f.type, VARINT)) for f in _TYPED.fields}
"""Name and wire type of the elements of each field of typed contents."""


@dataclass(slots=True)
class Elements:
    """The elements of one field of typed contents: packed in any number of parts, or strings."""

    kind: int
    parts: list[memoryview]

    def count(self) -> int:
        if self.kind == LENGTH_DELIMITED:
            return len(self.parts)
        if self.kind == VARINT:
            return sum(int(np.count_nonzero(piece < 0x80)) for part in self.parts for piece in _pieces(part))
        return sum(len(part) for part in self.parts) // SIZES[self.kind]

    def array(self, dtype: np.dtype[Any], count: int, budget: Budget) -> np.ndarray:
        """`count` numbers of `dtype`, flat. Raises `BadRequestError` if they are malformed, `OutOfMemoryError`."""
        if self.kind != VARINT:
            packed = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
            if len(packed) % SIZES[self.kind]:
                raise malformed(ModelInferRequest)
            return np.frombuffer(packed, dtype)
        buffer = Buffer(budget, count * dtype.itemsize)
        for part in self.parts:
            for values in _varints(part):
                buffer.add((values != 0 if dtype.kind == "b" else values.astype(dtype)).tobytes())
        return np.frombuffer(buffer, dtype)


Contents = dict[str, Elements]
"""By the name of the field."""


@dataclass(frozen=True, slots=True)
class Tensors:
    """What protobuf has not parsed."""

    raw: Sequence[bytes | memoryview]
    contents: list[Contents | None]
    """Of each input; None if it has none."""


def read(content: bytes) -> tuple[Any, Tensors]:
    """The ModelInferRequest without contents and raw contents of its inputs, and these.

    Raises `BadRequestError` for another message, and for one of too many fields.
    """
    return _Reader(memoryview(content)).read()


def read_small(content: bytes) -> tuple[Any, Tensors]:
    """As `read`. Where all tensors are raw, protobuf takes 1 µs for a small message, and the search for fields 14."""
    request = parse(ModelInferRequest, content)
    if any(tensor.HasField("contents") for tensor in request.inputs):
        return read(content)
    return request, Tensors(list(request.raw_input_contents), [None] * len(request.inputs))


class _Reader:
    def __init__(self, content: memoryview) -> None:
        self._content = content
        self._left = MOST_FIELDS

    def read(self) -> tuple[Any, Tensors]:
        rest: list[bytes | memoryview] = []
        raw: list[memoryview] = []
        typed: list[Contents | None] = []
        for number, kind, start, value, end in self._fields(0, len(self._content)):
            if number == RAW and kind == LENGTH_DELIMITED:
                raw.append(self._content[value:end])
            elif number == INPUTS and kind == LENGTH_DELIMITED:
                message, contents = self._input(value, end)
                rest += [_header(INPUTS, len(message)), message]
                typed.append(contents)
            else:
                rest.append(self._content[start:end])
        return parse(ModelInferRequest, b"".join(rest)), Tensors(raw, typed)

    def _input(self, begin: int, end: int) -> tuple[bytes, Contents | None]:
        rest: list[memoryview] = []
        contents: Contents | None = None
        for number, kind, start, value, stop in self._fields(begin, end):
            if number == CONTENTS and kind == LENGTH_DELIMITED:
                contents = {} if contents is None else contents
                self._add(contents, value, stop)
            else:
                rest.append(self._content[start:stop])
        return b"".join(rest), contents

    def _add(self, contents: Contents, begin: int, end: int) -> None:
        for number, kind, _, value, stop in self._fields(begin, end):
            if number not in ELEMENTS:
                continue
            name, of_elements = ELEMENTS[number]
            if kind not in (LENGTH_DELIMITED, of_elements):  # an element that is not packed has its own wire type
                raise malformed(ModelInferRequest)
            contents.setdefault(name, Elements(of_elements, [])).parts.append(self._content[value:stop])

    def _fields(self, begin: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Number and wire type of each field, and where it begins, where its value begins, and where it ends."""
        while begin < end:
            self._left -= 1
            if self._left < 0:
                raise BadRequestError(
                    f"the message has more than {MOST_FIELDS} fields; send tensors in raw_input_contents, or packed"
                )
            tag, value = self._varint(begin, end)
            kind = tag & 7
            if kind == LENGTH_DELIMITED:
                size, value = self._varint(value, end)
                stop = value + size
            elif kind == VARINT:
                _, stop = self._varint(value, end)
            else:
                stop = value + SIZES.get(kind, end)
            if stop > end:
                raise malformed(ModelInferRequest)
            yield tag >> 3, kind, begin, value, stop
            begin = stop

    def _varint(self, begin: int, end: int) -> tuple[int, int]:
        """The number that begins there, and where it ends."""
        number = 0
        for position in range(begin, min(end, begin + LONGEST_VARINT)):
            code = self._content[position]
            number |= (code & 0x7F) << 7 * (position - begin)
            if code < 0x80:
                return number, position + 1
        raise malformed(ModelInferRequest)


def _header(number: int, size: int) -> bytes:
    """Of a field whose value has `size` bytes."""
    codes = [number << 3 | LENGTH_DELIMITED]
    while size > 0x7F:
        codes.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*codes, size])


def _pieces(part: memoryview) -> Iterator[np.ndarray]:
    codes = np.frombuffer(part, np.uint8)
    for begin in range(0, len(codes), PIECE):
        yield codes[begin : begin + PIECE]


def _varints(part: memoryview) -> Iterator[np.ndarray]:
    """The numbers of successive pieces, as 64 bits without a sign."""
    codes = np.frombuffer(part, np.uint8)
    begin = 0
    while begin < len(codes):
        piece = codes[begin : begin + PIECE]
        ends = np.flatnonzero(piece < 0x80)
        starts = np.concatenate(([0], ends[:-1] + 1))
        lengths = ends - starts[: len(ends)] + 1
        longest = int(lengths.max(initial=0))
        if not 0 < longest <= LONGEST_VARINT:
            raise malformed(ModelInferRequest)
        values = np.zeros(len(ends), np.uint64)
        for place in range(longest):
            longer = np.flatnonzero(lengths > place)
            bits = (piece[starts[longer] + place] & 0x7F).astype(np.uint64)
            values[longer] |= bits << np.uint64(7 * place)
        yield values
        begin += int(ends[-1]) + 1

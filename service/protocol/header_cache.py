"""Cache of parsed JSON headers of infer requests: a client sends the same header with every tensor.

Only headers are cached whose tensors all follow in binary, and that have no id. The meaning of a header depends only on
itself and on the model, so an entry holds as long as the model does.
"""

from dataclasses import dataclass, field

from service.headers import Headers
from service.protocol.datatypes import Selected

LARGEST_HEADER = 4096
"""Bytes of a header that is cached."""
CAPACITY = 256
"""Cached headers of one model, and cached answers to one of them. Clients choose them, so there could be any number."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class AnswerHead:
    """What precedes the tensors of an answer: HTTP headers and the JSON header."""

    headers: Headers
    json: bytes
    start: bytes = b""
    """Status line and headers as they travel, once the transport has made them."""


@dataclass(slots=True)
class ParsedHeader:
    """`tensors` have name, datatype, shape, elements and bytes of each input, in order; `size` is all their bytes."""

    tensors: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    outputs: Selected
    priority: int
    timeout: float | None
    size: int
    plain: bool
    """Whether all outputs are binary tensors whose shape tells their size, so that answers of one shape begin alike."""
    rows: int = -1
    """Of the inputs, once the signature has checked a request; -1 before."""
    answers: dict[Shapes, AnswerHead] = field(default_factory=dict)
    """By the shapes of the outputs."""

    def add_answer(self, shapes: Shapes, head: AnswerHead) -> None:
        if len(self.answers) >= CAPACITY:
            self.answers.clear()
        self.answers[shapes] = head


class HeaderCache:
    """Of one model, by the bytes of the header."""

    def __init__(self) -> None:
        self._headers: dict[bytes, ParsedHeader] = {}
        self.find = self._headers.get

    def add(self, header: bytes, parsed: ParsedHeader) -> None:
        if len(self._headers) >= CAPACITY:
            self._headers.clear()
        self._headers[header] = parsed

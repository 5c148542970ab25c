"""What the JSON header of an infer request came to, remembered: a client sends the same one with every tensor.

Only headers whose tensors all follow in binary, and that have no id, are worth it. What a header means depends on
nothing but itself and the model, so a plan holds for as long as the model does.
"""

from dataclasses import dataclass, field

from service.headers import Headers
from service.protocol.datatypes import Selected

LARGEST_HEADER = 4096
"""Bytes of a header that is remembered."""
PLANS = 256
"""Headers of one model, and forms of the answer to one of them. Clients choose them, so there could be any number."""

Shapes = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Form:
    """What stands before the tensors of a plain answer: headers and JSON."""

    headers: Headers
    json: bytes
    start: bytes = b""
    """Status line and headers as they travel, where the transport has made them."""


@dataclass(slots=True)
class ParsedHeader:
    """`tensors` have name, datatype, shape, elements and bytes of each input, in order; `size` is all their bytes."""

    tensors: tuple[tuple[str, str, tuple[int, ...], int, int], ...]
    outputs: Selected
    priority: int
    timeout: float | None
    size: int
    plain: bool
    """Whether all outputs are tensors in binary whose bytes their shape tells."""
    rows: int = -1
    """Of a request that the model takes; -1 until one was checked."""
    forms: dict[Shapes, Form] = field(default_factory=dict)
    """By the shapes of the outputs."""

    def remember(self, shapes: Shapes, form: Form) -> None:
        if len(self.forms) >= PLANS:
            self.forms.clear()
        self.forms[shapes] = form


class HeaderCache:
    """Of one model, by header."""

    def __init__(self) -> None:
        self._plans: dict[bytes, ParsedHeader] = {}
        self.find = self._plans.get

    def add(self, header: bytes, plan: ParsedHeader) -> None:
        if len(self._plans) >= PLANS:
            self._plans.clear()
        self._plans[header] = plan

"""What a JSON text may hold."""

from dataclasses import dataclass
from math import prod

from service.errors import BadRequestError
from service.protocol.signature import Signature

OTHERS = 1 << 16
"""Values, lists, objects and strings that a request may have beside its tensors."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How much of each a request of `rows` rows can have; None is without limit, for inputs with free dimensions."""

    rows: int
    values: int | None
    lists: int | None
    objects: int
    strings: int | None

    @classmethod
    def of(cls, signature: Signature, rows: int) -> "Capacity":
        """A row is an object in `:predict`, where a model has several inputs."""
        specs = list(signature.inputs.values())
        shapes = [spec.shape[1:] if signature.batched else spec.shape for spec in specs]
        texts = sum(prod(shape) for spec, shape in zip(specs, shapes, strict=True) if spec.datatype == "BYTES")
        values = lists = strings = None
        if not any(-1 in shape for shape in shapes):
            values = rows * sum(map(prod, shapes)) + OTHERS
            lists = rows * sum(map(_lists, shapes)) + OTHERS
        if values is not None or not texts:
            strings = rows * (texts + len(specs)) + OTHERS
        return cls(rows, values, lists, rows + OTHERS, strings)

    def check(self, values: int, lists: int, objects: int, strings: int) -> None:
        """Raises `BadRequestError` if a text has more of one of them."""
        for found, most, what in (
            (lists, self.lists, "lists"),
            (objects, self.objects, "objects"),
            (strings, self.strings, "strings"),
            (values, self.values, "values"),
        ):
            if most is not None and found > most:
                raise BadRequestError(
                    f"the JSON has more than {most} {what}, which is more than a request for this model can have; "
                    f"at most {self.rows} rows are taken"
                )


def _lists(shape: tuple[int, ...]) -> int:
    """Lists in the nested form of a tensor of this shape."""
    return 1 + sum(prod(shape[:axis]) for axis in range(1, len(shape)))

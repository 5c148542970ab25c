"""The reduced precisions: their types, their ranges, and where they cannot be used."""

from typing import Literal, NamedTuple

import onnx_ir as ir

from fold.errors import BnfoldError
from fold.runtime import Provider, resolve_provider


def refuse_tf32(precision: str, provider: Provider, what: str) -> None:
    """Raises `BnfoldError` where TF32 is asked of a CPU, which has none: its certificate would be float32's."""
    if precision == "tf32" and resolve_provider(provider) == "cpu":
        raise BnfoldError(f"{what}: tf32 is computed by a GPU alone, and here is none; use --device cuda")


Reduced = Literal["fp16", "bf16"]


class Format(NamedTuple):
    """A type, by name: its largest number, its smallest normal one, and the smallest that is stored as more than 0."""

    dtype: ir.DataType
    name: str
    largest: float
    normal: float
    least: float


FORMATS = {
    "fp16": Format(ir.DataType.FLOAT16, "float16", 65504.0, 2.0**-14, 2.0**-24),
    "bf16": Format(ir.DataType.BFLOAT16, "bfloat16", (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-126),
}

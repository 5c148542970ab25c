"""The reduced precisions: their types and ranges; and the refusal of TF32 on a CPU."""

from typing import Literal, NamedTuple

import onnx_ir as ir

from fold.errors import BnfoldError
from fold.runtime import Provider, resolve_provider

ReducedPrecision = Literal["fp16", "bf16"]


class Format(NamedTuple):
    """A type and its name in ONNX: the largest number, the smallest normal one, and the smallest that does not round
    to 0."""

    dtype: ir.DataType
    name: str
    largest: float
    normal: float
    least: float


FORMATS = {
    "fp16": Format(ir.DataType.FLOAT16, "float16", 65504.0, 2.0**-14, 2.0**-24),
    "bf16": Format(ir.DataType.BFLOAT16, "bfloat16", (2 - 2.0**-7) * 2.0**127, 2.0**-126, 2.0**-126),
}


def refuse_tf32(precision: str, provider: Provider, what: str) -> None:
    """Raise `BnfoldError` for TF32 on a CPU, which has no TF32: the certificate would be that of float32."""
    if precision == "tf32" and resolve_provider(provider) == "cpu":
        raise BnfoldError(f"{what}: tf32 needs a GPU, and none was chosen or found; use --device cuda")

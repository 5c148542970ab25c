"""Reduced precision: which nodes of a folded graph can be float16 or bfloat16, and the graph converted to that type."""

from fold.precision.choose import Precision, as_stored, keep_float32, range_inputs, reduce
from fold.precision.formats import FORMATS, refuse_tf32
from fold.precision.lowering import lower, prepare

__all__ = [
    "FORMATS",
    "Precision",
    "as_stored",
    "keep_float32",
    "lower",
    "prepare",
    "range_inputs",
    "reduce",
    "refuse_tf32",
]

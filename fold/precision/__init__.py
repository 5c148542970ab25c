"""Reduced precision: what of a folded graph can be float16 or bfloat16, and the graph in that type."""

from fold.precision.choose import Precision, as_stored, decide, ranged, reduce
from fold.precision.formats import FORMATS, refuse_tf32
from fold.precision.lowering import lower, prepared

__all__ = ["FORMATS", "Precision", "as_stored", "decide", "lower", "prepared", "ranged", "reduce", "refuse_tf32"]

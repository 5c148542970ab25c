"""The Open Inference Protocol's datatypes: in numpy and on the wire.

BF16 is `ml_dtypes`' type, as in the protocol's own client. BYTES are strings: ONNX has no other, and ONNX Runtime takes
and gives them as Python's in arrays of objects.
"""

from typing import Any

import ml_dtypes
import numpy as np

from fold.artifact import DATATYPES

DTYPES: dict[str, np.dtype[Any]] = {
    **DATATYPES,
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

LENGTH = np.dtype("<u4")
"""Precedes each string of a BYTES tensor on the wire."""
WIRE = {name: LENGTH if name == "BYTES" else dtype.newbyteorder("<") for name, dtype in DTYPES.items()}
"""The datatypes on the wire; on a little-endian machine the same numpy types. A string takes a length at least."""

NOT_IN_JSON = frozenset({"FP16", "BF16"})
NOT_RANKED = frozenset({"BOOL", "BYTES"})
"""Datatypes whose values have no order, so that none are the largest."""

Output = tuple[str, bool, int]
"""An output that a request asks for: its name, whether in binary, and how many of its highest values, 0 for the tensor
itself."""
Selected = tuple[Output, ...]

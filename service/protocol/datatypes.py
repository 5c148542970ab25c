"""The Open Inference Protocol's datatypes: as numpy holds them here, and as they travel.

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
"""What each string of a BYTES tensor begins with on the wire."""
WIRE = {name: LENGTH if name == "BYTES" else dtype.newbyteorder("<") for name, dtype in DTYPES.items()}
"""The datatypes as they travel; on a little-endian machine the very same numpy types. A string is a length at least."""

NOT_IN_JSON = frozenset({"FP16", "BF16"})
NOT_RANKED = frozenset({"BOOL", "BYTES"})
"""Datatypes whose values are in no order of size, so that none are the largest."""

Output = tuple[str, bool, int]
"""An output that a request asks for: its name, whether in binary, and how many of its highest values, 0 for the tensor
itself."""
Selected = tuple[Output, ...]

"""The Open Inference Protocol's datatypes on the wire."""

import numpy as np

from fold.artifact import DTYPES

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

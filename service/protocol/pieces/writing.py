"""JSON of large arrays, in pieces."""

from math import prod

import numpy as np

from service.protocol.jsontext import json_array, render_json
from service.protocol.pieces.text import Steps

VALUES = 1 << 14
"""Values that are written at a time: 1 to 2 ms."""


def array_text(array: np.ndarray) -> Steps[bytes]:
    """What `render_json` writes of `json_array`."""
    if array.size <= VALUES or array.ndim == 0:
        return render_json(json_array(array))
    row = prod(array.shape[1:])
    parts = []
    if row > VALUES:
        for element in array:
            parts.append((yield from array_text(element)))
    else:
        at_a_time = VALUES // row
        for begin in range(0, len(array), at_a_time):
            parts.append(render_json(json_array(array[begin : begin + at_a_time]))[1:-1])
            yield
    return b"[%b]" % b",".join(parts)

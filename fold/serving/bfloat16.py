"""Runs of graphs with bfloat16 inputs or outputs, for which ONNX Runtime's Python has only OrtValues."""

import ctypes
from math import prod

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays
from fold.artifact import DTYPES

BFLOAT16 = DTYPES["BF16"]
ONNX_BFLOAT16 = 16
"""`TensorProto.BFLOAT16`."""


def run_with_bfloat16(
    session: ort.InferenceSession, outputs: list[str], feeds: Arrays, options: ort.RunOptions
) -> list[np.ndarray]:
    """As `session.run`. `feeds` are aligned."""
    held = {name: np.ascontiguousarray(array) for name, array in feeds.items()}  # OrtValues share its memory
    found = session.run_with_ort_values(outputs, {name: _to_value(array) for name, array in held.items()}, options)
    return [_to_array(value) for value in found]


def _to_value(array: np.ndarray) -> ort.OrtValue:
    if array.dtype != BFLOAT16:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_BFLOAT16)


def _to_array(value: ort.OrtValue) -> np.ndarray:
    if value.element_type() != ONNX_BFLOAT16:
        array: np.ndarray = value.numpy()
        return array
    shape = tuple(value.shape())
    if not prod(shape):
        return np.empty(shape, BFLOAT16)
    content = ctypes.string_at(value.data_ptr(), prod(shape) * BFLOAT16.itemsize)
    return np.frombuffer(content, BFLOAT16).reshape(shape)

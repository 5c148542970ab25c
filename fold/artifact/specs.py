"""Inputs and outputs of a graph as a manifest names them."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fold.artifact.manifest import TensorSpec
from fold.errors import BnfoldError

if TYPE_CHECKING:  # a service reads manifests and never a graph
    import onnx_ir as ir


def tensor_specs(values: "Iterable[ir.Value]") -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph as a manifest and the Open Inference Protocol name them; free dimensions are -1."""
    specs = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise BnfoldError(f"{value.name}: the type or shape of this graph input or output is not known")
        datatype = _OIP_NAMES.get(value.dtype.name, value.dtype.name)
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name=value.name or "", datatype=datatype, shape=shape))
    return tuple(specs)


_OIP_NAMES = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "STRING": "BYTES"}

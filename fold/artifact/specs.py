"""Inputs and outputs of a graph as `TensorSpec`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from fold.artifact.manifest import TensorSpec
from fold.errors import BnfoldError

if TYPE_CHECKING:  # a service imports this package and must not load onnx_ir
    import onnx_ir as ir


def tensor_specs(values: "Iterable[ir.Value]") -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph, with the Open Inference Protocol's datatypes; free dimensions are -1.

    Raises `BnfoldError` for one whose type or shape is not known.
    """
    specs = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise BnfoldError(
                f"{value.name}: the type or shape of this graph input or output is not known; export it with both"
            )
        datatype = _OIP_NAMES.get(value.dtype.name, value.dtype.name)
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name=value.name or "", datatype=datatype, shape=shape))
    return tuple(specs)


_OIP_NAMES = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16", "STRING": "BYTES"}

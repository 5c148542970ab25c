"""Evaluates a graph in float64, whatever the type of its weights, with onnx's reference implementation."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fold.graph import FLOATS


def as_float64(model: ir.Model) -> ir.Model:
    """A copy of `model` whose float tensors, weights and casts are all float64; weights keep their stored values."""
    model = model.clone()
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in FLOATS:
            value.const_value = ir.tensor(tensor.numpy().astype(np.float64), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)  # a new type: clones share theirs with the original
    for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
        if value.dtype in FLOATS:
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    for node in graph:
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in FLOATS:
                array = attribute.as_tensor().numpy().astype(np.float64)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
            elif node.op_type == "Cast" and name == "to" and ir.DataType(attribute.as_int()) in FLOATS:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)
    return model


def evaluate(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `model` by name, in float64; float inputs are taken as float64."""
    return Evaluator(model)(inputs)


class Evaluator:
    """A graph that was made ready for evaluation in float64 once."""

    def __init__(self, model: ir.Model) -> None:
        self._evaluator = ReferenceEvaluator(ir.to_proto(as_float64(model)), new_ops=[ConvTranspose])

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {
            name: array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in inputs.items()
        }
        outputs = self._evaluator.run(None, wide)
        return dict(zip(self._evaluator.output_names, outputs, strict=True))


class ConvTranspose(OpRun):
    """Transposed convolution of any rank and number of groups; onnx's own fails for groups (seen in onnx 1.23)."""

    def _run(
        self,
        X: np.ndarray,
        W: np.ndarray,
        B: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        rank = X.ndim - 2
        stride, dilation = strides or [1] * rank, dilations or [1] * rank
        extra, pad = output_padding or [0] * rank, pads or [0] * 2 * rank
        kernel, groups = W.shape[2:], group or 1
        sizes = [
            s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(stride, X.shape[2:], dilation, kernel, strict=True)
        ]
        full = [size + e for size, e in zip(sizes, extra, strict=True)]
        if not output_shape and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            output_shape = [s * n for s, n in zip(stride, X.shape[2:], strict=True)]
        if output_shape:  # the padding follows from it: half on each side, the odd one as auto_pad says
            total = [max(0, size - wanted) for size, wanted in zip(full, output_shape[-rank:], strict=True)]
            before = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            pad = before + [t - b for t, b in zip(total, before, strict=True)]
        Y = np.zeros((X.shape[0], groups, W.shape[1], *full), X.dtype)
        x = X.reshape(X.shape[0], groups, -1, *X.shape[2:])
        w = W.reshape(groups, -1, *W.shape[1:])
        for position in np.ndindex(*kernel):
            places = tuple(
                slice(d * at, d * at + s * (n - 1) + 1, s)
                for at, d, s, n in zip(position, dilation, stride, X.shape[2:], strict=True)
            )
            here: tuple[Any, ...] = (..., *places)
            Y[here] += np.einsum("ngi...,gio->ngo...", x, w[(..., *position)])
        Y = Y.reshape(X.shape[0], -1, *full)
        inner: tuple[Any, ...] = (..., *(slice(pad[a], full[a] - pad[rank + a]) for a in range(rank)))
        Y = Y[inner]
        return (Y if B is None else Y + B.reshape(-1, *[1] * rank),)

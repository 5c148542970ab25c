"""Evaluates a graph in float64, whatever the type of its weights, with onnx's reference implementation."""

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fold.errors import BnfoldError, first_line
from fold.graph import FLOATS
from fold.reference_ops import OPERATORS


def as_float64(model: ir.Model) -> ir.Model:
    """A copy of `model` whose float tensors, weights and casts are all float64; weights keep their stored values."""
    model = model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in FLOATS:
                value.const_value = ir.tensor(tensor.numpy().astype(np.float64), name=value.name)
                value.type = ir.TensorType(ir.DataType.DOUBLE)  # a new type: clones share theirs with the original
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.dtype in FLOATS:
                value.type = ir.TensorType(ir.DataType.DOUBLE)
    for body in (*model.graphs(), *model.functions.values()):
        for node in body:
            _widen_attributes(node)
    return model


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in FLOATS:
            array = attribute.as_tensor().numpy().astype(np.float64)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        elif node.op_type == "Cast" and name == "to" and ir.DataType(attribute.as_int()) in FLOATS:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)


def evaluate(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `model` by name, in float64; float inputs are taken as float64."""
    return Evaluator(model)(inputs)


class Evaluator:
    """A graph that was made ready for evaluation in float64 once. Raises `BnfoldError` where that is not possible."""

    def __init__(self, model: ir.Model) -> None:
        wide = as_float64(model)
        # Weights are fed as inputs are: twice as wide they may not fit into a proto, and would be held there once more.
        self._weights = _take_weights(wide.graph)
        self._opset = model.opset_imports.get("", 1)
        try:
            self._evaluator = ReferenceEvaluator(
                ir.to_proto(wide), new_ops=[BatchNormalization, ConvTranspose, *OPERATORS]
            )
        except Exception as error:  # onnx's reference implementation raises many types
            raise self._failure(error) from error

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        wide = {
            name: array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in inputs.items()
        }
        try:
            outputs = self._evaluator.run(None, {**self._weights, **wide})
        except Exception as error:  # as above
            raise self._failure(error) from error
        return dict(zip(self._evaluator.output_names, outputs, strict=True))

    def _failure(self, error: Exception) -> BnfoldError:
        return BnfoldError(
            f"the unfolded graph, of opset {self._opset}, cannot be evaluated in float64 by onnx's reference "
            f"implementation ({first_line(error)}), so nothing can be proven; export it with ONNX's own operators and "
            "a recent opset"
        )


def _take_weights(graph: ir.Graph) -> dict[str, np.ndarray]:
    """Turn the float initializers of a graph into inputs without values; what they held."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None and value.dtype == ir.DataType.DOUBLE:
            weights[name] = value.const_value.numpy()
            del graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)
    return weights


class BatchNormalization(OpRun):
    """Of every opset; onnx's own trains where opsets 7 to 13 only apply what was trained (seen in onnx 1.23)."""

    def _run(
        self,
        X: np.ndarray,
        scale: np.ndarray,
        B: np.ndarray,
        mean: np.ndarray,
        var: np.ndarray,
        consumed_inputs: list[int] | None = None,
        epsilon: float | None = None,
        is_test: int | None = None,
        momentum: float | None = None,
        spatial: int | None = None,
        training_mode: int | None = None,
    ) -> tuple[np.ndarray, ...]:
        epsilon = float(np.float32(1e-5)) if epsilon is None else epsilon
        over = tuple(axis for axis in range(X.ndim) if axis != 1)
        shape = [-1] + [1] * (X.ndim - 2)
        if not training_mode:
            s = scale / np.sqrt(var + epsilon)
            return ((X - mean.reshape(shape)) * s.reshape(shape) + B.reshape(shape),)
        batch_mean, batch_var = X.mean(axis=over), X.var(axis=over)
        s = scale / np.sqrt(batch_var + epsilon)
        kept = 0.9 if momentum is None else momentum
        return (
            (X - batch_mean.reshape(shape)) * s.reshape(shape) + B.reshape(shape),
            mean * kept + batch_mean * (1 - kept),
            var * kept + batch_var * (1 - kept),
        )


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

"""An ONNX graph as a differentiable function of float64 tensors: the gradient search of the proof uses it.

One short function for each operator. Its arguments are the node and the node's inputs; an input that is left out is
None. Operators are those of opset 15 and later, because older graphs are lifted first (fold.graph.lift). Importing this
module imports PyTorch.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fold.errors import BnfoldError, first_line
from fold.evaluate.autograd_windows import (
    average_pool,
    conv,
    conv_transpose,
    depth_to_space,
    max_pool,
    pad,
    resize,
    space_to_depth,
)
from fold.graph import FLOATS, constant, display_name, integer, integers, is_standard, real, text

Operator = Callable[..., Tensor | Sequence[Tensor]]


class TorchGraph:
    """A graph prepared once for PyTorch, with float weights in float64. Not for training: weights have no gradients.

    Raises `BnfoldError` that names an operator that is not implemented here or, when called, one that PyTorch refuses.
    """

    def __init__(self, model: ir.Model) -> None:
        graph = model.graph
        self._nodes = [(_operator(node), node) for node in graph]
        self._inputs = {value.name: value for value in graph.inputs}
        self._outputs = {value.name or "": value for value in graph.outputs}
        self._weights = {v: _tensor(v.const_value) for v in graph.initializers.values() if v.const_value is not None}
        kept = {*graph.outputs, *self._weights}
        self._last_used: dict[ir.Node, list[ir.Value]] = {}
        for node in reversed(graph):
            last = [value for value in dict.fromkeys((*node.inputs, *node.outputs)) if value and value not in kept]
            self._last_used[node] = last
            kept.update(last)

    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name. Float inputs are float64; inputs that no node reads may be left out."""
        values = {**self._weights, **{self._inputs[name]: tensor for name, tensor in inputs.items()}}
        for operator, node in self._nodes:
            try:
                result = operator(node, *(None if value is None else values[value] for value in node.inputs))
            except Exception as error:  # PyTorch raises many types
                raise _refusal(node, f"cannot be computed in PyTorch ({first_line(error)})") from error
            results = [result] if isinstance(result, Tensor) else list(result)
            if len(results) < len(node.outputs):
                raise _refusal(node, "has more outputs than are known in PyTorch")
            values.update(zip(node.outputs, results, strict=False))
            for value in self._last_used[node]:
                values.pop(value, None)
        return {name: values[value] for name, value in self._outputs.items()}


def _operator(node: ir.Node) -> Operator:
    if not is_standard(node) or node.op_type not in GRADIENTS:
        raise _refusal(node, "is not known in PyTorch, so it has no gradient")
    if node.op_type == "BatchNormalization" and integer(node, "training_mode", 0):
        raise _refusal(node, "is in training mode, so it has no fixed function")
    return GRADIENTS[node.op_type]


def _refusal(node: ir.Node, why: str) -> BnfoldError:
    kind = node.op_type if is_standard(node) else f"{node.domain}::{node.op_type}"
    return BnfoldError(f"{display_name(node)}: operator {kind} {why}")


def _tensor(stored: ir.TensorProtocol) -> Tensor:
    """A weight as a tensor; a writable float64 array is shared, not copied."""
    if stored.dtype == ir.DataType.STRING:
        raise BnfoldError(f"{stored.name}: text has no tensor in PyTorch")
    array = stored.numpy()
    if stored.dtype in FLOATS:
        array = array.astype(np.float64, copy=False)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _dtype(onnx: int) -> torch.dtype:
    """The tensor type that stands for an ONNX type: float64 for every float type."""
    kind = ir.DataType(onnx)
    return torch.float64 if kind in FLOATS else torch.from_numpy(np.empty(0, kind.numpy())).dtype


def _real(node: ir.Node, name: str, default: float) -> float:
    """A float attribute; ONNX stores defaults in float32, too."""
    return float(np.float32(real(node, name, default)))


def _input_or_attribute(node: ir.Node, read: Tensor | None, name: str) -> list[int]:
    """Integers that are an input in newer opsets and an attribute in older ones; empty if they are left out."""
    return integers(node, name) if read is None else [int(i) for i in read.reshape(-1)]


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


# --- matrices and normalisation


def gemm(node: ir.Node, A: Tensor, B: Tensor, C: Tensor | None = None) -> Tensor:
    y = (A.T if integer(node, "transA", 0) else A) @ (B.T if integer(node, "transB", 0) else B)
    y = _real(node, "alpha", 1) * y
    return y if C is None else y + _real(node, "beta", 1) * C


def batch_normalization(node: ir.Node, x: Tensor, scale: Tensor, B: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    s = scale / torch.sqrt(var + _real(node, "epsilon", 1e-5))
    return (x - _per_channel(mean, x)) * _per_channel(s, x) + _per_channel(B, x)


def _standardise(node: ir.Node, x: Tensor, over: tuple[int, ...]) -> Tensor:
    variance, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + _real(node, "epsilon", 1e-5))


def instance_normalization(node: ir.Node, x: Tensor, scale: Tensor, B: Tensor) -> Tensor:
    return _standardise(node, x, tuple(range(2, x.ndim))) * _per_channel(scale, x) + _per_channel(B, x)


def layer_normalization(node: ir.Node, x: Tensor, scale: Tensor, B: Tensor | None = None) -> Tensor:
    y = _standardise(node, x, tuple(range(integer(node, "axis", -1) % x.ndim, x.ndim))) * scale
    return y if B is None else y + B


# --- elements


def hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    return torch.clamp(_real(node, "alpha", 0.2) * x + _real(node, "beta", 0.5), 0, 1)


def hard_swish(_: ir.Node, x: Tensor) -> Tensor:
    return x * torch.clamp(x * float(np.float32(1 / 6)) + 0.5, 0, 1)


def gelu(node: ir.Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=text(node, "approximate", "none"))


def softplus(x: Tensor) -> Tensor:
    return torch.logaddexp(x, torch.zeros_like(x))  # F.softplus is the identity above 20, which errs by 2e-9


def clip(_: ir.Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def divide(_: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def global_pool(function: Callable[..., Tensor]) -> Operator:
    return lambda node, x: function(x, dim=tuple(range(2, x.ndim)), keepdim=True)


def softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda node, x: function(x, dim=integer(node, "axis", -1))


def reduction(function: Callable[..., Tensor]) -> Operator:
    def reduce(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        over = _input_or_attribute(node, axes, "axes")
        if not over and integer(node, "noop_with_empty_axes", 0):
            return function(x[None], dim=(0,), keepdim=False)  # the elementwise part of the reduction remains
        return function(x, dim=tuple(over or range(x.ndim)), keepdim=bool(integer(node, "keepdims", 1)))

    return reduce


def arg_extremum(function: Callable[..., Tensor]) -> Operator:
    def index(node: ir.Node, x: Tensor) -> Tensor:
        axis, keep = integer(node, "axis", 0), bool(integer(node, "keepdims", 1))
        if integer(node, "select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
        return function(x, dim=axis, keepdim=keep)

    return index


def without_attributes(function: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda _, *inputs: function(*inputs)


def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator with any number of inputs."""
    return lambda _, *inputs: functools.reduce(function, inputs)


# --- movement


def split(node: ir.Node, x: Tensor, sizes: Tensor | None = None) -> Sequence[Tensor]:
    axis = integer(node, "axis", 0)
    parts = -(-x.shape[axis] // len(node.outputs))  # the last may be smaller
    given = _input_or_attribute(node, sizes, "split")
    return torch.split(x, given or parts, axis)


def slice_(
    _: ir.Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    count = len(starts)
    over = range(count) if axes is None else axes.tolist()
    strides = [1] * count if steps is None else steps.tolist()
    for axis, start, end, step in zip(over, starts.tolist(), ends.tolist(), strides, strict=True):
        places = range(*slice(start, end, step).indices(x.shape[axis]))
        x = x.index_select(axis, torch.tensor(places, dtype=torch.int64))
    return x


def gather(node: ir.Node, x: Tensor, indices: Tensor) -> Tensor:
    axis = integer(node, "axis", 0) % x.ndim
    places = indices.reshape(-1) % x.shape[axis]
    return x.index_select(axis, places).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def transpose(node: ir.Node, x: Tensor) -> Tensor:
    return x.permute(integers(node, "perm", list(reversed(range(x.ndim)))))


def reshape(node: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    copied = not integer(node, "allowzero", 0)
    return x.reshape([x.shape[i] if size == 0 and copied else size for i, size in enumerate(shape.tolist())])


def flatten(node: ir.Node, x: Tensor) -> Tensor:
    axis = integer(node, "axis", 1)
    return x.reshape(int(np.prod(x.shape[:axis])), int(np.prod(x.shape[axis:])))


def squeeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _input_or_attribute(node, axes, "axes")
    return x.squeeze(tuple(over)) if over else x.squeeze()


def unsqueeze(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    over = _input_or_attribute(node, axes, "axes")
    for axis in sorted(axis % (x.ndim + len(over)) for axis in over):
        x = x.unsqueeze(axis)
    return x


def expand(_: ir.Node, x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape.tolist())))


# --- shapes and types


def shape(node: ir.Node, x: Tensor) -> Tensor:
    end = node.attributes.get("end")
    return torch.tensor(x.shape[integer(node, "start", 0) : None if end is None else end.as_int()], dtype=torch.int64)


def constant_of_shape(node: ir.Node, sizes: Tensor) -> Tensor:
    value = node.attributes.get("value")
    filling = torch.zeros(1, dtype=torch.float64) if value is None else _tensor(value.as_tensor())
    return filling.reshape(()).expand(sizes.tolist())


def constant_(node: ir.Node) -> Tensor:
    stored = constant(node.outputs[0])
    assert stored is not None
    return _tensor(stored)


GRADIENTS: dict[str, Operator] = {
    "Abs": without_attributes(torch.abs),
    "Add": without_attributes(torch.add),
    "And": without_attributes(torch.logical_and),
    "ArgMax": arg_extremum(torch.argmax),
    "ArgMin": arg_extremum(torch.argmin),
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Cast": lambda node, x: x.to(_dtype(integer(node, "to", 0))),
    "CastLike": lambda _, x, like: x.to(like.dtype),
    "Ceil": without_attributes(torch.ceil),
    "Clip": clip,
    "Concat": lambda node, *inputs: torch.cat(inputs, integer(node, "axis", 0)),
    "Constant": constant_,
    "ConstantOfShape": constant_of_shape,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Cos": without_attributes(torch.cos),
    "DepthToSpace": depth_to_space,
    "Div": divide,
    "Dropout": lambda _, x, *ratio: x,
    "Einsum": lambda node, *inputs: torch.einsum(text(node, "equation", ""), *inputs),
    "Elu": lambda node, x: F.elu(x, _real(node, "alpha", 1)),
    "Equal": without_attributes(torch.eq),
    "Erf": without_attributes(torch.erf),
    "Exp": without_attributes(torch.exp),
    "Expand": expand,
    "Flatten": flatten,
    "Floor": without_attributes(torch.floor),
    "Gather": gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": global_pool(torch.mean),
    "GlobalMaxPool": global_pool(torch.amax),
    "Greater": without_attributes(torch.gt),
    "GreaterOrEqual": without_attributes(torch.ge),
    "HardSigmoid": hard_sigmoid,
    "HardSwish": hard_swish,
    "Identity": lambda _, x: x,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "LeakyRelu": lambda node, x: F.leaky_relu(x, _real(node, "alpha", 0.01)),
    "Less": without_attributes(torch.lt),
    "LessOrEqual": without_attributes(torch.le),
    "Log": without_attributes(torch.log),
    "LogSoftmax": softmax(torch.log_softmax),
    "MatMul": without_attributes(torch.matmul),
    "Max": variadic(torch.maximum),
    "MaxPool": max_pool,
    "Mean": lambda _, *inputs: functools.reduce(torch.add, inputs) / len(inputs),
    "Min": variadic(torch.minimum),
    "Mish": lambda _, x: x * torch.tanh(softplus(x)),
    "Mul": without_attributes(torch.mul),
    "Neg": without_attributes(torch.neg),
    "Not": without_attributes(torch.logical_not),
    "Or": without_attributes(torch.logical_or),
    "PRelu": lambda _, x, slope: torch.where(x < 0, slope * x, x),
    "Pad": pad,
    "Pow": lambda _, x, y: torch.pow(x, y).to(x.dtype),
    "Range": without_attributes(torch.arange),
    "Reciprocal": without_attributes(torch.reciprocal),
    "ReduceL2": reduction(torch.linalg.vector_norm),
    "ReduceMax": reduction(torch.amax),
    "ReduceMean": reduction(torch.mean),
    "ReduceMin": reduction(torch.amin),
    "ReduceSum": reduction(torch.sum),
    "Relu": without_attributes(torch.relu),
    "Reshape": reshape,
    "Resize": resize,
    "Round": without_attributes(torch.round),
    "Shape": shape,
    "Sigmoid": without_attributes(torch.sigmoid),
    "Sign": without_attributes(torch.sign),
    "Sin": without_attributes(torch.sin),
    "Size": lambda _, x: torch.tensor(x.numel()),
    "Slice": slice_,
    "Softmax": softmax(torch.softmax),
    "Softplus": without_attributes(softplus),
    "Softsign": without_attributes(F.softsign),
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Sqrt": without_attributes(torch.sqrt),
    "Squeeze": squeeze,
    "Sub": without_attributes(torch.sub),
    "Sum": variadic(torch.add),
    "Tanh": without_attributes(torch.tanh),
    "Tile": lambda _, x, repeats: x.repeat(repeats.tolist()),
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Where": without_attributes(torch.where),
    "Xor": without_attributes(torch.logical_xor),
}
"""How PyTorch computes each operator, so that it has a gradient."""

"""Evaluates a graph in exact rational arithmetic: numpy arrays of `Fraction`, and no code of the engine.

Operators that move numbers run in onnx's reference implementation on the places of the numbers instead of the numbers.
Any other operator runs there in float64; on dyadic numbers such as small multiples of 1/8 its sums and products are
exact as well, and a gate (Sigmoid) gives equal results for equal numbers.
"""

from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from fold.graph import constant

Rational = np.ndarray
"""An array of `Fraction`, dtype object."""

MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)


def _fraction(number: Any) -> Any:
    """Infinities stay floats: they are only compared."""
    return number if np.isinf(float(number)) else Fraction(number)


fraction: Callable[[Any], Rational] = np.vectorize(_fraction, otypes=[object])


def rational(array: np.ndarray) -> Rational:
    """Floats become the rationals that they are; anything else stays."""
    if not np.issubdtype(array.dtype, np.floating):
        return array
    return fraction(array.astype(np.float64)) if array.size else array.astype(object)


def evaluate_exactly(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, Rational]:
    """The outputs of a graph, by name. Inputs and weights are the rationals that the floats are."""
    known: dict[str, Rational] = {name: rational(array) for name, array in inputs.items()}

    def read(value: ir.Value | None) -> Rational | None:
        if value is None:
            return None
        if value.name not in known:
            stored = constant(value)
            assert stored is not None, value.name
            known[value.name] = rational(stored.numpy())
        return known[value.name]

    for node in model.graph:
        if node.op_type == "Constant":
            continue
        arrays = [read(value) for value in node.inputs]
        outputs = _run(node, arrays, model.opset_imports[""])
        known |= {value.name: array for value, array in zip(node.outputs, outputs, strict=True)}
    return {value.name: known[value.name] for value in model.graph.outputs}


def _run(node: ir.Node, arrays: list[Rational | None], opset: int) -> list[Rational]:
    if node.op_type in MOVES:
        return _moved(node, arrays, opset)
    if node.op_type in OPERATORS and any(array is not None and array.dtype == object for array in arrays):
        attributes = {name: attribute.value for name, attribute in node.attributes.items()}
        found: Rational = OPERATORS[node.op_type](*arrays, **attributes)
        return [np.asarray(found, object)]
    floats = [None if a is None else a.astype(np.float64) if a.dtype == object else a for a in arrays]
    return [rational(array) for array in _reference(node, floats, opset)]


def _reference(node: ir.Node, arrays: list[np.ndarray | None], opset: int) -> list[np.ndarray]:
    proto = ir.to_proto(node)
    given = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    infos = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in given.items()
    ]
    graph = onnx.helper.make_graph(
        [proto], "one", infos, [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return [np.asarray(array) for array in ReferenceEvaluator(model).run(None, given)]


def _moved(node: ir.Node, arrays: list[Rational | None], opset: int) -> list[Rational]:
    """Each number is replaced by its place in a list of all, and the places are moved."""
    numbers: list[Any] = [Fraction(0)]
    places: list[np.ndarray | None] = []
    for array in arrays:
        if array is None or array.dtype != object:
            places.append(array)
            continue
        start = len(numbers)
        numbers += list(array.flat)
        places.append(np.arange(start, len(numbers), dtype=np.float64).reshape(array.shape))
    listed = np.array(numbers, dtype=object)
    return [
        listed[np.asarray(out).astype(np.int64)] if np.issubdtype(out.dtype, np.floating) else out
        for out in _reference(node, places, opset)
    ]


def _pads(pads: list[int] | None, rank: int) -> list[tuple[int, int]]:
    pads = list(pads or [0] * 2 * rank)
    return [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]


def _windows(
    x: Rational, kernel: list[int], strides: list[int] | None, dilations: list[int] | None
) -> tuple[list[tuple[tuple[int, ...], Rational]], tuple[int, ...]]:
    """For each tap of a kernel what it reads at every place."""
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    sizes = tuple(
        (size - (k - 1) * d - 1) // s + 1 for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
    )
    taps = []
    for tap in product(*map(range, kernel)):
        cut = tuple(
            slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilations, sizes, strides, strict=True)
        )
        taps.append((tap, x[(slice(None), slice(None), *cut)]))
    return taps, sizes


def _conv(
    x: Rational,
    w: Rational,
    bias: Rational | None = None,
    *,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    dilations: list[int] | None = None,
    **_: Any,
) -> Rational:
    x = np.pad(x, _pads(pads, x.ndim - 2), constant_values=Fraction(0))
    taps, sizes = _windows(x, list(w.shape[2:]), strides, dilations)
    outs, ins = len(w) // group, w.shape[1]
    parts = []
    for g in range(group):
        total: Any = Fraction(0)
        for tap, read in taps:
            kernel = w[(slice(g * outs, (g + 1) * outs), slice(None), *tap)]
            total = total + np.moveaxis(np.tensordot(kernel, read[:, g * ins : (g + 1) * ins], (1, 1)), 0, 1)
        parts.append(total)
    y = np.concatenate(parts, axis=1)
    assert y.shape[2:] == sizes
    return y if bias is None else y + _by_channel(bias, y)


def _conv_transpose(
    x: Rational,
    w: Rational,
    bias: Rational | None = None,
    *,
    group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    **_: Any,
) -> Rational:
    rank = x.ndim - 2
    strides = strides or [1] * rank
    full = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, w.shape[2:], strict=True)]
    outs, ins = w.shape[1], len(w) // group
    y = np.full((len(x), outs * group, *full), Fraction(0), object)
    for g in range(group):
        for tap in product(*map(range, w.shape[2:])):
            kernel = w[(slice(g * ins, (g + 1) * ins), slice(None), *tap)]
            part = np.moveaxis(np.tensordot(kernel, x[:, g * ins : (g + 1) * ins], (0, 1)), 0, 1)
            cut = tuple(slice(t, t + (n - 1) * s + 1, s) for t, n, s in zip(tap, x.shape[2:], strides, strict=True))
            y[(slice(None), slice(g * outs, (g + 1) * outs), *cut)] += part
    ends = _pads(pads, rank)[2:]
    y = y[(slice(None), slice(None), *(slice(a, size - b) for (a, b), size in zip(ends, full, strict=True)))]
    return y if bias is None else y + _by_channel(bias, y)


def _by_channel(array: Rational, like: Rational) -> Rational:
    return array.reshape(-1, *[1] * (like.ndim - 2))


def _batchnorm(
    x: Rational, gamma: Rational, beta: Rational, mean: Rational, var: Rational, *, epsilon: float = 1e-5, **_: Any
) -> Rational:
    root = fraction(np.sqrt((var + Fraction(epsilon)).astype(np.float64)))
    assert (root * root == var + Fraction(epsilon)).all(), "the root of a variance is not rational"
    return (x - _by_channel(mean, x)) / _by_channel(root, x) * _by_channel(gamma, x) + _by_channel(beta, x)


def _gemm(
    a: Rational,
    b: Rational,
    c: Rational | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Rational:
    y = np.dot(a.T if transA else a, b.T if transB else b) * Fraction(alpha)
    return y if c is None else y + c * Fraction(beta)


def _pool(reduce: Callable[[Rational], Any], *, counted: bool) -> Callable[..., Rational]:
    def run(
        x: Rational,
        *,
        kernel_shape: list[int],
        pads: list[int] | None = None,
        strides: list[int] | None = None,
        count_include_pad: int = 0,
        **_: Any,
    ) -> Rational:
        outside = None if not (counted and count_include_pad) else Fraction(0)
        x = np.pad(x, _pads(pads, x.ndim - 2), constant_values=outside)
        taps, _sizes = _windows(x, kernel_shape, strides, None)
        read = np.stack([tap for _place, tap in taps], axis=-1)
        found = np.empty(read.shape[:-1], object)
        for place in np.ndindex(found.shape):
            found[place] = reduce(np.array([each for each in read[place] if each is not None], object))
        return found

    return run


def _reduction(reduce: Callable[..., Rational]) -> Callable[..., Rational]:
    def run(x: Rational, axes: np.ndarray | None = None, *, keepdims: int = 1, **attributes: Any) -> Rational:
        chosen = attributes.get("axes", axes)
        over = tuple(range(x.ndim)) if chosen is None else tuple(int(axis) for axis in chosen)
        return reduce(x, axis=over, keepdims=bool(keepdims))

    return run


def _mean(x: Rational, axis: tuple[int, ...], keepdims: bool) -> Rational:
    count = int(np.prod([x.shape[each] for each in axis]))
    return np.sum(x, axis=axis, keepdims=keepdims) / Fraction(count)


def _all(*arrays: Rational, join: np.ufunc) -> Rational:
    total = arrays[0]
    for array in arrays[1:]:
        total = join(total, array)
    return total


def _clip(x: Rational, low: Rational | None = None, high: Rational | None = None) -> Rational:
    x = x if low is None else np.maximum(x, low)
    return x if high is None else np.minimum(x, high)


def _spatial(x: Rational) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": np.abs,
    "Add": np.add,
    "AveragePool": _pool(lambda read: np.sum(read) / Fraction(len(read)), counted=True),
    "BatchNormalization": _batchnorm,
    "Cast": lambda x, **_: x,
    "CastLike": lambda x, like, **_: x,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": np.divide,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: _mean(x, _spatial(x), keepdims=True),
    "GlobalMaxPool": lambda x: np.max(x, axis=_spatial(x), keepdims=True),
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, x * Fraction(alpha), x),
    "MatMul": np.matmul,
    "Max": lambda *x: _all(*x, join=np.maximum),
    "MaxPool": _pool(np.max, counted=False),
    "Mean": lambda *x: _all(*x, join=np.add) / Fraction(len(x)),
    "Min": lambda *x: _all(*x, join=np.minimum),
    "Mul": np.multiply,
    "Neg": np.negative,
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x),
    "ReduceMax": _reduction(np.max),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(np.min),
    "ReduceSum": _reduction(np.sum),
    "Relu": lambda x: np.maximum(x, Fraction(0)),
    "Sub": np.subtract,
    "Sum": lambda *x: _all(*x, join=np.add),
}

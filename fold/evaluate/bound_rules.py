"""The rules of fold.evaluate: how far off what a node writes may be, if what it reads is off by bounds that are known.

One short function for operators of one kind, and a table. Most need no formula: an operator that moves or sums numbers
is applied to the bounds, a monotone one to x - e and x + e, a bilinear one to sizes and bounds:

    |op(x', W') - op(x, W)| <= op(e_x, |W| + e_W) + op(|x|, e_W)
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

EPSILON = 8 * 2.0**-52
"""What both evaluations of one operation may lose to float64: four units in the last place each, as exp and tanh do."""


class Bounded(NamedTuple):
    """An array, and how far each of its elements may be off: two arrays of one shape."""

    value: np.ndarray
    bound: np.ndarray

    @property
    def exact(self) -> bool:
        return not self.bound.any()


def certain(value: np.ndarray) -> Bounded:
    """An array without an error, whose bounds take no memory."""
    shape = value.shape if isinstance(value, np.ndarray) else ()  # of a sequence nothing is off
    return Bounded(value, np.broadcast_to(np.float64(0), shape))


Read = Sequence[Bounded | None]
Rule = Callable[[Any, Read, Sequence[np.ndarray]], Sequence[np.ndarray]]
"""The bounds of what a node writes, from what it reads and what it writes without an error."""

FIRST_ONLY = frozenset({"CumSum", "Dropout", "Pow", "Resize", "Upsample"})
"""Operators whose other inputs, where they are floats, say how and must be exact."""


def is_data(node: Any, index: int, x: Bounded | None) -> bool:
    """Whether an input holds the numbers that are computed with; all others must be exact for a rule to hold."""
    known = x is not None and isinstance(x.value, np.ndarray) and x.value.dtype == np.float64
    return known and (index == 0 or node.op_type not in FIRST_ONLY)


def _apply(node: Any, read: Read, of: Callable[[Bounded], np.ndarray]) -> Sequence[np.ndarray]:
    """What a node writes if its data is something else."""
    given = [x.value if x is not None and not is_data(node, i, x) else x and of(x) for i, x in enumerate(read)]
    written: Sequence[np.ndarray] = node.run(*given)
    return written


def _size(x: np.ndarray) -> np.ndarray:
    """Absolute values, but 0 for infinities, which lose nothing: attention is masked by them."""
    return np.where(np.isinf(x), 0, np.abs(x))


def _moved(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Data is moved, repeated, cut, put together or filled up."""
    return [np.abs(bound) for bound in _apply(node, read, lambda x: x.bound)]


def _linear(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Sums, means and norms: coefficients are not negative."""
    x = read[0]
    assert x is not None
    lost = EPSILON * (8 + x.value.size / max(1, written[0].size))
    return [np.abs(bound) for bound in _apply(node, read, lambda x: x.bound + lost * _size(x.value))]


def _monotone(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """No input larger, no output smaller; or, for one input, the other way round."""
    above = _apply(node, read, lambda x: x.value + x.bound)[0]
    below = _apply(node, read, lambda x: x.value - x.bound)[0]
    most = np.maximum(np.abs(above - written[0]), np.abs(written[0] - below))
    return [most + EPSILON * np.maximum(np.abs(above), np.abs(below))]


def _growing(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Polynomials without negative coefficients are changed most where all is positive and grows."""
    (above,) = _apply(node, read, lambda x: np.abs(x.value) + x.bound)
    (size,) = _apply(node, read, lambda x: np.abs(x.value))
    x = read[0]
    assert x is not None
    return [above - size + EPSILON * (8 + x.value.size / max(1, size.size)) * above]


def _lipschitz(slope: float, node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Functions of one number that are nowhere steeper than `slope`."""
    assert read[0] is not None
    return [slope * read[0].bound + EPSILON * np.abs(written[0])]


def _bilinear(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Sums of products of x and W; a bias is added to them."""
    x, W = read[:2]
    assert x is not None
    assert W is not None
    summands = np.sqrt(x.value.size * W.value.size / max(1, written[0].size))
    if node.op_type == "Conv":
        summands = W.value.size / max(1, len(W.value))
    elif node.op_type == "ConvTranspose":
        summands = W.value.size / max(1, W.value.shape[1])
    lost = EPSILON * (1 + summands)
    size, x_size = np.abs(W.value), np.abs(x.value)
    ratio = float(np.divide(W.bound, size, out=np.zeros_like(size), where=size > 0).max(initial=0))
    if (ratio * size <= 2 * W.bound).all():  # W is off by one same share everywhere, as rounding leaves it: one pass
        bound = np.abs(node.run((1 + ratio) * x.bound + (ratio + lost) * x_size, size)[0])
    else:
        bound = np.abs(node.run(x.bound, size + W.bound)[0]) + np.abs(node.run(x_size, W.bound + lost * size)[0])
    bias = read[2] if len(read) > 2 else None
    if bias is not None:
        added = abs(getattr(node, "beta", 1)) * (bias.bound + lost * np.abs(bias.value))
        bound += added if node.op_type == "Gemm" else added.reshape(-1, *[1] * (bound.ndim - 2))
    return [bound]


def _difference(a: Bounded, b: Bounded) -> Bounded:
    value = a.value - b.value
    return Bounded(value, a.bound + b.bound + EPSILON * np.abs(value))


def _sum(a: Bounded, b: Bounded) -> Bounded:
    return _difference(a, Bounded(-b.value, b.bound))


def _product(a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    changed = np.abs(a.value) * b.bound + (np.abs(b.value) + b.bound) * a.bound
    return Bounded(value, changed + EPSILON * np.abs(value))


def _quotient(a: Bounded, b: Bounded) -> Bounded:
    """Unbounded where the divisor may be zero."""
    value, least = a.value / b.value, np.abs(b.value) - b.bound
    changed = np.where(least > 0, (a.bound + np.abs(value) * b.bound) / least, np.inf)
    return Bounded(value, changed + EPSILON * np.abs(value))


def _elementwise(
    operation: Callable[[Bounded, Bounded], Bounded], node: Any, read: Read, written: Sequence[np.ndarray]
) -> Sequence[np.ndarray]:
    a, b = read
    assert a is not None
    assert b is not None
    return [operation(a, b).bound]


def _reciprocal(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    assert read[0] is not None
    return [_quotient(certain(np.ones_like(read[0].value)), read[0]).bound]


def _pow(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """Whole powers grow most where the base grows; others are monotone above zero, and unbounded elsewhere."""
    x, exponent = read
    assert x is not None
    assert exponent is not None
    y, power = written[0], exponent.value
    above = (np.abs(x.value) + x.bound) ** power
    whole = above - np.abs(x.value) ** power + EPSILON * above
    ends = [np.abs((x.value + side * x.bound) ** power - y) for side in (1, -1)]
    positive = np.where(x.value > x.bound, np.maximum(*ends), np.inf) + EPSILON * np.abs(y)
    return [np.where((power >= 0) & (power == np.round(power)), whole, positive)]


def _prelu(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """max(x, 0) + slope * min(x, 0), where the slope is spread as the node does it."""
    x, slope = read
    assert x is not None
    assert slope is not None
    steepest = np.maximum(1, -node.run(-np.ones_like(x.value), np.abs(slope.value) + slope.bound)[0])
    negative = np.minimum(x.value, 0)
    return [steepest * x.bound - node.run(negative, slope.bound)[0] + EPSILON * np.abs(written[0])]


def _softmax(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """An output is largest where its own input is and all others are smallest; none is above 1."""
    assert read[0] is not None
    (x, e), y = read[0], written[0]
    axis = node.axis
    size = _size(x)
    e = e + EPSILON * (size + size.max(axis=axis, keepdims=True) + x.shape[axis])
    grown, shrunk = y * np.exp(e), y * np.exp(-e)
    above = grown / (grown + np.maximum(0, shrunk.sum(axis=axis, keepdims=True) - shrunk))
    below = shrunk / (shrunk + np.maximum(0, grown.sum(axis=axis, keepdims=True) - grown))
    return [np.fmin(1, np.maximum(above - y, y - below))]


def _log_softmax(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """x - logsumexp(x), which moves no further than the inputs do."""
    assert read[0] is not None
    x, e = read[0]
    size = _size(x).max(axis=node.axis, keepdims=True)
    lost = EPSILON * (size + np.abs(written[0]) + x.shape[node.axis])
    return [e + e.max(axis=node.axis, keepdims=True) + lost]


def _standardised(x: Bounded, axes: tuple[int, ...], epsilon: float) -> Bounded:
    """(x - mean) / sqrt(variance + epsilon): by the triangle inequality the root moves no more than its norm does."""
    n = math.prod(x.value.shape[axis] for axis in axes)

    def mean(array: np.ndarray) -> np.ndarray:
        return np.asarray(array.mean(axis=axes, keepdims=True))

    lost = EPSILON * (1 + n) * mean(np.abs(x.value))
    centred = _difference(x, Bounded(mean(x.value), mean(x.bound) + lost))
    deviation = np.sqrt(mean(centred.value**2) + epsilon)
    moved = np.sqrt(mean(centred.bound**2)) + EPSILON * (1 + n) * deviation
    value = centred.value / deviation
    least = np.maximum(deviation - moved, np.sqrt(epsilon) * (1 - EPSILON))
    return Bounded(value, (centred.bound + np.abs(value) * moved) / least + EPSILON * np.abs(value))


def _along(axis: int, rank: int, x: Bounded) -> Bounded:
    shape = [1] * rank
    shape[axis] = -1
    return Bounded(x.value.reshape(shape), x.bound.reshape(shape))


def _normalisation(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    """InstanceNormalization and LayerNormalization."""
    x, scale, bias = (*read, None)[:3]
    assert x is not None
    assert scale is not None
    rank = x.value.ndim
    first = 2 if node.op_type == "InstanceNormalization" else node.axis % rank
    y = _standardised(x, tuple(range(first, rank)), node.epsilon)
    if node.op_type == "InstanceNormalization":
        scale, bias = (part and _along(1, rank, part) for part in (scale, bias))
        assert scale is not None
    y = _product(y, scale)
    return [(y if bias is None else _sum(y, bias)).bound]


def _batchnorm(node: Any, read: Read, written: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
    x, *parameters = (x for x in read if x is not None)
    scale, bias, mean, variance = (_along(1, x.value.ndim, parameter) for parameter in parameters)
    root = np.sqrt(variance.value + node.epsilon)
    lower = np.sqrt(variance.value + node.epsilon - variance.bound)  # NaN, and so unbounded, where there is none
    deviation = Bounded(root, root - lower + EPSILON * root)
    return [_sum(_product(_difference(x, mean), _quotient(scale, deviation)), bias).bound]


MOVED = (
    "Cast CastLike Compress Concat DepthToSpace Dropout Expand Flatten Gather GatherElements GatherND Identity Pad "
    "Reshape ReverseSequence ScatterElements ScatterND Slice SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze "
    "Where"
)
LINEAR = (
    "Add AveragePool CumSum GlobalAveragePool LpPool Mean ReduceL1 ReduceL2 ReduceMean ReduceSum Resize Sum Upsample"
)
MONOTONE = (
    "Atan Ceil Celu Clip Elu Erf Exp Floor GlobalMaxPool HardSigmoid LeakyRelu Log Max MaxPool Min Neg ReduceLogSumExp "
    "ReduceMax ReduceMin Relu Round Selu Sigmoid Sign Softplus Softsign Sqrt Tanh ThresholdedRelu"
)
SLOPES = {"Abs": 1.0, "Cos": 1.0, "Gelu": 1.13, "HardSwish": 1.5, "Mish": 1.09, "Sin": 1.0, "Swish": 1.1}
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVED.split(), _moved),
    **dict.fromkeys(LINEAR.split(), _linear),
    **dict.fromkeys(MONOTONE.split(), _monotone),
    **dict.fromkeys(("ReduceProd", "ReduceSumSquare"), _growing),
    **dict.fromkeys(("Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul"), _bilinear),
    **{operator: partial(_lipschitz, slope) for operator, slope in SLOPES.items()},
    "BatchNormalization": _batchnorm,
    "Div": partial(_elementwise, _quotient),
    "InstanceNormalization": _normalisation,
    "LayerNormalization": _normalisation,
    "LogSoftmax": _log_softmax,
    "Mul": partial(_elementwise, _product),
    "Pow": _pow,
    "PRelu": _prelu,
    "Reciprocal": _reciprocal,
    "Softmax": _softmax,
    "Sub": partial(_elementwise, _difference),
}

CONDITIONS: dict[str, Callable[[Any], bool]] = {
    "BatchNormalization": lambda node: not node.training_mode,
    "Cast": lambda node: bool(node.to == ir.DataType.DOUBLE),
    "Einsum": lambda node: len(node.input) == 2,
    "Resize": lambda node: bool(node.mode != "cubic"),
    **dict.fromkeys(("ScatterElements", "ScatterND"), lambda node: node.reduction in (None, "none")),
    **dict.fromkeys(("Elu", "LeakyRelu", "Selu", "ThresholdedRelu"), lambda node: bool(node.alpha >= 0)),
}
"""What the attributes of a node must be for its rule to hold."""


def rule_for(node: Any) -> Rule | None:
    """The rule that carries bounds through a node; None where there is none."""
    rule = RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return None if rule is not None and node.op_type in CONDITIONS and not CONDITIONS[node.op_type](node) else rule

"""Operators and the inputs, attributes and opsets that the float64 evaluator is compared on."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto, numpy_helper

OLDEST, NEWEST = 7, 26
"""The opsets that ONNX Runtime 1.31 runs."""
ROUNDING = 16 * 2.0**-24
"""Of the largest element: what a few operations in float32 lose. A case that sums more says so."""
SUMS = 4 * ROUNDING
"""For operators that sum tens of products."""

Array = np.ndarray


def drawn(*shape: int, low: float | None = None, high: float | None = None) -> Array:
    """Float32, standard normal or between `low` and `high`; other numbers for every shape."""
    random = np.random.default_rng([len(shape), *shape])
    values = random.standard_normal(shape) if low is None else random.uniform(low, high, shape)
    return values.astype(np.float32)


def whole(*shape: int, low: int = -9, high: int = 10, dtype: Any = np.int64) -> Array:
    """Integers from `low` to below `high`."""
    return np.random.default_rng([len(shape), *shape, 1]).integers(low, high, shape).astype(dtype)


def chosen(*shape: int) -> Array:
    """Truth values."""
    return np.random.default_rng([len(shape), *shape, 2]).random(shape) < 0.5


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*values: float) -> Array:
    return np.array(values, np.float32)


def number(value: float | bool, dtype: Any = np.float32) -> Array:
    """A tensor of rank 0."""
    return np.array(value, dtype)


@dataclass(frozen=True)
class Case:
    """One node. Float inputs are inputs of the graph, others are initializers; None is an input that is left out.

    ONNX Runtime is the witness, in the opset `kernel` where it has no kernel of the tried one; or else `witness` is,
    which computes the outputs from the inputs.
    """

    inputs: tuple[Array | None, ...]
    attributes: dict[str, Any]
    outputs: int = 1
    tolerance: float = ROUNDING
    oldest: int = OLDEST
    newest: int = NEWEST
    kernel: int = NEWEST
    witness: Callable[..., list[Array]] | None = None


def case(
    *inputs: Array | None,
    outputs: int = 1,
    tolerance: float = ROUNDING,
    oldest: int = OLDEST,
    newest: int = NEWEST,
    kernel: int = NEWEST,
    witness: Callable[..., list[Array]] | None = None,
    **attributes: Any,
) -> Case:
    return Case(inputs, attributes, outputs, tolerance, oldest, newest, kernel, witness)


X = drawn(2, 3, 5, 6)
BY_RANK = {1: drawn(2, 3, 8), 2: drawn(2, 3, 8, 7), 3: drawn(1, 2, 6, 5, 7)}
EXTREMES = floats(-1000, -100, -20, -6, -3.5, -3, -1, -0.5, 0, 0.5, 1, 1.5, 2.5, 3, 6, 20, 100, 1000)


def unary(*more: Case) -> list[Case]:
    return [case(X), case(EXTREMES), case(number(0.7)), *more]


def between(low: float, high: float) -> list[Case]:
    return [case(drawn(3, 4, low=low, high=high))]


def binary(*more: Case, low: float | None = None, high: float | None = None) -> list[Case]:
    """With broadcasting on either side."""
    shapes = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((3, 1), (2, 1, 4)), ((2, 3), ())]
    return [case(drawn(*a, low=low, high=high), drawn(*b, low=low, high=high)) for a, b in shapes] + list(more)


def whole_binary(low: int = -9) -> list[Case]:
    return [
        case(
            whole(3, 4, low=low, dtype=kind),
            np.where(whole(2, 1, 4, dtype=kind) == 0, 3, whole(2, 1, 4, low=low, dtype=kind)).astype(kind),
        )
        for kind in (np.int64, np.int32)
    ]


def variadic() -> list[Case]:
    return [
        case(drawn(2, 3)),
        case(drawn(2, 3), drawn(3), oldest=8),
        case(drawn(2, 3), drawn(2, 1), drawn(1, 3), drawn(3), oldest=8),
    ]


def grid(**options: list[Any]) -> Iterator[dict[str, Any]]:
    """All combinations; None leaves the attribute out."""
    for values in itertools.product(*options.values()):
        yield {name: value for name, value in zip(options, values, strict=True) if value is not None}


POOLS = [
    {},
    {"strides": [2, 2, 2]},
    {"pads": [1, 0, 1, 0, 1, 0]},
    {"pads": [1, 1, 1, 1, 1, 1], "strides": [2, 3, 2]},
    {"ceil_mode": 1, "strides": [2, 2, 2]},
    {"ceil_mode": 1, "strides": [3, 3, 3], "pads": [1, 1, 1, 1, 1, 1]},
    {"ceil_mode": 1, "strides": [4, 4, 4], "pads": [0, 1, 0, 1, 1, 1]},
    {"dilations": [2, 1, 2]},
    {"dilations": [2, 2, 2], "ceil_mode": 1, "strides": [2, 2, 2], "pads": [1, 1, 1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 1, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2, 2]},
    {"auto_pad": "VALID", "strides": [2, 1, 1]},
    {"auto_pad": "VALID", "strides": [2, 3, 2], "ceil_mode": 1},
]


def spatial(attributes: dict[str, Any], rank: int) -> dict[str, Any]:
    """Attributes of three axes cut to `rank`."""
    cut = {}
    for name, value in attributes.items():
        rest = value[3 : 3 + rank] if name == "pads" else []
        cut[name] = value[:rank] + rest if isinstance(value, list) else value
    return cut


def pools(**options: list[Any]) -> list[Case]:
    """All options in two axes, the last of them in one and three."""
    cases = []
    for rank in (1, 2, 3):
        for more, attributes in itertools.product(list(grid(**options))[0 if rank == 2 else -1 :], POOLS):
            given = {**more, **spatial(attributes, rank)}
            cases.append(case(BY_RANK[rank], kernel_shape=[3, 2, 3][:rank], tolerance=SUMS, **given))
    for kernel, height in (([2, 2], 1), ([1, 2], 1), ([3, 3], 2)):  # maps of one or two rows, padded up to the kernel
        pads = [max(0, kernel[0] - height), 0, 0, 0]
        for ceil in (0, 1):
            cases.append(case(drawn(2, 3, height, 7), kernel_shape=kernel, pads=pads, strides=[2, 2], ceil_mode=ceil))
    return cases


def reductions(low: float | None = None, high: float | None = None, *, integers: bool = True) -> list[Case]:
    x = drawn(2, 3, 4, 2, low=low, high=high)
    cases = [case(x, **options) for options in grid(axes=[None, [1], [-1], [0, 2], [-2, -3]], keepdims=[None, 0])]
    for axes in (ints(1), ints(-1), ints(0, 2), ints(-2, -3), ints(), None):
        for options in ({}, {"keepdims": 0}, {"noop_with_empty_axes": 1}):
            cases.append(case(x, *([] if axes is None else [axes]), oldest=13, **options))
    kinds = (np.int64, np.int32) if integers else ()
    return cases + [case(whole(2, 3, 4, low=1, high=4, dtype=kind), keepdims=0) for kind in kinds]


def arg_extremes() -> list[Case]:
    x = floats(1, 3, 3, 2, 0, 0, -1, 5, 5, 5, 2, 2).reshape(3, 4)
    return [
        case(x, **options)
        for options in grid(axis=[None, 0, 1, -1], keepdims=[None, 0], select_last_index=[None, 0, 1])
    ]


CONVOLUTIONS = [
    {},
    {"pads": [1, 0, 2, 0, 1, 1]},
    {"strides": [2, 3, 1], "pads": [1, 1, 0, 1, 0, 2]},
    {"dilations": [2, 1, 2], "strides": [1, 2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 1, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2, 2]},
    {"auto_pad": "VALID"},
]


def convolutions() -> list[Case]:
    cases = []
    for rank, attributes in itertools.product((1, 2, 3), CONVOLUTIONS):
        for group, bias in ((1, True), (2, False)):
            x = drawn(2, 4, *(8, 7, 6)[:rank])
            W = drawn(6, 4 // group, *(3, 2, 3)[:rank])
            cases.append(
                case(x, W, *([drawn(6)] if bias else []), group=group, tolerance=SUMS, **spatial(attributes, rank))
            )
    return cases


def transposed_convolutions() -> list[Case]:
    cases = []
    settings = [
        {},
        {"strides": [2, 3, 2], "pads": [1, 0, 1, 0, 1, 1], "output_padding": [1, 0, 1]},
        {"strides": [2, 2, 1], "dilations": [2, 1, 1]},
        {"strides": [2, 3, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2, 2], "auto_pad": "VALID"},
        {"strides": [2, 2, 2], "output_shape": [9, 11, 8]},
        {"strides": [2, 2, 2], "output_shape": [9, 11, 8], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2, 2], "output_padding": [1, 1, 1], "auto_pad": "SAME_UPPER"},
    ]
    for rank, attributes in itertools.product((1, 2, 3), settings):
        for group, bias in ((1, True), (2, False)):
            x, W = drawn(2, 4, *(4, 5, 4)[:rank]), drawn(4, 6 // group, *(3, 2, 3)[:rank])
            cases.append(
                case(x, W, *([drawn(6)] if bias else []), group=group, tolerance=SUMS, **spatial(attributes, rank))
            )
    return cases


ROI = np.zeros(0, np.float32)
"""An input that opsets 11 and 12 require, though only `tf_crop_and_resize` reads it."""


def resizes() -> list[Case]:
    cases, x = [], drawn(1, 2, 5, 6)
    settings = grid(
        mode=["nearest", "linear", "cubic"],
        coordinate_transformation_mode=[
            None,
            "half_pixel",
            "pytorch_half_pixel",
            "asymmetric",
            "align_corners",
            "half_pixel_symmetric",
        ],
    )
    for options in settings:
        for scales in ((1, 1, 2, 1.7), (1, 1, 0.6, 0.5)):
            cases.append(case(x, ROI, floats(*scales), tolerance=SUMS, **options))
        for sizes in ((1, 2, 7, 3), (1, 2, 1, 1), (1, 2, 10, 6)):
            cases.append(case(x, None, None, ints(*sizes), oldest=13, tolerance=SUMS, **options))
    for how, options in itertools.product(
        ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"),
        grid(coordinate_transformation_mode=["half_pixel", "asymmetric", "align_corners"]),
    ):
        for scales in ((1, 1, 2, 1.7), (1, 1, 0.6, 0.5)):
            cases.append(case(x, ROI, floats(*scales), mode="nearest", nearest_mode=how, **options))
    for options in grid(mode=["linear", "cubic"], antialias=[1], exclude_outside=[None]):
        cases.append(case(x, ROI, floats(1, 1, 0.6, 0.5), tolerance=SUMS, **options))
        cases.append(case(x, None, None, ints(1, 2, 3, 4), oldest=13, tolerance=SUMS, **options))
    for outside in (0, 1):
        cases.append(
            case(
                x,
                None,
                floats(1, 1, 0.6, 1.5),
                mode="cubic",
                cubic_coeff_a=-0.5,
                exclude_outside=outside,
                tolerance=SUMS,
            )
        )
    for policy in ("stretch", "not_larger", "not_smaller"):
        cases.append(
            case(x, None, None, ints(7, 9), oldest=13, axes=[2, 3], keep_aspect_ratio_policy=policy, mode="linear")
        )
    cases.append(case(x, None, None, ints(9, 7), oldest=13, axes=[-1, -2], mode="linear"))
    for mode, extrapolated in (("linear", 0.0), ("linear", 3.0), ("nearest", 0.0), ("cubic", 1.0)):
        roi = floats(0, 0, 0.1, -0.2, 1, 1, 0.8, 1.3)
        cases.append(
            case(
                x,
                roi,
                None,
                ints(1, 2, 4, 7),
                oldest=13,
                mode=mode,
                coordinate_transformation_mode="tf_crop_and_resize",
                extrapolation_value=extrapolated,
                tolerance=SUMS,
            )
        )
    for mode, x in itertools.product(("nearest", "linear"), (drawn(1, 1, 5), drawn(1, 1, 3, 4, 5))):
        cases.append(case(x, ROI, floats(*[1] * max(0, x.ndim - 3), *[2] * min(3, x.ndim)), mode=mode, tolerance=SUMS))
    return cases


def grid_samples() -> list[Case]:
    cases = []
    for mode, options in itertools.product(
        (None, "bilinear", "linear", "nearest", "bicubic", "cubic"),
        grid(padding_mode=[None, "zeros", "border", "reflection"], align_corners=[None, 0, 1]),
    ):
        newest = 19 if mode in ("bilinear", "bicubic") else NEWEST
        oldest = 20 if mode in ("linear", "cubic") else 16
        attributes = {**options, **({} if mode is None else {"mode": mode})}
        places = drawn(1, 4, 5, 2, low=-1.4, high=1.4)
        cases.append(case(drawn(1, 2, 5, 6), places, oldest=oldest, newest=newest, tolerance=4 * SUMS, **attributes))
        if mode in (None, "linear", "nearest"):
            volume = drawn(1, 2, 2, 3, 3, low=-1.2, high=1.2)
            cases.append(case(drawn(1, 2, 4, 5, 3), volume, oldest=20, tolerance=4 * SUMS, **attributes))
    return cases


def recurrent(gates: int, states: int, **options: list[Any]) -> list[Case]:
    """All directions, with and without lengths, initial states and peepholes."""
    steps, batch, width, hidden = 4, 3, 2, 5
    cases = []
    for direction, settings in itertools.product(("forward", "reverse", "bidirectional"), grid(**options)):
        both = 2 if direction == "bidirectional" else 1
        W, R = drawn(both, gates * hidden, width), drawn(both, gates * hidden, hidden)
        B, x, start = drawn(both, 2 * gates * hidden), drawn(steps, batch, width), drawn(both, batch, hidden)
        attributes = {"hidden_size": hidden, "direction": direction, **settings}
        if "activations" in settings:
            attributes["activations"] = settings["activations"] * both
        lengths = np.array([4, 1, 2], np.int32)
        variants = [(x, W, R), (x, W, R, B, lengths), (x, W, R, B, None, start), (x, W, R, B, lengths, start)]
        if states == 2:
            cell, peepholes = start[..., ::-1].copy(), drawn(both, 3 * hidden)
            variants += [(x, W, R, B, None, start, cell), (x, W, R, B, lengths, start, cell, peepholes)]
        cases += [case(*inputs, outputs=1 + states, tolerance=SUMS, **attributes) for inputs in variants]
    return [*cases, case(x, W, R, tolerance=SUMS, **attributes)]


def unpooled(x: Array, indices: Array, shape: Array) -> list[Array]:
    """The specification's example: indices are of the output that the kernel gives, 4 x 4, which `shape` pads; ONNX
    Runtime takes them as of 5 x 5."""
    y = np.zeros((1, 1, 5, 5))
    y[0, 0, 1, 1], y[0, 0, 1, 3], y[0, 0, 3, 1], y[0, 0, 3, 3] = x.reshape(-1)
    return [y]


def lrn(x: Array, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> list[Array]:
    """Written from the specification, channel by channel; ONNX Runtime takes odd sizes and four axes only."""
    y = np.empty(x.shape)
    for c in range(x.shape[1]):
        first, last = max(0, c - (size - 1) // 2), min(x.shape[1] - 1, c + -(-(size - 1) // 2))
        squares = sum(x[:, k].astype(np.float64) ** 2 for k in range(first, last + 1))
        y[:, c] = x[:, c] / (bias + alpha / size * squares) ** beta
    return [y]


BOXES = np.concatenate([b := drawn(1, 6, 2, low=0, high=1), b + drawn(1, 6, 2, low=0.1, high=0.6) ** 1], axis=2).astype(
    np.float32
)
SCORES = drawn(1, 2, 6, low=0, high=1)
TEXTS = np.array([["b", "ab", "é c"], ["a.b", "", "AB"]], dtype=object)

CASES: dict[str, list[Case]] = {
    "Abs": unary(case(whole(3, 4))),
    "Acos": between(-1, 1),
    "Acosh": between(1, 9),
    "Add": binary(*whole_binary()),
    "AffineGrid": [case(drawn(2, 2, 3), ints(2, 3, 4, 5), align_corners=a) for a in (0, 1)]
    + [case(drawn(2, 3, 4), ints(2, 3, 4, 5, 2), align_corners=a) for a in (0, 1)],
    "And": [case(chosen(3, 4), chosen(4))],
    "ArgMax": arg_extremes(),
    "ArgMin": arg_extremes(),
    "Asin": between(-1, 1),
    "Asinh": unary(),
    "Atan": unary(),
    "Atanh": between(-0.9, 0.9),
    "AveragePool": pools(count_include_pad=[1, None]),
    "BatchNormalization": [
        case(drawn(*shape), drawn(3), drawn(3), drawn(3), drawn(3, low=0.1, high=3), **options)
        for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 2, 3, 2))
        for options in ({}, {"epsilon": 0.5, "momentum": 0.3})
    ],
    "BitShift": [
        case(whole(3, 4, low=0, high=99, dtype=np.uint32), whole(4, low=0, high=5, dtype=np.uint32), direction=d)
        for d in ("LEFT", "RIGHT")
    ],
    "BitwiseAnd": whole_binary(),
    "BitwiseNot": [case(whole(3, 4))],
    "BitwiseOr": whole_binary(),
    "BitwiseXor": whole_binary(),
    "BlackmanWindow": [case(number(n, np.int64), **options) for n in (7, 8) for options in grid(periodic=[None, 0, 1])],
    "Cast": [
        case(floats(-2.7, -0.5, 0, 0.5, 1.5, 2.5), to=to)
        for to in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL, TensorProto.DOUBLE)
    ]
    + [
        case(whole(3, 4), to=TensorProto.FLOAT),
        case(whole(3, 4), to=TensorProto.INT32),
        case(chosen(3), to=TensorProto.FLOAT),
        case(whole(3), to=TensorProto.STRING),
        case(np.array(["1.5", "-2", "1e3"], dtype=object), to=TensorProto.FLOAT, oldest=9),
    ],
    "CastLike": [case(floats(-2.7, 1.5), whole(1)), case(whole(3), floats(1)), case(whole(3), chosen(1))],
    "Ceil": unary(),
    "Celu": unary(case(X, alpha=0.5), case(EXTREMES, alpha=2.0)),
    "CenterCropPad": [
        case(X, ints(*sizes), **options)
        for sizes, options in (((2, 3, 8, 3), {}), ((7, 4), {"axes": [2, 3]}), ((4, 9), {"axes": [-1, 1]}))
    ],
    "Clip": unary(
        case(X, min=-0.5, max=0.7),
        case(X, min=0.1),
        case(X, number(-0.5), number(0.7)),
        case(X, number(-0.5)),
        case(X, None, number(0.5)),
        case(X, number(0.5), number(-0.5)),
        case(whole(3, 4), number(-2, np.int64), number(3, np.int64), oldest=12),
    ),
    "Col2Im": [
        case(drawn(1, 8, 20), ints(5, 6), ints(2, 2)),
        case(drawn(1, 4, 20), ints(6, 7), ints(2, 2), dilations=[2, 2]),
        case(drawn(1, 9, 9), ints(5, 5), ints(3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
        case(drawn(1, 4, 5), ints(6), ints(2)),
    ],
    "Compress": [
        case(X, np.array([True, False, True]), axis=1),
        case(X, np.array([False, True, True, False, True])),
        case(X, np.array([False, True]), axis=-2),
    ],
    "Concat": [case(drawn(2, 3), drawn(2, 1), axis=a) for a in (1, -1)] + [case(drawn(2, 3), axis=0)],
    "Constant": [
        case(value_float=1.1),
        case(value_floats=[1.1, 2.2]),
        case(value_int=3),
        case(value_ints=[1, 2]),
        case(value_string="a"),
        case(value_strings=["a", "b"]),
        case(value=numpy_helper.from_array(floats(1.1))),
        case(value=numpy_helper.from_array(ints(1, 2))),
    ],
    "ConstantOfShape": [
        case(ints(2, 3)),
        case(ints()),
        case(ints(0, 2)),
        case(ints(2), value=numpy_helper.from_array(floats(0.1))),
        case(ints(2), value=numpy_helper.from_array(ints(7))),
    ],
    "Conv": convolutions(),
    "ConvInteger": [
        case(
            whole(1, 2, 5, 6, low=0, dtype=np.uint8),
            whole(3, 2, 2, 3, low=0, dtype=np.uint8),
            number(3, np.uint8),
            number(2, np.uint8),
            pads=[1, 0, 1, 1],
        ),
        case(whole(1, 2, 5, 6, low=0, dtype=np.uint8), whole(3, 2, 2, 3, low=0, dtype=np.uint8), strides=[2, 2]),
    ],
    "ConvTranspose": transposed_convolutions(),
    "Cos": between(-9, 9),
    "Cosh": between(-5, 5),
    "CumProd": [
        case(drawn(3, 4), number(a, np.int64), **options)
        for a in (0, -1)
        for options in grid(exclusive=[None, 1], reverse=[None, 1])
    ],
    "CumSum": [
        case(drawn(3, 4), number(a, np.int64), **options)
        for a in (0, -1)
        for options in grid(exclusive=[None, 1], reverse=[None, 1])
    ],
    "DFT": [
        *(
            case(drawn(2, 5, 4, c), inverse=i, axis=a, onesided=o, newest=19, tolerance=SUMS)
            for c in (1, 2)
            for i in (0, 1)
            for a in (1, 2)
            for o in (0, 1)
            if not (o and (i or c == 2))
        ),
        *(
            case(drawn(2, 5, 4, c), None, number(a, np.int64), inverse=i, onesided=o, oldest=20, tolerance=SUMS)
            for c in (1, 2)
            for i in (0, 1)
            for a in (1, 2, -2)
            for o in (0, 1)
            if not (o and (i or c == 2))
        ),
        *(case(drawn(2, 5, 4, 1), number(n, np.int64), tolerance=SUMS) for n in (3, 8)),
        case(drawn(2, 4, 4, 2), None, number(1, np.int64), inverse=1, onesided=1, oldest=20, tolerance=SUMS),
    ],
    "DeformConv": [
        case(
            drawn(1, 4, 6, 5),
            drawn(6, 4 // g, 2, 3),
            drawn(1, 2 * 6 * o, 5, 3),
            drawn(6),
            *([drawn(1, 6 * o, 5, 3)] if mask else []),
            group=g,
            offset_group=o,
            tolerance=SUMS,
        )
        for g, o, mask in ((1, 1, False), (2, 2, True), (1, 2, True))
    ]
    + [
        case(
            drawn(2, 2, 6, 5), drawn(3, 2, 3, 3), drawn(2, 18, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2], tolerance=SUMS
        ),
        case(drawn(2, 2, 6, 5), drawn(3, 2, 2, 2), drawn(2, 8, 4, 3), dilations=[2, 2], tolerance=SUMS),
    ],
    "DepthToSpace": [case(drawn(2, 12, 2, 3), blocksize=2, **options) for options in grid(mode=[None, "DCR", "CRD"])],
    "DequantizeLinear": [
        *(
            case(whole(2, 3, 4, low=0, high=200, dtype=kind), number(0.05), number(7, kind))
            for kind in (np.uint8, np.int8)
        ),
        case(whole(2, 3, 4, dtype=np.uint8, low=0), number(0.05)),
        case(whole(2, 3, 4, dtype=np.int32), number(0.05)),
        *(
            case(
                whole(2, 3, 4, dtype=np.int8),
                drawn(n, low=0.01, high=0.1),
                whole(n, dtype=np.int8),
                oldest=13,
                **options,
            )
            for n, options in ((3, {}), (4, {"axis": 2}), (4, {"axis": -1}), (2, {"axis": 0}))
        ),
        case(
            whole(2, 4, dtype=np.int8),
            drawn(2, 2, low=0.01, high=0.1),
            whole(2, 2, dtype=np.int8),
            axis=1,
            block_size=2,
        ),
    ],
    "Det": [case(drawn(4, 4)), case(drawn(2, 3, 3)), case(drawn(1, 1))],
    "Div": binary(*whole_binary(), low=0.5, high=3),
    "Dropout": [
        case(X),
        case(X, ratio=0.4),
        case(X, number(0.4), outputs=2),
        case(X, number(0.4), np.array(False), outputs=2),
    ],
    "DynamicQuantizeLinear": [case(drawn(3, 4), outputs=3), case(drawn(3, 4, low=1, high=2), outputs=3)],
    "Einsum": [
        *(case(drawn(2, 3, 4), drawn(2, 4, 5), equation=e) for e in ("bij,bjk->bik", "bij,bjk", "bij, bjk -> ki")),
        case(drawn(3, 3), equation="ii"),
        case(drawn(3, 3), equation="ii->i"),
        case(drawn(2, 3, 4), equation="...i->...", tolerance=SUMS),
        case(drawn(2, 3, 4), drawn(4), equation="...i,i->..."),
        case(drawn(3), drawn(4), equation="i,j->ij"),
        case(drawn(2, 3), drawn(4, 5), equation="ab,cd->", tolerance=SUMS),
        case(drawn(2, 3, 4), drawn(5, 3, 2), equation="a...b,c...d->...c", tolerance=SUMS),
    ],
    "Elu": unary(case(X, alpha=0.3)),
    "Equal": [
        case(X, X[:1], oldest=11),
        case(X, X, oldest=11),
        *whole_binary(),
        case(chosen(3), chosen(3)),
        case(TEXTS, TEXTS[::-1].copy(), oldest=19),
    ],
    "Erf": unary(),
    "Exp": between(-9, 9),
    "Expand": [case(drawn(3, 1), ints(*s)) for s in ((3, 4), (2, 1, 4), (1, 1), (3, 1))],
    "EyeLike": [
        case(drawn(3, 4), **options)
        for options in grid(k=[None, 1, -2], dtype=[None, TensorProto.INT64, TensorProto.DOUBLE])
    ]
    + [case(whole(3, 4)), case(whole(3, 4), dtype=TensorProto.FLOAT)],
    "Flatten": [case(X, axis=a) for a in (0, 1, 2, 4)]
    + [case(X), case(X, axis=-1, oldest=11), case(X, axis=-3, oldest=11)],
    "Floor": unary(),
    "GRU": recurrent(3, 1, linear_before_reset=[None, 1], clip=[None, 0.5])
    + recurrent(3, 1, activations=[["Relu", "Softsign"], ["HardSigmoid", "Tanh"]], linear_before_reset=[1]),
    "Gather": [case(X, ints(*i), **options) for i in ((0, 1), (-1, 0, 1)) for options in grid(axis=[None, 1, -1])]
    + [case(X, number(1, np.int64), axis=2), case(X, whole(2, 2, low=0, high=3), axis=1)],
    "GatherElements": [case(drawn(3, 4), whole(3, 2, low=-4, high=4), axis=a) for a in (1, -1)]
    + [
        case(drawn(3, 4), whole(2, 4, low=-3, high=3)),
        case(drawn(2, 3, 4), whole(2, 5, 4, low=0, high=3), axis=1),
        case(drawn(40, 3), whole(40, 3, low=0, high=40), axis=0),
        case(drawn(4), ints(-1, 2), axis=0),
        case(drawn(3, 4), whole(2, 3, low=0, high=3), axis=0),
        case(whole(3, 4), whole(2, 4, low=0, high=3), axis=0),
    ],
    "GatherND": [
        case(drawn(2, 3, 4), i)
        for i in (ints(1), whole(2, 2, low=0, high=2), whole(2, 2, 3, low=0, high=2), ints(-1, 1).reshape(1, 2))
    ]
    + [
        case(drawn(2, 3, 4), whole(2, 1, low=0, high=3), batch_dims=1),
        case(drawn(2, 3, 4), whole(2, 3, 1, low=0, high=4), batch_dims=2),
    ],
    "Gelu": unary(case(X, approximate="tanh"), case(EXTREMES, approximate="tanh")),
    "Gemm": [
        case(
            drawn(*((4, 3) if a else (3, 4))),
            drawn(*((5, 4) if b else (4, 5))),
            *c,
            transA=a,
            transB=b,
            alpha=0.5,
            beta=0.3,
        )
        for a in (0, 1)
        for b in (0, 1)
        for c in ([drawn(5)], [drawn(3, 1)], [drawn(3, 5)], [number(0.4)])
    ]
    + [case(drawn(3, 4), drawn(4, 5), oldest=11)],
    "GlobalAveragePool": [case(x) for x in BY_RANK.values()],
    "GlobalLpPool": [
        case(x, kernel=21, tolerance=SUMS, **options) for x in BY_RANK.values() for options in grid(p=[None, 1, 3])
    ],
    "GlobalMaxPool": [case(x) for x in BY_RANK.values()],
    "Greater": [*binary(), *(replace(one, oldest=9) for one in whole_binary()), case(X, X)],
    "GreaterOrEqual": [*binary(), *whole_binary(), case(X, X)],
    "GridSample": grid_samples(),
    "GroupNormalization": [
        case(drawn(2, 4, *r), drawn(4), drawn(4), num_groups=g, oldest=21, tolerance=SUMS, **options)
        for r in ((3,), (3, 5), (2, 3, 2))
        for g in (1, 2, 4)
        for options in ({}, {"epsilon": 0.1, "stash_type": 1})
    ],
    "HammingWindow": [case(number(n, np.int64), **options) for n in (7, 8) for options in grid(periodic=[None, 0, 1])],
    "HannWindow": [case(number(n, np.int64), **options) for n in (7, 8) for options in grid(periodic=[None, 0, 1])],
    "HardSigmoid": unary(case(X, alpha=0.4, beta=0.1)),
    "HardSwish": unary(),
    "Hardmax": [
        case(x, oldest=13, **options)
        for x in (X, floats(1, 3, 3, 0).reshape(1, 4))
        for options in grid(axis=[None, 0, 1, -1])
    ],
    "Identity": unary(case(whole(3)), case(TEXTS)),
    "InstanceNormalization": [
        case(x, drawn(c := x.shape[1]), drawn(c, low=0, high=1), tolerance=SUMS, **options)
        for x in BY_RANK.values()
        for options in ({}, {"epsilon": 0.1})
    ],
    "IsInf": [
        case(floats(-np.inf, np.inf, np.nan, 0, 1), **options)
        for options in grid(detect_negative=[None, 0], detect_positive=[None, 0])
    ],
    "IsNaN": [case(floats(-np.inf, np.inf, np.nan, 0, 1))],
    "LRN": [
        case(
            drawn(*shape),
            size=size,
            witness=None if size % 2 and len(shape) == 4 else partial(lrn, size=size, **options),
            **options,
        )
        for shape in ((2, 7, 3, 2), (9, 4, 2, 3), (1, 5, 2, 2), (2, 6, 3), (2, 6, 2, 2, 2))
        for size in (1, 2, 3, 4, 5)
        for options in ({}, {"alpha": 0.3, "beta": 0.6, "bias": 2.0})
    ],
    "LSTM": recurrent(4, 2, clip=[None, 0.5], input_forget=[None, 1]),
    "LayerNormalization": [
        case(X, drawn(*X.shape[a:]), *b, outputs=o, tolerance=SUMS, axis=a, **options)
        for a in (-1, 1, 2, -2)
        for b in ([], [drawn(*X.shape[a:], low=0, high=1)])
        for o in (1, 3)
        for options in ({}, {"epsilon": 0.1, "stash_type": 1})
    ],
    "LeakyRelu": unary(case(X, alpha=0.3), case(X, alpha=-0.3)),
    "Less": [*binary(), *(replace(one, oldest=9) for one in whole_binary()), case(X, X)],
    "LessOrEqual": [*binary(), *whole_binary(), case(X, X)],
    "Log": between(0.1, 9),
    "LogSoftmax": [case(x, **options) for x in (X, EXTREMES.reshape(2, 9)) for options in grid(axis=[None, 0, 1, -1])],
    "LpNormalization": [
        case(x, **options)
        for x in (X, np.zeros((2, 3), np.float32))
        for options in grid(axis=[None, 0, 1], p=[None, 1, 2])
    ],
    "LpPool": pools(p=[1, 3, None]),
    "MatMul": [
        case(drawn(*a), drawn(*b))
        for a, b in (
            ((3, 4), (4, 5)),
            ((2, 3, 4), (4, 5)),
            ((2, 1, 3, 4), (5, 4, 2)),
            ((4,), (4, 5)),
            ((3, 4), (4,)),
            ((4,), (4,)),
            ((2, 3, 4), (4,)),
        )
    ]
    + [case(whole(3, 4), whole(4, 5), oldest=9)],
    "MatMulInteger": [
        case(whole(3, 4, low=0, dtype=np.uint8), whole(4, 5, dtype=np.int8), *z)
        for z in (
            [],
            [number(3, np.uint8)],
            [number(3, np.uint8), number(-2, np.int8)],
            [number(3, np.uint8), whole(5, dtype=np.int8)],
        )
    ],
    "Max": [*variadic(), case(whole(2, 3), whole(3), oldest=12)],
    "MaxPool": [
        *pools(),
        *(
            Case(one.inputs, one.attributes | more, outputs=2, oldest=8)
            for one in pools()
            for more in ({}, {"storage_order": 1})
            if len(one.attributes["kernel_shape"]) == 2
        ),
    ],
    "MaxRoiPool": [
        case(
            drawn(2, 3, 8, 8),
            floats(0, 0, 0, 4, 5, 1, 2, 1, 7, 6).reshape(2, 5),
            pooled_shape=[2, 3],
            kernel=21,
            **options,
        )
        for options in ({}, {"spatial_scale": 0.6})
    ],
    "MaxUnpool": [
        case(
            drawn(1, 2, 2, 2),
            ints(0, 2, 8, 11, 17, 19, 24, 31).reshape(1, 2, 2, 2),
            kernel_shape=[2, 2],
            strides=[2, 2],
        ),
        case(
            floats(1, 2, 3, 4).reshape(1, 1, 2, 2),
            ints(5, 7, 13, 15).reshape(1, 1, 2, 2),
            ints(1, 1, 5, 5),
            kernel_shape=[2, 2],
            strides=[2, 2],
            witness=unpooled,
        ),
    ],
    "Mean": variadic(),
    "MeanVarianceNormalization": [
        case(X, tolerance=SUMS),
        case(X, axes=[0, 1, 2, 3], tolerance=SUMS),
        case(X, axes=[1], tolerance=SUMS),
        case(X, axes=[2, -1], tolerance=SUMS),
    ],
    "MelWeightMatrix": [
        case(
            number(8, np.int64),
            number(16, np.int64),
            number(8000, np.int64),
            number(0.0),
            number(4000.0),
            tolerance=SUMS,
        ),
        case(
            number(5, np.int64),
            number(32, np.int64),
            number(16000, np.int64),
            number(100.0),
            number(7000.0),
            tolerance=SUMS,
        ),
    ],
    "Min": [*variadic(), case(whole(2, 3), whole(3), oldest=12)],
    "Mish": unary(),
    "Mod": [
        case(whole(3, 4, dtype=k), np.where(whole(4, dtype=k) == 0, 3, whole(4, dtype=k)), **o)
        for k in (np.int64, np.int32)
        for o in ({}, {"fmod": 1})
    ]
    + [case(drawn(3, 4), drawn(4, low=0.3, high=1), fmod=1), case(drawn(3, 4), -drawn(4, low=0.3, high=1), fmod=1)],
    "Mul": binary(*whole_binary()),
    "Neg": unary(case(whole(3))),
    "NegativeLogLikelihoodLoss": [
        case(drawn(4, 3, *d), whole(4, *d, low=0, high=3), *w, **o)
        for d in ((), (2,))
        for w in ([], [drawn(3, low=0.2, high=1)])
        for o in grid(reduction=["none", "mean", "sum", None], ignore_index=[None, 1])
    ],
    "NonMaxSuppression": [
        case(BOXES, SCORES, *more, **options)
        for more in (
            [ints(3)],
            [ints(6), floats(0.3)],
            [ints(6), floats(0.3), floats(0.4)],
            [ints(2), floats(0.1), floats(0.2)],
            [number(3, np.int64), number(0.3), number(0.2)],
        )
        for options in grid(center_point_box=[None, 1])
    ]
    + [case(BOXES, SCORES)],
    "NonZero": [case(floats(0, 1, 2, 0, 0, 3).reshape(2, 3)), case(chosen(2, 2, 3)), case(whole(4, low=0, high=2))],
    "Not": [case(chosen(3, 4))],
    "OneHot": [
        case(i, d, v, **o)
        for i in (ints(0, 2, -1), whole(2, 2, low=-3, high=3), ints(5, 1))
        for d in (number(3, np.int64), ints(3))
        for v in (floats(0, 1), floats(2, 5), ints(0, 1))
        for o in grid(axis=[None, 0, 1])
    ],
    "Or": [case(chosen(3, 4), chosen(4))],
    "PRelu": [case(X, s) for s in (drawn(3, 1, 1), number(0.3), drawn(6), drawn(2, 3, 5, 6), floats(0.3))]
    + [case(drawn(2, 3), drawn(3))],
    "Pad": [
        case(X, ints(*p), *more, **options)
        for p in ((0, 0, 1, 2, 0, 0, 2, 1), (0, 1, -1, 0, 0, 1, 0, -2), (1, 0, 0, 3, 0, 2, 0, 0))
        for more, options in (
            ([], {}),
            ([number(1.5)], {}),
            ([], {"mode": "reflect"}),
            ([], {"mode": "edge"}),
            ([], {"mode": "wrap", "oldest": 19}),
        )
    ]
    + [case(X, ints(1, -2, 2, 1), None, ints(-1, 2), mode=m) for m in ("constant", "reflect", "edge", "wrap")]
    + [
        case(X, pads=[0, 0, 1, 2, 0, 0, 2, 1], **options)
        for options in ({}, {"value": 1.5}, {"mode": "reflect"}, {"mode": "edge"})
    ]
    + [
        case(whole(3, 4), ints(1, 0, 0, 2), number(5, np.int64)),
        case(drawn(5), ints(2, 3), mode="reflect"),
        case(drawn(5), ints(7, 9), mode="wrap", oldest=19),
    ],
    "Pow": [
        *binary(low=0.2, high=2),
        case(X, number(2.0)),
        case(X, number(3, np.int64), oldest=12),
        case(whole(3, low=1), number(2, np.int64), oldest=12),
        case(whole(3, low=1), number(0.5), oldest=12),
        case(whole(3, low=1, dtype=np.int32), floats(1.5), oldest=12),
    ],
    "QLinearConv": [
        case(
            whole(1, 2, 5, 6, low=0, high=255, dtype=np.uint8),
            number(0.02),
            number(120, np.uint8),
            whole(4, 2 // g, 3, 2, low=0, high=255, dtype=np.uint8),
            number(0.03),
            number(100, np.uint8),
            number(0.5),
            number(110, np.uint8),
            *b,
            group=g,
            pads=[1, 0, 1, 1],
        )
        for g in (1, 2)
        for b in ([], [whole(4, dtype=np.int32)])
    ]
    + [
        case(
            whole(1, 2, 5, 6, low=0, high=255, dtype=np.uint8),
            number(0.02),
            number(120, np.uint8),
            whole(4, 2, 3, 2, dtype=np.int8),
            drawn(4, low=0.02, high=0.2),
            np.zeros(4, np.int8),
            number(0.05),
            number(110, np.uint8),
            strides=[2, 1],
        )
    ],
    "QLinearMatMul": [
        case(
            whole(3, 4, low=0, high=255, dtype=np.uint8),
            number(0.02),
            number(120, np.uint8),
            whole(4, 5, low=0, high=255, dtype=np.uint8),
            number(0.03),
            number(100, np.uint8),
            number(0.1),
            number(110, np.uint8),
        )
    ],
    "QuantizeLinear": [
        *(case(drawn(2, 3, 4) * 9, number(0.5), number(7, kind)) for kind in (np.uint8, np.int8)),
        case(floats(-300, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 300), number(1.0)),
        case(floats(-300, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 300), number(1.0), number(3, np.int8)),
        *(
            case(drawn(2, 3, 4) * 9, drawn(n, low=0.1, high=1), whole(n, dtype=np.int8), oldest=13, **options)
            for n, options in ((3, {}), (4, {"axis": 2}), (4, {"axis": -1}), (2, {"axis": 0}))
        ),
        case(drawn(2, 4) * 9, drawn(2, 2, low=0.1, high=1), whole(2, 2, dtype=np.int8), axis=1, block_size=2),
        case(drawn(2, 4) * 9, number(0.3), output_dtype=TensorProto.INT8),
        case(drawn(2, 4) * 900, number(0.3), number(5, np.uint16), oldest=21),
        case(drawn(2, 4) * 900, number(0.3), number(-5, np.int16), oldest=21),
    ],
    "RMSNormalization": [
        case(X, drawn(*X.shape[a:]), axis=a, tolerance=SUMS, **options)
        for a in (-1, 1, 2)
        for options in ({}, {"epsilon": 0.1, "stash_type": 1})
    ],
    "RNN": recurrent(1, 1, clip=[None, 0.5])
    + recurrent(
        1, 1, activations=[[name] for name in ("HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Softplus", "Tanh")]
    )
    + recurrent(
        1,
        1,
        activations=[[name] for name in ("Affine", "Elu", "ScaledTanh", "ThresholdedRelu")],
        activation_alpha=[[0.4, 0.6]],
        activation_beta=[[0.3, 0.5]],
    )[:24],
    "Range": [
        case(*(np.array(v, k) for v in values))
        for k in (np.float32, np.int64, np.int32)
        for values in ((1, 9, 2), (9, 1, -3), (1, 1, 1))
    ]
    + [case(number(0.5), number(2.0), number(0.25))],
    "Reciprocal": between(0.2, 3) + between(-3, -0.2),
    "ReduceL1": reductions(),
    "ReduceL2": reductions(),
    "ReduceLogSum": reductions(0.1, 3, integers=False),
    "ReduceLogSumExp": [*reductions(integers=False), case(EXTREMES.reshape(2, 9), keepdims=0)],
    "ReduceMax": [*reductions(), case(chosen(3, 4), ints(1), oldest=20)],
    "ReduceMean": reductions(),
    "ReduceMin": [*reductions(), case(chosen(3, 4), ints(1), oldest=20)],
    "ReduceProd": reductions(0.3, 2),
    "ReduceSum": reductions(),
    "ReduceSumSquare": reductions(),
    "RegexFullMatch": [case(TEXTS, pattern=p) for p in ("a.*", "[A-Z]+", "")],
    "Relu": unary(case(whole(3, 4, dtype=np.int32), oldest=14)),
    "Reshape": [case(X, ints(*s)) for s in ((6, 30), (0, -1), (2, 0, 30), (-1,), (0, 0, 0, 6))]
    + [case(np.zeros((0, 3), np.float32), ints(3, 0), allowzero=1), case(drawn(2, 3), ints(-1, 0))],
    "Resize": resizes()
    + [case(drawn(1, 2, 5, 6), floats(1, 1, 2, 3), mode=m, newest=10) for m in ("nearest", "linear")]
    + [case(drawn(1, 2, 5, 6), floats(1, 1, 1.5, 2.6), mode=m, newest=10) for m in ("nearest", "linear")],
    "ReverseSequence": [case(drawn(4, 3, 2), ints(1, 4, 2), **o) for o in ({}, {"time_axis": 0, "batch_axis": 1})]
    + [case(drawn(3, 4, 2), ints(1, 4, 2), time_axis=1, batch_axis=0)],
    "RoiAlign": [
        case(
            drawn(2, 3, 8, 8),
            floats(0, 0, 4, 5, 2, 1, 7.5, 6, 0.4, 0.1, 0.6, 0.2).reshape(3, 4),
            ints(0, 1, 1),
            output_height=h,
            output_width=3,
            tolerance=SUMS,
            kernel=21,
            **o,
        )
        for h in (2, 3)
        for o in grid(
            mode=[None, "max"],
            sampling_ratio=[None, 2],
            spatial_scale=[None, 0.7],
            coordinate_transformation_mode=[None, "half_pixel", "output_half_pixel"],
        )
    ],
    "RotaryEmbedding": [
        case(drawn(2, 2, 3, 4), drawn(5, 2), drawn(5, 2), whole(2, 3, low=0, high=5), **o)
        for o in grid(interleaved=[None, 1])
    ]
    + [
        case(drawn(2, 3, 8), drawn(5, 2), drawn(5, 2), whole(2, 3, low=0, high=5), num_heads=2),
        case(drawn(2, 2, 3, 4), drawn(2, 3, 2), drawn(2, 3, 2)),
        case(drawn(2, 2, 3, 6), drawn(5, 2), drawn(5, 2), whole(2, 3, low=0, high=5), rotary_embedding_dim=4),
    ],
    "Round": unary(),
    "STFT": [
        case(drawn(2, 12, 1), number(4, np.int64), *w, onesided=o, tolerance=SUMS)
        for w in (
            [drawn(6, low=0.1, high=1), number(6, np.int64)],
            [None, number(6, np.int64)],
            [drawn(6, low=0.1, high=1)],
        )
        for o in (0, 1)
    ],
    "Scatter": [
        case(drawn(3, 4), ints(0, 2, 1, 0).reshape(1, 4), drawn(1, 4)),
        case(drawn(3, 4), ints(0, 3, 1).reshape(3, 1), drawn(3, 1), axis=1),
    ],
    "ScatterElements": [
        case(drawn(3, 4), ints(0, -1, 1, 0).reshape(1, 4), drawn(1, 4), **o)
        for o in grid(axis=[None, 0], reduction=[None, "none", "add", "mul", "max", "min"])
    ]
    + [
        case(drawn(3, 4), ints(0, 3, 1, 3, 2, 2).reshape(3, 2), drawn(3, 2), axis=a, **o)
        for a in (1, -1)
        for o in grid(reduction=["add", "mul", "max", "min"])
    ]
    + [case(drawn(2, 3, 4), whole(2, 2, 4, low=0, high=3), drawn(2, 2, 4), axis=1, reduction="add")],
    "ScatterND": [
        case(drawn(3, 4), i, u, **o)
        for i, u in (
            (ints(0, 2).reshape(2, 1), drawn(2, 4)),
            (ints(0, 1, -1, 3).reshape(2, 2), drawn(2)),
            (ints(1, 1, 1, 1).reshape(2, 2), drawn(2)),
        )
        for o in grid(reduction=["add", "mul", "max", "min"])
    ]
    + [case(drawn(3, 4), ints(0, 2).reshape(2, 1), drawn(2, 4))],
    "Selu": unary(case(X, alpha=1.1, gamma=0.7)),
    "Shape": [case(X, **o) for o in grid(start=[None, 1, -2, -9], end=[None, 3, -1, 9])]
    + [case(number(1.0)), case(TEXTS)],
    "Shrink": unary(case(X, lambd=0.3, bias=0.1)),
    "Sigmoid": unary(),
    "Sign": unary(case(whole(3))),
    "Sin": between(-9, 9),
    "Sinh": between(-5, 5),
    "Size": [case(X), case(number(1.0)), case(TEXTS)],
    "Slice": [
        case(X, ints(*s), ints(*e), *more)
        for s, e, more in (
            ((0, 1), (2, 3), []),
            ((1, -3), (9, -1), [ints(2, 3)]),
            ((-1,), (-99,), [ints(-1), ints(-2)]),
            ((0,), (2**31,), [ints(2), ints(2)]),
            ((4,), (1,), [ints(2)]),
            ((5, 9), (0, -99), [ints(3, 2), ints(-2, -1)]),
        )
    ]
    + [case(X, starts=[1, -3], ends=[9, -1], axes=[2, 3]), case(X, starts=[1], ends=[2])],
    "Softmax": [case(x, **options) for x in (X, EXTREMES.reshape(2, 9)) for options in grid(axis=[None, 0, 1, -1])],
    "SoftmaxCrossEntropyLoss": [
        case(drawn(4, 3, *d), whole(4, *d, low=0, high=3), *w, outputs=n, **o)
        for d in ((), (2,))
        for w in ([], [drawn(3, low=0.2, high=1)])
        for n in (1, 2)
        for o in grid(reduction=["none", "mean", "sum", None], ignore_index=[None, 1])
    ],
    "Softplus": unary(),
    "Softsign": unary(),
    "SpaceToDepth": [case(drawn(2, 3, 4, 6), blocksize=2)],
    "Split": [
        case(drawn(6, 4), outputs=3, newest=17),
        case(drawn(6, 4), outputs=2, axis=1, newest=17),
        case(drawn(6, 4), outputs=2, split=[2, 4]),
        case(drawn(6, 4), ints(1, 5), outputs=2),
        case(drawn(6, 4), ints(1, 3), outputs=2, axis=-1),
        case(drawn(6, 4), ints(0, 6), outputs=2),
        case(drawn(7, 4), outputs=3, num_outputs=3),
        case(drawn(6, 4), outputs=2, num_outputs=2, axis=1),
    ],
    "Sqrt": between(0, 9),
    "Squeeze": [case(drawn(1, 3, 1, 2), **o) for o in ({}, {"axes": [0]}, {"axes": [0, 2]})]
    + [case(drawn(1, 3, 1, 2), ints(*a)) for a in ((0,), (-2,), (2, 0))]
    + [case(drawn(1, 3, 1, 2), axes=[-2], oldest=11)],
    "StringConcat": [case(TEXTS, TEXTS[::-1].copy()), case(TEXTS, np.array(["x"], dtype=object))],
    "StringNormalizer": [
        *(case(TEXTS[0], case_change_action="NONE", is_case_sensitive=1, **o) for o in ({}, {"stopwords": ["ab"]})),
        case(
            TEXTS[0], case_change_action="UPPER", stopwords=["AB"], witness=lambda x: [np.array(["B", "É C"], object)]
        ),
        case(
            TEXTS[0][:2], case_change_action="LOWER", stopwords=["B", "AB"], witness=lambda x: [np.array([""], object)]
        ),
    ],
    "StringSplit": [
        case(np.array(["a b c", " x  y"], dtype=object), outputs=2, **o)
        for o in grid(delimiter=[None, " ", ""], maxsplit=[None, 1])
    ],
    "Sub": binary(*whole_binary()),
    "Sum": variadic(),
    "Swish": unary(case(X, alpha=0.5)),
    "Tan": between(-1, 1),
    "Tanh": unary(),
    "TensorScatter": [
        case(drawn(2, 2, 5, 3), drawn(2, 2, 2, 3), ints(1, 3), **o) for o in grid(mode=[None, "circular"])
    ]
    + [
        case(drawn(2, 5, 3), drawn(2, 2, 3), axis=1),
        case(drawn(2, 5, 3), drawn(2, 2, 3), ints(4, 2), axis=-2, mode="circular"),
    ],
    "TfIdfVectorizer": [
        case(
            whole(2, 8, low=0, high=5, dtype=np.int32),
            mode=m,
            min_gram_length=lo,
            max_gram_length=2,
            max_skip_count=skip,
            ngram_counts=[0, 3],
            ngram_indexes=[0, 1, 2, 3, 4, 5],
            pool_int64s=[2, 3, 4, 1, 2, 3, 4, 0, 1],
            **w,
        )
        for m in ("TF", "IDF", "TFIDF")
        for lo in (1, 2)
        for skip in (0, 2)
        for w in ({}, {"weights": [0.5, 1.0, 2.0, 3.0, 0.1, 0.2]})
    ],
    "ThresholdedRelu": unary(case(X, alpha=0.3)),
    "Tile": [case(drawn(2, 3), ints(*r)) for r in ((1, 2), (3, 1), (2, 2))],
    "TopK": [
        case(t, ints(k), outputs=2, **o)
        for t in (drawn(3, 6), floats(1, 3, 3, 2, 3, 0).reshape(1, 6))
        for k in (1, 3)
        for o in grid(axis=[None, 1, -1], largest=[None, 0], sorted=[None])
    ]
    + [case(drawn(5, 2), ints(2), outputs=2, axis=0)],
    "Transpose": [case(drawn(2, 3, 4), **o) for o in grid(perm=[None, [0, 2, 1], [2, 0, 1]])],
    "Trilu": [
        case(drawn(*s), *k, **o)
        for s in ((4, 4), (3, 5), (2, 4, 3))
        for k in ([], [number(1, np.int64)], [number(-2, np.int64)], [number(9, np.int64)])
        for o in grid(upper=[None, 0])
    ],
    "Unique": [
        case(t, outputs=4, **o)
        for t, o in (
            (floats(2, 1, 1, 3, 4, 3), {}),
            (floats(2, 1, 1, 3, 4, 3), {"sorted": 0}),
            (floats(1, 0, 1, 0, 2, 3).reshape(3, 2), {"axis": 0}),
            (floats(1, 0, 1, 0, 2, 3).reshape(2, 3), {"axis": 1}),
            (floats(1, 0, 1, 0, 2, 3).reshape(2, 3), {}),
            (floats(3, 0, 1, 0, 1, 0).reshape(3, 2), {"axis": 0, "sorted": 0}),
        )
    ],
    "Unsqueeze": [case(drawn(2, 3), axes=[0, 2]), case(drawn(2, 3), axes=[-1], oldest=11)]
    + [case(drawn(2, 3), ints(*a)) for a in ((0,), (-1,), (0, 3), (2, 0), (-1, -4))],
    "Upsample": [
        *(
            case(drawn(1, 2, 5, 6), scales=s, mode=m, newest=8)
            for m in ("nearest", "linear")
            for s in ([1.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.5, 2.5])
        ),
        *(
            case(drawn(1, 2, 5, 6), floats(*s), mode=m, oldest=9)
            for m in ("nearest", "linear")
            for s in ((1, 1, 2, 3), (1, 1, 1.5, 2.5))
        ),
    ],
    "Where": [
        case(chosen(3, 1), drawn(3, 4), drawn(4)),
        case(chosen(3), whole(3), number(1, np.int64)),
        case(chosen(2, 3), TEXTS, TEXTS[::-1].copy()),
    ],
    "Xor": [case(chosen(3, 4), chosen(4))],
    "Attention": [
        case(drawn(2, 3, 4, 8), drawn(2, 3, 6, 8), drawn(2, 3, 6, 8), tolerance=SUMS),
        case(drawn(2, 3, 4, 8), drawn(2, 3, 6, 8), drawn(2, 3, 6, 5), is_causal=1, tolerance=SUMS),
        case(drawn(2, 3, 4, 8), drawn(2, 3, 6, 8), drawn(2, 3, 6, 8), drawn(4, 6), scale=0.3, tolerance=SUMS),
        case(
            drawn(2, 3, 4, 8),
            drawn(2, 3, 6, 8),
            drawn(2, 3, 6, 8),
            chosen(4, 6) | np.eye(4, 6, dtype=bool),
            tolerance=SUMS,
        ),
        case(drawn(2, 4, 4, 8), drawn(2, 2, 6, 8), drawn(2, 2, 6, 8), softcap=2.0, softmax_precision=1, tolerance=SUMS),
        case(drawn(2, 4, 24), drawn(2, 6, 24), drawn(2, 6, 24), q_num_heads=3, kv_num_heads=3, tolerance=SUMS),
        case(
            drawn(2, 4, 32),
            drawn(2, 6, 16),
            drawn(2, 6, 16),
            q_num_heads=4,
            kv_num_heads=2,
            is_causal=1,
            tolerance=SUMS,
        ),
        case(
            drawn(2, 3, 4, 8),
            drawn(2, 3, 2, 8),
            drawn(2, 3, 2, 8),
            None,
            drawn(2, 3, 5, 8),
            drawn(2, 3, 5, 8),
            outputs=3,
            tolerance=SUMS,
        ),
    ],
}

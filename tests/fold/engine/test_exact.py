"""Each law is an identity of piecewise polynomials: checked in exact rational arithmetic, without a tolerance.

Weights are multiples of 1/4, and each BatchNorm has γ = ±2^k, ε = 0 and a variance of 4^k. So float64, in which the
engine computes, holds every new weight exactly; if it did not, the comparison would fail. Both graphs are evaluated by
`support.rational`.

Why a few points suffice: within one sign region of its activations, the difference of the two graphs is a polynomial
in the inputs. One of degree d that is not 0 vanishes at a random point of S^n with a probability of at most d/|S|
(Schwartz and Zippel). S has 161 values here, d is at most 2 (a gate is a number of its own), and three points are drawn
for each of two sets of weights: a wrong law passes with a probability below 1e-11, if the points lie in one region.
Inputs have both signs.
"""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fold
from fold.engine.laws import LAWS
from support.folding import GraphBuilder
from support.rational import evaluate_exactly

POINTS = 3


class Dyadic(GraphBuilder):
    """A graph whose weights are dyadic rationals with rational roots of variances."""

    def normal(self, *shape: int) -> ir.Value:
        return self.constant(self.random.integers(-8, 9, shape) / 4)

    def powers(self, *shape: int, positive: bool = False) -> np.ndarray:
        signs = 1 if positive else self.random.choice([-1, 1], shape)
        return signs * 2.0 ** self.random.integers(-2, 3, shape)

    def batchnorm(
        self, x: ir.Value, channels: int, *, hostile: bool = False, positive: bool = False, **attributes: object
    ) -> ir.Value:
        gamma = self.powers(channels, positive=positive)
        if hostile:
            gamma[0] = 0
        var = 4.0 ** self.random.integers(-2, 3, channels)
        return self.op(
            "BatchNormalization",
            x,
            self.constant(gamma),
            self.normal(channels),
            self.normal(channels),
            self.constant(var),
            epsilon=0.0,
        )

    def conv(self, x: ir.Value, ins: int, outs: int, *kernel: int, **attributes: object) -> ir.Value:
        group = attributes.get("group", 1)
        assert isinstance(group, int)
        return self.op("Conv", x, self.normal(outs, ins // group, *kernel), self.normal(outs), **attributes)


def check_exactly(model: ir.Model, *, kept: int = 0, open_activations: bool = False, seed: int = 0) -> None:
    """The folded graph computes the same rationals at each point."""
    folded, report = fold.fold_model(model, open_activations=open_activations)
    assert report.folded
    assert len(report.kept) == kept, [entry.reason for entry in report.kept]
    assert_equal(model, folded, seed)


def points(model: ir.Model, seed: int) -> Iterator[dict[str, np.ndarray]]:
    random = np.random.default_rng(seed)
    for _ in range(POINTS):
        yield {
            value.name: random.integers(-80, 81, [d if isinstance(d, int) else 1 for d in value.shape]) / 8
            for value in model.graph.inputs
        }


def assert_equal(model: ir.Model, folded: ir.Model, seed: int) -> None:
    for inputs in points(model, seed):
        expected, actual = evaluate_exactly(model, inputs), evaluate_exactly(folded, inputs)
        for name, truth in expected.items():
            assert actual[name].shape == truth.shape
            assert (actual[name] == truth).all(), name


Case = Callable[[Dyadic], ir.Value]
CASES: dict[str, tuple[Case, dict[str, Any]]] = {}


def case(name: str, build: Case, **options: Any) -> None:
    CASES[name] = build, options


def around(middle: Callable[[Dyadic, ir.Value], ir.Value], *, positive: bool = True) -> Case:
    """Conv, `middle`, BatchNorm, Conv: the gauge may go either way through `middle`, which keeps 4 channels."""

    def build(g: Dyadic) -> ir.Value:
        y = middle(g, g.conv(g.x, 3, 4, 1, 2))
        return g.conv(g.batchnorm(y, 4, positive=positive), 4, 5, 1, 1)

    return build


def forward(middle: Callable[[Dyadic, ir.Value], ir.Value], *, ins: int = 3, positive: bool = True) -> Case:
    """BatchNorm of the input, `middle`, Conv: only the weights behind can absorb it."""
    return lambda g: g.conv(middle(g, g.batchnorm(g.x, 3, positive=positive)), ins, 5, 1, 1)


def backward(middle: Callable[[Dyadic, ir.Value], ir.Value], channels: int = 4, *, positive: bool = True) -> Case:
    """Conv, `middle`, BatchNorm: only the weights before can absorb it."""
    return lambda g: g.batchnorm(middle(g, g.conv(g.x, 3, 4, 1, 2)), channels, positive=positive)


def both_ways(name: str, middle: Callable[[Dyadic, ir.Value], ir.Value], *, positive: bool = False) -> None:
    case(f"{name}, forward", forward(middle, positive=positive))
    case(f"{name}, backward", backward(middle, positive=positive))


def linear(g: Dyadic, op: str, hostile: bool) -> ir.Value:
    y = g.op("GlobalAveragePool", g.conv(g.x, 3, 4, 1, 2))
    y = g.batchnorm(g.op("Flatten", y), 4, hostile=hostile)
    if op == "Gemm":
        return g.batchnorm(g.op("Gemm", y, g.normal(6, 4), g.normal(6), transB=1), 6, hostile=hostile)
    return g.batchnorm(g.op("Add", g.op("MatMul", y, g.normal(4, 6)), g.normal(6)), 6, hostile=hostile)


def sums(g: Dyadic, op: str) -> ir.Value:
    branches = [g.batchnorm(g.conv(g.x, 3, 4, *kernel), 4, hostile=True) for kernel in ((1, 2), (1, 2), (1, 2))]
    return g.op("Relu", g.op(op, *branches[: 2 if op in ("Add", "Sub") else 3]))


def border(g: Dyadic, op: str) -> ir.Value:
    """A shift before a convolution that pads: a constant map, or a channel of ones."""
    y = g.batchnorm(g.op("Relu", g.conv(g.x, 3, 4, 1, 2)), 4, positive=True)
    if op == "Conv":
        return g.conv(y, 4, 5, 3, 3, pads=[1, 1, 1, 1])
    return g.op("ConvTranspose", y, g.normal(4, 5, 3, 2), strides=[2, 1], pads=[1, 0, 0, 1])


def repvgg(g: Dyadic) -> ir.Value:
    """Branches that become one convolution, products of convolutions among them."""
    x = g.conv(g.x, 3, 4, 1, 2)
    three = g.batchnorm(g.conv(x, 4, 4, 3, 3, pads=[1, 1, 1, 1]), 4)
    one = g.batchnorm(g.conv(x, 4, 4, 1, 1), 4)
    both = g.conv(g.conv(x, 4, 4, 1, 1), 4, 4, 1, 1)
    total = g.op("Add", g.op("Add", three, one), g.op("Add", both, g.batchnorm(x, 4)))
    return g.op("Relu", total)


def stream(g: Dyadic) -> ir.Value:
    """Pre-activation blocks, whose shifts vanish into the branches."""
    y = g.conv(g.x, 3, 4, 1, 2)
    for _ in range(3):
        branch = g.op("Relu", g.batchnorm(y, 4, positive=True))
        y = g.op("Add", y, g.conv(branch, 4, 4, 1, 1))
    return y


def pad(g: Dyadic, y: ir.Value, mode: str) -> ir.Value:
    filling = g.constant(np.float64(-np.inf)) if mode == "infinity" else None
    sizes = g.constant([0, 0, 1, 0, 0, 0, 0, 1])
    return g.op("Pad", y, sizes, filling, mode="constant" if mode == "infinity" else mode)


case("Conv behind", lambda g: g.batchnorm(g.conv(g.x, 3, 4, 2, 3, pads=[1, 0, 0, 1]), 4, hostile=True))
case("Conv behind, groups", lambda g: g.batchnorm(g.conv(g.x, 3, 6, 2, 3, group=3, dilations=[2, 1]), 6, hostile=True))
case("Conv in front", forward(lambda g, y: y, positive=False))
case("Conv in front, groups", lambda g: g.conv(g.batchnorm(g.x, 3), 3, 6, 2, 2, group=3))
case("ConvTranspose behind", lambda g: g.batchnorm(g.op("ConvTranspose", g.x, g.normal(3, 4, 3, 2), strides=[2, 1]), 4))
for op in ("Gemm", "MatMul"):
    case(f"{op}, both sides", lambda g, op=op: linear(g, op, hostile=False))
    case(f"{op}, both sides, dead channels", lambda g, op=op: linear(g, op, hostile=True))
case("BatchNorm of a BatchNorm", lambda g: g.batchnorm(g.batchnorm(g.conv(g.x, 3, 4, 1, 2), 4), 4))
for op in ("Add", "Sub", "Sum", "Mean"):
    case(f"{op} of tensors", lambda g, op=op: sums(g, op), kept=0)
for op in ("Max", "Min"):
    case(
        f"{op} of tensors",
        lambda g, op=op: g.batchnorm(g.op(op, g.conv(g.x, 3, 4, 1, 2), g.conv(g.x, 3, 4, 1, 2)), 4, positive=True),
    )
case("gate", around(lambda g, y: g.op("Mul", y, g.op("Sigmoid", g.conv(g.x, 3, 4, 1, 2)))))
for op, constant in (("Add", "normal"), ("Sub", "normal"), ("Mul", "powers"), ("Div", "powers")):

    def written_out(g: Dyadic, y: ir.Value, op: str = op, constant: str = constant) -> ir.Value:
        by_channel = g.normal(4, 1, 1) if constant == "normal" else g.constant(g.powers(4, 1, 1))
        return g.op(op, y, by_channel)

    case(f"{op} of a constant", backward(written_out))
case("Relu", around(lambda g, y: g.op("Relu", y)))
case("Clip", around(lambda g, y: g.op("Clip", y, g.constant(np.float64(0)))))
case(
    "Relu opened", lambda g: g.conv(g.op("Relu", g.batchnorm(g.x, 3, hostile=True)), 3, 5, 1, 1), open_activations=True
)
case(
    "Clip opened",
    lambda g: g.conv(
        g.op("Clip", g.batchnorm(g.x, 3, hostile=True), g.constant(np.float64(0)), g.constant(np.float64(6))),
        3,
        5,
        1,
        1,
    ),
    open_activations=True,
)
case("LeakyRelu", around(lambda g, y: g.op("LeakyRelu", y, alpha=0.125)))
case("PRelu", around(lambda g, y: g.op("PRelu", y, g.normal(4, 1, 1))))
case("Abs", around(lambda g, y: g.op("Abs", y)))
both_ways("Neg", lambda g, y: g.op("Neg", y))
both_ways("MaxPool", lambda g, y: g.op("MaxPool", y, kernel_shape=[2, 2], pads=[0, 1, 0, 0]), positive=True)
both_ways("AveragePool", lambda g, y: g.op("AveragePool", y, kernel_shape=[3, 2], strides=[1, 2]))
both_ways("GlobalAveragePool", lambda g, y: g.op("GlobalAveragePool", y))
both_ways("GlobalMaxPool", lambda g, y: g.op("GlobalMaxPool", y), positive=True)
for op in ("ReduceMax", "ReduceMin", "ReduceMean", "ReduceSum"):
    both_ways(
        op, lambda g, y, op=op: g.op(op, y, g.constant([2]), keepdims=1), positive=op in ("ReduceMax", "ReduceMin")
    )
case(
    "Concat, Slice",
    lambda g: g.batchnorm(
        g.op(
            "Concat",
            g.conv(g.x, 3, 4, 1, 2),
            g.op("Slice", g.conv(g.x, 3, 4, 1, 2), g.constant([1]), g.constant([4]), g.constant([1])),
            axis=1,
        ),
        7,
    ),
)
case("Split", forward(lambda g, y: g.op("Split", y, g.constant([2, 1]), axis=1, outputs=2), ins=2, positive=False))
both_ways("Gather", lambda g, y: g.op("Gather", y, g.constant([0, 2]), axis=3))
case("Gather of a table", lambda g: g.batchnorm(g.op("Gather", g.normal(7, 4), g.constant([2, 0, 6]), axis=0), 4))
for op, attributes in (
    ("Transpose", {"perm": [0, 1, 3, 2]}),
    ("Identity", {}),
    ("Dropout", {}),
    ("Cast", {"to": ir.DataType.DOUBLE}),
):
    both_ways(op, lambda g, y, op=op, attributes=attributes: g.op(op, y, **attributes))
both_ways("CastLike", lambda g, y: g.op("CastLike", y, g.constant(np.float64(1))))
both_ways("Squeeze, Unsqueeze", lambda g, y: g.op("Squeeze", g.op("Unsqueeze", y, g.constant([4])), g.constant([4])))
both_ways(
    "Reshape", lambda g, y: g.op("Reshape", g.op("Reshape", y, g.constant([0, 0, -1])), g.constant([0, 0, 2, -1]))
)
both_ways("Expand", lambda g, y: g.op("Expand", g.op("GlobalAveragePool", y), g.constant([1, 1, 2, 3])))
both_ways("Tile", lambda g, y: g.op("Tile", y, g.constant([1, 1, 2, 1])))
case("Flatten", lambda g: g.op("Gemm", g.op("Flatten", g.batchnorm(g.x, 3)), g.normal(60, 2)))
case(
    "DepthToSpace",
    lambda g: g.conv(g.op("DepthToSpace", g.batchnorm(g.conv(g.x, 3, 4, 1, 2), 4), blocksize=2), 1, 2, 1, 1),
)
case("SpaceToDepth", forward(lambda g, y: g.op("SpaceToDepth", y, blocksize=2), ins=12, positive=False), size=(4, 6))
both_ways("Resize", lambda g, y: g.op("Resize", y, None, g.constant(np.float32([1, 1, 2, 2])), mode="linear"))
for mode in ("reflect", "edge"):
    both_ways(f"Pad, {mode}", lambda g, y, mode=mode: pad(g, y, mode))
case("border of a Conv", lambda g: border(g, "Conv"), open_activations=True)
case("border of a ConvTranspose", lambda g: border(g, "ConvTranspose"), open_activations=True)
case("channel of ones", lambda g: border(g, "Conv"), open_activations=True, size=("h", "w"))
case("channel of ones, ConvTranspose", lambda g: border(g, "ConvTranspose"), open_activations=True, size=("h", "w"))
case("merged branches", repvgg)
case("pre-activation stream", stream)


@pytest.mark.parametrize("name", CASES)
def test_the_folded_graph_computes_the_same_rationals(name: str) -> None:
    build, options = CASES[name]
    how = {key: value for key, value in options.items() if key != "size"}
    for seed in range(2):
        check_exactly(built(build, options.get("size", (4, 5)), seed), **how, seed=seed)


def built(build: Case, size: tuple[int | str, ...], seed: int) -> ir.Model:
    g = Dyadic(1, 3, *size, seed=seed)
    return g.finish(build(g))


@pytest.mark.parametrize("name", ["Relu", "Relu opened", "Clip", "Clip opened", "LeakyRelu", "PRelu", "Abs"])
def test_the_points_lie_on_both_sides_of_each_kink(name: str) -> None:
    build, options = CASES[name]
    found: list[Fraction] = []
    for seed in range(2):
        model = built(build, options.get("size", (4, 5)), seed)
        bent = next(node for node in model.graph if node.op_type == name.split(maxsplit=1)[0]).inputs[0].name
        watched = model.clone()
        watched.graph.outputs[:] = [value for node in watched.graph for value in node.outputs if value.name == bent]
        for inputs in points(model, seed):
            found += evaluate_exactly(watched, inputs)[bent].ravel().tolist()
    for kink in (0, 6) if name == "Clip opened" else (0,):
        assert min(found) < kink < max(found)


def test_every_law_is_checked() -> None:
    """But for operators without arithmetic on values, one with roots of what it reads, and one for integers."""
    used = {
        node.op_type for build, options in CASES.values() for node in built(build, options.get("size", (4, 5)), 0).graph
    }
    assert set(LAWS) - used == {"DequantizeLinear", "InstanceNormalization", "Shape", "Size", "Upsample"}


BLOCKS: list[Callable[[Dyadic, ir.Value], ir.Value]] = [
    lambda g, y: g.conv(y, 4, 4, 1, 1),
    lambda g, y: g.conv(y, 4, 4, 3, 3, pads=[1, 1, 1, 1]),
    lambda g, y: g.conv(y, 4, 4, 3, 1, pads=[1, 0, 1, 0], group=2),
    lambda g, y: g.batchnorm(y, 4),
    lambda g, y: g.batchnorm(y, 4, hostile=True),
    lambda g, y: g.batchnorm(y, 4, positive=True),
    lambda g, y: g.op("Relu", y),
    lambda g, y: g.op("Neg", y),
    lambda g, y: g.op("MaxPool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    lambda g, y: g.op("AveragePool", y, kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    lambda g, y: g.op("Add", y, g.op("Relu", g.batchnorm(g.conv(y, 4, 4, 1, 1), 4))),
    lambda g, y: g.op("Add", g.batchnorm(y, 4), g.conv(y, 4, 4, 1, 1)),
    lambda g, y: g.op("Mul", y, g.op("Sigmoid", g.op("GlobalAveragePool", y))),
    lambda g, y: g.conv(g.op("Concat", y, g.batchnorm(y, 4), axis=1), 8, 4, 1, 1),
    lambda g, y: g.op("Add", g.op("Mul", y, g.constant(g.powers(4, 1, 1))), g.normal(4, 1, 1)),
]


@settings(max_examples=12, deadline=None)
@given(
    blocks=st.lists(st.integers(0, len(BLOCKS) - 1), min_size=2, max_size=6),
    opened=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_what_is_solved_on_a_random_graph_holds_exactly(blocks: list[int], opened: bool, seed: int) -> None:
    g = Dyadic(1, 3, 4, 5, seed=seed)
    y = g.conv(g.x, 3, 4, 1, 2)
    for block in blocks:
        y = BLOCKS[block](g, y)
    model = g.finish(g.conv(y, 4, 2, 1, 1))
    folded, _report = fold.fold_model(model, open_activations=opened)
    assert_equal(model, folded, seed)

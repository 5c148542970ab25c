"""The bound of what rounding the weights can do: it holds for every rule and every network, and can be broken."""

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

from fold.engine.fold import fold_graph
from fold.errors import BnfoldError
from fold.evaluate.bound_rules import RULES
from fold.evaluate.bounds import RoundingBound
from fold.evaluate.float64 import Evaluator, as_float64, evaluate
from support.folding import ARCHITECTURES, GraphBuilder, architecture, randomise, unfolded_graph

FLOAT, BFLOAT16 = ir.DataType.FLOAT, ir.DataType.BFLOAT16


def stored_in(model: ir.Model, dtype: ir.DataType, names: list[str] | None = None) -> ir.Model:
    """A copy whose float weights (or those named) are rounded to a type."""
    stored = model.clone()
    for name, value in stored.graph.initializers.items():
        if value.dtype == ir.DataType.DOUBLE and (names is None or name in names):
            array = value.const_value.numpy().astype(dtype.numpy())
            value.const_value, value.type = ir.tensor(array, dtype=dtype, name=name), ir.TensorType(dtype)
    return stored


def worst(measured: np.ndarray, value: np.ndarray, bound: np.ndarray) -> float:
    """The largest ratio of the difference to the bound; 0/0 is 0, and NaN is what a bound of infinity allows."""
    difference = np.abs(np.where(np.isinf(bound), 0, measured - value))
    return float(np.divide(difference, bound, out=np.where(difference > 0, np.inf, 0.0), where=bound > 0).max())


def shares(random: np.random.Generator, shape: tuple[int, ...], *, at_ends: bool) -> np.ndarray:
    """Numbers between -1 and 1, or one of both."""
    return random.choice([-1.0, 1.0], shape) if at_ends else random.uniform(-1, 1, shape)


class Case:
    """One node that reads tensors of the shapes given; all of them are off by up to about 0.05, relatively by 2^-8.

    `near` is where the numbers lie around which they are drawn.
    """

    def __init__(
        self,
        op: str,
        *shapes: tuple[int, ...],
        near=0.0,
        spread=1.0,
        before=(),
        constants=(),
        outputs=1,
        opset=20,
        **attributes,
    ):
        self.op, self.shapes, self.spread, self.before, self.constants = op, shapes, spread, before, constants
        self.outputs, self.opset, self.attributes = outputs, opset, attributes
        self.near = near if isinstance(near, tuple) else (near,) * len(shapes)

    def __repr__(self) -> str:
        settings = "-".join(f"{name}={value}" for name, value in self.attributes.items())
        return f"{self.op}-{len(self.shapes)}-{settings}-{self.near[0]}"

    def build(self, seed: int) -> tuple[ir.Model, list[str]]:
        """The graph, and the names of the weights that are to be rounded. Numbers near zero come from a difference."""
        g = GraphBuilder("n", 1, seed=seed, opset=self.opset)
        read, weights = [], []
        for shape, near in zip(self.shapes, self.near, strict=True):
            wanted = near + self.spread * g.random.standard_normal(shape)
            if near:
                wanted = np.abs(wanted)
            far = g.random.uniform(5, 20, shape)
            weight = g.constant(wanted + far)
            weights.append(weight.name)
            read.append(g.op("Sub", weight, g.constant(far)))
        before, behind = (
            [None if array is None else g.constant(np.asarray(array)) for array in arrays]
            for arrays in (self.before, self.constants)
        )
        g.op(self.op, *before, *read, *behind, outputs=self.outputs, **self.attributes)
        return g.finish(*[value for value in g.nodes[-1].outputs if value.name]), weights


S = (2, 3, 5, 4)
CASES = [
    *(
        Case(op, S, near=near)
        for near in (0.0, 1.5)
        for op in (
            *("Abs", "Atan", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish"),
            *("Identity", "LeakyRelu", "LogSoftmax", "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin"),
            *("Softmax", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "GlobalAveragePool", "GlobalMaxPool"),
            *("Gelu", "ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceLogSumExp"),
            *("ReduceSumSquare", "Flatten", "Transpose", "Dropout", "Reciprocal", "Log", "Sqrt"),
        )
    ),
    Case("Softmax", S, spread=6.0, axis=1),
    Case("LogSoftmax", S, spread=6.0, axis=2),
    Case("Gelu", S, approximate="tanh"),
    Case("Swish", S, alpha=-2.0, opset=24),
    Case("Swish", S, opset=24),
    Case("LeakyRelu", S, alpha=3.0),
    Case("Elu", S, alpha=2.5),
    Case("HardSigmoid", S, alpha=-0.4),
    *(Case(op, S, constants=[[1, -1]], keepdims=keep) for op in ("ReduceMean", "ReduceMin") for keep in (0, 1)),
    Case("ReduceProd", S, constants=[[1]]),
    *(Case(op, S, (3, 1, 4)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")),
    *(Case(op, (), S) for op in ("Sub", "Mul", "Div")),
    Case("Div", S, S, near=2.0),
    Case("Sum", S, S, (1,)),
    Case("Max", S, S, (1,)),
    *(Case("Pow", S, near=near, constants=[np.float64(p)]) for near in (0.0, 2.0) for p in (1, 2, 3, 0.5, -1.5, -2)),
    Case("Clip", S, constants=[np.float64(-0.4), np.float64(0.7)]),
    Case("Clip", S, (), (), near=(0.0, -0.5, 0.5), spread=0.3),
    Case("Where", S, S, before=[np.arange(5)[:, None] < 3]),
    Case("Concat", S, (2, 1, 5, 4), axis=1),
    Case("Split", S, outputs=2, axis=2, num_outputs=2),
    Case("Slice", S, constants=[[4, 0], [0, 3], [2, 3], [-2, 1]]),
    Case("Gather", S, constants=[[2, 0]], axis=1),
    Case("GatherElements", S, constants=[np.zeros((2, 3, 5, 1), np.int64)], axis=3),
    Case("GatherND", S, constants=[[[1, 2], [0, 0]]]),
    Case("Compress", S, constants=[[True, False, True]], axis=1),
    Case("ReverseSequence", S, constants=[[2, 1, 2]], batch_axis=1, time_axis=0),
    Case("ScatterND", S, constants=[[[1, 2, 0]], np.ones((1, 4))]),
    Case("ScatterElements", S, constants=[np.zeros((1, 1, 1, 1), np.int64), np.ones((1, 1, 1, 1))], axis=2),
    Case("Trilu", S, upper=0),
    Case("Pad", S, constants=[np.array([0, 0, 1, 2, 0, 1, -1, 0]), np.float64(-1.5)]),
    Case("Pad", S, constants=[np.array([0, 0, 1, 2, 0, 0, 1, 0])], mode="reflect"),
    Case("Pad", S, pads=[0, 0, 1, 2, 0, 0, 1, 0], value=-1.5, opset=10),
    Case("Expand", S, constants=[[2, 2, 3, 5, 4]]),
    Case("Tile", S, constants=[[1, 2, 1, 3]]),
    Case("Reshape", S, constants=[[3, -1]]),
    Case("Squeeze", (2, 1, 5)),
    Case("Unsqueeze", S, constants=[[1]]),
    Case("DepthToSpace", (2, 4, 3, 2), blocksize=2),
    Case("SpaceToDepth", (2, 3, 4, 2), blocksize=2),
    Case("Cast", S, to=ir.DataType.DOUBLE),
    Case("CastLike", S, constants=[np.float64(0)]),
    Case("CumSum", S, constants=[np.int64(2)]),
    Case("AveragePool", S, kernel_shape=[3, 2], pads=[1, 1, 0, 0], strides=[2, 1]),
    Case("AveragePool", S, kernel_shape=[3, 2], pads=[1, 1, 0, 0], count_include_pad=1),
    Case("MaxPool", S, kernel_shape=[3, 2], pads=[1, 1, 0, 0], strides=[2, 1]),
    Case("LpPool", S, kernel_shape=[2, 2], p=2),
    *(Case("Resize", S, constants=[None, np.float32([1, 1, 1.7, 0.6])], mode=mode) for mode in ("nearest", "linear")),
    Case("Resize", S, constants=[None, None, [2, 3, 3, 7]], mode="linear", coordinate_transformation_mode="asymmetric"),
    Case("Upsample", S, constants=[np.float32([1, 1, 2, 1.5])], mode="linear", opset=9),
    Case("Conv", S, (6, 3, 3, 2), (6,), pads=[1, 0, 0, 1], strides=[2, 1]),
    Case("Conv", (2, 4, 7), (6, 2, 3), group=2, dilations=[2]),
    Case("ConvTranspose", (2, 4, 5, 3), (4, 3, 3, 2), (6,), group=2, strides=[2, 1]),
    Case("MatMul", S, (3, 4, 6)),
    Case("MatMul", (5,), (5, 3)),
    Case("Gemm", (5, 4), (6, 5), (6,), alpha=-0.7, beta=-1.3, transA=1, transB=1),
    Case("Gemm", (4, 5), (5, 6), (4, 1), beta=0.4),
    Case("Gemm", (4, 5), (5, 6)),
    Case("Einsum", S, (5, 4, 6), equation="bcij,ijk->bck"),
    Case("BatchNormalization", S, (3,), (3,), (3,), (3,), near=(0.0, 0.0, 0.0, 0.0, 3.0)),
    Case("InstanceNormalization", S, (3,), (3,)),
    Case("LayerNormalization", S, (5, 4), (5, 4), axis=2),
    Case("LayerNormalization", S, (4,)),
]  # fmt: skip
EVERYWHERE_BOUNDED = {case.op for case in CASES} - {"Div", "Log", "Pow", "Reciprocal", "Sqrt"}


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_each_rule_bounds_what_errors_of_its_inputs_do(case: Case) -> None:
    model, weights = case.build(seed=len(repr(case)))
    bound = RoundingBound(model, stored_in(model, BFLOAT16, weights))
    x = {"x": np.zeros((1, 1))}
    with np.errstate(all="ignore"):  # a root or logarithm of less than nothing
        bounded = bound(x)
    assert bound.unbounded == ()
    assert all((limit >= 0).all() for _, limit in bounded.values())
    if case.op in EVERYWHERE_BOUNDED:
        assert all(np.isfinite(limit).all() for _, limit in bounded.values())
    else:
        assert any(np.isfinite(limit).any() for _, limit in bounded.values())
    evaluator, random = Evaluator(model), np.random.default_rng(0)
    exact = {name: evaluator.weight(name) for name in weights}
    reached = 0.0
    for draw in range(100):
        moved = {name: w * (1 + 2.0**-8 * shares(random, w.shape, at_ends=draw % 2 == 0)) for name, w in exact.items()}
        with np.errstate(all="ignore"):
            measured = evaluator({**x, **moved})
        reached = max(reached, *(worst(measured[name], *bounded[name]) for name in bounded))
    assert reached <= 1
    assert reached > 0.05, "the bound is far from what happens"


def test_every_rule_has_a_case() -> None:
    assert {case.op for case in CASES} == set(RULES)


def folded(name: str, seed: int = 1) -> tuple[ir.Model, ir.Model]:
    """An architecture folded with unrounded weights, and as it is stored."""
    module = randomise(architecture(name), seed=seed, hostile=False)
    model = unfolded_graph(name, module)
    return fold_graph(model, exact=True).model, fold_graph(model).model


def drawn(name: str) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(2).standard_normal((3, *ARCHITECTURES[name]))}


@pytest.mark.parametrize("name", ["mlp", "vgg_after", "repvgg", "unet", "shufflenet", "efficientvit", "dcgan"])
def test_rounded_weights_of_an_architecture_respect_the_bound(name) -> None:
    exact, stored = folded(name)
    bound = RoundingBound(exact, stored)
    assert bound.unbounded == ()
    measured = evaluate(stored, drawn(name))
    for output, (value, limit) in bound(drawn(name)).items():
        np.testing.assert_array_equal(value, evaluate(exact, drawn(name))[output])
        assert 0 < limit.max() < np.abs(value).max()
        assert 0 < worst(measured[output], value, limit) <= 1


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, BFLOAT16], ids=lambda dtype: dtype.name)
def test_types_of_lower_precision_have_their_own_bound(dtype) -> None:
    exact, _ = folded("vgg_after")
    exact = as_float64(exact)
    stored = stored_in(exact, dtype)
    ((value, limit),) = RoundingBound(exact, stored)(drawn("vgg_after")).values()
    (measured,) = evaluate(stored, drawn("vgg_after")).values()
    assert worst(measured, value, limit) <= 1
    assert worst(measured, value, limit * 1e-4) > 1, "this type rounds far more than float32 does"


def test_any_weights_within_the_roundoff_respect_the_bound() -> None:
    exact, stored = folded("vgg_after")
    ((value, limit),) = RoundingBound(exact, stored)(drawn("vgg_after")).values()
    evaluator, random = Evaluator(exact), np.random.default_rng(3)
    weights = {name: v.const_value.numpy() for name, v in exact.graph.initializers.items()}
    rounded = {name: w for name, w in weights.items() if w.dtype == np.float64 and (w.astype(np.float32) != w).any()}
    reached = []
    for draw in range(200):
        moved = {
            name: w * (1 + 2.0**-24 * shares(random, w.shape, at_ends=draw % 2 == 0)) for name, w in rounded.items()
        }
        (measured,) = evaluator({**drawn("vgg_after"), **moved}).values()
        reached.append(worst(measured, value, limit))
    assert 0.01 < max(reached) <= 1


def positive_network() -> ir.Model:
    """Two layers without a negative number: nothing cancels, and the bound is nearly reached."""
    g = GraphBuilder("n", 4, seed=4)
    hidden = g.op("Relu", g.op("MatMul", g.x, g.constant(g.random.uniform(1, 2, (4, 5)), "first")))
    return g.finish(g.op("MatMul", hidden, g.constant(g.random.uniform(1, 2, (5, 3)), "second")))


@pytest.mark.parametrize(("dtype", "roundoff", "fault"), [(FLOAT, 2.0**-24, 1e-4), (BFLOAT16, 2.0**-8, 2.0)])
def test_the_bound_is_reached_and_one_wrong_weight_breaks_it(dtype, roundoff, fault) -> None:
    exact = positive_network()
    stored = stored_in(exact, dtype)
    x = {"x": np.random.default_rng(5).uniform(1, 2, (3, 4))}
    ((value, limit),) = RoundingBound(exact, stored)(x).values()
    weights = {name: v.const_value.numpy() for name, v in exact.graph.initializers.items()}
    largest = {name: w * (1 + roundoff) for name, w in weights.items()}
    (measured,) = Evaluator(exact)({**x, **largest}).values()
    assert 0.9999 < worst(measured, value, limit) <= 1
    wrong = stored.graph.initializers["first"].const_value.numpy().astype(np.float64)
    wrong[2, 1] *= 1 + fault
    (measured,) = Evaluator(stored)({**x, "first": wrong}).values()
    assert worst(measured, value, limit) > 5


def test_weights_that_rounding_leaves_alone_cost_nothing() -> None:
    g = GraphBuilder("n", 4, seed=6)
    model = g.finish(g.op("Relu", g.op("MatMul", g.x, g.constant(np.arange(8.0).reshape(4, 2)))))
    ((_, limit),) = RoundingBound(model, stored_in(model, FLOAT))({"x": np.ones((2, 4))}).values()
    assert not limit.any()


@pytest.mark.parametrize(
    ("dtype", "weight"), [(FLOAT, 1e-39), (FLOAT, 3e-46), (ir.DataType.FLOAT16, 3.1e-7), (ir.DataType.FLOAT16, 2e-8)]
)
def test_numbers_too_small_for_their_type_are_bounded_as_they_are_stored(dtype, weight) -> None:
    """Float32 stores what is subnormal as zero, float16 as its nearest neighbour."""
    g = GraphBuilder("n", 2)
    model = g.finish(g.op("Mul", g.x, g.constant(np.array([weight, 3.0]), "w")))
    stored = stored_in(model, dtype)
    w = np.array([0.0 if dtype == FLOAT else np.float16(weight), 3])
    stored.graph.initializers["w"].const_value = ir.tensor(w.astype(dtype.numpy()), name="w")
    x = {"x": np.array([[-1.5, 2.5]])}
    ((value, limit),) = RoundingBound(model, stored)(x).values()
    (measured,) = evaluate(stored, x).values()
    assert 0 < worst(measured, value, limit) <= 1
    assert limit[0, 0] <= 1.5 * weight * (1 + 1e-12)


def test_operators_without_a_rule_are_named_and_unbounded_behind() -> None:
    g = GraphBuilder("n", 4, 5, seed=7)
    weights = g.normal(5, 6)
    free = g.op("Tan", g.x)  # reads no weight
    largest = g.op("TopK", g.op("MatMul", free, weights), g.constant([2]), outputs=2)
    model = g.finish(free, g.op("MatMul", free, weights), g.op("Relu", largest))
    bound = RoundingBound(model, stored_in(model, FLOAT))
    assert bound.unbounded == ("TopK",)
    untouched, product, behind = bound({"x": g.random.standard_normal((2, 4, 5))}).values()
    assert not untouched.bound.any()
    assert np.isfinite(product.bound).all()
    assert np.isinf(behind.bound).all()


def test_what_is_decided_by_rounded_numbers_is_unbounded() -> None:
    g = GraphBuilder("n", 4, seed=8)
    y = g.op("Mul", g.x, g.normal(4))
    chosen = g.op("Where", g.op("Less", y, g.constant(0.0)), y, g.constant(np.ones(4)))
    sizes = g.op("Cast", g.op("Shape", y), to=ir.DataType.DOUBLE)
    model = g.finish(chosen, g.op("Mul", g.op("Neg", y), g.op("ReduceSum", sizes, keepdims=0)))
    bound = RoundingBound(model, stored_in(model, FLOAT))
    decided, negated = bound({"x": np.ones((2, 4))}).values()
    assert bound.unbounded == ("Less",)
    assert np.isinf(decided.bound).all()
    assert np.isfinite(negated.bound).all()


def test_masked_attention_is_bounded() -> None:
    g = GraphBuilder("n", 3, 4, seed=9)
    scores = g.op("MatMul", g.op("MatMul", g.x, g.normal(4, 4)), g.op("Transpose", g.x, perm=[0, 2, 1]))
    masked = g.op("Add", scores, g.constant(np.triu(np.full((3, 3), -np.inf), 1)))
    model = g.finish(g.op("MatMul", g.op("Softmax", masked), g.op("MatMul", g.x, g.normal(4, 5))))
    stored = stored_in(model, FLOAT)
    x = {"x": g.random.standard_normal((2, 3, 4))}
    ((value, limit),) = RoundingBound(model, stored)(x).values()
    (measured,) = evaluate(stored, x).values()
    assert limit.max() < 1e-4
    assert 0 < worst(measured, value, limit) <= 1


def test_normalisation_counts_how_the_deviation_moves() -> None:
    """All others move away from the mean, so that the outlier comes nearer to it, in deviations."""
    g = GraphBuilder("n", 41)
    moved = g.op("Add", g.x, g.constant(np.full(41, 16.1), "w"))
    model = g.finish(g.op("LayerNormalization", moved, g.constant(np.ones(41)), g.constant(np.zeros(41))))
    x = {"x": np.array([[6.0, *[1.0, -1.0] * 20]])}
    ((value, limit),) = RoundingBound(model, stored_in(model, BFLOAT16, ["w"]))(x).values()
    away = 16.1 * (1 + 2.0**-8 * np.array([-1.0, *[1.0, -1.0] * 20]))
    (measured,) = Evaluator(model)({**x, "w": away}).values()
    assert 0.25 < worst(measured[:, :1], value[:, :1], limit[:, :1]) <= 1


def test_a_stored_graph_without_a_weight_is_refused() -> None:
    exact = positive_network()
    other = GraphBuilder("n", 4)
    other.op("Relu", other.x)
    with pytest.raises(BnfoldError, match="no weight 'first'"):
        RoundingBound(exact, other.finish(other.nodes[-1].outputs[0]))


FUNCTION = """
<ir_version: 10, opset_import: ["": 20, "local": 1]>
graph (double[n, 3] x) => (double[n, 3] y) <double[3] w = {1.1, -2.3, 0.7}> { y = local.scaled (x, w) }
<domain: "local", opset_import: ["": 20]>
scaled (a, b) => (c) { d = Mul (a, b) c = Relu (d) }
"""


def test_functions_are_looked_into() -> None:
    model = ir.from_proto(onnx.parser.parse_model(FUNCTION))
    before = ir.to_proto(model).SerializeToString()
    bound = RoundingBound(model, stored_in(model, FLOAT))
    ((_, limit),) = bound({"x": np.array([[1.0, 1.0, 2.0]])}).values()
    assert bound.unbounded == ()
    np.testing.assert_allclose(limit, 2.0**-24 * np.array([[1.1, 0, 1.4]]), rtol=1e-6, atol=0)
    assert ir.to_proto(model).SerializeToString() == before

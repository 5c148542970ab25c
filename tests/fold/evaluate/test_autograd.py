"""A graph in PyTorch against the same in float64 by onnx's reference implementation, operator by operator."""

import re
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

import fold
from fold.errors import BnfoldError
from fold.evaluate.autograd import GRADIENTS, TorchGraph
from fold.evaluate.float64 import as_float64, evaluate
from support.folding import ARCHITECTURES, architecture, randomise, unfolded_graph

SHAPE = "n,4,6,8"


def graph(body: str, shape: str = SHAPE, **constants: object) -> ir.Model:
    """`x` of a shape becomes `y`; constants are initializers."""
    text = f'<ir_version: 10, opset_import: ["": 20]> g (double[{shape}] x) => (double y) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return ir.from_proto(proto)


def check(body: str, shape: str = SHAPE, **constants: object) -> None:
    model = graph(body, shape, **constants)
    sizes = [3 if size == "n" else int(size) for size in shape.split(",")]
    x = np.random.default_rng(3).standard_normal(sizes) * 2
    (expected,) = evaluate(model, {"x": x}).values()
    (actual,) = TorchGraph(model)({"x": torch.from_numpy(x)}).values()
    assert tuple(actual.shape) == expected.shape
    assert actual.numpy().dtype == expected.dtype
    np.testing.assert_allclose(actual.numpy(), expected, rtol=0, atol=1e-12 * max(1, np.abs(expected).max()))


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape)


UNARY = "Abs Ceil Cos Erf Exp Floor Identity Neg Relu Round Sigmoid Sign Sin Softplus Softsign Tanh Mish HardSwish"
ELEMENTS = [
    *(f"y = {name}(x)" for name in UNARY.split()),
    *(f"a = Abs(x) y = {name}(a)" for name in ("Sqrt", "Log", "Reciprocal")),
    "y = LeakyRelu(x)",
    "y = LeakyRelu<alpha=0.3>(x)",
    "y = Elu<alpha=0.7>(x)",
    "y = HardSigmoid(x)",
    "y = HardSigmoid<alpha=0.3, beta=0.4>(x)",
    "y = Gelu(x)",
    'y = Gelu<approximate="tanh">(x)',
    *(f"y = {name}<axis={axis}>(x)" for name in ("Softmax", "LogSoftmax") for axis in (1, -1)),
    "y = Dropout(x)",
    "y = Cast<to=1>(x)",
    "y = Cast<to=7>(x)",
    "i = Cast<to=7>(x) y = CastLike(i, x)",
    *(f"y = {name}(x, x)" for name in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean")),
    "a = Exp(x) y = Div(x, a)",
    "a = Sigmoid(x) b = Tanh(x) y = Mean(a, b, x)",
    *(f"a = Neg(x) c = {name}(a, x) y = Where(c, x, a)" for name in ("Greater", "Less", "Equal")),
    *(f"a = Neg(x) c = {name}(a, x) d = Not(c) y = Where(d, x, a)" for name in ("GreaterOrEqual", "LessOrEqual")),
    *(f"a = Neg(x) c = Less(a, x) d = Equal(a, x) e = {n}(c, d) y = Where(e, x, a)" for n in ("And", "Or", "Xor")),
    *(f"y = {n}<axis=2, keepdims=0>(x)" for n in ("ArgMax", "ArgMin")),
    "a = Sign(x) y = ArgMax<axis=-1, select_last_index=1>(a)",
    *(f"y = {n}(x)" for n in ("GlobalAveragePool", "GlobalMaxPool", "Shape", "Size", "Transpose", "Flatten")),
    "s = Shape<start=1, end=-1>(x) y = ConstantOfShape<value=int64[1] {3}>(s)",
    "y = Flatten<axis=3>(x)",
    "y = Transpose<perm=[2, 0, 3, 1]>(x)",
    "c = Constant<value=double[1] {0.5}>() y = Mul(x, c)",
    'y = Einsum<equation="nchw,nkhw->nck">(x, x)',
    *(f"y = DepthToSpace<blocksize=2, mode={m}>(x)" for m in ('"DCR"', '"CRD"')),
    "y = SpaceToDepth<blocksize=2>(x)",
    "y = Split<axis=1, num_outputs=1>(x)",
    "a, y = Split<axis=3, num_outputs=2>(x)",
    "a, b, y = Split<axis=2, num_outputs=3>(x)",
]


@pytest.mark.parametrize("body", ELEMENTS)
def test_operators_without_constants(body) -> None:
    check(body)


@pytest.mark.parametrize("name", ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"])
def test_reductions(name) -> None:
    check(f"y = {name}(x, a)", a=[-1, 2])
    check(f"y = {name}<keepdims=0>(x, a)", a=[1])
    check(f"y = {name}(x)")
    check(f"y = {name}<noop_with_empty_axes=1>(x)")


def test_movement() -> None:
    check("y = Reshape(x, s)", s=[0, -1, 3])
    check("y = Reshape<allowzero=1>(x, s)", s=[-1, 6, 8])
    check("a = Reshape(x, s) y = Squeeze(a)", "3,4", s=[3, 1, 4, 1])
    check("a = Unsqueeze(x, s) b = Squeeze(a, t) y = Transpose(b)", s=[-1, 1], t=[1])
    check("y = Expand(x, s)", "3,1,6", s=[2, 1, 5, 1])
    check("y = Tile(x, s)", "2,3", s=[2, 3])
    check("y = Slice(x, s, e, a, t)", s=[-1, 1], e=[-100, 7], a=[1, -1], t=[-2, 3])
    check("y = Slice(x, s, e)", s=[0, 1, -3], e=[2, 9, -1])
    check("y = Concat<axis=-2>(x, x, c)", "2,3,4", c=normal(2, 5, 4))
    check("y = Gather<axis=1>(x, i)", i=[[3, -1, 0], [1, 1, 2]])
    check("y = Gather<axis=2>(x, i)", i=-2)
    check("a, b, y = Split<axis=1>(x, s)", "2,9", s=[2, 3, 4])
    check("r = Range(a, b, c) s = Cast<to=11>(r) y = Add(x, s)", "2,3", a=2, b=8, c=2)
    check("s = Shape(x) h = Div(s, t) m = Mul(h, t) y = Reshape(x, m)", "4,6", t=[-2, -3])


def test_elements_with_constants() -> None:
    check("y = Clip(x, a, b)", a=np.array(-0.5), b=np.array(1.0))
    check("y = Clip(x, , b)", b=np.array(1.0))
    check("y = Clip(x)")
    check("y = PRelu(x, s)", s=normal(4, 1, 1))
    check("y = Pow(x, p)", p=np.array(3))
    check("y = Pow(x, p)", p=np.array(2.0, np.float32).astype(np.float64))
    check("y = BatchNormalization<epsilon=0.5>(x, a, b, m, v)", a=normal(4), b=normal(4), m=normal(4), v=normal(4) ** 2)
    check("y = InstanceNormalization<epsilon=0.5>(x, a, b)", a=normal(4), b=normal(4))
    check("y = LayerNormalization<axis=2>(x, a, b)", a=normal(6, 8), b=normal(6, 8))
    check("y = LayerNormalization(x, a)", a=normal(8))
    check("y = MatMul(x, a)", a=normal(8, 5))
    check("y = Gemm<alpha=0.3, beta=0.7, transA=1, transB=1>(x, b, c)", "5,4", b=normal(3, 5), c=normal(3))
    check("y = Gemm(x, b)", "5,4", b=normal(4, 3))


SPACES = [
    "strides=[2, 3], pads=[1, 0, 2, 1]",
    "dilations=[2, 1]",
    'auto_pad="SAME_UPPER", strides=[2, 3]',
    'auto_pad="SAME_LOWER", strides=[2, 3]',
    'auto_pad="VALID", strides=[1, 2]',
]


@pytest.mark.parametrize("attributes", SPACES)
def test_convolutions(attributes) -> None:
    check(f"y = Conv<{attributes}>(x, w, b)", w=normal(6, 4, 3, 2), b=normal(6))
    check(f"y = Conv<{attributes}, group=2>(x, w)", w=normal(6, 2, 3, 2))
    check(f"y = ConvTranspose<{attributes}, group=2>(x, w, b)", w=normal(4, 3, 4, 5), b=normal(6))


def test_convolutions_of_other_ranks_and_sizes() -> None:
    check("y = Conv<pads=[2, 1]>(x, w)", "n,3,7", w=normal(2, 3, 4))
    check("y = Conv<pads=[1, 0, 2, 0, 1, 1]>(x, w)", "n,3,5,4,6", w=normal(2, 3, 3, 2, 2))
    check("y = ConvTranspose<strides=[3, 2], output_padding=[2, 1], pads=[1, 0, 0, 2]>(x, w)", w=normal(4, 3, 3, 2))
    check("y = ConvTranspose<strides=[2, 2], output_shape=[11, 16]>(x, w)", w=normal(4, 3, 3, 2))


POOLS = [*SPACES, "strides=[2, 3], ceil_mode=1", "strides=[4, 3], pads=[1, 1, 0, 1], ceil_mode=1"]


@pytest.mark.parametrize("attributes", POOLS)
def test_pools(attributes) -> None:
    check(f"y = MaxPool<kernel_shape=[3, 2], {attributes}>(x)")
    check(f"y = AveragePool<kernel_shape=[3, 2], {attributes}>(x)")
    for counted in (0, 1):
        check(f"y = AveragePool<kernel_shape=[3, 2], count_include_pad={counted}, {attributes}>(x)")


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding(mode) -> None:
    check(f'y = Pad<mode="{mode}">(x, p)', p=[0, 0, 1, 2, 0, 0, 3, 1])
    check(f'y = Pad<mode="{mode}">(x, p)', p=[0, 1, -1, 0, 0, 2, 2, -2])
    check(f'y = Pad<mode="{mode}">(x, p, , a)', p=[1, -2, 2, 1], a=[-1, 2])
    check(f'y = Pad<mode="{mode}">(x, p, v)', p=[0, 0, 1, 2, 0, 0, 3, 1], v=np.array(1.5))


@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize(mode, coordinates) -> None:
    how = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"'
    for scales in ([1, 1, 2, 1.7], [1, 1, 0.6, 0.5]):
        check(f"y = Resize<{how}>(x, , s)", s=np.array(scales, np.float32))
    check(f"y = Resize<{how}, axes=[-2, -1], exclude_outside=1>(x, , , s)", s=[7, 3])
    for rounding in ("floor", "ceil", "round_prefer_ceil"):
        check(f'y = Resize<{how}, nearest_mode="{rounding}">(x, , , s)', s=[3, 4, 9, 5])


def test_every_operator_of_the_table_is_tried_above() -> None:
    assert set(GRADIENTS) - set(re.findall(r"\w+", Path(__file__).read_text())) == set()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture(name) -> None:
    module = randomise(architecture(name), seed=1)
    model = unfolded_graph(name, module)
    x = {model.graph.inputs[0].name: np.random.default_rng(0).standard_normal((3, *ARCHITECTURES[name]))}
    opened, _ = fold.fold_model(as_float64(model), open_activations=True)
    for each in (model, opened):
        expected, actual = evaluate(each, x), TorchGraph(each)({n: torch.from_numpy(a) for n, a in x.items()})
        for output, truth in expected.items():
            limit = 1e-12 * np.abs(truth).max()
            np.testing.assert_allclose(actual[output].numpy(), truth, rtol=0, atol=limit)


def test_the_gradient_is_that_of_finite_differences() -> None:
    module = randomise(architecture("cnn"), seed=1, hostile=False)
    run = TorchGraph(fold.export_module(module, torch.randn(2, 1, 8, 8)))
    x = torch.from_numpy(normal(2, 1, 8, 8)).requires_grad_()
    direction = torch.from_numpy(np.random.default_rng(2).standard_normal(x.shape))
    (gradient,) = torch.autograd.grad(run({"x": x})["output"].square().sum(), x)
    with torch.no_grad():
        ahead, back = (run({"x": x + h * direction})["output"].square().sum() for h in (1e-6, -1e-6))
    slope = float((gradient * direction).sum())
    assert abs(slope) > 1e-3
    assert float(ahead - back) / 2e-6 == pytest.approx(slope, rel=1e-6)


def test_what_is_not_known_is_named() -> None:
    with pytest.raises(BnfoldError, match=r"operator NonZero is not known in PyTorch"):
        TorchGraph(graph("y = NonZero(x)"))
    with pytest.raises(BnfoldError, match=r"operator Reshape cannot be computed in PyTorch \(shape"):
        TorchGraph(graph("y = Reshape(x, s)", "2,3", s=[5, 7]))({"x": torch.zeros(2, 3, dtype=torch.float64)})
    with pytest.raises(BnfoldError, match=r"operator MaxPool has more outputs than are known"):
        TorchGraph(graph("y, i = MaxPool<kernel_shape=[2, 2]>(x)"))({"x": torch.zeros(1, 4, 6, 8, dtype=torch.float64)})

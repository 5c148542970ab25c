"""Graphs as files hold them: numbers without axes, wrong stored shapes, sequences, and BatchNorms that have no map."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fold
from fold.engine import fold_graph
from fold.inspection import inspect_graph
from support.commands import run
from support.folding import check_fold

RANDOM = np.random.default_rng(0)
WEIGHTS = {"W": (4, 3, 3, 3), "V": (6, 4, 3, 3), "U": (6, 6, 1, 1), "F": (96, 5)}
BATCHNORM = {
    "gamma": [1.5, -0.7, 0.4, -2.0],
    "beta": [0.1, 1.0, -1.0, 0.5],
    "mean": [1.0, 0.0, -2.0, 0.3],
    "var": [1, 0.5, 2, 0.1],
}


def model(nodes: str, x: str = "n, 3, 8, 8", outputs: str = "float y", **tensors: object) -> onnx.ModelProto:
    """A graph in ONNX's text in float32, in which `BN(u)` is a BatchNorm of four channels; no shape is stored."""
    nodes = nodes.replace("BN(", "BatchNormalization(").replace("~", ", gamma, beta, mean, var)")
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 18]> g (float[{x}] x) => ({outputs}) {{ {nodes} }}'
    )
    drawn = {name: RANDOM.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in WEIGHTS.items()}
    read = {name for node in proto.graph.node for name in node.input}
    for name, given in {**drawn, **BATCHNORM, **tensors}.items():
        array = np.asarray(given)
        if name in read:
            array = array if array.dtype.kind in "biu" else array.astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for output in () if "[" in outputs else proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    return proto


RANKS = {
    "m": [
        "Mul(m, k)", "Mul(k, m)", "Add(m, k)", "Sub(k, m)", "Div(m, k)", "Relu(m)", "Clip(m, k)", "LeakyRelu(m)",
        "Abs(m)", "PRelu(m, k)", "Neg(m)", "Max(m, m2)", "Min(m, m2)", "Sum(m, m2)", "Mean(m, m2)", "Add(m, m2)",
        "Mul(m, m2)", "Mul(m, r)", "Add(r, m)", "Identity(m)", "CastLike(m, x)", "Dropout(m)", "Unsqueeze(m, zero)",
        "Transpose(m)", "Reshape(m, one)", "Reshape(m, none)", "Flatten <axis = 0> (m)", "Expand(m, one)",
        "Tile(m, none)", "Exp(m)",
    ],
    "r": [
        "Mul(r, c)", "Add(c, r)", "Relu(r)", "PRelu(r, c)", "Max(r, r2)", "Sum(r, r2)", "Concat <axis = 0> (r, r2)",
        "Gather(r, i)", "Gather(r, zero)", "Slice(r, zero, one)", "ReduceSum(r)", "ReduceMean <keepdims = 0> (r)",
        "ReduceMax(r, zero)", "Squeeze(s)", "Tile(r, one)", "Transpose(r)", "Reshape(r, pair)", "Pad(r, two)",
    ],
}  # fmt: skip


@pytest.mark.parametrize("rank", RANKS)
def test_tensors_of_one_axis_and_of_none_have_gauges_of_their_rank(rank) -> None:
    nodes = """c4 = Conv(x, W) v4 = BN(c4~ d4 = Conv(x, W) m = ReduceMean <keepdims = 0> (d4)
        m2 = ReduceMax <keepdims = 0> (d4) r = ReduceMean <keepdims = 0> (d4, space)
        r2 = ReduceMax <keepdims = 0> (d4, space) s = Slice(r, zero, one) """
    nodes += " ".join(
        f"z{i} = {op} q{i} = ReduceSum <keepdims = 0> (z{i}) y{i} = Mul(v4, q{i})" for i, op in enumerate(RANKS[rank])
    )
    outputs = ", ".join(f"float y{i}" for i in range(len(RANKS[rank])))
    proto = model(
        nodes, outputs=outputs, k=0.5, c=[1.0, 2.0, -1.0, 3.0], i=np.int64(1), space=[0, 2, 3], zero=[0], one=[1],
        none=np.zeros(0, np.int64), two=[1, 1], pair=[2, 2],
    )  # fmt: skip
    source = ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))
    check_fold(source, kept=0)
    shapes = {value.name: value.shape for node in source.graph for value in node.outputs}
    for name, gauge in fold_graph(source).carried.items():
        if name in shapes:
            assert {part.ndim for part in gauge} == {len(shapes[name])}, name


NHWC = """c = Conv(x, W) v = BN(c~ r = Relu(v) d = Conv <pads = [1, 1, 1, 1]> (r, V)
    m = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (d) k = Conv(d, U) a = Add(k, m)
    t = Transpose <perm = [0, 2, 3, 1]> (a) u = Transpose <perm = [0, 3, 1, 2]> (t) cc = Concat <axis = 1> (u, d)
    s1, s2 = Split <axis = 1, num_outputs = 2> (cc) su = Mul(s1, s2) gp = AveragePool <kernel_shape = [3, 3]> (su)
    f = Reshape(gp, flat) y = MatMul(f, F)"""
WRONG = {
    "channels last": lambda sizes: [sizes[0], *sizes[2:], *sizes[1:2]],
    "an axis less": lambda sizes: sizes[:-1],
    "an axis more": lambda sizes: [*sizes, 3],
    "other sizes": lambda sizes: [sizes[0], *[7] * (len(sizes) - 1)],
    "no axis": lambda sizes: [],
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_stored_shapes_change_nothing(wrong) -> None:
    """jax2onnx writes the sizes of channels-last tensors; runtimes do not read them."""
    right = onnx.shape_inference.infer_shapes(model(NHWC, flat=[0, -1]), strict_mode=True)
    expected = fold.fold_model(ir.from_proto(right))[1]
    assert len(expected.folded) == 1
    inferred = list(right.graph.value_info)
    for names in (None, *([value.name for value in inferred] if wrong == "no axis" else ["c", "gp"])):
        proto = onnx.ModelProto()
        proto.CopyFrom(right)
        for value in proto.graph.value_info:
            if names is None or value.name == names:
                dims = value.type.tensor_type.shape.dim
                sizes = WRONG[wrong]([dim.dim_value or dim.dim_param for dim in dims])
                shape = onnx.helper.make_tensor_type_proto(1, sizes)
                value.type.CopyFrom(shape)
        source = ir.from_proto(proto)
        assert fold.fold_model(source)[1] == expected
        assert inspect_graph(source).folded == 1


def test_a_graph_with_wrong_shapes_is_published(tmp_path) -> None:
    proto = onnx.shape_inference.infer_shapes(model(NHWC, flat=[0, -1]), strict_mode=True)
    for value in proto.graph.value_info:
        dims = value.type.tensor_type.shape.dim
        sizes = WRONG["channels last"]([dim.dim_value or dim.dim_param for dim in dims])
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(1, sizes))
    onnx.save(proto, tmp_path / "m.onnx")
    answer, _ = run("fold", tmp_path / "m.onnx", "--out", tmp_path / "repository")
    assert (len(answer["folded"]), answer["verdict"]["equivalent"]) == (1, True)


@pytest.mark.parametrize(
    ("nodes", "kept"),
    [
        ("c = Conv(x, W) u = BN(c~ s = SplitToSequence <axis = 1> (u, two) y = ConcatFromSequence <axis = 1> (s)", []),
        (
            "c = Conv(x, W) s = SplitToSequence <axis = 1> (c, four) t = SequenceAt(s, i) u = BN(t~ y = Exp(u)",
            ["no_law"],
        ),
        ("c = Conv(x, W) u = BN(c~ e = SequenceEmpty() s = SequenceInsert(e, u) y = SequenceAt(s, i)", []),
        ("c = Conv(x, W) u = BN(c~ o = Optional(u) y = OptionalGetElement(o)", []),
    ],
    ids=["behind", "before", "inserted", "optional"],
)
def test_sequences_are_boundaries(tmp_path, nodes, kept) -> None:
    proto = model(nodes, outputs="float[n, 4, 6, 6] y", two=[2, 2], four=[4], i=np.int64(0))
    onnx.save(proto, tmp_path / "m.onnx")
    answer, _ = run("fold", tmp_path / "m.onnx", "--out", tmp_path / "repository")
    assert [entry["code"] for entry in answer["kept"]] == kept
    assert answer["verdict"]["equivalent"] is True


@pytest.mark.parametrize(
    ("batchnorm", "epsilon", "code", "words"),
    [
        ({"gamma": [1, np.nan, 1, 1]}, 1e-5, "not_finite", "not finite"),
        ({"mean": [1, 1, np.inf, 1]}, 1e-5, "not_finite", "not finite"),
        ({"var": [1, -1, 1, 1]}, 1e-5, "negative_variance", "variance + ε of channel 1 is -1,"),
        ({"var": [1, 1, 0.25, 1]}, -0.5, "negative_variance", "variance + ε of channel 2 is -0.25,"),
        ({"var": [0, 1, 1, 1]}, 0.0, "negative_variance", "variance + ε of channel 0 is 0,"),
    ],
    ids=["NaN in gamma", "infinite mean", "negative variance", "negative epsilon", "variance and epsilon 0"],
)
def test_a_batchnorm_without_a_map_is_kept_for_that_reason(batchnorm, epsilon, code, words) -> None:
    nodes = f"c = Conv(x, W) y = BatchNormalization <epsilon = {epsilon}> (c~"
    proto = onnx.shape_inference.infer_shapes(model(nodes, **batchnorm))
    (kept,) = fold.fold_model(ir.from_proto(proto))[1].kept
    assert (kept.code, kept.culprit) == (code, "y")
    assert words in kept.reason


@pytest.mark.parametrize("epsilon", [np.nan, np.inf])
def test_a_batchnorm_whose_epsilon_is_not_finite_is_kept(epsilon) -> None:
    proto = onnx.shape_inference.infer_shapes(model("c = Conv(x, W) y = BN(c~"))
    proto.graph.node[-1].attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    (kept,) = fold.fold_model(ir.from_proto(proto))[1].kept
    assert kept.code == "not_finite"


def test_a_batchnorm_of_no_channels_is_kept() -> None:
    nothing = dict.fromkeys(BATCHNORM, np.zeros(0))
    proto = model("u = BN(x~ y = Relu(u)", x="n, 0, 8, 8", **nothing)
    (kept,) = fold.fold_model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))[1].kept
    assert kept.code == "no_channels"

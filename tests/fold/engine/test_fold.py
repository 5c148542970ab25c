"""What must never break, whatever is folded: sharing, outputs, overridable weights, odd parameters, random graphs."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

import fold
from fold.evaluate.float64 import evaluate
from support.folding import GraphBuilder, batchnorms, check_fold

# --- sharing


def test_a_shared_convolution_weight_is_never_overwritten() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    W = g.normal(4, 3, 1, 1)
    a, b = (g.batchnorm(g.op("Conv", g.x, W), 4) for _ in range(2))
    folded, _ = check_fold(g.finish(a, b), kept=0)
    first, second = (node.inputs[1].name for node in folded.graph if node.op_type == "Conv")
    assert first != second


def test_the_file_that_a_graph_was_read_from_keeps_its_tensors_and_their_names() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1), g.normal(4))
    source = ir.to_proto(g.finish(g.batchnorm(y, 4)))
    before = source.SerializeToString()
    assert fold.fold_model(ir.from_proto(source))[1].folded
    assert source.SerializeToString() == before


def test_a_weight_shared_with_a_node_that_is_not_folded() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    W = g.normal(4, 3, 1, 1)
    check_fold(g.finish(g.batchnorm(g.op("Conv", g.x, W), 4), g.op("Tanh", g.op("Conv", g.x, W))), kept=0)


def test_a_convolution_output_that_is_read_elsewhere_keeps_its_batchnorm() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    _, report = check_fold(g.finish(g.op("Relu", g.batchnorm(y, 4)), g.op("Tanh", y)), kept=1)
    assert report.kept[0].culprit.startswith("Tanh")


def test_a_convolution_output_that_is_a_graph_output_keeps_its_batchnorm() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    _, report = check_fold(g.finish(g.op("Relu", g.batchnorm(y, 4)), y), kept=1)
    assert "output of the graph" in report.kept[0].reason


def test_one_batchnorm_parameter_set_used_twice() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    parameters = [g.constant(g.random.uniform(0.5, 2, 4)) for _ in range(4)]
    a, b = (g.op("BatchNormalization", g.op("Conv", g.x, g.normal(4, 3, 1, 1)), *parameters) for _ in range(2))
    check_fold(g.finish(a, b), kept=0)


def test_two_batchnorms_of_one_tensor() -> None:
    """The first takes the weights; the second would need other ones, and says so."""
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    a, b = g.batchnorm(y, 4), g.batchnorm(y, 4)
    _, report = check_fold(g.finish(g.op("Tanh", a), g.op("Tanh", b)), kept=1)
    assert report.kept[0].culprit.startswith("Tanh") or report.kept[0].culprit.startswith("BatchNormalization")


def test_batchnorm_of_batchnorm_of_batchnorm() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    check_fold(g.finish(g.batchnorm(g.batchnorm(g.batchnorm(y, 4), 4), 4, hostile=True)), kept=0)


# --- inputs and outputs of the graph


def test_a_batchnorm_between_input_and_output_stays() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    _, report = check_fold(g.finish(g.batchnorm(g.x, 3)), kept=1)
    assert "carried as it is" in report.kept[0].reason


def test_a_batchnorm_that_does_nothing_vanishes_even_there() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    one, zero = np.ones(3), np.zeros(3)
    parameters = (one, zero, zero, one - np.float64(np.float32(1e-5)))
    folded, report = check_fold(g.finish(g.op("BatchNormalization", g.x, *(g.constant(a) for a in parameters))), kept=0)
    assert [node.op_type for node in folded.graph] == ["Identity"]
    assert report.folded[0].into == ()


def test_the_output_name_survives_where_the_batchnorm_was_last() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    model = g.finish(g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 1, 1)), 4))
    folded, _ = check_fold(model, kept=0)
    assert folded.graph.outputs[0].name == model.graph.outputs[0].name
    assert len(folded.graph) == 1


def test_overridable_weights_are_left_alone() -> None:
    """An initializer that is also a graph input may be replaced by a caller (onnxsim and onnxslim fold and drop it)."""
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    model = g.finish(g.batchnorm(y, 4))
    variance = next(n for n in model.graph if n.op_type == "BatchNormalization").inputs[4]
    model.graph.inputs.append(variance)
    folded, report = fold.fold_model(model)
    assert len(report.kept) == 1
    assert "override" in report.kept[0].reason
    assert [v.name for v in folded.graph.inputs] == [v.name for v in model.graph.inputs]


# --- odd BatchNorms


def _parameters(**changed: np.ndarray) -> list[np.ndarray]:
    ordinary = {"gamma": np.full(4, 0.7), "beta": np.ones(4), "mean": np.ones(4), "variance": np.full(4, 2.0)}
    return list({**ordinary, **changed}.values())


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"variance": np.array([1, -1, 1, 1.0])}, "variance + ε of channel 1"),
        ({"mean": np.array([1, np.nan, 1, 1.0])}, "not finite"),
        ({"gamma": np.array([1, np.inf, 1, 1.0])}, "not finite"),
    ],
)
def test_a_batchnorm_whose_numbers_make_no_sense_is_kept(changed, reason) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    model = g.finish(g.op("BatchNormalization", y, *(g.constant(a) for a in _parameters(**changed))))
    folded, report = fold.fold_model(model)
    assert reason in report.kept[0].reason
    assert batchnorms(folded) == 1


@pytest.mark.parametrize("variance", [0.0, 1e-30, -5e-6])
def test_variance_near_zero_is_folded_with_its_epsilon(variance) -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    parameters = _parameters(variance=np.array([1, variance, 2, 3.0]))
    check_fold(g.finish(g.op("BatchNormalization", y, *(g.constant(a) for a in parameters))), kept=0)


def test_training_mode_is_kept() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    v = g.op("BatchNormalization", y, *(g.constant(a) for a in _parameters()), outputs=3, training_mode=1)
    _, report = fold.fold_model(g.finish(v))
    assert "training mode" in report.kept[0].reason


def test_a_computed_scale_is_kept() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    gamma, *others = (g.constant(a) for a in _parameters())
    v = g.op("BatchNormalization", g.op("Conv", g.x, g.normal(4, 3, 1, 1)), g.op("Tanh", gamma), *others)
    check_fold(g.finish(v), kept=1)


def test_epsilon_is_the_float32_that_the_graph_holds() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    parameters = _parameters(variance=np.full(4, 1e-7))
    check_fold(g.finish(g.op("BatchNormalization", y, *(g.constant(a) for a in parameters), epsilon=1e-3)), kept=0)


def test_folded_weights_that_would_overflow_are_kept_unfolded() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.constant(g.random.uniform(1, 2, (4, 3, 1, 1)) * 1e4))
    parameters = _parameters(gamma=np.full(4, 1e3))
    model = g.finish(g.op("BatchNormalization", y, *(g.constant(a) for a in parameters)))
    half = _as_type(model, np.float16)
    folded, report = fold.fold_model(half)
    assert "overflow" in report.kept[0].reason
    assert batchnorms(folded) == 1


def test_float16_weights_beside_float32_statistics() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    W = g.normal(4, 3, 1, 1)
    model = g.finish(g.batchnorm(g.op("Conv", g.x, W), 4))
    half = _as_type(model, np.float16, only={W.name})
    folded, report = fold.fold_model(half)
    assert len(report.folded) == 1
    types = {v.name: v.dtype for v in folded.graph.initializers.values()}
    assert set(types.values()) == {ir.DataType.FLOAT16}


def test_subnormal_weights_become_zero_and_are_counted() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.constant(np.full((4, 3, 1, 1), 1e-20)))
    parameters = _parameters(gamma=np.array([1e-25, 1, 1, 1.0]), mean=np.zeros(4))
    model = _as_type(g.finish(g.op("BatchNormalization", y, *(g.constant(a) for a in parameters))), np.float32)
    folded, report = fold.fold_model(model)
    W = next(node for node in folded.graph if node.op_type == "Conv").inputs[1].const_value.numpy()
    assert report.flushed == 3
    assert (W[0] == 0).all()
    assert (W[1:] != 0).all()


def test_a_shift_that_would_drown_the_signal_is_refused() -> None:
    """A tiny γ beside an ordinary β asks the stream to carry t/s, a million times its own size."""
    g = GraphBuilder("n", 4, 6, 7)
    stream = g.op("Conv", g.x, g.normal(4, 4, 1, 1))
    parameters = _parameters(gamma=np.full(4, 1e-6))
    branch = g.op("Relu", g.op("BatchNormalization", stream, *(g.constant(a) for a in parameters)))
    stream = g.op("Add", stream, g.op("Conv", branch, g.normal(4, 4, 1, 1)))
    branch = g.op("Relu", g.batchnorm(stream, 4, positive=True))
    _, report = check_fold(g.finish(g.op("Conv", branch, g.normal(2, 4, 1, 1))), kept=1)
    assert "drown" in report.kept[0].reason


def _as_type(model: ir.Model, dtype: type, only: set[str] | None = None) -> ir.Model:
    for value in model.graph.initializers.values():
        if value.const_value.dtype == ir.DataType.DOUBLE and (only is None or value.name in only):
            value.const_value = ir.tensor(value.const_value.numpy().astype(dtype), name=value.name)
            value.type = ir.TensorType(value.const_value.dtype)
    if only is None:
        for value in (*model.graph.inputs, *(output for node in model.graph for output in node.outputs)):
            value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    return model


# --- subgraphs


def test_what_a_subgraph_reads_is_carried_as_it_is() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    v = g.batchnorm(y, 4)

    def branch(op: str) -> ir.Graph:
        node = ir.node(op, [y], name=f"inner_{op}")
        node.outputs[0].name = f"inner_{op}_0"
        node.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
        node.outputs[0].shape = ir.Shape(["n", 4, 4, 5])
        return ir.Graph([], [node.outputs[0]], nodes=[node], name=op, opset_imports={"": 20})

    chosen = g.op("If", g.constant(np.array(True)), then_branch=branch("Neg"), else_branch=branch("Abs"))
    model = g.finish(v, chosen)
    folded, report = fold.fold_model(model)
    assert len(report.kept) == 1
    assert "subgraph" in report.kept[0].reason
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 5))}
    expected, actual = evaluate(model, x), evaluate(folded, x)
    for name in expected:
        np.testing.assert_allclose(actual[name], expected[name], atol=1e-12)


def test_a_batchnorm_inside_a_subgraph_is_accounted_for() -> None:
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(3, 3, 1, 1))
    inner = ir.node("BatchNormalization", [y, *(g.constant(np.ones(3)) for _ in range(4))], name="inner")
    inner.outputs[0].name = "inner_0"
    inner.outputs[0].type = ir.TensorType(ir.DataType.DOUBLE)
    inner.outputs[0].shape = ir.Shape(["n", 3, 4, 5])
    then = ir.Graph([], [inner.outputs[0]], nodes=[inner], name="then", opset_imports={"": 20})
    other = ir.node("Neg", [y], name="neg")
    other.outputs[0].name = "neg_0"
    other.outputs[0].type, other.outputs[0].shape = inner.outputs[0].type, inner.outputs[0].shape
    otherwise = ir.Graph([], [other.outputs[0]], nodes=[other], name="else", opset_imports={"": 20})
    chosen = g.op("If", g.constant(np.array(True)), then_branch=then, else_branch=otherwise)
    _, report = fold.fold_model(g.finish(chosen))
    assert [entry.name for entry in report.kept] == ["inner"]
    assert "subgraph" in report.kept[0].reason


def test_a_batchnorm_inside_a_function_is_folded() -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 20, "my" : 1]>
        g (float[n,3,4,5] x) => (float[n,3,4,5] y)
        <float[3,3,1,1] W = {1,2,3,4,5,6,7,8,9}, float[3] gamma = {1,2,-3}, float[3] beta = {4,5,6},
         float[3] mean = {1,0,2}, float[3] variance = {1,2,3}> { y = my.block(x, W, gamma, beta, mean, variance) }
        <opset_import: ["" : 20], domain: "my">
        block (x, W, gamma, beta, mean, variance) => (y) {
            u = Conv(x, W)
            y = BatchNormalization(u, gamma, beta, mean, variance)
        }
    """
    model = ir.from_onnx_text(text)
    folded, report = fold.fold_model(model)
    assert len(report.folded) == 1
    assert len(model.functions) == 1
    x = {"x": np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)}
    expected = ReferenceEvaluator(ir.to_proto(model)).run(None, x)[0]
    actual = ReferenceEvaluator(ir.to_proto(folded)).run(None, x)[0]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


# --- whole random graphs


@st.composite
def graphs(draw):
    """A random graph over the operators that have laws: branches, sharing, pools, reshapes, BatchNorms everywhere."""
    g = GraphBuilder("n", 3, 6, 7, seed=draw(st.integers(0, 2**16)))
    values = [(g.x, 3)]
    weights: dict[tuple[int, ...], ir.Value] = {}
    for _ in range(draw(st.integers(3, 12))):
        x, c = draw(st.sampled_from(values))
        kind = draw(
            st.sampled_from(
                [
                    "conv",
                    "pad",
                    "depthwise",
                    "bn",
                    "bn",
                    "bn",
                    "dead",
                    "relu",
                    "max",
                    "mean",
                    "add",
                    "concat",
                    "const",
                    "deconv",
                    "tanh",
                    "shuffle",
                ]
            )
        )
        if kind in ("conv", "pad"):
            outputs = draw(st.sampled_from([3, 4, 6]))
            size = 3 if kind == "pad" else 1
            key = (outputs, c, size, size)
            shared = draw(st.booleans()) and key in weights
            W = (
                weights[key]
                if shared
                else weights.setdefault(key, g.normal(*key))
                if key not in weights
                else g.normal(*key)
            )
            B = [g.normal(outputs)] if draw(st.booleans()) else []
            values.append((g.op("Conv", x, W, *B, pads=[size // 2] * 4), outputs))
        elif kind == "depthwise":
            values.append((g.op("Conv", x, g.normal(c, 1, 3, 3), group=c, pads=[1] * 4), c))
        elif kind == "deconv":
            values.append((g.op("ConvTranspose", x, g.normal(c, 4, 3, 3), pads=[1] * 4), 4))
        elif kind in ("bn", "dead"):
            values.append((g.batchnorm(x, c, hostile=kind == "dead", positive=draw(st.booleans())), c))
        elif kind == "relu":
            values.append((g.op("Relu", x), c))
        elif kind == "tanh":
            values.append((g.op("Tanh", x), c))
        elif kind in ("max", "mean"):
            op = "MaxPool" if kind == "max" else "AveragePool"
            values.append((g.op(op, x, kernel_shape=[3, 3], pads=[1] * 4), c))
        elif kind == "const":
            values.append((g.op("Add", x, g.normal(c, 1, 1)), c))
        elif kind == "shuffle":
            y = g.op("Reshape", x, g.constant([0, 1, c, 6, 7]))
            y = g.op("Transpose", y, perm=[0, 2, 1, 3, 4])
            values.append((g.op("Reshape", y, g.constant([0, c, 6, 7])), c))
        else:
            others = [(v, d) for v, d in values if d == c] if kind == "add" else values
            y, d = draw(st.sampled_from(others))
            values.append((g.op("Add", x, y), c) if kind == "add" else (g.op("Concat", x, y, axis=1), c + d))
    outputs = [v for v, _ in values[1:] if not any(v in node.inputs for node in g.nodes)]
    if draw(st.booleans()):  # weights behind it, so that gauges need not be trivial at the end
        c = next(c for v, c in values if v is outputs[-1])
        outputs[-1] = g.op("Conv", outputs[-1], g.normal(2, c, 1, 1))
    return g.finish(*outputs)


@settings(max_examples=75, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 1000))
def test_any_graph_computes_what_it_did(model, seed) -> None:
    check_fold(model, seed=seed)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_folding_again_is_right_and_keeps_no_more(model) -> None:
    folded, report = fold.fold_model(model)
    _, second = check_fold(folded)
    assert len(second.kept) <= len(report.kept)


# --- opened activations


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 1000))
def test_any_graph_computes_what_it_did_with_activations_opened(model, seed) -> None:
    closed, opened = fold.fold_model(model)[1], check_fold(model, seed=seed, open_activations=True)[1]
    assert len(opened.kept) <= len(closed.kept)


@pytest.mark.parametrize("low_high", [(), (0.0, 6.0), (-0.5, 0.7)], ids=["Relu", "Relu6", "Clip"])
@pytest.mark.parametrize("batchnorm_first", [True, False])
def test_batchnorm_beside_an_activation_becomes_a_clip_by_channel(low_high, batchnorm_first) -> None:
    """With gamma of both signs, zero and tiny; the tensor before is read elsewhere, so its weights cannot help."""
    g = GraphBuilder("n", 5, 6, 7)
    x = g.op("Conv", g.x, g.normal(5, 5, 1, 1))

    def activation(x: ir.Value) -> ir.Value:
        bounds = [g.constant(np.array(bound)) for bound in low_high]
        return g.op("Clip", x, *bounds) if bounds else g.op("Relu", x)

    y = activation(g.batchnorm(x, 5, hostile=True)) if batchnorm_first else g.batchnorm(activation(x), 5, hostile=True)
    y = g.op("Conv", y, g.normal(9, 5, 3, 2), pads=[0, 0, 0, 0] if batchnorm_first else [1, 1, 1, 1])
    outputs = [y, g.op("Tanh", x)] if batchnorm_first else [y]
    model = g.finish(*outputs)
    assert len(fold.fold_model(model)[1].kept) == 1
    folded, _ = check_fold(model, kept=0, open_activations=True)
    assert {"Max", "Min"} & {node.op_type for node in folded.graph}


def test_what_is_open_and_not_needed_stays_as_it_is() -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Relu", g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 1, 1)), 4))
    model = g.finish(y)
    closed, opened = (fold.fold_model(model, open_activations=opened)[0] for opened in (False, True))
    assert ir.to_proto(closed) == ir.to_proto(opened)


# --- borders


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_shift_before_a_padded_convolution_becomes_a_map(auto_pad, groups) -> None:
    g = GraphBuilder("n", 4, 7, 8)
    pads = {} if auto_pad != "NOTSET" else {"pads": [1, 0, 2, 1]}
    y = g.op(
        "Conv", g.batchnorm(g.x, 4, hostile=True), g.normal(6, 4 // groups, 3, 2), g.normal(6),
        group=groups, strides=[2, 3], auto_pad=auto_pad, **pads,
    )  # fmt: skip
    folded, _ = check_fold(g.finish(y), kept=0, open_activations=True)
    assert [node.op_type for node in folded.graph] == ["Conv", "Add"]


def test_a_map_that_costs_no_more_than_the_batchnorm_needs_no_option() -> None:
    g = GraphBuilder("n", 4, 7, 8)
    y = g.op("Conv", g.batchnorm(g.x, 4), g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    check_fold(g.finish(y), kept=0)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_shift_before_a_transposed_convolution_becomes_a_map(groups) -> None:
    g = GraphBuilder("n", 4, 5, 6)
    y = g.op(
        "ConvTranspose", g.batchnorm(g.x, 4, hostile=True), g.normal(4, 8 // groups, 3, 2), g.normal(8),
        group=groups, strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2], dilations=[1, 2],
    )  # fmt: skip
    check_fold(g.finish(y), kept=0, open_activations=True)


# --- constants in the place of a BatchNorm


@pytest.mark.parametrize("before", [True, False])
def test_a_batchnorm_written_out_with_constants_is_one(before) -> None:
    """Sub, Div, Mul, Add by channel, as other frameworks write it."""
    g = GraphBuilder("n", 4, 7, 8)

    def written_out(x: ir.Value) -> ir.Value:
        for op in ("Sub", "Div", "Mul", "Add"):
            x = g.op(op, x, g.normal(4, 1, 1))
        return x

    W = g.normal(4, 4, 1, 1)
    model = g.finish(g.op("Conv", written_out(g.x), W) if before else written_out(g.op("Conv", g.x, W)))
    folded, report = check_fold(model, kept=0)
    assert report.batchnorms == 1
    assert [node.op_type for node in folded.graph] == ["Conv"]


def test_a_constant_along_the_width_is_not_one_by_channel() -> None:
    """Sizes coincide, axes do not: onnxslim 0.1 folds this wrong."""
    g = GraphBuilder("n", 5, 5, 5)
    y = g.op("Mul", g.op("Conv", g.x, g.normal(5, 5, 1, 1)), g.normal(5))
    y = g.op("Add", y, g.normal(1, 1, 5))
    check_fold(g.finish(g.batchnorm(y, 5)))


def test_a_lone_layer_scale_goes_with_the_batchnorm() -> None:
    g = GraphBuilder("n", 4, 5, 6)
    y = g.op("Mul", g.batchnorm(g.op("Conv", g.x, g.normal(4, 4, 3, 3), pads=[1] * 4), 4), g.normal(4, 1, 1))
    folded, _ = check_fold(g.finish(g.op("Tanh", y)), kept=0)
    assert [node.op_type for node in folded.graph] == ["Conv", "Tanh"]

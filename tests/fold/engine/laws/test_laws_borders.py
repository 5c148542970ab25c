"""A shift before a padded convolution of which the sizes are known at run time only: one more channel, of ones."""

import itertools

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import fold
from fold.engine.report import FoldReport
from fold.evaluate.float64 import evaluate
from fold.runtime.session import open_session, run
from support.folding import GraphBuilder, batchnorms, check_fold, interface


def check_at(model: ir.Model, *sizes: dict[str, int], kept: int = 0) -> tuple[ir.Model, FoldReport]:
    """Fold with activations opened and compare in float64 with the inputs' free dimensions at each of `sizes`."""
    folded, report = fold.fold_model(model, open_activations=True)
    assert len(report.kept) == batchnorms(folded) == kept, [entry.reason for entry in report.kept]
    assert interface(folded) == interface(model)
    generator = np.random.default_rng(5)
    for size, offset in itertools.product(sizes, (0, 50)):
        shapes = {value.name: [size.get(str(d), d) for d in value.shape] for value in model.graph.inputs}
        inputs = {name: offset + generator.standard_normal(shape) for name, shape in shapes.items()}
        expected, actual = evaluate(model, inputs), evaluate(folded, inputs)
        for name, truth in expected.items():
            np.testing.assert_allclose(actual[name], truth, rtol=0, atol=1e-12 * np.abs(truth).max())
    return folded, report


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


SIZES = [{"n": 1, "h": 5, "w": 4}, {"n": 3, "h": 6, "w": 9}, {"n": 2, "h": 1, "w": 7}]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 2, 1], "strides": [2, 3]},
        {"pads": [2, 3, 4, 1], "dilations": [2, 3]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 1]},
        {"auto_pad": "SAME_LOWER"},
    ],
    ids=str,
)
def test_a_shift_before_a_padded_convolution_of_any_size_becomes_a_channel_of_ones(attributes, bias) -> None:
    g = GraphBuilder("n", 4, "h", "w")
    B = [g.normal(6)] if bias else []
    y = g.op("Conv", g.batchnorm(g.x, 4, hostile=True), g.normal(6, 4, 3, 2), *B, **attributes)
    folded, report = check_at(g.finish(y), *SIZES)
    assert operators(folded) == ["Pad", "Conv"]
    assert report.folded[0].into


def test_one_axis_of_space() -> None:
    g = GraphBuilder("n", 3, "l")
    y = g.op("Conv", g.batchnorm(g.x, 3, hostile=True), g.normal(5, 3, 4), pads=[3, 1], strides=[2], dilations=[2])
    check_at(g.finish(y), {"n": 2, "l": 3}, {"n": 1, "l": 8}, {"n": 1, "l": 11})


def test_one_size_that_is_not_known_is_enough() -> None:
    g = GraphBuilder("n", 3, 7, "w")
    y = g.op("Conv", g.batchnorm(g.x, 3), g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1])
    folded, _ = check_at(g.finish(y), {"n": 2, "w": 4}, {"n": 1, "w": 9})
    assert operators(folded) == ["Pad", "Conv"]


def test_known_sizes_take_a_map_and_no_channel() -> None:
    g = GraphBuilder("n", 3, 7, 5)
    y = g.op("Conv", g.batchnorm(g.x, 3), g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1])
    folded, _ = check_at(g.finish(y), {"n": 2})
    assert operators(folded) == ["Conv", "Add"]


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": [1, 0, 0, 1], "output_padding": [1, 2], "strides": [2, 3], "dilations": [1, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
    ],
    ids=str,
)
def test_a_transposed_convolution_reads_the_channel_as_well(attributes) -> None:
    g = GraphBuilder("n", 4, "h", "w")
    y = g.op("ConvTranspose", g.batchnorm(g.x, 4, hostile=True), g.normal(4, 6, 3, 2), g.normal(6), **attributes)
    folded, _ = check_at(g.finish(g.batchnorm(y, 6)), *SIZES)
    assert operators(folded) == ["Pad", "ConvTranspose"]


def test_two_convolutions_share_the_weights_that_only_one_of_them_reads_shifted() -> None:
    g = GraphBuilder("n", 3, "h", "w")
    W, B = g.normal(5, 3, 3, 3), g.normal(5)
    behind = g.op("Conv", g.batchnorm(g.x, 3, hostile=True), W, B, pads=[1, 1, 1, 1])
    beside = g.op("Conv", g.op("Tanh", g.x), W, B, pads=[1, 1, 1, 1])
    folded, _ = check_at(g.finish(behind, beside), *SIZES)
    assert [node.inputs[1].name == "c0" for node in folded.graph if node.op_type == "Conv"] == [False, True]


def test_two_convolutions_behind_one_batchnorm_and_a_batchnorm_behind_each() -> None:
    g = GraphBuilder("n", 3, "h", "w")
    v = g.batchnorm(g.x, 3, hostile=True)
    a = g.op("Conv", v, g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1])
    b = g.op("Conv", v, g.normal(4, 3, 2, 1), pads=[1, 0, 0, 0])
    check_at(g.finish(g.batchnorm(a, 5, hostile=True), g.op("Tanh", g.batchnorm(b, 4))), *SIZES)


def test_a_batchnorm_behind_an_activation_before_a_padded_convolution() -> None:
    g = GraphBuilder("n", 3, "h", "w")
    y = g.op("Relu", g.op("Conv", g.x, g.normal(4, 3, 3, 3), pads=[1, 1, 1, 1]))
    y = g.op("Conv", g.batchnorm(y, 4, hostile=True), g.normal(5, 4, 3, 3), pads=[1, 1, 1, 1])
    check_at(g.finish(g.op("Tanh", y)), *SIZES)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_groups_would_each_need_a_channel_of_ones(op) -> None:
    g = GraphBuilder("n", 4, "h", "w")
    y = g.op(op, g.batchnorm(g.x, 4), g.normal(4, 2, 3, 3), group=2, pads=[1, 1, 1, 1])
    check_at(g.finish(y), *SIZES, kept=1)


def test_no_channel_is_added_unless_that_is_asked_for() -> None:
    g = GraphBuilder("n", 4, "h", "w")
    y = g.op("Conv", g.batchnorm(g.x, 4), g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2])
    folded, _ = check_fold(g.finish(y), kept=1)
    assert operators(folded) == ["BatchNormalization", "Conv"]


def test_a_channel_that_would_hold_zero_weights_is_not_read() -> None:
    """A BatchNorm of scales alone has no shift to make up for."""
    g = GraphBuilder("n", 3, "h", "w")
    zeros, ones = g.constant(np.zeros(3)), g.constant(np.ones(3))
    v = g.op("BatchNormalization", g.x, g.constant([-2.0, 0.5, 3.0]), zeros, zeros, ones)
    folded, _ = check_at(g.finish(g.op("Conv", v, g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1])), *SIZES)
    assert operators(folded) == ["Conv"]


@pytest.mark.parametrize("opset", [15, 18])
def test_onnx_runtime_runs_the_channel_in_float32(opset) -> None:
    proto = onnx.parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": {opset}]>
        g (float[n,4,h,w] x) => (float[n,6,a,b] y) {{
            v = BatchNormalization(x, gamma, beta, mean, var)
            y = Conv<pads = [1,1,1,0], strides = [2,1]>(v, W)
        }}""")
    random = np.random.default_rng(3)
    arrays = {"gamma": random.standard_normal(4), "beta": random.standard_normal(4), "mean": random.standard_normal(4)}
    arrays |= {"var": random.uniform(0.1, 3, 4), "W": random.standard_normal((6, 4, 3, 2))}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items())
    folded, _ = fold.fold_model(ir.from_proto(proto), open_activations=True)
    assert operators(folded) == ["Pad", "Conv"]
    session = open_session(ir.to_proto(folded).SerializeToString(), provider="cpu")
    for h, w in ((5, 4), (6, 11)):
        x = {"x": random.standard_normal((2, 4, h, w)).astype(np.float32)}
        truth = evaluate(ir.from_proto(proto), x)["y"]
        np.testing.assert_allclose(run(session, x)["y"], truth, rtol=0, atol=1e-6 * np.abs(truth).max())


def test_a_graph_whose_pad_has_another_form_keeps_its_batchnorm() -> None:
    """Before opset 11 a Pad took its amounts as an attribute; such graphs are lifted, unless folded as they are."""
    for opset, kept in ((10, 1), (11, 0)):
        g = GraphBuilder("n", 3, "h", "w", opset=opset)
        model = g.finish(g.op("Conv", g.batchnorm(g.x, 3), g.normal(5, 3, 3, 3), pads=[1, 1, 1, 1]))
        assert len(fold.fold_model(model, open_activations=True)[1].kept) == kept


@pytest.mark.parametrize("op", ["Shape", "Size"])
def test_who_asks_for_a_shape_does_not_mind_a_shift(op) -> None:
    """Tiny γ beside an ordinary β drowns the signal, but only for those who read it (`Gauges.private`)."""
    g = GraphBuilder("n", 3, 4, 5)
    y = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    size = g.op("Cast", g.op(op, y), to=11)
    check_fold(g.finish(g.batchnorm(y, 4, hostile=True), size), kept=0)

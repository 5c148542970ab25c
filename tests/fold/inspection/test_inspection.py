"""`bnfold inspect`: each number against graphs made by hand, each suspicion, the table, the JSON and the page."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fold
from fold import cli
from fold.artifact.directory import write_manifest
from fold.artifact.manifest import Manifest
from fold.artifact.specs import tensor_specs
from fold.cli import options
from fold.engine.reasons import Code
from fold.graph.file import save_graph
from fold.inspection.batchnorm import BatchNorm
from fold.inspection.inspect import Inspection, inspect_graph
from fold.inspection.suspicions import RULES
from fold.recalibration.checkpoint import RECORD
from fold.reports.inspection import suspicion_sentence, write_inspection_page
from fold.sources.export import export_graph, export_program, save_program
from support import ROOT
from support.folding import GraphBuilder, architecture, unfolded

QUARTER = 0.25
"""An ε that float32 holds exactly."""


class Parameters(dict[str, list[float]]):
    """γ, β, μ and σ² of a healthy BatchNorm of 4 channels, some of them replaced. Scales are 1, -¼, 2 and ¾."""

    def __init__(self, **replaced: list[float]) -> None:
        healthy = {
            "gamma": [1.0, -0.5, 2.0, 2.25],
            "beta": [0.5, -1.0, 0.25, 3.0],
            "mean": [-2.0, 0.125, 1.0, 0.5],
            "variance": [0.75, 3.75, 0.75, 8.75],
        }
        super().__init__(healthy | replaced)


def add(g: GraphBuilder, u: ir.Value, parameters: Parameters, name: str = "bn", **attributes: object) -> ir.Value:
    names = ("weight", "bias", "running_mean", "running_var")
    constants = [
        g.constant(np.array(array, np.float64), f"{name}.{of}")
        for of, array in zip(names, parameters.values(), strict=True)
    ]
    return g.op("BatchNormalization", u, *constants, epsilon=QUARTER, **attributes)


def convolved(parameters: Parameters, W: np.ndarray | None = None, **attributes: object) -> ir.Model:
    """x, convolution, BatchNorm of 4 channels, ReLU."""
    g = GraphBuilder("n", 3, 5, 7)
    u = g.op("Conv", g.x, g.constant(g.random.standard_normal((4, 3, 1, 1)) if W is None else W, "conv.weight"))
    return g.finish(g.op("Relu", add(g, u, parameters, **attributes)))


def only(inspection: Inspection) -> BatchNorm:
    (one,) = inspection.batchnorms
    return one


def texts(inspection: Inspection) -> dict[str, str]:
    return {one.code: one.text for one in inspection.suspicions}


def of_text(text: str, **tensors: list[float]) -> ir.Model:
    """A graph from its text; constants of float32 are appended, which each node of the text may read."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20, "own": 1]> {text}')
    for name, values in tensors.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float32), name))
    return ir.from_proto(proto)


# --- the numbers of one BatchNorm


def test_each_number_of_a_batchnorm() -> None:
    variance = [0.75, 3.75, 0.0, 8.75]  # the third scale is γ/√ε
    model = convolved(Parameters(gamma=[1.0, -0.5, 2.0, 0.0], variance=variance))
    before = ir.to_proto(model).SerializeToString()
    one = only(inspect_graph(model, {"bn": 390}))
    assert ir.to_proto(model).SerializeToString() == before
    found = one.statistics
    assert (one.name, one.node, one.channels) == ("bn", "BatchNormalization_1", 4)
    assert found.epsilon == QUARTER
    assert found.gamma == (-0.5, 2.0)
    assert found.beta == (-1.0, 3.0)
    assert found.mean == (-2.0, 1.0)
    assert found.variance == (0.0, 8.75)
    assert found.variance_over_epsilon == 0.0
    assert found.scale == (0.25, 4.0)  # of 1, -1/4, 4; the dead channel has none
    assert (found.dead, found.negative, found.tiny) == (1, 1, 1)
    assert (found.not_finite, found.negative_variance, found.training_mode, found.written_out) == (0, 0, False, False)
    assert (found.batches_seen, found.trained) == (390, True)
    assert found.initial_share == pytest.approx(0.9**390, rel=1e-4)


def test_ranges_are_over_what_is_finite_and_channels_are_counted_once() -> None:
    nan, inf = float("nan"), float("inf")
    parameters = Parameters(gamma=[nan, 1.0, 2.0, -3.0], mean=[inf, 0.0, 1.0, 2.0], variance=[1.0, -0.5, -2.0, nan])
    one = only(inspect_graph(convolved(parameters)))
    found = one.statistics
    assert (found.gamma, found.mean, found.variance) == ((-3.0, 2.0), (0.0, 2.0), (-2.0, 1.0))
    assert (found.not_finite, found.negative_variance, found.tiny) == (2, 2, 0)
    assert (found.scale, one.into, one.stretch) == (None, None, None)
    assert found.variance_over_epsilon == -8.0
    json.dumps(one.to_dict(), allow_nan=False)


@settings(derandomize=True, max_examples=40, deadline=None)
@given(st.data())
def test_the_counts_are_those_of_the_channels(data: st.DataObject) -> None:
    numbers = st.sampled_from([0.0, 1e-7, -1e-7, 0.2, 0.25, -0.25, 3.0, -40.0])
    gamma, variance = (data.draw(st.lists(numbers, min_size=4, max_size=4)) for _ in range(2))
    variance = [abs(each) for each in variance]
    found = only(inspect_graph(convolved(Parameters(gamma=gamma, variance=variance)))).statistics
    assert found.dead == sum(each == 0 for each in gamma)
    assert found.negative == sum(each < 0 for each in gamma)
    assert found.tiny == sum(each < QUARTER for each in variance)
    scales = [abs(g) / (v + QUARTER) ** 0.5 for g, v in zip(gamma, variance, strict=True) if g]
    assert found.scale == (pytest.approx((min(scales), max(scales)), rel=1e-12) if scales else None)


@pytest.mark.parametrize(
    ("initial", "counts", "trained"),
    [
        (True, {}, False),
        (True, {"bn": 7}, False),
        (False, {}, True),
        (False, {"bn": 7}, True),
        (False, {"bn": 0}, None),
    ],
)
def test_whether_it_was_trained(initial, counts, trained) -> None:
    parameters = Parameters(mean=[0.0] * 4, variance=[1.0] * 4) if initial else Parameters()
    assert only(inspect_graph(convolved(parameters), counts)).statistics.trained is trained


def test_one_that_is_written_out_has_a_scale_and_no_statistics() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    u = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    s, t = (np.array(values).reshape(4, 1, 1) for values in ([2.0, -0.5, 0.0, -3.0], [1.0, 2.0, 3.0, 4.0]))
    v = g.op("Add", g.op("Mul", u, g.constant(s)), g.constant(t))
    one = only(inspect_graph(g.finish(g.op("Relu", v)), {"Add_2": 0, "Mul_1": 0}))
    found = one.statistics
    assert (one.name, one.channels, found.written_out, found.scale) == ("Add_2", 4, True, (0.5, 3.0))
    assert (found.dead, found.negative, found.tiny, found.trained) == (1, 2, None, None)
    assert (found.gamma, found.beta, found.mean, found.variance, found.epsilon) == (None,) * 5
    assert str(one.placement) == "after Conv_0 (Conv), before Relu_3 (Relu)"


def test_a_single_difference_that_is_a_batchnorm_written_out() -> None:
    g = GraphBuilder("n", 4, 5, 7)
    c = g.constant(np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1))
    one = only(inspect_graph(g.finish(g.op("Conv", g.op("Sub", c, g.x), g.normal(2, 4, 1, 1)))))
    assert (one.statistics.written_out, one.statistics.scale, one.statistics.negative) == (True, (1.0, 1.0), 4)


# --- where it stands


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("u = Conv(x, W) v = BN(u) y = Relu(v)", "after u (Conv), before y (Relu)"),
        ("u = Conv(x, W) r = Relu(u) v = BN(r) y = Conv(v, W)", "after r (Relu) of u (Conv), before y (Conv)"),
        ("v = BN(x) y = Conv(v, W)", "after the input x, before y (Conv)"),
        ("u = Conv(x, W) y = BN(u)", "after u (Conv), before the output y"),
        ("u = Conv(x, W) m = MaxPool <kernel_shape = [2, 2]> (u) v = BN(m) f = Identity(v) y = Tanh(f)",
         "after u (Conv), before y (Tanh)"),
        ("a = Conv(x, W) b = Conv(x, W) r = Relu(a) u = Add(r, b) v = BN(u) y = Relu(v)",
         "after b (Conv), a (Conv), before y (Relu)"),  # the activation is on one way only
        ("a = Conv(x, W) b = Conv(x, W) c = Conv(x, W) d = Conv(x, W) u = Sum(a, b, c, d) v = BN(u) y = Relu(v)",
         "after a (Conv), b (Conv), c (Conv) and 1 more, before y (Relu)"),
        ("u = Conv(x, W) v = BN(u) s = Sigmoid(v) m = Mul(v, s) y = Conv(m, W)", "after u (Conv), before s (Sigmoid)"),
        ("u = Conv(x, W) s = Sigmoid(u) m = Mul(u, s) v = BN(m) y = Conv(v, W)",
         "after s (Sigmoid) of u (Conv), before y (Conv)"),
        ("u = Conv(x, W) m = Max(u, zero) v = BN(m) y = Conv(v, W)", "after m (Max) of u (Conv), before y (Conv)"),
        ("u = Conv(x, W) v = BN(u) r = Relu(v) c = Conv(v, W) y = Add(r, c)",
         "after u (Conv), before r (Relu), c (Conv)"),
        ("u = Conv(x, W) v = BN(u) p = GlobalAveragePool(v) g = Conv(p, W) m = Mul(v, g) y = Relu(m)",
         "after u (Conv), before g (Conv), y (Relu)"),  # a gate with weights is no activation of v
        ("u = Conv(x, W) v = BN(u) s = Sigmoid(x) m = Mul(v, s) y = Conv(m, W)", "after u (Conv), before y (Conv)"),
        ("u = Conv(x, W) v = BN(u) a = Add(v, zero) m = Mul(v, a) y = Conv(m, W)", "after u (Conv), before y (Conv)"),
        ("t = Transpose <perm = [0, 2, 3, 1]> (x) u = MatMul(t, M) z = Transpose <perm = [0, 3, 1, 2]> (u) v = BN(z)"
         "h = HardSwish(v) y = Conv(h, W)", "after u (MatMul), before h (HardSwish)"),
        ("k = Transpose <perm = [0, 1, 3, 2]> (x) u = MatMul(x, k) v = BN(u) y = Softmax(v)",
         "after the input x, before y (Softmax)"),  # a product of two tensors has no weights
    ],
)  # fmt: skip
def test_where_it_stands(nodes, expected) -> None:
    nodes = re.sub(r"BN\((\w+)\)", r"BatchNormalization(\1, gamma, beta, mean, variance)", nodes)
    model = of_text(
        f"g (float[n,2,6,6] x) => (float y) {{ {nodes} }}",
        W=[[[[1.0]], [[2.0]]], [[[-1.0]], [[0.5]]]],
        M=[[1.0, 2.0], [3.0, 4.0]],
        zero=0.0,
        gamma=[1.0, -2.0],
        beta=[0.5, 1.0],
        mean=[1.0, 2.0],
        variance=[2.0, 3.0],
    )
    model.graph.outputs[0].shape = None
    assert str(only(inspect_graph(model)).placement) == expected


def test_a_batchnorm_behind_another() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    v = add(g, g.op("Conv", g.x, g.normal(4, 3, 1, 1)), Parameters(), "one")
    first, second = inspect_graph(g.finish(g.op("Relu", add(g, v, Parameters(), "two")))).batchnorms
    assert str(first.placement) == "after Conv_0 (Conv), before two (BatchNormalization)"
    assert str(second.placement) == "after one (BatchNormalization), before Relu_3 (Relu)"


# --- where it would go, and what that does to weights


@pytest.mark.parametrize("name", ["densenet", "repvgg"])
@pytest.mark.parametrize("open_activations", [False, True])
def test_it_goes_where_a_fold_puts_it(name, open_activations) -> None:
    model = unfolded(name)
    inspection = inspect_graph(model, open_activations=open_activations)
    _, report = fold.fold_model(model, open_activations=open_activations)
    found = inspection.batchnorms
    assert [(b.name, b.node, b.channels, b.into) for b in found if b.into is not None] == [
        (entry.name, entry.node, entry.channels, entry.into) for entry in report.folded
    ]
    assert [(b.name, b.node, b.why) for b in found if b.into is None] == [
        (entry.name, entry.node, entry.why) for entry in report.kept
    ]
    assert inspection.folded == len(report.folded)


WEIGHTS = np.array([[1.0, -2.0, 0.0], [4.0, 0.5, 1.0], [0.25, 0.25, 0.125], [-8.0, 2.0, 0.0]])
"""[O, I]. Folded behind by the scales 1, -1/4, 2 and 3/4 the largest of each output are 2, 1, 1/2 and 6."""


def after(g: GraphBuilder, kind: str) -> ir.Value:
    """A layer that computes with `WEIGHTS`, in each form in which ONNX has one; outputs along axis 1."""
    match kind:
        case "Conv":
            return g.op("Conv", g.x, g.constant(WEIGHTS.reshape(4, 3, 1, 1), "w"))
        case "ConvTranspose":
            return g.op("ConvTranspose", g.x, g.constant(WEIGHTS.T.reshape(3, 4, 1, 1), "w"))
        case "Gemm":
            return g.op("Gemm", g.x, g.constant(WEIGHTS.T, "w"))
        case "Gemm transB":
            return g.op("Gemm", g.x, g.constant(WEIGHTS, "w"), transB=1)
        case "MatMul":
            return g.op("MatMul", g.x, g.constant(WEIGHTS.T, "w"))
    return g.op("MatMul", g.constant(WEIGHTS, "w"), g.x)


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm", "Gemm transB", "MatMul", "MatMul from the left"])
def test_how_far_weights_are_stretched(kind) -> None:
    shape = {"Conv": (3, 5, 7), "ConvTranspose": (3, 5, 7), "MatMul from the left": (3, 5)}.get(kind, (3,))
    g = GraphBuilder("n", *shape)
    inspection = inspect_graph(g.finish(g.op("Relu", add(g, after(g, kind), Parameters()))))
    one = only(inspection)
    assert one.into is not None
    assert one.into[0] == "w"
    assert one.stretch == (0.25, 2.0)
    (tensor,) = inspection.weights
    assert (tensor.name, tensor.operator) == ("w", kind.split()[0])
    assert (tensor.largest_before, tensor.largest) == (8.0, 6.0)
    assert (tensor.spread_before, tensor.spread) == (8.0 / 0.25, 6.0 / 0.5)
    assert tensor.stretch == (0.25, 2.0)


def test_the_outputs_of_a_transposed_convolution_in_groups() -> None:
    """[I, O/g] = [2, 2] with two groups: each input has two outputs of its own, and the scales are 1, -1/4, 2, 3/4."""
    g = GraphBuilder("n", 2, 5, 7)
    u = g.op("ConvTranspose", g.x, g.constant(np.array([[1.0, 2.0], [4.0, 8.0]]).reshape(2, 2, 1, 1), "w"), group=2)
    (tensor,) = inspect_graph(g.finish(g.op("Relu", add(g, u, Parameters())))).weights
    assert (tensor.largest_before, tensor.spread_before) == (8.0, 8.0)
    assert (tensor.largest, tensor.spread) == (8.0, 8.0 / 0.5)  # 1, 1/2, 8, 6


def test_a_batchnorm_that_goes_forward_stretches_inputs() -> None:
    g = GraphBuilder("n", 4, 5, 7)
    W = np.array([[1.0, 4.0, 0.5, 4.0], [2.0, 2.0, 0.0, 8.0]]).reshape(2, 4, 1, 1)
    inspection = inspect_graph(g.finish(g.op("Tanh", g.op("Conv", add(g, g.x, Parameters()), g.constant(W, "w")))))
    (tensor,) = inspection.weights
    assert only(inspection).stretch == (0.25, 2.0)
    assert (tensor.largest_before, tensor.largest) == (8.0, 6.0)  # 1, -1, 1, 3 and 2, -1/2, 0, 6
    assert (tensor.spread_before, tensor.spread) == (2.0, 2.0)


def test_what_a_dead_channel_leaves_is_no_stretch() -> None:
    (tensor,) = inspect_graph(convolved(Parameters(gamma=[1.0, 0.0, 2.0, 2.25]), WEIGHTS.reshape(4, 3, 1, 1))).weights
    assert tensor.stretch == (0.75, 2.0)
    assert (tensor.largest, tensor.spread) == (6.0, 6.0 / 0.5)


def test_weights_are_looked_at_before_they_are_rounded() -> None:
    text = "g (float[n,1,3] x) => (float[n,1,3] y) { u = Conv(x, W) v = BatchNormalization(u, g, z, z, o) y = Relu(v) }"
    (tensor,) = inspect_graph(of_text(text, W=[[[0.1]]], g=[0.7], z=[0.0], o=[2.0])).weights
    exact = float(np.float32(0.1)) * float(np.float32(0.7)) / np.sqrt(2 + float(np.float32(1e-5)))
    assert tensor.largest == pytest.approx(exact, rel=1e-15)


def test_a_shared_weight_is_held_against_itself() -> None:
    """Two BatchNorms, each behind a convolution with the same weights: each gets weights of its own."""
    g = GraphBuilder("n", 3, 5, 7)
    W = g.constant(WEIGHTS.reshape(4, 3, 1, 1), "w")
    double = Parameters(gamma=[2.0, -1.0, 4.0, 4.5])
    ys = [g.op("Relu", add(g, g.op("Conv", g.x, W), p, n)) for p, n in ((Parameters(), "one"), (double, "two"))]
    inspection = inspect_graph(g.finish(g.op("Concat", *ys, axis=1)))
    assert [one.stretch for one in inspection.batchnorms] == [(0.25, 2.0), (0.5, 4.0)]
    assert [(tensor.largest_before, tensor.largest) for tensor in inspection.weights] == [(8.0, 6.0), (8.0, 12.0)]
    assert len({tensor.name for tensor in inspection.weights}) == 2


def test_merged_branches_have_no_weights_before() -> None:
    """A 3×3 and a 1×1 convolution of one tensor are one; the 3×3 one alone is not what it is to be compared with."""
    g = GraphBuilder("n", 3, 5, 7)
    a = add(g, g.op("Conv", g.x, g.normal(4, 3, 3, 3), pads=[1] * 4), Parameters(), "a")
    b = add(g, g.op("Conv", g.x, g.normal(4, 3, 1, 1)), Parameters(), "b")
    inspection = inspect_graph(g.finish(g.op("Relu", g.op("Add", a, b))))
    (tensor,) = inspection.weights
    assert (tensor.largest_before, tensor.spread_before, tensor.stretch) == (None, None, None)
    assert tensor.largest > 0
    assert [one.into and one.into[0] for one in inspection.batchnorms] == [tensor.name] * 2


def test_what_float16_does_to_folded_weights() -> None:
    """Folded with a scale of 2: 65519 rounds to 65504, 65520 to infinity, 2^-25 to 0, 2^-24 to itself."""
    W = np.array([65519.0, 65520.0, -1e6, 2.0**-25, 2.0**-24, 2.0**-14, 2.0**-15, 0.0, 1.0, -1e-9, 3.0, 5.0])
    g = GraphBuilder("n", 3, 5, 7)
    bias = [0.5, 1e-9, -1e5, 0.0]
    u = g.op("Conv", g.x, g.constant(W.reshape(4, 3, 1, 1) / 2, "w"), g.constant(np.array(bias), "b"))
    one = Parameters(gamma=[4.0] * 4, beta=[0.0] * 4, mean=[0.0] * 4, variance=[3.75] * 4)
    inspection = inspect_graph(g.finish(g.op("Relu", add(g, u, one))))
    (tensor,) = inspection.weights
    half = tensor.float16
    assert (half.numbers, half.largest, half.overflow, half.lost, half.subnormal) == (11, 1e6, 2, 2, 2)
    both = only(inspection).float16  # the bias, too
    assert both is not None
    assert (both.numbers, both.largest, both.overflow, both.lost, both.subnormal) == (14, 1e6, 3, 3, 2)


def test_what_float16_does_to_a_batchnorm_that_is_kept() -> None:
    g = GraphBuilder("n", 4, 5, 7)
    parameters = Parameters(variance=[1e-9, 0.75, 70000.0, 2.0**-20], beta=[0.0, 1.0, 2.0, 3.0])
    one = only(inspect_graph(g.finish(g.op("Relu", add(g, g.x, parameters)))))
    assert one.into is None
    assert one.float16 is not None
    assert (one.float16.numbers, one.float16.overflow, one.float16.lost, one.float16.subnormal) == (15, 1, 1, 1)


def test_of_a_batchnorm_that_stays_what_folding_leaves_of_it_is_looked_at() -> None:
    """The BatchNorm in front folds into the one that stays, whose γ becomes 400·400."""
    g = GraphBuilder("n", 4, 5, 7)
    large = Parameters(gamma=[400.0] * 4, variance=[0.75] * 4, beta=[0.0] * 4, mean=[0.0] * 4)
    v = add(g, add(g, g.x, large, "one"), large, "two")
    first, second = inspect_graph(g.finish(g.op("Sigmoid", v))).batchnorms
    assert first.into is not None
    assert second.into is None
    assert second.float16 is not None
    assert second.float16.largest == pytest.approx(160000, rel=1e-12)


# --- where graphs are odd


def test_in_functions_and_subgraphs_and_without_names() -> None:
    parameters = "gamma, beta, mean, variance"
    text = f"""
        g (float[n,2,3] x, bool b) => (float[n,2,3] y) {{
            u = Conv(x, W)
            v = BatchNormalization(u, {parameters})
            r = Relu(v)
            w = BatchNormalization(r, {parameters})
            z = If(b) <then_branch = t () => (float[n,2,3] one) {{ one = BatchNormalization(w, {parameters}) }},
                       else_branch = e () => (float[n,2,3] two) {{ two = Tanh(w) }}>
            y = own.normalised(z, {parameters})
        }}
        <domain: "own", opset_import: ["": 20]>
        normalised (p, g, b, m, s) => (q) {{ q = BatchNormalization(p, g, b, m, s) }}
    """
    tensors = {"gamma": [1.0, -2.0], "beta": [0.5, 1.0], "mean": [1.0, 2.0], "variance": [2.0, 3.0]}
    found = inspect_graph(of_text(text, W=[[[1.0], [2.0]], [[-1.0], [0.5]]], **tensors)).batchnorms
    assert len(found) == 4
    assert [one.into is None for one in found] == [False, True, True, True]
    assert str(found[2].why) == "it is inside a subgraph, where folding stops"
    assert {one.statistics.gamma for one in found} == {(-2.0, 1.0)}
    assert len({one.node for one in found}) == 4
    assert [one.name for one in found[:3]] == ["v", "w", "one"]


def test_two_nodes_of_one_name_are_told_apart() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    v = add(g, g.op("Conv", g.x, g.normal(4, 3, 1, 1)), Parameters(), "bn")
    parameters = g.nodes[-1].inputs[1:]
    y = g.op("BatchNormalization", g.op("Relu", v), *parameters, epsilon=QUARTER)
    g.nodes[-1].name = g.nodes[1].name
    first, second = inspect_graph(g.finish(y)).batchnorms
    assert (first.name, second.name) == ("bn", "bn")
    assert first.into is not None
    assert second.into is None


def test_parameters_that_a_caller_may_override_are_not_known() -> None:
    model = convolved(Parameters())
    model.graph.inputs.append(model.graph.initializers["bn.running_var"])
    one = only(inspect_graph(model))
    found = one.statistics
    assert (found.variance, found.tiny, found.scale, found.variance_over_epsilon) == (None, None, None, None)
    assert found.gamma == (-0.5, 2.25)
    assert one.why is not None
    assert one.why.code is Code.COMPUTED_PARAMETERS


def test_an_instance_norm_with_running_statistics_is_a_batchnorm() -> None:
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True, momentum=0.5)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    norm.running_var.copy_(torch.tensor([4.0, 0.5, 1.5, 9.0]))
    module = nn.Sequential(nn.Conv1d(3, 4, 2), norm, nn.ReLU()).eval()
    one = only(inspect_graph(fold.export_module(module, torch.randn(2, 3, 7)), {"1": 3}))
    assert (one.name, one.into) == ("1", ("0.weight", "0.bias"))
    assert (one.statistics.mean, one.statistics.variance) == ((-2.0, 3.0), (0.5, 9.0))
    assert one.statistics.initial_share == 0.125


# --- what is suspicious


def test_a_healthy_model_is_not_suspicious() -> None:
    assert inspect_graph(convolved(Parameters()), {"bn": 390}).suspicions == ()
    assert inspect_graph(convolved(Parameters())).suspicions == ()


ONES = np.ones((4, 3, 1, 1))
SUSPICIOUS = {
    "not_finite": (
        convolved(Parameters(mean=[0.0, float("inf"), 1.0, float("nan")])),
        "its parameters or statistics are not finite in 2 of 4 channels",
    ),
    "negative_variance": (
        convolved(Parameters(variance=[1.0, -0.125, 2.0, -0.5])),
        "its variance is negative in 2 of 4 channels, down to -0.5",
    ),
    "training_mode": (
        convolved(Parameters(), training_mode=1, outputs=3),
        "it is in training mode: it normalises by the batch, and its statistics are not used",
    ),
    "never_trained": (
        convolved(Parameters(mean=[0.0] * 4, variance=[1.0] * 4)),
        "never trained: its statistics are still mean 0, variance 1",
    ),
    "dead_channels": (
        convolved(Parameters(gamma=[1.0, 0.0, 2.0, 0.0])),
        "it is dead in 2 of 4 channels: γ is 0 there, and the output is β whatever comes in",
    ),
    "epsilon_dominates": (
        convolved(Parameters(variance=[1.0, 0.125, 2.0, 0.0625])),
        "its variance is below ε (0.25) in 2 of 4 channels, the least 0.25 times ε: there ε decides the scale",
    ),
    "large_scale": (
        convolved(Parameters(gamma=[1.0, -2001.0, 1.0, 1.0])),
        "it multiplies a channel by 1e+03, and the rounding of what comes in with it",
    ),
    "float16_overflow": (
        convolved(Parameters(gamma=[800.0] * 4, variance=[0.75] * 4), 100 * ONES),
        "the weights that absorb it would overflow float16, which ends at 65504: 8e+04",
    ),
    "float16_loss": (
        convolved(Parameters(), 1e-9 * ONES),
        "the weights that absorb it would lose 12 of 16 numbers in float16, which become 0",
    ),
}


@pytest.mark.parametrize("code", SUSPICIOUS)
def test_what_is_suspicious(code) -> None:
    model, text = SUSPICIOUS[code]
    assert texts(inspect_graph(model, {"bn": 390} if code != "never_trained" else {})) == {code: text}


def test_never_trained_although_batches_were_counted() -> None:
    model, text = SUSPICIOUS["never_trained"]
    assert texts(inspect_graph(model, {"bn": 1})) == {"never_trained": f"{text}, though training counted 1 batch"}
    assert texts(inspect_graph(model, {"bn": 0})) == {"never_trained": text}


AVERAGED = Parameters(variance=[0.99, 3.75, 0.95, 8.75])


@pytest.mark.parametrize(
    ("seen", "momentum", "share"), [(1, 0.9, "90%"), (43, 0.9, "1%"), (44, 0.9, None), (2, 0.5, "25%"), (7, 0.5, None)]
)
def test_statistics_of_few_batches(seen, momentum, share) -> None:
    found = texts(inspect_graph(convolved(AVERAGED, momentum=momentum), {"bn": seen}))
    batches = "1 batch" if seen == 1 else f"{seen} batches"
    text = f"its statistics are of {batches}: the initial mean 0, variance 1 still weighs {share}"
    assert found == ({} if share is None else {"few_batches": text})


def test_few_batches_are_enough_where_no_initial_statistics_are_left() -> None:
    """In an average of all batches alike, in recalibrated ones, and where a variance is less than 1 would leave."""
    alike = inspect_graph(convolved(AVERAGED, momentum=1.0), {"bn": 2})
    assert (texts(alike), only(alike).statistics.initial_share) == ({}, None)
    assert texts(inspect_graph(convolved(AVERAGED), {"bn": 2}, moving_average=False)) == {}
    assert texts(inspect_graph(convolved(Parameters()), {"bn": 2})) == {}
    assert list(texts(inspect_graph(convolved(AVERAGED), {"bn": 2}))) == ["few_batches"]


def test_statistics_that_nobody_counted() -> None:
    found = texts(inspect_graph(convolved(Parameters()), {"bn": 0}))
    text = "training counted no batch (num_batches_tracked is 0), yet its statistics are not the initial ones"
    assert found == {"not_counted": text}


def test_a_shift_that_would_drown_the_signal() -> None:
    """u is read by an addition as well, and β is 10⁴ times what γ leaves of it."""
    g = GraphBuilder("n", 3, 5, 7)
    u = g.op("Conv", g.x, g.normal(4, 3, 1, 1))
    v = add(g, u, Parameters(gamma=[1e-3] * 4, beta=[10.0] * 4))
    y = g.op("Add", u, g.op("Conv", g.op("Relu", v), g.normal(4, 4, 1, 1)))
    one = inspect_graph(g.finish(g.op("Conv", y, g.normal(2, 4, 1, 1))))
    found = texts(one)
    assert list(found) == ["drowning_shift"]
    assert found["drowning_shift"] == f"it stays: {only(one).why}"
    assert "rounding would drown it" in found["drowning_shift"]


def test_the_worst_is_said_first_and_once_for_all_that_have_it() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    u = g.x
    initial = Parameters(mean=[0.0] * 4, variance=[1.0] * 4)
    for number in range(5):
        u = g.op("Conv", u, g.normal(4, 3 if number == 0 else 4, 1, 1))
        u = g.op("Relu", add(g, u, initial, f"bn{number}"))
    u = add(g, g.op("Conv", u, g.normal(4, 4, 1, 1)), Parameters(variance=[1.0, -1.0, 1.0, 1.0]), "last")
    inspection = inspect_graph(g.finish(g.op("Relu", u)))
    assert [one.code for one in inspection.suspicions] == ["negative_variance", "never_trained"]
    assert [suspicion_sentence(one) for one in inspection.suspicions] == [
        "last: its variance is negative in 1 of 4 channels, down to -1",
        "bn0: never trained: its statistics are still mean 0, variance 1 (also of bn1, bn2, bn3 and 1 more)",
    ]
    assert inspection.suspicions[1].also == ("bn1", "bn2", "bn3", "bn4")


def test_every_code_has_a_test_and_stands_in_the_documentation() -> None:
    assert set(RULES) == {*SUSPICIOUS, "few_batches", "not_counted", "drowning_shift"}
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "inspection.md").read_text(), re.MULTILINE)
    assert documented == list(RULES)  # in the order in which they are said


# --- the command line


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """stdout and stderr of `bnfold inspect`, which ends well."""
    with pytest.raises(SystemExit) as left:
        cli.main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert not left.value.code, err
    return out, err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["inspect", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert (left.value.code, out) == (2, "")
    (line,) = err.strip().splitlines()
    return line


@pytest.fixture
def sick(tmp_path, monkeypatch) -> Path:
    """An .onnx with a BatchNorm that was never trained and one that is kept."""
    monkeypatch.setenv("COLUMNS", "200")
    g = GraphBuilder("n", 3, 5, 7)
    u = g.op("Conv", g.x, g.constant(WEIGHTS.reshape(4, 3, 1, 1), "w"))
    v = add(g, u, Parameters(mean=[0.0] * 4, variance=[1.0] * 4), "[b]<one>")
    model = g.finish(add(g, g.op("Relu", v), Parameters(), "two"))
    save_graph(model, tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_the_table_says_first_what_is_suspicious(sick, capsys, monkeypatch) -> None:
    monkeypatch.setattr(options.console, "width", 200)
    out, err = run(capsys, sick, "--all")
    assert out == ""
    first, *rows = err.splitlines()
    assert first == "[b]<one>: never trained: its statistics are still mean 0, variance 1"
    cells = [re.split(r"  +", row.strip()) for row in rows]
    after = "after Conv_0 (Conv), before Relu_2 (Relu)"
    assert ["1", "[b]<one>", "4", after, "never", "-0.5 … 2.25", "-1 … 3", "0", "1"] in cells
    assert ["1", "[b]<one>", "0", "1", "0", "w, w_bias", "0.447 … 2.01", "0.447 … 2.01", "fits"] in cells
    (kept,) = (row for row in cells if row[1:2] == ["two"] and "kept: " in " ".join(row))
    assert kept[2:5] == ["0", "1", "0"]
    assert rows[-1] == f"{sick}: 2 BatchNorms: 1 would be folded, 1 kept"


def test_every_key_of_the_json_is_documented(sick, capsys) -> None:
    out, _ = run(capsys, sick, "--json", "--open-activations")
    answer = json.loads(out, parse_constant=pytest.fail)  # no NaN
    assert answer["open_activations"] is True
    assert [one["code"] for one in answer["suspicions"]] == ["never_trained"]
    section = (ROOT / "docs" / "formats.md").read_text().split("## What `bnfold inspect --json`")[1].split("\n## ")[0]
    keys = {*answer}
    for listed in ("suspicions", "batchnorms", "weights"):
        assert answer[listed]
        keys |= answer[listed][0].keys()
    keys |= answer["batchnorms"][0]["placement"].keys() | answer["weights"][0]["float16"].keys()
    assert [key for key in keys if f"`{key}`" not in section] == []


def test_a_model_without_a_batchnorm_says_so_in_one_line(tmp_path, capsys) -> None:
    g = GraphBuilder("n", 3, 5, 7)
    save_graph(g.finish(g.op("Conv", g.x, g.normal(4, 3, 1, 1))), tmp_path / "net.onnx")
    out, said = run(capsys, tmp_path / "net.onnx")
    assert (out, said.count("\n")) == ("", 1)
    assert said.startswith(f"{tmp_path / 'net.onnx'}: the model has no BatchNorm; exporters fold it in eval mode. To")
    out, _ = run(capsys, tmp_path / "net.onnx", "--json")
    assert (json.loads(out)["batchnorms"], json.loads(out)["weights"]) == ([], [])


def test_a_checkpoint_with_its_counts(tmp_path, capsys) -> None:
    module = architecture("mlp")
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm1d)]
    for norm, seen in zip(norms, (5, 500), strict=True):
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(seen)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.9, 2)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    given = ("--arch", "models.mlp:mlp", "--input", "1,8,8", "--json")
    out, _ = run(capsys, tmp_path / "net.pt", *given)
    answer = json.loads(out)
    assert [one["batches_seen"] for one in answer["batchnorms"]] == [5, 500]
    assert [(one["code"], one["name"]) for one in answer["suspicions"]] == [
        ("few_batches", answer["batchnorms"][0]["name"])
    ]
    recalibrated = {"state_dict": module.state_dict(), "bnfold": {RECORD: {"mode": "one pass"}}}
    torch.save(recalibrated, tmp_path / "new.pt")
    out, _ = run(capsys, tmp_path / "new.pt", *given)
    assert json.loads(out)["suspicions"] == []


def published(folder: Path, reference: str, model: ir.Model) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(
        name="net",
        version="1",
        created="2026-01-01T00:00:00+00:00",
        source={"file": "net"},
        reference=reference,
        inputs=tensor_specs(model.graph.inputs),
        outputs=tensor_specs(model.graph.outputs),
        fold={},
        verdict={},
        versions={},
    )
    (folder / "model.onnx").touch()  # which an inspection does not read
    write_manifest(folder, manifest)


def test_a_model_directory_that_came_of_an_onnx(sick, tmp_path, capsys) -> None:
    folder = tmp_path / "repository" / "net" / "1"
    folder.mkdir(parents=True)
    shutil.copy(sick, folder / "unfolded.onnx")
    published(folder, "unfolded.onnx", ir.load(sick))
    expected = json.loads(run(capsys, sick, "--json")[0])
    for path in (folder, folder.parent):
        answer = json.loads(run(capsys, path, "--json")[0])
        assert answer == {**expected, "source": str(path)}
    assert "is a repository with the models net" in refused(capsys, tmp_path / "repository")
    (folder / "unfolded.onnx").write_bytes(b"changed")
    assert "was changed" in refused(capsys, folder)


def test_a_model_directory_that_came_of_a_checkpoint_knows_its_counts(tmp_path, capsys) -> None:
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU())
    norm = module[1]
    norm.running_mean.uniform_(-1, 1)
    norm.num_batches_tracked.fill_(77)
    program = export_program(module, torch.randn(3, 5))
    folder = tmp_path / "repository" / "net" / "1"
    folder.mkdir(parents=True)
    save_program(program, folder / "reference.pt2")
    published(folder, "reference.pt2", export_graph(program))
    (one,) = json.loads(run(capsys, folder, "--json")[0])["batchnorms"]
    assert (one["name"], one["batches_seen"], one["into"]) == ("1", 77, ["0.weight", "0.bias"])


def test_the_help_names_what_a_fold_takes_to_read_a_source(capsys) -> None:
    out, _ = run(capsys, "--help")
    for option in ("--arch", "--arch-arg", "--input", "--key", "--ema", "--trust", "--open-activations", "--html"):
        assert option in out


def test_bad_input_gets_one_line(sick, tmp_path, capsys) -> None:
    assert "no such file" in refused(capsys, tmp_path / "nowhere.onnx")
    assert "there is no folder" in refused(capsys, sick, "--html", tmp_path / "nowhere" / "page.html")
    assert "is a folder" in refused(capsys, sick, "--html", tmp_path)
    (tmp_path / "foreign.onnx").write_bytes(b"this is none")
    assert "foreign.onnx" in refused(capsys, tmp_path / "foreign.onnx")


# --- the page


def test_the_page_is_written_whole_and_replaces_another(sick, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    page.write_text("an old one")
    _, err = run(capsys, sick, "--html", page)
    assert f"written to {page}" in err
    text = page.read_text()
    assert "[b]&lt;one&gt;: never trained: its statistics are still mean 0, variance 1" in text
    assert "<one>" not in text
    assert "2 BatchNorms: 1 would be folded, 1 kept" in text
    assert "after Conv_0 (Conv), before Relu_2 (Relu)" in text
    assert "0.447 … 2.01" in text
    assert "http" not in text  # it needs no network
    assert page.stat().st_mode & 0o777 == (tmp_path / "net.onnx").stat().st_mode & 0o777
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "page.html"]


def test_nothing_is_left_of_a_page_that_cannot_be_written(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fold.reports.inspection.os.replace", full)
    with pytest.raises(fold.errors.BnfoldError, match=r"page\.html: cannot be written \(No space left on device\)"):
        write_inspection_page(tmp_path / "page.html", inspect_graph(convolved(Parameters())), "net")
    assert list(tmp_path.iterdir()) == []

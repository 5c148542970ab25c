"""What a page draws of one BatchNorm: its distributions, its factors, and the graph around it before and after."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fold.inspection.detail import Detail
from fold.inspection.inspect import inspect_graph
from fold.inspection.neighbourhood import MOST, Neighbourhood

NUMBERS = {"gamma": [1.0, -2.0, 0.5, 0.25], "beta": [0.0] * 4, "mean": [1.0, 2.0, 3.0, 4.0], "variance": [1.0] * 4}
BATCHNORM = "BatchNormalization <epsilon = 0.25>"


def details(nodes: str, **tensors: object) -> tuple[Detail, ...]:
    """Of a graph from 4 channels to 4, whose tensors are `W` of a convolution, those of NUMBERS, and those given."""
    text = f'<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 5, 5] x) => (float[n, a, b, c] y) {{ {nodes} }}'
    proto = onnx.parser.parse_model(text)
    W = np.random.default_rng(0).standard_normal((4, 4, 1, 1))
    for name, values in {"W": W, **NUMBERS, **tensors}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values, np.float32), name))
    return inspect_graph(ir.from_proto(onnx.shape_inference.infer_shapes(proto))).details


def written(found: Neighbourhood) -> list[str]:
    """Each edge as `operator>operator`, the ranks checked on the way."""
    for source, target in found.edges:
        assert found.nodes[source].rank < found.nodes[target].rank
    return sorted(f"{found.nodes[a].operator}>{found.nodes[b].operator}" for a, b in found.edges)


def roles(found: Neighbourhood) -> dict[str, str]:
    return {node.operator: node.role for node in found.nodes if node.role}


def test_a_batchnorm_that_is_folded_is_gone_after() -> None:
    (one,) = details(f"c = Conv(x, W) b = {BATCHNORM}(c, gamma, beta, mean, variance) r = Relu(b) y = Conv(r, W)")
    assert written(one.before) == ["BatchNormalization>Relu", "Conv>BatchNormalization", "Relu>Conv"]
    assert written(one.after) == ["Conv>Relu", "Relu>Conv"]
    assert roles(one.before) == {"BatchNormalization": "batchnorm", "Conv": "absorber"}
    assert roles(one.after) == {"Conv": "absorber"}
    assert one.factors == pytest.approx([gamma / (1 + 0.25) ** 0.5 for gamma in NUMBERS["gamma"]], rel=1e-5)


def test_one_that_is_kept_stays() -> None:
    (one,) = details(f"t = Tanh(x) b = {BATCHNORM}(t, gamma, beta, mean, variance) y = Tanh(b)")
    assert written(one.before) == written(one.after)
    assert written(one.after) == ["BatchNormalization>Tanh", "Tanh>BatchNormalization", "Tanh>output", "input>Tanh"]
    assert roles(one.after) == {"BatchNormalization": "batchnorm"}


def test_both_operands_of_a_sum_behind_it_and_no_more_nodes_than_a_drawing_holds() -> None:
    many = " ".join(f"a{n + 1} = Add(a{n}, b)" for n in range(30))
    (one,) = details(
        f"c = Conv(x, W) b = {BATCHNORM}(c, gamma, beta, mean, variance) a0 = Tanh(b) {many} y = Tanh(a30)"
    )
    assert len(one.before.nodes) == MOST
    assert one.before.nodes[0].operator == "BatchNormalization"


def test_one_that_is_written_out_has_factors_and_no_distributions() -> None:
    shape = (4, 1, 1)
    scale, shift = np.reshape(NUMBERS["gamma"], shape), np.reshape(NUMBERS["mean"], shape)
    (one,) = details("c = Conv(x, W) m = Mul(c, s) y = Add(m, t)", s=scale, t=shift)
    assert one.factors == tuple(NUMBERS["gamma"])
    assert set(one.distributions.values()) == {None}
    assert [node.operator for node in one.before.nodes if node.role == "batchnorm"] == ["Mul", "Add"]


def test_histograms_count_what_is_finite() -> None:
    mean = np.random.default_rng(1).standard_normal(4)
    variance = [1.0, float("nan"), 4.0, float("inf")]
    (one,) = details(f"y = {BATCHNORM}(x, gamma, beta, mean, variance)", mean=mean, variance=variance)
    found = {name: each for name, each in one.distributions.items() if each is not None}
    assert {name: sum(each.counts) for name, each in found.items()} == {"gamma": 4, "beta": 4, "mean": 4, "variance": 2}
    assert (found["beta"].min, found["beta"].max, found["beta"].counts) == (0, 0, (4,)), "all are equal"
    for name, values in (("gamma", np.float32(NUMBERS["gamma"])), ("mean", np.float32(mean))):
        each, least, most = found[name], values.min(), values.max()
        assert (each.min, each.max) == (least, most)
        places = [min(int(len(each.counts) * (v - least) / (most - least)), len(each.counts) - 1) for v in values]
        assert each.counts == tuple(places.count(place) for place in range(len(each.counts)))
    assert one.factors is None

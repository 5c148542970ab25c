"""The float64 evaluator against ONNX Runtime, on small whole numbers, for which both are exact."""

import numpy as np
import onnx_ir as ir
import pytest
from folding import GraphBuilder

from fold.errors import BnfoldError
from fold.evaluate import evaluate
from fold.runtime import open_session, run


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 0]},
        {"strides": [2, 2], "dilations": [2, 1]},
        {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [8, 11]},
    ],
    ids=str,
)
def test_transposed_convolution(groups, attributes) -> None:
    random = np.random.default_rng(0)
    g = GraphBuilder("n", 4, 5, 6)
    W = g.constant(random.integers(-4, 5, (4, 6 // groups, 3, 2)).astype(np.float32))
    B = g.constant(random.integers(-4, 5, 6).astype(np.float32))
    y = g.op("ConvTranspose", g.x, W, B, group=groups, **attributes)
    g.x.type = ir.TensorType(ir.DataType.FLOAT)
    y.type = ir.TensorType(ir.DataType.FLOAT)
    model = g.finish(y)
    x = {"x": random.integers(-4, 5, (2, 4, 5, 6)).astype(np.float32)}
    (expected,) = run(open_session(ir.to_proto(model).SerializeToString(), provider="cpu"), x).values()
    (actual,) = evaluate(model, x).values()
    assert actual.dtype == np.float64
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
def test_batchnorm_of_every_opset_applies_what_was_trained(opset) -> None:
    g = GraphBuilder("n", 3, 4, opset=opset)
    model = g.finish(g.batchnorm(g.x, 3, momentum=0.7, epsilon=0.5))
    x = np.random.default_rng(1).standard_normal((2, 3, 4))
    gamma, beta, mean, variance = (v.const_value.numpy()[:, None] for v in model.graph.node(0).inputs[1:])
    (actual,) = evaluate(model, {"x": x}).values()
    np.testing.assert_allclose(actual, gamma * (x - mean) / np.sqrt(variance + 0.5) + beta, rtol=0, atol=1e-14)


def test_weights_in_branches_become_float64_too() -> None:
    def branch(name: str, number: float) -> ir.Graph:
        weight = ir.Value(name=f"{name}_w", const_value=ir.tensor(np.float32([number])))
        weight.type, weight.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1])
        node = ir.node("Mul", [v, weight])
        node.outputs[0].name, node.outputs[0].type = f"{name}_y", ir.TensorType(ir.DataType.FLOAT)
        return ir.Graph([], node.outputs, nodes=[node], initializers=[weight], name=name)

    g = GraphBuilder("n", 3)
    g.x.type = ir.TensorType(ir.DataType.FLOAT)
    v = g.op("Identity", g.x)
    y = g.op("If", g.constant(np.array(True)), then_branch=branch("then", 0.1), else_branch=branch("otherwise", 0.2))
    y.type = ir.TensorType(ir.DataType.FLOAT)
    x = np.random.default_rng(2).standard_normal((2, 3))
    (actual,) = evaluate(g.finish(y), {"x": x}).values()
    np.testing.assert_allclose(actual, x * np.float64(np.float32(0.1)), rtol=1e-15)


def test_what_cannot_be_evaluated_is_said_in_one_line() -> None:
    g = GraphBuilder("n", 3)
    y = ir.node("Unheard", [g.x], domain="elsewhere", name="u")
    y.outputs[0].name, y.outputs[0].type = "y", ir.TensorType(ir.DataType.DOUBLE)
    graph = ir.Graph([g.x], y.outputs, nodes=[y], opset_imports={"": 18, "elsewhere": 1}, name="g")
    with pytest.raises(BnfoldError, match=r"opset 18, cannot be evaluated in float64 .*Unheard"):
        evaluate(ir.Model(graph, ir_version=10), {"x": np.zeros((2, 3))})

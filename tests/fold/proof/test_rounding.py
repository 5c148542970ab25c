"""Part B of a certificate: a right fold never fails it, whatever the model; a weight that is not rounded once does."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from fold.engine.fold import fold_graph
from fold.engine.rewrite import round_weights
from fold.evaluate.float64 import Evaluator
from fold.proof.algebra import find_answers
from fold.proof.rounding import Rounding, check_rounding
from support.folding import ARCHITECTURES, GraphBuilder, architecture, randomise, unfolded_graph

Change = Callable[[np.ndarray], np.ndarray]


def check(exact: ir.Model, x: np.ndarray, changes: dict[str, Change] | None = None) -> Rounding:
    """Part B of an exact graph and its rounded weights, some of them changed."""
    stored = exact.clone()
    round_weights(stored.graph)
    for name, change in (changes or {}).items():
        value = stored.graph.initializers[name]
        value.const_value = ir.tensor(change(value.const_value.numpy().copy()), name=name)
    return check_rounding(exact, lambda: stored, find_answers(Evaluator(exact), {"normal": {"x": x}}))


def declared(model: ir.Model, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    """A graph of float64 weights that `dtype` will store."""
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.DOUBLE:
            value.type = ir.TensorType(dtype)
    return model


@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"frozen_resnet"}))  # which is exported each time
def test_a_right_fold_holds_for_every_architecture_and_hostile_gamma(name) -> None:
    torch.manual_seed(0)
    module = randomise(architecture(name), seed=1)
    exact = fold_graph(unfolded_graph(name, module), open_activations=True, exact=True).model
    found = check(exact, np.random.default_rng(2).standard_normal((1, *ARCHITECTURES[name])))
    assert found, found.failure
    assert found.unbounded == ()
    assert all(0 < output.difference <= output.bound for output in found.outputs)
    assert max(output.ratio for output in found.outputs) > 0.01  # the bound says something at any depth


@pytest.mark.parametrize(
    ("dtype", "half_unit"),
    [(ir.DataType.FLOAT, 2.0**-24), (ir.DataType.FLOAT16, 2.0**-11), (ir.DataType.BFLOAT16, 2.0**-8)],
    ids=lambda given: getattr(given, "name", ""),
)
def test_weights_that_are_equal_round_alike_and_their_errors_add_up(dtype, half_unit) -> None:
    """4096 weights of 0.1 in each column: their common error is 64 times what independent ones give."""
    g = GraphBuilder("n", 4096)
    model = declared(g.finish(g.op("MatMul", g.x, g.constant(np.full((4096, 3), 0.1)))), dtype)
    found = check(model, np.ones((1, 4096)))
    assert found, found.failure
    assert found.outputs[0].difference > 0.1 * 4096 * 0.1 * half_unit


@pytest.mark.parametrize("seed", range(20))
def test_a_single_number_is_no_reason_to_fail(seed) -> None:
    """σ of one number, from three draws, may be small by chance."""
    g = GraphBuilder("n", 50, seed=seed)
    found = check(declared(g.finish(g.op("MatMul", g.x, g.normal(50, 1)))), g.random.standard_normal((1, 50)))
    assert found, found.failure


@pytest.mark.parametrize("weights", [[1.0, -2.0, 0.5], [1e-40, -3e-39, 1e-42], [1e-40, 1.0, 0.1]])
def test_weights_that_round_exactly_or_to_zero_hold(weights) -> None:
    g = GraphBuilder("n", 3)
    found = check(declared(g.finish(g.op("MatMul", g.x, g.constant([[w] for w in weights])))), np.ones((2, 3)))
    assert found, found.failure


def test_what_hangs_on_a_comparison_is_measured_and_not_judged() -> None:
    g = GraphBuilder("n", 3, seed=3)
    product = g.op("Mul", g.x, g.normal(3))
    found = check(declared(g.finish(g.op("Sign", product), g.op("Relu", product))), np.ones((2, 3)))
    assert found
    assert found.unbounded == ("Sign",)
    assert [(output.bound is None, output.ratio is None) for output in found.outputs] == [(True, True), (False, False)]


def test_whole_numbers_are_not_compared() -> None:
    g = GraphBuilder("n", 3, seed=3)
    index = g.op("ArgMax", g.op("Mul", g.x, g.normal(3)), axis=1, keepdims=0)
    index.type = ir.TensorType(ir.DataType.INT64)
    found = check(declared(g.finish(index)), np.ones((2, 3)))
    assert found
    assert found.outputs == ()


def test_a_function_of_the_file_is_looked_into() -> None:
    text = """<ir_version: 10, opset_import: ["": 20, "local": 1]>
        graph (double[n, 3] x) => (double[n, 3] y) <double[3] w = {1.1, -2.3, 0.7}> { y = local.scaled (x, w) }
        <domain: "local", opset_import: ["": 20]>
        scaled (a, b) => (c) { d = Mul (a, b) c = Relu (d) }"""
    found = check(declared(ir.from_proto(onnx.parser.parse_model(text))), np.ones((2, 3)))
    assert found
    assert found.unbounded == ()
    assert found.outputs[0].bound is not None


@pytest.mark.parametrize("size", [1e-5, 1e-3])
def test_a_wrong_weight_is_named_and_its_effect_is_shown(size) -> None:
    g = GraphBuilder("n", 40, seed=4)
    hidden = g.op("Relu", g.op("MatMul", g.x, g.constant(g.random.standard_normal((40, 30)), "first")))
    exact = declared(g.finish(g.op("MatMul", hidden, g.constant(g.random.standard_normal((30, 5)), "second"))))
    x = g.random.standard_normal((2, 40))
    right = check(exact, x)
    assert right, right.failure

    def wrong(array: np.ndarray) -> np.ndarray:
        array[:, 2] *= np.float32(1 + size)
        return array

    found = check(exact, x, {"second": wrong})
    assert not found
    assert [fault.name for fault in found.faults] == ["second"]
    (output,) = found.outputs
    assert output.ratio > 5
    assert output.bound == pytest.approx(right.outputs[0].bound, rel=0.5)  # by more draws, where it is near


def test_weights_of_another_shape_are_named_and_nothing_is_computed() -> None:
    g = GraphBuilder("n", 3, seed=5)
    exact = declared(g.finish(g.op("Mul", g.x, g.constant(g.random.standard_normal(3), "w"))))
    found = check(exact, np.ones((2, 3)), {"w": lambda w: w[:1]})
    assert [fault.what for fault in found.faults] == ["is FLOAT[1], expected FLOAT[3]"]
    assert found.outputs == ()

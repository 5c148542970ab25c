"""The float64 evaluator against ONNX Runtime, on small whole numbers, for which both are exact."""

import signal
import tracemalloc
import weakref

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import fx

from fold.errors import BnfoldError
from fold.evaluate.deadline import Deadline, TooLongError
from fold.evaluate.float64 import Evaluator, as_float64, evaluate
from fold.evaluate.program import InFloat64
from fold.runtime.running import ended_by
from fold.runtime.session import open_graph, open_session, run
from support.folding import GraphBuilder


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


def small_network() -> ir.Model:
    """In float32. The first product is read again at the end; the second output is of integers."""
    g = GraphBuilder("n", 4, seed=3)
    g.x.type = ir.TensorType(ir.DataType.FLOAT)
    first = g.op("MatMul", g.x, g.constant(g.random.standard_normal((4, 5)).astype(np.float32), "w"))
    shape = g.op("Shape", first)
    part = g.op("Relu", g.op("Slice", first, g.constant([0]), g.constant([2]), g.constant([1])))
    y = g.op("Add", part, g.op("ReduceSum", first, g.constant([1])))
    y.type, shape.type = ir.TensorType(ir.DataType.FLOAT), ir.TensorType(ir.DataType.INT64)
    return g.finish(y, shape)


def test_every_float_tensor_that_a_node_writes_is_shown_in_graph_order() -> None:
    model = small_network()
    seen: dict[str, np.ndarray] = {}
    outputs = Evaluator(model)({"x": np.ones((2, 4), np.float32)}, on_tensor=seen.__setitem__)
    named = [value.name for node in model.graph for value in node.outputs]
    floats = [name for name in named if name and not name.startswith("Shape")]
    assert list(seen) == floats
    assert all(array.dtype == np.float64 for array in seen.values())
    np.testing.assert_array_equal(seen[floats[0]], np.ones((2, 4)) @ model.graph.initializers["w"].const_value.numpy())
    np.testing.assert_array_equal(seen[floats[-1]], outputs[floats[-1]])


def test_an_error_of_on_tensor_is_passed_on() -> None:
    def on_tensor(name: str, array: np.ndarray) -> None:
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError):
        Evaluator(small_network())({"x": np.ones((2, 4))}, on_tensor=on_tensor)


def test_a_tensor_is_freed_after_its_last_use() -> None:
    """A chain of 40 tensors of 8 MB; each reads the one before."""
    g = GraphBuilder("n")
    x = g.x
    for _ in range(40):
        x = g.op("Neg", x)
    evaluator, held, most = Evaluator(g.finish(x)), [], 0

    def on_tensor(name: str, array: np.ndarray) -> None:
        nonlocal most
        held.append(weakref.ref(array))
        most = max(most, sum(reference() is not None for reference in held))

    evaluator({"x": np.ones(2**20)}, on_tensor)
    assert len(held) == 40
    assert most <= 2


def test_weights_are_held_as_they_are_stored() -> None:
    weights = np.random.default_rng(4).standard_normal((1000, 1000)).astype(np.float32)
    g = GraphBuilder("n", 1000)
    y = g.op("MatMul", g.op("MatMul", g.x, g.constant(weights, "w")), g.constant(weights, "v"))
    g.x.type = y.type = ir.TensorType(ir.DataType.FLOAT)
    model = g.finish(y)
    tracemalloc.start()
    evaluator, wide = Evaluator(model), as_float64(model)
    before, _ = tracemalloc.get_traced_memory()
    evaluator({"x": np.ones((1, 1000))})
    behind, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert before < weights.nbytes, "no weight is copied"
    assert behind - before < weights.nbytes
    assert most - before < 3.5 * weights.nbytes, "one at a time is widened"
    widened = wide.graph.initializers["w"].const_value
    assert widened.dtype == ir.DataType.DOUBLE
    np.testing.assert_array_equal(widened.numpy(), weights.astype(np.float64))


def test_an_input_stands_for_the_weight_of_its_name() -> None:
    (actual, _) = Evaluator(small_network())({"x": np.ones((2, 4)), "w": np.full((4, 5), 0.5)}).values()
    np.testing.assert_array_equal(actual, np.full((2, 2), 12.0))


def test_what_only_a_branch_reads_is_kept_for_it() -> None:
    """The tensor and the weight are named in the branch alone, and the branch within the branch."""

    def branch(name: str, value: ir.Value, *inner: ir.Graph) -> ir.Graph:
        if inner:
            node = ir.node("If", [condition], {"then_branch": inner[0], "else_branch": inner[1]})
        else:
            node = ir.node("Mul", [value, weight])
        node.outputs[0].name, node.outputs[0].type = f"{name}_y", ir.TensorType(ir.DataType.DOUBLE)
        return ir.Graph([], node.outputs, nodes=[node], name=name)

    g = GraphBuilder("n", 3)
    weight = g.constant(np.float32([0.1, 0.2, 0.3]))
    condition = g.constant(np.array(True))
    early = g.op("Neg", g.x)
    late = g.op("Exp", g.x)
    outer = branch("outer", early, branch("a", early), branch("b", late))
    y = g.op("If", condition, then_branch=outer, else_branch=branch("c", late))
    y.type = ir.TensorType(ir.DataType.DOUBLE)
    x = np.random.default_rng(5).standard_normal((2, 3))
    (actual,) = evaluate(g.finish(y), {"x": x}).values()
    np.testing.assert_array_equal(actual, -x * np.float32([0.1, 0.2, 0.3]).astype(np.float64))


def test_an_input_that_is_not_given_is_said() -> None:
    with pytest.raises(BnfoldError, match="no input or node gives 'x'"):
        evaluate(small_network(), {})


def test_factors_of_an_einsum_are_summed_before_they_are_multiplied() -> None:
    """Else it were 10^12 products."""
    g = GraphBuilder("n", 1000, 1000)
    twice = g.op("Einsum", g.x, g.x, equation="nab,ncd->")
    twice.type = ir.TensorType(ir.DataType.DOUBLE)
    x = np.random.default_rng(5).standard_normal((1, 1000, 1000))
    (actual,) = evaluate(g.finish(twice), {"x": x}).values()
    np.testing.assert_allclose(actual, x.sum() ** 2, rtol=1e-9)


def test_an_alarm_of_somebody_else_is_left_as_it_is() -> None:
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with Deadline():
            assert signal.getsignal(signal.SIGALRM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_program_has_the_same_limit_of_time(monkeypatch) -> None:
    module, x = fx.symbolic_trace(torch.nn.Linear(2, 3)), torch.ones(1, 2)
    assert InFloat64(module).run(x).dtype == torch.float64
    monkeypatch.setenv("BNFOLD_MAX_EVALUATION_SECONDS", "0")
    with pytest.raises(TooLongError, match=r"more than 0 s and has come to input_1; .* BNFOLD_MAX_EVALUATION_SECONDS"):
        InFloat64(module).run(x)


def test_another_thread_ends_a_run_and_an_evaluation() -> None:
    """What `terminate` ends in a block of `ended_by`, and nothing outside of it."""
    model, x = small_network(), {"x": np.ones((2, 4), np.float32)}
    session, options, evaluator = open_graph(model), ort.RunOptions(), Evaluator(model)
    program = fx.symbolic_trace(torch.nn.Linear(2, 3))
    with ended_by(options):
        run(session, x)
        evaluator(x)
        options.terminate = True
        with pytest.raises(BnfoldError, match="terminate flag"):
            run(session, x)
        with pytest.raises(TooLongError, match="ended from outside"):
            evaluator(x)
        with pytest.raises(TooLongError, match="ended from outside"):
            InFloat64(program).run(torch.ones(1, 2))
    run(session, x)
    evaluator(x)

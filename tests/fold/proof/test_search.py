"""The search for the input on which two graphs differ most, on graphs whose difference is planted or rounding."""

import subprocess
import sys

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

import fold
from fold.artifact.manifest import TensorSpec
from fold.artifact.specs import tensor_specs
from fold.errors import BnfoldError
from fold.evaluate.float64 import as_float64, evaluate
from fold.proof import search as search_module
from fold.proof.search import search_inputs
from support.folding import architecture, randomise


def graph(text: str, **constants: object) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    return ir.from_proto(proto)


def rarely_open(moved: float, rows: str = "n") -> ir.Model:
    """A layer with a rounding error everywhere, and a ReLU that few inputs open, with a larger error behind it."""
    return graph(
        f"""(float[{rows},8] x) => (float[{rows},1] y) {{
            t = MatMul(x, w) s = Sub(t, threshold) r = Relu(s) e = Mul(r, behind)
            z = MatMul(x, v) y = Add(z, e) }}""",
        w=np.full((8, 1), 8**-0.5),
        threshold=np.array(1.8),
        behind=np.array(1 + 1e-3 * moved),
        v=np.random.default_rng(1).standard_normal((8, 1)) * (1 + 1e-9 * moved),
    )


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def specs(model: ir.Model) -> tuple[TensorSpec, ...]:
    return tensor_specs(model.graph.inputs)


@pytest.fixture(scope="module")
def resnet() -> tuple[ir.Model, ir.Model]:
    model = fold.export_module(randomise(architecture("resnet"), seed=2, hostile=False), torch.randn(2, 1, 8, 8))
    return fold.fold_model(as_float64(model))[0], fold.fold_model(model)[0]


def difference(exact: ir.Model, stored: ir.Model, inputs: dict[str, np.ndarray], output: str) -> float:
    return float(np.abs(evaluate(stored, inputs)[output] - evaluate(exact, inputs)[output]).max())


def test_more_is_found_than_by_as_many_random_inputs(resnet) -> None:
    exact, stored = resnet
    starts = {"x": normal(12, 1, 8, 8)}
    calls: list[tuple[int, int, float]] = []
    found = search_inputs(
        exact,
        stored,
        specs(stored),
        starts=starts,
        steps=20,
        budget_seconds=300,
        progress=lambda *call: calls.append(call),
    )
    (output,) = found.outputs.values()
    wide = {"x": starts["x"].astype(np.float64)}
    scale = np.abs(evaluate(exact, wide)["output"]).max()
    assert output.scale == pytest.approx(scale, rel=1e-9)
    assert output.start * scale == pytest.approx(difference(exact, stored, wide, "output"), rel=1e-5)
    low, high = starts["x"].min(), starts["x"].max()
    tried = {"x": np.random.default_rng(4).uniform(low, high, (found.evaluations, 1, 8, 8))}
    assert output.found > output.start
    assert output.found * scale > difference(exact, stored, tried, "output")
    # the input that does it is there, inside the box
    assert output.found * scale == pytest.approx(difference(exact, stored, output.inputs, "output"), rel=1e-5)
    assert low <= output.inputs["x"].min() <= output.inputs["x"].max() <= high
    assert (found.steps, found.starts, found.evaluations) == (20, 12, 160)
    assert [call[:2] for call in calls] == [(step, 20) for step in range(1, 21)]
    assert calls[-1][2] == output.found
    assert output.gain == output.found / output.start


def test_the_same_seed_finds_the_same(resnet) -> None:
    exact, stored = resnet
    one, two, other = (
        search_inputs(exact, stored, specs(stored), steps=6, budget_seconds=300, seed=seed).to_dict()
        for seed in (1, 1, 2)
    )
    assert one.pop("seconds") > 0
    del two["seconds"]
    assert one == two
    assert one["outputs"] != other["outputs"]


@pytest.mark.parametrize("rows", ["n", "40"])
def test_an_error_behind_a_rarely_open_relu_is_found(rows) -> None:
    exact, stored = rarely_open(0, rows), rarely_open(1, rows)
    found = search_inputs(
        exact, stored, specs(exact), starts={"x": normal(40, 8, seed=5)}, steps=60, budget_seconds=300
    )
    output = found.outputs["y"]
    assert output.start > 0
    assert output.found > 10 * output.start
    assert found.starts == (40 if rows == "n" else 1)


def test_few_rows_at_once_find_the_same(monkeypatch) -> None:
    exact, stored = rarely_open(0), rarely_open(1)

    def found() -> float:
        starts = {"x": normal(9, 8, seed=5)}
        return (
            search_inputs(exact, stored, specs(exact), starts=starts, steps=30, budget_seconds=300).outputs["y"].found
        )

    whole = found()
    monkeypatch.setattr(search_module, "MEMORY", 1)
    assert found() == pytest.approx(whole, rel=1e-12)


def test_integers_are_left_as_they_are() -> None:
    text = """(int64[n,3] i, float[n,3] x) => (float[n,6] y, int64[n] k, float[n,3] z) {
        e = Gather(table, i) f = ReduceSum<keepdims=0>(e, last) y = Concat<axis=1>(f, x)
        k = ArgMax<axis=1, keepdims=0>(y) z = Mul(x, w) }"""
    exact, stored = (
        graph(text, table=np.arange(10.0).reshape(5, 2) * (1 + error), w=np.array(2.0 + error), last=np.array([2]))
        for error in (0, 1e-6)
    )
    starts = {"i": np.array([[0, 1, 2], [4, 1, 0], [3, 3, 3]]), "x": normal(3, 3)}
    found = search_inputs(exact, stored, specs(exact), starts=starts, steps=30, budget_seconds=300)
    assert set(found.outputs) == {"y", "z"}  # a difference between integers has no gradient
    assert found.outputs["y"].found == found.outputs["y"].start == pytest.approx(1e-6)
    assert found.outputs["y"].row == 1
    largest = np.abs([starts["x"].min(), starts["x"].max()]).max()
    z = found.outputs["z"]
    assert z.found * z.scale == pytest.approx(1e-6 * largest)
    for output in found.outputs.values():
        assert output.inputs["i"].tolist() == [starts["i"][output.row].tolist()]


def test_without_a_budget_the_starts_are_measured(resnet) -> None:
    exact, stored = resnet
    found = search_inputs(exact, stored, specs(stored), budget_seconds=0)
    (output,) = found.outputs.values()
    assert output.found == output.start > 0
    assert (found.steps, found.evaluations, found.starts) == (0, 0, 16)


def test_equal_graphs_do_not_differ() -> None:
    output = search_inputs(rarely_open(0), rarely_open(0), specs(rarely_open(0)), steps=3, budget_seconds=300).outputs[
        "y"
    ]
    assert (output.start, output.found, output.gain) == (0, 0, None)


def test_no_rows_are_refused() -> None:
    with pytest.raises(BnfoldError, match="no samples"):
        search_inputs(rarely_open(0), rarely_open(1), specs(rarely_open(0)), starts={"x": normal(0, 8)})


def test_pytorch_is_missed_only_when_a_search_begins() -> None:
    code = """
import sys; sys.modules["torch"] = None
import onnx_ir as ir
from fold.proof.search import search_inputs
model = ir.Model(ir.Graph([], [], nodes=[], name="g"), ir_version=10)
try: search_inputs(model, model, ())
except ModuleNotFoundError as error: print(error.name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch"

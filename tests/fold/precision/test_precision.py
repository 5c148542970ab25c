"""Reduced precision: the converted graph, what stays in float32, and a certificate that never reads as float32's."""

import functools
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fold
from fold.artifact import check_canary
from fold.artifact.directory import ModelVersion, read_version, write_manifest
from fold.artifact.manifest import Preprocessing
from fold.bench import measure as bench
from fold.cli import main
from fold.convert import Conversion, Target, convert
from fold.engine.fold import fold_graph
from fold.engine.rewrite import nearest, round_weights
from fold.errors import BnfoldError
from fold.graph.file import read_graph, save_graph
from fold.graph.reading import constant
from fold.precision import choose as precision
from fold.precision.choose import range_inputs, reduce
from fold.precision.lowering import lower, prepare
from fold.proof import certifier
from fold.proof.certificate import Certificate
from fold.proof.certifier import certify
from fold.proof.unfolded import load_unfolded
from fold.proof.verify import compare
from fold.runtime.session import open_session, run
from fold.sources.source import Source
from support import ROOT
from support.folding import interface, unfolded
from support.service.reloading import tampered

SCHEMA = json.loads((ROOT / "docs" / "certificate.schema.json").read_text())
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Conversion]:
    folder = tmp_path_factory.mktemp("published")
    return functools.cache(lambda name: publish(unfolded(name), folder, name, open_activations=name.startswith("pre")))


def publish(model: ir.Model, folder: Path, name: str = "net", **options: Any) -> Conversion:
    source = folder / f"{name}.onnx"
    save_graph(model, source)
    chosen = {"precision": "fp16", "provider": "cpu", "samples": 4, **options}
    return convert(Source(source), Target(folder / "repository", name), **chosen)


def parsed(text: str, **weights: Any) -> ir.Model:
    """A graph as ONNX text; `weights` are its initializers beside those in the text, floats in float32."""
    proto = onnx.parser.parse_model(text)
    for name, values in weights.items():
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.checker.check_model(proto)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def stored(conversion: Conversion) -> ir.Model:
    assert conversion.path is not None, conversion.certificate.message
    return read_graph(conversion.path / "model.onnx").model


def types(model: ir.Model) -> dict[str, ir.DataType | None]:
    """The type of what each operator computes, by its first output's name; Casts aside."""
    return {node.outputs[0].name or "": node.outputs[0].dtype for node in model.graph if node.op_type != "Cast"}


def kept(conversion: Conversion) -> dict[str, str]:
    return {entry.tensor: entry.reason for entry in conversion.precision.kept_float32}


def check(version: ModelVersion, **options: Any) -> Certificate:
    made = certify(version, samples=4, provider="cpu", **options)
    jsonschema.validate(json.loads(json.dumps(made.to_dict(), allow_nan=False)), SCHEMA)
    return made


# --- Whole models


@pytest.mark.parametrize("name", ["mobilenet", "levit", "preact_resnet"])
def test_a_model_is_converted_certified_published_and_verified_again(name, published) -> None:
    conversion = published(name)
    made = conversion.certificate
    assert made, made.message
    version = read_version(conversion.path)
    assert version.manifest.precision == "fp16"
    assert interface(stored(conversion)) == interface(unfolded(name))
    computed = types(stored(conversion))
    shares = [dtype for dtype in computed.values() if dtype in (HALF, SINGLE)]
    assert shares.count(HALF) > 0
    assert {tensor for tensor, dtype in computed.items() if dtype == SINGLE} == set(kept(conversion))
    half = sum(constant(v).nbytes for v in stored(conversion).graph.initializers.values())
    folded, _ = fold.fold_model(unfolded(name), open_activations=name.startswith("pre"))
    assert half < 0.6 * sum(constant(value).nbytes for value in folded.graph.initializers.values())
    again = check(version)
    assert again, again.message
    assert (again.algebra, again.rounding) == (made.algebra, made.rounding)
    assert check(version, seed=7)
    session = open_session(version.model_file, provider="cpu")
    assert check_canary(version.path, lambda arrays: run(session, arrays)) is None


def test_each_weight_is_the_exact_one_rounded_once(published) -> None:
    conversion = published("mobilenet")
    exact = fold_graph(load_unfolded(read_version(conversion.path)), exact=True).model.graph.initializers
    weights = stored(conversion).graph.initializers
    assert sum(value.dtype == HALF for value in weights.values()) > 10
    for name, value in weights.items():
        wanted = constant(exact[name]).numpy()
        np.testing.assert_array_equal(constant(value).numpy(), wanted.astype(constant(value).numpy().dtype))


DOUBLY = parsed(
    """<ir_version: 9, opset_import: ["": 18]>
    g (float[n, 1, 4, 5] x) => (float[n, 1, 4, 5] y)
    { h = Conv(x, w)  y = BatchNormalization<epsilon=0.0>(h, s, b, b, v) }""",
    w=np.full((1, 1, 1, 1), 1 + 2.0**-23),
    s=[1 + 4095 * 2.0**-23],
    b=[0.0],
    v=[1.0],
)
"""The exact weight is 1 + 2^-11 + 2^-34 or so: float32 makes a tie of it, which float16 then rounds down."""


def test_no_weight_is_rounded_by_way_of_float32(tmp_path) -> None:
    exact = (1 + 2.0**-23) * (1 + 4095 * 2.0**-23)
    assert np.float16(np.float32(exact)) == 1 < np.float16(exact)
    conversion = publish(DOUBLY, tmp_path)
    assert constant(stored(conversion).graph.initializers["w"]).numpy().item() == 1 + 2.0**-10

    def doubly(arrays: dict[str, np.ndarray]) -> None:
        arrays["w"][:] = np.float16(np.float32(exact))

    assert conversion.path is not None
    (tmp_path / "tampered").mkdir()
    made = check(tampered(conversion.path, tmp_path / "tampered", doubly))
    assert [fault.name for fault in made.rounding.faults] == ["w"]


def test_rounding_to_bfloat16_takes_the_nearest_number() -> None:
    random = np.random.default_rng(0)
    mantissas = 1 + random.integers(0, 128, 400) * 2.0**-7 + random.choice([2.0**-8, 0, 2.0**-9], 400)
    numbers = np.concatenate([mantissas, mantissas + 2.0**-40, mantissas - 2.0**-40]) * 2.0 ** random.integers(-9, 9)
    numbers = np.concatenate([numbers, -numbers])
    for exact, found in zip(numbers, nearest(numbers, ir.DataType.BFLOAT16).astype(np.float64), strict=True):
        step = 2.0 ** (np.floor(np.log2(abs(exact))) - 7)
        quotient = Fraction(float(exact)) / Fraction(step)
        assert found == float(round(quotient)) * step  # a Fraction rounds half to even
    edges = nearest(np.array([np.inf, -np.inf, np.nan, 1e300, 3.4e38, 0.0]), ir.DataType.BFLOAT16).astype(np.float64)
    np.testing.assert_array_equal(edges, [np.inf, -np.inf, np.nan, np.inf, np.inf, 0])


# --- Faults


@pytest.mark.parametrize("name", ["cnn", "levit"])
def test_one_unit_in_the_last_place_of_one_weight_is_caught_and_located(name, published, tmp_path) -> None:
    planted: list[str] = []

    def plant(arrays: dict[str, np.ndarray]) -> None:
        found = next(n for n, array in arrays.items() if array.dtype == np.float16 and array.ndim == 4)
        arrays[found].reshape(-1).view(np.uint16)[5] += 1
        planted.append(found)

    made = check(tampered(published(name).path, tmp_path, plant))
    assert not made
    assert [fault.name for fault in made.rounding.faults] == planted
    assert made.verdict, "no run time would tell"
    assert made.message.startswith("NOT equivalent in fp16")
    assert made.located is not None
    assert made.located.layer


def test_a_graph_in_another_precision_than_the_manifest_says_is_caught(published, tmp_path) -> None:
    version = tampered(published("cnn").path, tmp_path, lambda arrays: None)
    single = {**version.manifest.fold, "precision": {"type": "fp32", "kept_float32": []}}
    write_manifest(tmp_path, version.manifest.model_copy(update={"fold": single}))
    made = check(read_version(tmp_path))
    assert not made
    assert made.rounding.faults


def test_a_fault_of_the_run_time_is_caught_and_located(published, monkeypatch) -> None:
    """A provider that loses two more bits of each weight."""

    def coarse(model: ir.Model) -> ir.Model:
        model = model.clone()
        for value in model.graph.initializers.values():
            tensor = constant(value)
            if tensor is not None and tensor.dtype == HALF:
                bits = tensor.numpy().copy().view(np.uint16)
                value.const_value = ir.tensor((bits & np.uint16(0xFF80)).view(np.float16))
        return model

    right = certifier.open_graph

    def open_graph(model: ir.Model, *, provider: Any = "cpu", optimised: bool = True, cuda: Any = None) -> Any:
        return right(coarse(model) if optimised else model, provider=provider, optimised=optimised)

    monkeypatch.setattr(certifier, "open_graph", open_graph)
    monkeypatch.setattr(certifier, "open_session", lambda file, provider, cuda: open_graph(ir.load(file)))
    made = check(read_version(published("cnn").path))
    assert (bool(made.algebra), bool(made.rounding), bool(made.verdict)) == (True, True, False)
    assert made.located is not None
    assert made.located.layer


class Given:
    def __init__(self, R: np.ndarray, U: np.ndarray) -> None:
        self.exact, self.unfolded = (lambda _: {"y": R}), (lambda _: {"y": U})
        self.noisy, self.mixed = (lambda *_: {"y": R}), False


def test_an_overflow_of_the_unfolded_model_excuses_none_of_the_folded() -> None:
    R = np.array([[7e4, 1.0], [2.0, 3.0]])
    U, F = np.array([[np.inf, 1.0], [2.0, 3.0]]), np.array([[np.inf, 1.0], [2.0, 3.0]])
    x = {"x": np.zeros((2, 1))}
    assert not compare(Given(R, U), lambda _: {"y": F}, x, precision="fp16")
    assert compare(Given(R, U), lambda _: {"y": np.array([[7.001e4, 1], [2, 3]])}, x, precision="fp16")


def test_each_precision_is_held_to_its_own_limit_and_named() -> None:
    R = np.array([[1.0, 1.01], [2.0, 3.0]])
    F = np.array([[1.02, 1.01], [2.0, 3.0]])  # 0.02 off, and it decides otherwise by a hair
    verdicts = {
        name: compare(Given(R, R), lambda _: {"y": F}, {"x": np.zeros((2, 1))}, precision=name)
        for name in ("fp32", "fp16", "bf16")
    }
    assert [bool(verdict) for verdict in verdicts.values()] == [False, True, True]
    for name, eps in (("fp16", 2.0**-10), ("bf16", 2.0**-7)):
        assert verdicts[name].outputs[0].limit == pytest.approx(8 * eps * 3)
        assert verdicts[name].outputs[0].ulp == pytest.approx(0.02 / (2 * eps))
        assert f"on cpu in {name}:" in verdicts[name].message
        assert "same decisions on 1 of 2 (rounding explains 1); error " in verdicts[name].message
        assert "; relative error at most 0.00667)" in verdicts[name].message
        content = verdicts[name].to_dict()
        assert (content["precision"], content["decision_agreement"]) == (name, 0.5)
        assert content["max_relative_error"] == pytest.approx(0.02 / 3)


# --- What stays in float32

THREE = """<ir_version: 9, opset_import: ["": 18]>
    g (float[n, 2, 5, 6] x) => (float[n, 5, 5, 6] y)
    { a = Conv(x, w1)  b = BatchNormalization(a, s, t, t, v)  c = Relu(b)
      d = Conv(c, w2)  e = Tanh(d)  y = Conv(e, w3) }"""


def three(first: float, second: float) -> ir.Model:
    """Three convolutions, of which the weights of the first two are as large as is said."""
    random = np.random.default_rng(3)
    w1, w2, w3 = (random.choice([-1.0, 1.0], shape) for shape in ((3, 2, 1, 1), (4, 3, 1, 1), (5, 4, 1, 1)))
    statistics = {"s": [1.0, 1.1, 0.9], "t": [0.1, 0.2, -0.1], "v": [1.0, 1.2, 0.8]}
    return parsed(THREE, w1=first * w1, w2=second * w2, w3=0.5 * w3, **statistics)


@pytest.mark.parametrize(
    ("first", "second", "staying", "reason"),
    [
        (1, 1, set(), ""),
        (2e4, 5e-5, {"a", "c", "d"}, "its activations reach"),
        (1e5, 1e-5, {"a", "c", "d"}, "its weights reach"),
        (1, 1e-8, {"d", "e", "y"}, "most of its weights lie below 5.96e-08 and would vanish in float16"),
        (3e-10, 1e9, {"a", "d", "e"}, "its weights reach"),
        (1, 1e-5, {"d", "e", "y"}, "its activations reach"),
    ],
    ids=["all fit", "large activations", "large weights", "tiny weights", "both", "tiny activations"],
)
def test_what_would_overflow_or_vanish_stays_in_float32_and_is_named(first, second, staying, reason, tmp_path) -> None:
    conversion = publish(three(first, second), tmp_path)
    assert conversion.certificate, conversion.certificate.message
    found = kept(conversion)
    assert set(found) == staying
    assert any(reason in text for text in found.values()) or not staying
    computed = types(stored(conversion))
    assert {name for name, dtype in computed.items() if dtype == SINGLE} == staying
    manifest = read_version(conversion.path).manifest
    assert manifest.fold["precision"] == conversion.precision.to_dict()
    assert conversion.to_dict()["precision"]["type"] == "fp16"


def test_pictures_say_how_large_inputs_are(tmp_path) -> None:
    """Pixels of 0 to 255 that nothing scales: what N(0, 1) leaves in range, they do not."""
    model = parsed(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[n, 1, 5, 6] x) => (float[n, 2, 3, 4] y)
        { a = Conv(x, w)  r = BatchNormalization(a, s, t, t, v)  y = Tanh(r) }""",
        w=np.full((2, 1, 3, 3), 20.0),
        s=[1.0, 2.0],
        t=[0.0, 0.5],
        v=[1.0, 2.0],
    )
    assert kept(publish(model, tmp_path)) == {}
    (tmp_path / "image.json").write_text(
        Preprocessing(input="x", mode="L", height=5, width=6, scale=1).model_dump_json()
    )
    source, target = tmp_path / "net.onnx", Target(tmp_path / "other", preprocessing=tmp_path / "image.json")
    with pytest.raises(BnfoldError, match="no layer with weights can be float16"):
        convert(Source(source), target, precision="fp16", provider="cpu", samples=4)


OPERATORS = """<ir_version: 9, opset_import: ["": 18]>
    g (float[n, 2, h, k] x) => (float[n, 3, h2, k2] y, float[n, 3, h3, k3] clipped, int64[n, 1, h3, k3] best)
    {
      low = Constant<value_float=-0.5>()
      high = Constant<value = float {0.75}>()
      a = Conv(x, w)
      b = BatchNormalization(a, s, t, t, v)
      clipped = Clip(b, low, high)
      bounded = Max(clipped, floor)
      padded = Pad(bounded, pads, fill)
      sized = Resize<mode="linear">(padded, , scales)
      shape = Shape(x)
      numbers = Cast<to=1>(shape)
      doubled = Mul(numbers, two)
      whole = Cast<to=7>(doubled)
      last = Gather<axis=0>(whole, index)
      many = Cast<to=1>(last)
      moved = Div(sized, many)
      y = Add(moved, floor)
      best = ArgMax<axis=1>(clipped)
    }"""


def operators() -> ir.Model:
    random = np.random.default_rng(5)
    return parsed(
        OPERATORS,
        w=random.standard_normal((3, 2, 3, 3)),
        s=random.standard_normal(3),
        t=random.standard_normal(3),
        v=[0.5, 1, 2.0],
        floor=random.standard_normal((3, 1, 1)),
        fill=np.array(0.3),
        pads=np.array([0, 0, 1, 0, 0, 0, 0, 2]),
        scales=[1.0, 1, 2, 1.5],
        two=np.array(2.0),
        index=np.array(2),
    )


def test_constants_are_of_the_type_that_their_operators_demand(tmp_path) -> None:
    model = operators()
    before = ir.to_proto(model).SerializeToString()
    conversion = publish(model, tmp_path)
    assert conversion.certificate, conversion.certificate.message
    assert ir.to_proto(model).SerializeToString() == before
    onnx.checker.check_model(conversion.path / "model.onnx", full_check=True)
    graph = stored(conversion).graph
    readers = {node.op_type: node for node in graph}
    assert [value.dtype for value in readers["Resize"].inputs if value is not None] == [HALF, SINGLE]
    assert [value.dtype for value in readers["Clip"].inputs] == [HALF] * 3
    assert [value.dtype for value in readers["Max"].inputs] == [HALF] * 2
    assert [value.dtype for value in readers["Pad"].inputs] == [HALF, ir.DataType.INT64, HALF]
    assert interface(stored(conversion)) == interface(model)
    shapes = {"numbers", "doubled", "whole", "many"}
    assert {name for name, reason in kept(conversion).items() if reason == "it computes with shapes"} == shapes
    assert set(kept(conversion)) == shapes


def test_a_weight_that_both_types_read_is_stored_in_both(tmp_path) -> None:
    model = parsed(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[n, 3] x) => (float[n, 3] y, float[n, 3] z)
        { a = MatMul(x, w)  y = Tanh(a)
          big = Mul(x, huge)  b = MatMul(big, w)  c = Mul(b, tiny)  z = Tanh(c) }""",
        w=np.random.default_rng(1).standard_normal((3, 3)),
        huge=np.array(3e4),
        tiny=np.array(1e-4),
    )
    conversion = publish(model, tmp_path)
    assert conversion.certificate, conversion.certificate.message
    graph = stored(conversion).graph
    assert {name: value.dtype for name, value in graph.initializers.items() if name.startswith("w")} == {
        "w": SINGLE,
        "w_fp16": HALF,
    }
    assert set(kept(conversion)) == {"big", "b", "c"}


def test_an_operator_that_has_no_such_type_is_an_island(tmp_path) -> None:
    model = parsed(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[n, 3] x) => (float[n, 4] y) { a = MatMul(x, w)  b = Celu(a)  y = MatMul(b, u) }""",
        w=np.random.default_rng(1).standard_normal((3, 5)),
        u=np.random.default_rng(2).standard_normal((5, 4)),
    )
    conversion = publish(model, tmp_path)
    assert conversion.certificate, conversion.certificate.message
    assert kept(conversion) == {"b": "Celu of opset 18 takes no float16"}
    assert [node.op_type for node in stored(conversion).graph] == [
        *("Cast", "MatMul", "Cast", "Celu", "Cast", "MatMul", "Cast")
    ]


def test_an_operator_without_a_kernel_is_an_island(tmp_path, monkeypatch) -> None:
    right = precision.open_session

    def open_session(model: bytes, **options: Any) -> Any:
        if any(node.op_type == "Tanh" for node in onnx.load_from_string(model).graph.node):
            raise BnfoldError("NOT_IMPLEMENTED")
        return right(model, **options)

    monkeypatch.setattr(precision, "open_session", open_session)
    assert kept(publish(three(1, 1), tmp_path)) == {"e": "provider cpu has no float16 kernel for Tanh"}


def test_functions_are_inlined_and_subgraphs_refused(tmp_path) -> None:
    text = """<ir_version: 9, opset_import: ["": 18, "own": 1]>
    g (float[n, 3] x) => (float[n, 2] y) { a = MatMul(x, w)  y = own.twice(a) }
    <domain: "own", opset_import: ["": 18]> twice (a) => (b) { c = Constant<value = float {2.0}>() b = Mul(a, c) }"""
    proto = onnx.parser.parse_model(text)
    w = np.random.default_rng(1).standard_normal((3, 2)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    conversion = publish(ir.from_proto(proto), tmp_path)
    assert conversion.certificate, conversion.certificate.message
    assert set(types(stored(conversion)).values()) == {HALF}
    text = """<ir_version: 9, opset_import: ["": 18]>
    g (bool[1] p, float[n, 3] x) => (float[n, 2] y)
    { a = MatMul(x, w)  y = If(p) <then_branch = t () => (float[n, 2] u) { u = Relu(a) },
                                   else_branch = e () => (float[n, 2] v) { v = Neg(a) }> }"""
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
    with pytest.raises(BnfoldError, match=r"^\S+: precision fp16: .*\(If\) has a subgraph, which is not converted"):
        publish(ir.from_proto(proto), tmp_path, "branching")


def test_outputs_keep_their_names_whatever_reads_them(tmp_path) -> None:
    """An output that is an input, one that others read on, and the same tensor twice."""
    model = parsed(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[n, 3] x) => (float[n, 3] a, float[n, 3] y) { a = MatMul(x, w)  y = Relu(a) }""",
        w=np.random.default_rng(1).standard_normal((3, 3)),
    )
    model.graph.outputs.extend([model.graph.outputs[0]])
    wanted = interface(model)
    lowered = lower(prepare(model, "fp16"), "fp16", frozenset())
    round_weights(lowered.graph)
    assert interface(lowered) == wanted
    assert [node.op_type for node in lowered.graph] == ["Cast", "MatMul", "Relu", "Cast", "Cast"]
    assert lowered.graph.outputs[0] is lowered.graph.outputs[2]


# --- Providers, the command line and the bench


def test_bfloat16_is_refused_in_one_line_where_the_provider_has_none(tmp_path, capsys) -> None:
    save_graph(unfolded("cnn"), tmp_path / "cnn.onnx")
    arguments = ["fold", str(tmp_path / "cnn.onnx"), "--out", str(tmp_path / "repository"), "--device", "cpu"]
    with pytest.raises(SystemExit) as exit_:
        main([*arguments, "--precision", "bf16"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    told = "precision bf16: on provider cpu no layer with weights can be bfloat16 ("
    assert line.startswith(f"bnfold: {tmp_path / 'cnn.onnx'}: {told}")
    assert not (tmp_path / "repository" / "cnn").exists()


def test_bfloat16_is_proven_where_a_runtime_has_it(monkeypatch) -> None:
    """No CPU runs it: the reference evaluator stands for a provider that does."""
    monkeypatch.setattr(precision, "_refusal", lambda *arguments: None)
    model = parsed(
        """<ir_version: 10, opset_import: ["": 22]>
        g (float[n, 2, 5, 6] x) => (float[n, 3, 5, 6] y) { a = Conv(x, w)  y = Relu(a) }""",
        w=1e30 * np.random.default_rng(1).standard_normal((3, 2, 1, 1)),
    )
    inputs = [{"x": np.random.default_rng(2).standard_normal((2, 2, 5, 6)).astype(np.float32)}]
    prepared, found = reduce(model, "bf16", inputs, "cpu")
    assert found.to_dict() == {"type": "bf16", "kept_float32": []}
    lowered = lower(prepared, "bf16", found.tensors)
    round_weights(lowered.graph)
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)
    weights = constant(lowered.graph.initializers["w"])
    assert weights.dtype == ir.DataType.BFLOAT16
    wanted = nearest(constant(model.graph.initializers["w"]).numpy().astype(np.float64), ir.DataType.BFLOAT16)
    np.testing.assert_array_equal(weights.numpy(), wanted)


def test_the_command_line_names_precision_and_what_stays(tmp_path, capsys) -> None:
    save_graph(three(2e4, 5e-5), tmp_path / "net.onnx")
    repository = tmp_path / "repository"
    shared = ["--device", "cpu", "--samples", "4"]
    with pytest.raises(SystemExit) as exit_:
        main(["fold", str(tmp_path / "net.onnx"), "--out", str(repository), "--precision", "fp16", *shared])
    assert not exit_.value.code
    said = capsys.readouterr().err
    assert "stays in float32: its activations reach" in said
    assert "on cpu in fp16: " in said
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(repository / "net"), "--json", *shared])
    assert not exit_.value.code
    content = json.loads(capsys.readouterr().out)
    jsonschema.validate(content, SCHEMA)
    assert content["precision"] == "fp16"
    assert "on cpu in fp16:" in content["message"]
    page = (repository / "net" / "1" / "report.html").read_text()
    assert "on cpu in fp16:" in page


def test_a_benchmark_names_the_precision(published) -> None:
    found = bench.bench_version(read_version(published("cnn").path), batches=(2,), rounds=1, provider="cpu")
    assert (found.unfolded.precision, found.folded.precision) == ("fp32", "fp16")
    (measured,) = found.measurements
    assert measured.unfolded.relative_error < 1e-5 < measured.folded.relative_error < 1e-2


def test_without_the_option_nothing_is_converted(tmp_path) -> None:
    conversion = publish(three(2e4, 5e-5), tmp_path, precision="fp32")
    assert conversion.certificate.verdict.precision == "fp32"
    assert set(types(stored(conversion)).values()) == {SINGLE}
    assert read_version(conversion.path).manifest.fold["precision"] == {"type": "fp32", "kept_float32": []}


def test_ranges_are_looked_at_on_given_inputs_too(published) -> None:
    manifest = read_version(published("cnn").path).manifest
    given = {manifest.inputs[0].name: np.full((9, 1, 8, 8), 7, np.float32)}
    seen = [next(iter(arrays.values())) for arrays in range_inputs(manifest, 0, given)]
    assert [len(array) for array in seen] == [3, 1, 3, 3]
    assert (seen[-1] == 7).all()
    assert all(np.abs(array).max() < 10 for array in seen), "no offset"

"""Every operator and mode that the float64 evaluator runs, against ONNX Runtime on the CPU.

A row of `CASES` (tests/support/operators.py) names inputs and attributes. The first rows of an operator are tried in
each of its versions from opset 7 on that takes such inputs and attributes, the others in the newest. Graphs are read as
`bnfold fold` reads them: lifted where they are old.
"""

import functools
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, defs, helper, numpy_helper, parser

from fold.errors import BnfoldError
from fold.evaluate.float64 import RANDOM, evaluate
from fold.graph import lift
from fold.runtime import open_session, run
from support.operators import CASES, NEWEST, OLDEST, ROUNDING, Array, Case, drawn

IN_ALL_VERSIONS = 4
"""So many rows of an operator are tried in all of its versions."""

LEFT_OUT = {
    **dict.fromkeys(RANDOM, "refused: it draws other numbers in every run"),
    "BitCast": "bits of a float32 have no meaning in float64",
    "ImageDecoder": "of bytes of a file; the evaluator needs Pillow for it",
    "LinearAttention": "of opset 27, which ONNX Runtime does not take",
    "CausalConvWithState": "of opset 27, which ONNX Runtime does not take",
    "SwiGLU": "of opset 28, which ONNX Runtime does not take",
}

IN_FLOAT32 = {"DynamicQuantizeLinear"}
"""Whose float32 scale decides which integers come out."""


@functools.cache
def versions(op: str) -> tuple[int, ...]:
    schemas = defs.get_all_schemas_with_history()
    return tuple(sorted({schema.since_version for schema in schemas if (schema.name, schema.domain) == (op, "")}))


def opsets(op: str, one: Case) -> list[int]:
    """The first opset of each version of the operator that takes such a node, from `OLDEST` on."""
    found = []
    for opset in sorted({max(version, one.oldest, OLDEST) for version in versions(op)}):
        if opset > min(NEWEST, one.newest):
            continue
        schema = defs.get_schema(op, opset, "")
        fits = set(one.attributes) <= set(schema.attributes)
        fits = fits and schema.min_input <= len(one.inputs) <= schema.max_input and one.outputs <= schema.max_output
        if fits and not schema.deprecated:
            found.append(opset)
    return found


def graph_of(op: str, one: Case, opset: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """A graph of one node, and its inputs."""
    given, inputs, held, names = {}, [], [], []
    for index, array in enumerate(one.inputs):
        name = "" if array is None else f"i{index}"
        names.append(name)
        if array is None:
            continue
        if array.dtype == np.float32:
            given[name] = array
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape))
        else:
            held.append(numpy_helper.from_array(array, name))
    outputs = [f"o{index}" for index in range(one.outputs)]
    node = helper.make_node(op, names, outputs, **one.attributes)
    graph = helper.make_graph([node], "one", inputs, [helper.make_empty_tensor_value_info(o) for o in outputs], held)
    version = 8 if opset < 19 else 10
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=version), given


def run_in_runtime(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    return run(open_session(model.SerializeToString(), provider="cpu", threads=1, optimised=False), inputs)


def run_in_float64(model: onnx.ModelProto, inputs: dict[str, Array]) -> dict[str, Array]:
    return evaluate(lift(ir.from_proto(model)).model, inputs)


def difference(expected: Any, actual: Any, tolerance: float) -> str | None:
    """How an output in float64 differs from its witness; None where it does not."""
    if isinstance(expected, list):
        found = [difference(a, b, tolerance) for a, b in zip(expected, actual, strict=True)]
        return next(filter(None, found), None)
    if not isinstance(actual, np.ndarray) or actual.shape != np.shape(expected):
        return f"shape {np.shape(actual)}, expected {np.shape(expected)}"
    if not np.issubdtype(expected.dtype, np.floating):
        if actual.dtype != expected.dtype:
            return f"type {actual.dtype}, expected {expected.dtype}"
        return (
            None
            if np.array_equal(actual, expected)
            else f"{actual.reshape(-1)[:6]}, expected {expected.reshape(-1)[:6]}"
        )
    if actual.dtype != np.float64:
        return f"type {actual.dtype}, expected float64"
    finite = np.isfinite(expected)
    if not np.array_equal(actual[~finite], expected[~finite], equal_nan=True):
        return f"{actual[~finite][:6]}, expected {expected[~finite][:6]}"
    size = max(np.abs(actual[finite]).max(initial=0), 1e-6)
    error = np.abs(actual[finite] - expected[finite]).max(initial=0) / size
    return None if error <= tolerance else f"relative error {error:.2g}, at most {tolerance:.2g} expected"


@pytest.mark.parametrize("op", CASES)
def test_an_operator_computes_what_its_witness_does(op) -> None:
    failures, tried = [], 0
    for row, one in enumerate(CASES[op]):
        found = opsets(op, one)
        assert found, f"no version of {op} takes row {row}"
        for opset in found if row < IN_ALL_VERSIONS else found[-1:]:
            model, given = graph_of(op, one, opset)
            if one.witness is not None:
                read = [array for array in one.inputs if array is not None]
                expected = {f"o{index}": array for index, array in enumerate(one.witness(*read))}
            else:
                expected = run_in_runtime(graph_of(op, one, min(opset, one.kernel))[0], given)
            actual = run_in_float64(model, given)
            tried += 1
            for name, array in expected.items():
                differs = difference(array, actual[name], one.tolerance)
                if differs:
                    failures.append(f"opset {opset}, row {row} {one.attributes}, {name}: {differs}")
    assert tried
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("op", sorted(set(CASES) - IN_FLOAT32))
def test_an_operator_computes_in_float64_throughout(op) -> None:
    """Moved by equal steps of a millionth, the output moves by equal steps; rounded to float32 within, it would not."""
    for row, one in enumerate(CASES[op][:2]):
        model, given = graph_of(op, one, opsets(op, one)[-1])
        random = np.random.default_rng(row)
        steps = {name: 1e-6 * random.uniform(0.5, 1, array.shape) for name, array in given.items() if array.size}
        moved = [run_in_float64(model, {n: a + k * steps.get(n, 0) for n, a in given.items()}) for k in range(3)]
        for name, array in moved[0].items():
            if not isinstance(array, np.ndarray) or array.dtype != np.float64:
                continue
            if {other[name].shape for other in moved} != {array.shape}:
                continue  # where equal elements part
            first, second = (moved[k + 1][name] - moved[k][name] for k in range(2))
            changed = ((first != 0) | (second != 0)) & (np.abs(first) < 1e-3) & (np.abs(second) < 1e-3)
            if changed.any():
                bent, step = np.median(np.abs(second - first)[changed]), np.median(np.abs(first)[changed])
                assert bent <= 1e-2 * step + 1e-13 * np.abs(array[changed]).max(), (row, name)


def program(text: str, opset: int) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: {8 if opset < 19 else 10}, opset_import: ["": {opset}]> {text}')


X, Y = drawn(2, 3), drawn(4, 3)
BODY = "(int64 i, bool c, float[2,3] a) => (bool d, float[2,3] b, float[2,3] s)"
PROGRAMS: dict[str, tuple[str, int, dict[str, Array]]] = {
    "SequenceConstruct SequenceAt SequenceLength": (
        "g (float[2,3] x, float[4,3] y) => (float[m,3] a, int64 n) { one = Constant<value_int=-1>() "
        "s = SequenceConstruct(x, y) a = SequenceAt(s, one) n = SequenceLength(s) }",
        13,
        {"x": X, "y": Y},
    ),
    "SequenceEmpty SequenceInsert SequenceErase": (
        "g (float[2,3] x, float[4,3] y) => (float[m,k] a, int64 n) { zero = Constant<value_int=0>() "
        "e = SequenceEmpty() s = SequenceInsert(e, x) "
        "t = SequenceInsert(s, y, zero) u = SequenceInsert(t, y) v = SequenceErase(u, zero) "
        "n = SequenceLength(u) a = SequenceAt(v, zero) }",
        13,
        {"x": X, "y": Y},
    ),
    "SplitToSequence ConcatFromSequence": (
        "g (float[4,3] y) => (float[m,3] a, float[k,l,3] b) { two = Constant<value_int=2>() "
        "s = SplitToSequence(y, two) a = ConcatFromSequence<axis=0>(s) "
        "b = ConcatFromSequence<axis=0, new_axis=1>(s) }",
        13,
        {"y": Y},
    ),
    "SplitToSequence in single rows": (
        "g (float[4,3] y) => (float[m,3] a) { t = SplitToSequence<axis=0, keepdims=0>(y) "
        "a = ConcatFromSequence<axis=0, new_axis=1>(t) }",
        24,
        {"y": Y},
    ),
    "SequenceMap": (
        "g (float[2,3] x, float[4,3] y) => (float[m,3] a) { s = SequenceConstruct(x, y) "
        "t = SequenceMap<body = body (float[k,3] p) => (float[k,3] q) { q = Exp(p) }>(s) "
        "a = ConcatFromSequence<axis=0>(t) }",
        17,
        {"x": X, "y": Y},
    ),
    "Optional OptionalHasElement OptionalGetElement": (
        "g (float[2,3] x) => (bool h, float[2,3] a) { o = Optional(x) h = OptionalHasElement(o) "
        "a = OptionalGetElement(o) }",
        18,
        {"x": X},
    ),
    "Identity of a sequence": (
        "g (float[2,3] x) => (float[2,3] a) { z = Constant<value_int=0>() s = SequenceConstruct(x, x) t = Identity(s) "
        "a = SequenceAt(t, z) }",
        16,
        {"x": X},
    ),
    **{
        f"If {chosen}": (
            f"g (float[2,3] x) => (float[2,3] a) {{ c = Constant<value_int={chosen}>() b = Cast<to=9>(c) "
            "a = If<then_branch = t () => (float[2,3] p) { p = Exp(x) }, else_branch = e () => (float[2,3] q) "
            "{ w = Constant<value_float=0.1>() q = Mul(x, w) }>(b) }",
            opset,
            {"x": X},
        )
        for chosen, opset in ((0, 13), (1, 25))
    },
    **{
        f"Loop {given} {count} in opset {opset}": (
            f"g (float[2,3] x) => (float[2,3] y, float[k,2,3] z) {{ n = Constant<value_int={count}>() "
            f"t = Constant<value_int=1>() going = Cast<to=9>(t) two = Constant<value_float=1.1>() y, z = "
            f"Loop<body = body {BODY} {{ b = Mul(a, two) s = Sub(b, x) last = Constant<value_int=2>() "
            f"d = Less(i, last) }}>({given}, x) }}",
            opset,
            {"x": X},
        )
        for given, count, opset in (
            ("n, going", 3, 13),
            ("n, ", 3, 13),
            ("n, ", 3, 25),
            ("n, ", 0, 16),
            (", going", 3, 19),
            ("n, ", 9, 21),
        )
    },
    **{
        f"Scan {direction} in opset {opset}": (
            f"g (float[3] s, float[4,3] x) => (float[3] t, float[4,3] y) {{ t, y = Scan<num_scan_inputs=1, "
            f"scan_input_directions=[{direction}], scan_output_directions=[{1 - direction}], body = body (float[3] a, "
            "float[3] b) => (float[3] c, float[3] d) { c = Add(a, b) d = Mul(c, b) }>(s, x) }",
            opset,
            {"s": drawn(3), "x": Y},
        )
        for direction, opset in ((0, 9), (1, 16), (1, 25))
    },
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_sequences_optionals_and_subgraphs(name) -> None:
    text, opset, inputs = PROGRAMS[name]
    model = program(text, opset)
    expected, actual = run_in_runtime(model, inputs), run_in_float64(model, inputs)
    for output, array in expected.items():
        assert difference(array, actual[output], ROUNDING) is None, output


@pytest.mark.parametrize(("op", "gates", "states"), [("RNN", 1, 1), ("GRU", 3, 1), ("LSTM", 4, 2)])
def test_recurrences_with_the_batch_first(op, gates, states) -> None:
    """ONNX Runtime knows the other layout only, so that is the witness."""
    x, W, R, start = drawn(4, 3, 2), drawn(2, 5 * gates, 2), drawn(2, 5 * gates, 5), drawn(2, 3, 5)
    B, lengths, attributes = (
        drawn(2, 10 * gates),
        np.array([4, 1, 2], np.int32),
        {"hidden_size": 5, "direction": "bidirectional"},
    )
    first = Case((x, W, R, B, lengths, start), attributes, outputs=1 + states)
    swapped = (x.swapaxes(0, 1), W, R, B, lengths, start.swapaxes(0, 1))
    second = Case(swapped, {**attributes, "layout": 1}, outputs=1 + states)
    expected, actual = (run_in_float64(*graph_of(op, one, 22)) for one in (first, second))
    for name, array in expected.items():
        moved = array.transpose(2, 0, 1, 3) if name == "o0" else array.swapaxes(0, 1)
        np.testing.assert_array_equal(actual[name], moved)


def test_the_table_holds_every_operator_of_the_default_domain() -> None:
    known = {s.name for s in defs.get_all_schemas_with_history() if s.domain == ""}
    newest = {name for name in known if versions(name)[-1] >= OLDEST or name in CASES or len(versions(name)) == 1}
    told = {op for name in PROGRAMS for op in name.split() if op in known}
    missing = known - set(CASES) - set(LEFT_OUT) - told
    assert {name for name in missing if not defs.get_schema(name, NEWEST, "").deprecated} == set(), newest


@pytest.mark.parametrize("op", sorted(RANDOM))
def test_an_operator_that_draws_numbers_is_refused(op) -> None:
    inputs = () if op in ("RandomNormal", "RandomUniform") else (drawn(2, 3, low=0, high=1),)
    model, given = graph_of(op, Case(inputs, {"shape": [2, 3]} if not inputs else {}), 15)
    with pytest.raises(BnfoldError, match=f"operator {op} draws other numbers in every run"):
        run_in_float64(model, given)


def test_a_loop_without_end_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("fold.evaluate.operators.control.ITERATIONS", 10)
    body = f"{BODY} {{ b = Neg(a) s = Neg(a) d = Identity(c) }}"
    text = f"g (float[2,3] x) => (float[2,3] y, float[k,2,3] z) {{ y, z = Loop<body = body {body}>(, , x) }}"
    with pytest.raises(BnfoldError, match="more than 10 iterations"):
        run_in_float64(program(text, 16), {"x": X})

"""Every reason to keep a BatchNorm: a small graph runs into each, and each stands in docs/folding.md."""

import re

import numpy as np
import onnx_ir as ir
import pytest

import fold
from fold.engine.fold import fold_graph
from fold.engine.reasons import BlockedPart, Code
from support import ROOT
from support.folding import check_fold
from support.reasons import Case, float32, itself, shifted, uniform

NEVER_LAST = {Code.NEGATION}
"""What only hands a demand on: the node behind it that makes the demand is named."""
ON_DEMAND = {Code.LEFT}
"""Said where the caller asked for it, whatever the graph."""
DEAD = (1.0, 0.0, 1.0, 1.0)
FOUR = {"g": [1.0, 2.0, 3.0, 4.0], "b": (4,)}

INT8 = np.resize(np.array([3, -128, 5, 7], np.int8), (4, 4, 1, 1))

CASES = [
    # of the BatchNorm itself
    itself(
        Code.TRAINING_MODE,
        "c = Conv(x, W) y, m, s = BatchNormalization <training_mode = 1> (c, g, b, b, g)",
        tensors=FOUR,
    ),
    itself(
        Code.COMPUTED_PARAMETERS,
        "c = Conv(x, W) computed = Tanh(g) y = BatchNormalization(c, computed, b, b, g)",
        tensors=FOUR,
    ),
    itself(
        Code.NOT_FINITE,
        "c = Conv(x, W) y = BatchNormalization(c, g, b, mean, g)",
        tensors={**FOUR, "mean": [0, np.inf, 0, 0]}, unchanged=True,
    ),
    itself(
        Code.NEGATIVE_VARIANCE,
        "c = Conv(x, W) y = BatchNormalization(c, g, b, b, variance)",
        tensors={**FOUR, "variance": [1, 1, -1, 1.0]}, unchanged=True,
    ),
    itself(Code.NO_CHANNELS, "y = BN(x)", x="n", channels=1),
    itself(
        Code.FLOAT16_RANGE, "c = Conv(x, W) d = Cast <to = 1> (c) v = BN(d) y = Cast <to = 10> (v)", culprit="v",
        gamma=(1.0, 9e3, 1.0, 1.0), dtype="float16", unchanged=True,
    ),
    itself(
        Code.UNKNOWN_SHAPE,
        "sizes = Shape(x) found = NonZero(sizes) which = Squeeze(found, axis) new = Gather(sizes, which)"
        "u = Reshape(x, new) y = BN(u)",
        tensors={"axis": [0]},
    ),
    itself(
        Code.IN_SUBGRAPH,
        "y = If(yes) <then_branch = a () => (double[n, 4, 6, 7] t) { t = BatchNormalization(x, g, b, b, g) },"
        "else_branch = e () => (double[n, 4, 6, 7] f) { f = Neg(x) }>",
        culprit="t",
        tensors={**FOUR, "yes": True},
        unchanged=True,
    ),
    itself(
        Code.DROWNING_SHIFT,
        "s = Conv(x, W) a = BN(s) b = Relu(a) c = Conv(b, W) d = Add(s, c) e = Relu(d) y = Conv(e, W)",
        culprit="a",
        gamma=(1e-6,),
    ),
    itself(
        Code.OVERFLOW,
        "c = Conv(x, K) v = BN(c) y = Relu(v)",
        culprit="c",
        tensors={"K": np.full((4, 4, 1, 1), 1e4)},
        gamma=(1e3,),
        dtype="float16",
        unchanged=True,
    ),
    # what could not move
    Case(
        Code.SHARED_INPUT, "d", "c = Conv(x, W) v = BN(c) t = Tanh(v) d = Conv(c, W) y = Add(t, d)",
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL
    ),
    Case(
        Code.USED_ELSEWHERE, "u",
        "c = Conv(x, W) u = Identity(c) v = BN(u) t = Tanh(v) k = Conv(c, W) l = Tanh(k) y = Add(t, l)",
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.FIXED_TWICE, "v",
        "c = Conv(x, W) r = Relu(c) v = BN(r) m = ReduceMean(v, axes) y = Conv(m, K)",
        {"K": (5, 1, 1, 1), "axes": [1]}, gamma=(1.0,),
    ),
    # what is carried as it is
    Case(Code.GRAPH_INPUT, "x", "v = BN(x) y = Tanh(v)", gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL),
    shifted(Code.GRAPH_OUTPUT, "y", "y = Identity(v)"),
    Case(
        Code.CONSTANT_TENSOR, "k", "c = Conv(x, W) u = Concat <axis = 1> (c, k) v = BN(u) y = Tanh(v)",
        {"k": (1, 4, 6, 7)}, x="1, 4, 6, 7", channels=8, gamma=(1, 1, 1, 1, 1, 0, 1, 1),
    ),
    Case(
        Code.KEPT_BATCHNORM, "u",
        "c = Conv(x, W) computed = Tanh(g) u = BatchNormalization(c, computed, b, b, g) v = BN(u) y = Tanh(v)",
        FOUR, gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.READ_IN_SUBGRAPH, "z",
        "c = Conv(x, W) v = BN(c) z = If(yes) <then_branch = a () => (double[n, 4, 6, 7] t) { t = Neg(c) },"
        "else_branch = e () => (double[n, 4, 6, 7] f) { f = Abs(c) }> w = Tanh(v) y = Add(w, z)",
        {"yes": True}, gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.NO_LAW, "s", "s = Softmax <axis = 1> (x) v = BN(s) y = Tanh(v)", gamma=DEAD,
        blocked=BlockedPart.DEAD_CHANNEL,
    ),
    # weights
    shifted(Code.ZERO_PADDING, "y", "y = Conv <pads = [1, 1, 1, 1]> (v, W)"),
    shifted(
        Code.TRANSPOSED_KERNEL, "y",
        "y = ConvTranspose(v, K)", tensors={"K": (4, 9, 3, 3)},
    ),
    Case(
        Code.COMPUTED_WEIGHTS, "c", "K = Tanh(W) c = Conv(x, K) v = BN(c) y = Tanh(v)",
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    uniform(
        Code.INPUT_CHANNELS, "y", "t = Transpose <perm = [0, 2, 1, 3]> (v) y = Conv(t, K)",
        tensors={"K": (5, 6, 1, 1)},
    ),
    uniform(Code.INPUT_FEATURES, "y", "y = MatMul(v, K)", tensors={"K": (7, 5)}),
    Case(
        Code.TENSOR_PRODUCT, "m",
        "c = Conv(x, W) t = Transpose <perm = [0, 1, 3, 2]> (x) m = MatMul(c, t) v = BN(m) y = Tanh(v)",
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.VECTOR_PRODUCT, "m", "c = Conv(x, W) m = MatMul(c, k) v = BN(m) y = Tanh(v)", {"k": (7,)},
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.SCALAR_TABLE, "t",
        "i = ArgMax <axis = 1> (x) t = Gather (table, i) u = Transpose <perm = [0, 3, 2, 1]> (t) v = BN(u) y = Tanh(v)",
        {"table": (5,)}, channels=7, gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    # normalisation, and constants
    Case(
        Code.OTHER_BATCHNORM, "a",
        "c = Conv(x, W) a = BN(c) b = BN(c) m = Max(a, b) y = Conv(m, W)", gamma=(1.0,),
    ),
    Case(
        Code.CONSTANT_SCALE, "a",
        "c = Conv(x, W) p = Mul(c, k) a = Add(p, l) b = BN(c) m = Max(a, b) y = Conv(m, W)",
        {"k": [[[2.0]], [[1.0]], [[3.0]], [[1.5]]], "l": (4, 1, 1)}, gamma=(1.0,),
    ),
    Case(
        Code.COMPUTED_SCALE, "s",
        "computed = Tanh(g) s = InstanceNormalization(x, computed, b) v = BN(s) y = Tanh(v)", FOUR,
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    shifted(
        Code.INSTANCE_NORM, "y", "y = InstanceNormalization(v, g, b)",
        tensors=FOUR,
    ),
    shifted(
        Code.DIVISION, "y", "y = Div(one, v)",
        tensors={"one": 1.0},
    ),
    # element by element
    Case(Code.ACTIVATION, "r", "v = BN(x) r = Relu(v) y = Conv(r, W)", blocked=BlockedPart.SCALE),
    Case(
        Code.CLIP_BOUNDS, "u",
        "c = Conv(x, W) u = Clip(c, low, high) v = BN(u) y = Tanh(v)", {"low": -0.5, "high": 0.7},
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.COMPUTED_BOUNDS, "u",
        "c = Conv(x, W) low = ReduceMin <keepdims = 0> (x) u = Clip(c, low) v = BN(u) y = Tanh(v)",
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    Case(
        Code.EMPTY_BOUNDS, "u",
        "c = Conv(x, W) u = Clip(c, low, high) v = BN(u) y = Tanh(v)", {"low": 0.7, "high": 0.5},
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    shifted(Code.COMPUTED_SLOPE, "y", "y = PRelu(x, v)"),
    uniform(
        Code.TENSOR_SUM, "z", "p = GlobalAveragePool(u) z = Add(v, p) y = Conv(z, W)"
    ),
    shifted(
        Code.TENSOR_EXTREMUM, "z",
        "t = Tanh(x) z = Max(v, t) y = Conv(z, W)",
    ),
    shifted(Code.SQUARE, "y", "y = Mul(v, v)"),
    shifted(
        Code.GATE, "z", "p = GlobalAveragePool(v) z = Mul(x, p) y = Tanh(z)"
    ),
    shifted(
        Code.GATED, "z",
        "p = GlobalAveragePool(x) t = Sigmoid(p) z = Mul(v, t) y = Conv(z, W)",
    ),
    # pools and reductions
    Case(
        Code.MAX_POOL, "m",
        "v = BN(x) m = MaxPool <kernel_shape = [2, 2]> (v) y = Conv(m, W)",
    ),
    uniform(
        Code.AVERAGE_POOL, "m",
        "t = Transpose <perm = [0, 2, 1, 3]> (v) m = GlobalAveragePool(t) y = Conv(m, K)", tensors={"K": (5, 6, 1, 1)},
    ),
    shifted(
        Code.COUNTED_PADDING, "m",
        "m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (v) y = Conv(m, W)",
    ),
    *(
        uniform(code, "m", f"m = {op}(v, axes) y = Conv(m, K)", tensors={"K": (5, 1, 1, 1), "axes": [1]})
        for op, code in {
            "ReduceMean": Code.REDUCED_MEAN,
            "ReduceSum": Code.REDUCED_SUM,
            "ReduceMax": Code.REDUCED_EXTREMUM,
        }.items()
    ),
    shifted(
        Code.UNKNOWN_COUNT, "m",
        "m = ReduceSum(v, axes) y = Conv(m, W)", tensors={"axes": [2]}, x="n, 4, h, 7",
    ),
    shifted(
        Code.COMPUTED_AXES, "m", "a = Abs(axes) m = ReduceSum(v, a) y = Tanh(m)",
        tensors={"axes": [2]}, inferred="double[n, 4, 1, 7] m",
    ),
    # what moves data
    shifted(
        Code.UNKNOWN_CONCAT, "z",
        "t = Tanh(x) z = Concat <axis = 2> (v, t) y = Conv(z, W)", x="n, 4, h, 7",
    ),
    uniform(
        Code.COMPUTED_SPLIT, "a",
        "s = Abs(sizes) a, b = Split <axis = 1> (v, s) p = Conv(a, K) q = Conv(b, L) y = Concat <axis = 1> (p, q)",
        tensors={"K": (5, 1, 1, 1), "L": (2, 3, 1, 1), "sizes": [1, 3]},
        inferred="double[n, 1, 6, 7] a, double[n, 3, 6, 7] b",
    ),
    uniform(
        Code.COMPUTED_SLICE, "z",
        "s = Abs(start) z = Slice(v, s, end, start) y = Conv(z, K)",
        tensors={"K": (5, 3, 1, 1), "start": [1], "end": [4]},
    ),
    uniform(
        Code.COMPUTED_INDICES, "z",
        "i = Abs(places) z = Gather <axis = 1> (v, i) y = Conv(z, K)",
        tensors={"K": (5, 3, 1, 1), "places": [1, 3, 0]},
    ),
    uniform(
        Code.COMPUTED_REPEATS, "z",
        "r = Abs(times) z = Tile(v, r) y = Conv(z, K)", tensors={"K": (5, 8, 1, 1), "times": [1, 2, 1, 1]},
    ),
    uniform(
        Code.DEPTH_TO_SPACE, "z",
        "z = DepthToSpace <blocksize = 2> (v) y = Conv(z, K)", tensors={"K": (5, 1, 1, 1)},
    ),
    uniform(
        Code.SPACE_TO_DEPTH, "z",
        "t = Transpose <perm = [0, 2, 1, 3]> (v) z = SpaceToDepth <blocksize = 2> (t) y = Conv(z, K)",
        tensors={"K": (5, 24, 1, 1)}, x="n, 4, 6, 8",
    ),
    uniform(
        Code.MERGED_DIMENSIONS, "z",
        "z = Reshape(v, shape) y = MatMul(z, K)", tensors={"K": (7, 5), "shape": [-1, 7]}, x="n, 4, h, 7",
    ),
    shifted(
        Code.LOST_CHANNELS, "z",
        "e = Slice(v, none, none, last) z = Reshape <allowzero = 1> (e, shape) y = ReduceSum(z, axes)",
        tensors={"none": [0], "last": [3], "shape": [2, 0], "axes": [1]}, x="2, 4, 6, 7",
    ),
    shifted(
        Code.QUANTIZED_WEIGHTS, "y",
        "d = DequantizeLinear <axis = 0> (Q, s) y = Conv(v, d)",
        tensors={"Q": INT8, "s": np.full(4, 0.25, np.float16)}, dtype="float16",
    ),
    Case(
        Code.QUANTIZED_SIGN, "c", "d = DequantizeLinear <axis = 0> (Q, s) c = Conv(x, d) v = BN(c) y = Tanh(v)",
        {"Q": INT8, "s": np.full(4, 0.25, np.float16)}, dtype="float16", blocked=BlockedPart.SCALE,
    ),
    shifted(Code.TYPE_CHANGE, "i", "i = Cast <to = 6> (v) d = Cast <to = 11> (i) y = Tanh(d)"),
    Case(
        Code.DROPOUT, "d", "c = Conv(x, W) d = Dropout(c, ratio, training) v = BN(d) y = Tanh(v)",
        {"ratio": 0.0, "training": True}, gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    uniform(
        Code.COMPUTED_PADDING, "z",
        "amounts = Abs(pads) z = Pad(v, amounts) y = Conv(z, K)",
        tensors={"K": (3, 4, 1, 1), "pads": [0, 0, 1, 0, 0, 0, 0, 0]},
    ),
    Case(
        Code.INFINITE_PADDING, "z",
        "v = BN(x) z = Pad(v, pads, low) s = Slice(z, start, end, axes) y = Conv(s, W)",
        {"pads": [0, 0, 1, 0, 0, 0, 0, 0], "low": -np.inf, "start": [1], "end": [7], "axes": [2]},
    ),
    uniform(
        Code.COPIED_PADDING, "z",
        'z = Pad <mode = "reflect"> (v, pads) y = Conv(z, K)',
        tensors={"K": (3, 5, 1, 1), "pads": [0, 1, 0, 0, 0, 0, 0, 0]},
    ),
    Case(
        Code.NUMBER_PADDING, "z",
        "c = Conv(x, W) z = Pad(c, pads, value) v = BN(z) y = Tanh(v)",
        {"pads": [0, 0, 1, 0, 0, 0, 0, 0], "value": 1.5}, gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
    uniform(
        Code.INTERPOLATION, "z",
        "z = Resize(v, , scales) y = Conv(z, K)", tensors={"K": (3, 8, 1, 1), "scales": float32(1, 2, 1, 1)},
    ),
    Case(
        Code.CROP_AND_RESIZE, "z",
        'c = Conv(x, W) z = Resize <coordinate_transformation_mode = "tf_crop_and_resize", mode = "linear">'
        "(c, region, scales) v = BN(z) y = Tanh(v)",
        {"region": float32(0, 0, 0, 0, 1, 1, 1, 1), "scales": float32(1, 1, 2, 2)},
        gamma=DEAD, blocked=BlockedPart.DEAD_CHANNEL,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.code))
def test_the_reason_and_the_culprit_are_told_and_the_output_is_exact(case: Case) -> None:
    model = case.model()
    if case.unchanged:
        folded, report = fold.fold_model(model)
        assert ir.to_proto(folded) == ir.to_proto(model)
    else:
        _, report = check_fold(model)
    told = [kept for kept in report.kept if kept.why.code is case.code]
    assert [kept.culprit for kept in told] == [case.culprit], report.kept
    (kept,) = told
    blocked = kept.why.blocked
    assert (blocked and blocked.part) == case.blocked or case.blocked is None
    parts = ([] if blocked is None else [blocked.part.value]) + [case.code.value]
    words = ": ".join(re.sub(r"\\\{.*?\\\}", ".+", re.escape(part)) for part in parts)
    assert re.fullmatch(words, kept.reason)
    assert not re.search("[{}]", kept.reason)


def test_a_program_reads_the_code_and_what_is_blocked_from_json() -> None:
    (case,) = (case for case in CASES if case.code is Code.COUNTED_PADDING)
    (entry,) = fold.fold_model(case.model())[1].to_dict()["kept"]
    found = {key: entry[key] for key in ("code", "blocked", "culprit")}
    assert found == {"code": "counted_padding", "blocked": "shift", "culprit": "m"}
    assert entry["reason"].startswith("the shift of channel 0 (")
    assert entry["reason"].endswith(
        " cannot move: m counts the zeros that it pads with, so its input may carry no shift"
    )


def test_a_batchnorm_that_the_caller_names_is_left() -> None:
    model = Case(Code.LEFT, "", "c = Conv(x, W) a = BN(c) d = Conv(a, W) y = BN(d)").model()
    _, report = check_fold(model, kept=0)
    assert [entry.name for entry in report.folded] == ["a", "y"]
    report = fold_graph(model, leave=frozenset({"y"})).report
    assert [entry.name for entry in report.folded] == ["a"]
    assert [(kept.name, kept.code, kept.culprit) for kept in report.kept] == [("y", "left", "y")]


def test_every_code_has_a_graph_that_runs_into_it() -> None:
    assert {case.code for case in CASES} | NEVER_LAST | ON_DEMAND == set(Code)
    assert {case.blocked for case in CASES} >= set(BlockedPart)


def test_every_code_stands_in_the_documentation_with_its_sentence_and_no_other() -> None:
    text = (ROOT / "docs" / "folding.md").read_text()
    section = text.split("\n## Why a BatchNorm is kept\n")[1].split("\n## ")[0]
    documented = re.findall(r'^\| `(\w+)` \| "([^"]+)" \|', section, re.MULTILINE)
    sentences = {str(code): code.value for code in Code} | {str(part): f"{part.value}: …" for part in BlockedPart}
    assert dict(documented) == {name: re.sub(r"\{.*?\}", "…", sentence) for name, sentence in sentences.items()}
    assert len(documented) == len(sentences), "one row a code"

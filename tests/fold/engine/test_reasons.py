"""Every reason to keep a BatchNorm: a small graph runs into each, and each stands in docs/folding.md.

The reasons are read from the source, so that a new one without a graph or without documentation fails here.
"""

import re

import numpy as np
import onnx_ir as ir
import pytest

import fold
from fold.engine.fold import fold_graph
from support.folding import check_fold
from support.reasons import ROOT, Case, bare, float32, itself, reasons, shifted, uniform

LEFT = "it was to be left"
"""Said where the caller asked for it, whatever the graph."""
WARNING = "never trained: its statistics are still mean 0, variance 1"
"""Said of a BatchNorm that is folded all the same."""
NEVER_LAST = {"turns the sign of a shift"}
"""What only hands a demand on: the node behind it that makes the demand is named."""
DEAD = (1.0, 0.0, 1.0, 1.0)
FOUR = {"g": [1.0, 2.0, 3.0, 4.0], "b": (4,)}

CASES = [
    # of the BatchNorm itself
    itself(
        "it is in training mode and normalises by the batch; export the model in eval mode",
        "c = Conv(x, W) y, m, s = BatchNormalization <training_mode = 1> (c, g, b, b, g)",
        tensors=FOUR,
    ),
    itself(
        "its parameters or statistics are computed, or are inputs that a caller may override",
        "c = Conv(x, W) computed = Tanh(g) y = BatchNormalization(c, computed, b, b, g)",
        tensors=FOUR,
    ),
    itself(
        "its parameters or statistics hold a value that is not finite",
        "c = Conv(x, W) y = BatchNormalization(c, g, b, mean, g)",
        tensors={**FOUR, "mean": [0, np.inf, 0, 0]}, unchanged=True,
    ),
    itself(
        "the variance of channel … is …, and no square root exists",
        "c = Conv(x, W) y = BatchNormalization(c, g, b, b, variance)",
        tensors={**FOUR, "variance": [1, 1, -1, 1.0]}, unchanged=True,
    ),
    itself("its input has one axis, and so no channels", "y = BN(x)", x="n", channels=1),
    itself(
        "the shape of its input is not known",
        "sizes = Shape(x) found = NonZero(sizes) which = Squeeze(found, axis) new = Gather(sizes, which)"
        "u = Reshape(x, new) y = BN(u)",
        tensors={"axis": [0]},
    ),
    itself(
        "it is inside a subgraph, where folding stops",
        "y = If(yes) <then_branch = a () => (double[n, 4, 6, 7] t) { t = BatchNormalization(x, g, b, b, g) },"
        "else_branch = e () => (double[n, 4, 6, 7] f) { f = Neg(x) }>",
        culprit="t",
        tensors={**FOUR, "yes": True},
        unchanged=True,
    ),
    itself(
        "in channel … its shift would be … times the signal that other nodes read from the same tensor, "
        "and rounding would drown it",
        "s = Conv(x, W) a = BN(s) b = Relu(a) c = Conv(b, W) d = Add(s, c) e = Relu(d) y = Conv(e, W)",
        culprit="a",
        gamma=(1e-6,),
    ),
    itself(
        "its folded weights in … would overflow the type that stores them",
        "c = Conv(x, K) v = BN(c) y = Relu(v)",
        culprit="c",
        tensors={"K": np.full((4, 4, 1, 1), 1e4)},
        gamma=(1e3,),
        dtype="float16",
        unchanged=True,
    ),
    # what could not move
    Case("the scale of channel … (…) cannot move", "r", "v = BN(x) r = Relu(v) y = Conv(r, W)"),
    shifted("the shift of channel … (…) cannot move", "y", "y = Conv <pads = [1, 1, 1, 1]> (v, W)"),
    Case(
        "γ is 0 in channel …, which only weights that feed nothing else can take up", "x", "v = BN(x) y = Relu(v)",
        gamma=DEAD,
    ),
    Case(
        "reads the same tensor", "d", "c = Conv(x, W) v = BN(c) t = Tanh(v) d = Conv(c, W) y = Add(t, d)", gamma=DEAD
    ),
    Case(
        "is used elsewhere", "u",
        "c = Conv(x, W) u = Identity(c) v = BN(u) t = Tanh(v) k = Conv(c, W) l = Tanh(k) y = Add(t, l)", gamma=DEAD,
    ),
    Case(
        "what surrounds it fixes it twice", "v",
        "c = Conv(x, W) r = Relu(c) v = BN(r) m = ReduceMean(v, axes) y = Conv(m, K)",
        {"K": (5, 1, 1, 1), "axes": [1]}, gamma=(1.0,),
    ),
    # what is carried as it is
    Case("is an input of the graph, carried as it is", "x", "v = BN(x) y = Tanh(v)", gamma=DEAD),
    shifted("is an output of the graph, carried as it is", "y", "y = Identity(v)"),
    Case(
        "is carried as it is", "k", "c = Conv(x, W) u = Concat <axis = 1> (c, k) v = BN(u) y = Tanh(v)",
        {"k": (1, 4, 6, 7)}, x="1, 4, 6, 7", channels=8, gamma=(1, 1, 1, 1, 1, 0, 1, 1),
    ),
    Case(
        "… (…) stays as it is", "u",
        "c = Conv(x, W) computed = Tanh(g) u = BatchNormalization(c, computed, b, b, g) v = BN(u) y = Tanh(v)",
        FOUR, gamma=DEAD,
    ),
    Case(
        "… (…) reads it in a subgraph", "z",
        "c = Conv(x, W) v = BN(c) z = If(yes) <then_branch = a () => (double[n, 4, 6, 7] t) { t = Neg(c) },"
        "else_branch = e () => (double[n, 4, 6, 7] f) { f = Abs(c) }> w = Tanh(v) y = Add(w, z)",
        {"yes": True}, gamma=DEAD,
    ),
    Case("… (…) lets no scale and no shift pass", "s", "s = Softmax <axis = 1> (x) v = BN(s) y = Tanh(v)", gamma=DEAD),
    # weights
    shifted("pads its input with zeros, so that may carry no shift", "y", "y = Conv <pads = [1, 1, 1, 1]> (v, W)"),
    shifted(
        "sums another part of its kernel at each output position, so its input may carry no shift", "y",
        "y = ConvTranspose(v, K)", tensors={"K": (4, 9, 3, 3)},
    ),
    Case(
        "… (…) has weights or a bias that are not constant", "c", "K = Tanh(W) c = Conv(x, K) v = BN(c) y = Tanh(v)",
        gamma=DEAD,
    ),
    uniform(
        "reads one gauge for each input channel", "y", "t = Transpose <perm = [0, 2, 1, 3]> (v) y = Conv(t, K)",
        tensors={"K": (5, 6, 1, 1)},
    ),
    uniform("reads one gauge for each input feature", "y", "y = MatMul(v, K)", tensors={"K": (7, 5)}),
    Case(
        "… (…) is not a product of a tensor with constant weights of its rank or less", "m",
        "c = Conv(x, W) t = Transpose <perm = [0, 1, 3, 2]> (x) m = MatMul(c, t) v = BN(m) y = Tanh(v)",
        gamma=DEAD,
    ),
    Case(
        "… (…) is a product with a vector", "m", "c = Conv(x, W) m = MatMul(c, k) v = BN(m) y = Tanh(v)", {"k": (7,)},
        gamma=DEAD,
    ),
    Case(
        "… (…) takes single numbers out of a table", "t",
        "i = ArgMax <axis = 1> (x) t = Gather (table, i) u = Transpose <perm = [0, 3, 2, 1]> (t) v = BN(u) y = Tanh(v)",
        {"table": (5,)}, channels=7, gamma=DEAD,
    ),
    # normalisation, and constants
    Case(
        "reads one gauge for each channel, and is a BatchNorm with another scale or shift", "a",
        "c = Conv(x, W) a = BN(c) b = BN(c) m = Max(a, b) y = Conv(m, W)", gamma=(1.0,),
    ),
    Case(
        "scales and shifts by constants", "a",
        "c = Conv(x, W) p = Mul(c, k) a = Add(p, l) b = BN(c) m = Max(a, b) y = Conv(m, W)",
        {"k": [[[2.0]], [[1.0]], [[3.0]], [[1.5]]], "l": (4, 1, 1)}, gamma=(1.0,),
    ),
    Case(
        "… (…) has a scale or bias that is not constant", "s",
        "computed = Tanh(g) s = InstanceNormalization(x, computed, b) v = BN(s) y = Tanh(v)", FOUR, gamma=DEAD,
    ),
    shifted(
        "normalises by what it reads, which is carried as it is", "y", "y = InstanceNormalization(v, g, b)",
        tensors=FOUR,
    ),
    shifted(
        "… (…) divides, or multiplies by a constant of another shape than the tensor's", "y", "y = Div(one, v)",
        tensors={"one": 1.0},
    ),
    # element by element
    Case("lets only positive scales pass, and no shift", "r", "v = BN(x) r = Relu(v) y = Conv(r, W)"),
    Case(
        "clips at bounds that would have to move", "u",
        "c = Conv(x, W) u = Clip(c, low, high) v = BN(u) y = Tanh(v)", {"low": -0.5, "high": 0.7}, gamma=DEAD,
    ),
    Case(
        "… (…) takes its bounds at run time", "u",
        "c = Conv(x, W) low = ReduceMin <keepdims = 0> (x) u = Clip(c, low) v = BN(u) y = Tanh(v)", gamma=DEAD,
    ),
    Case(
        "… (…) has bounds that leave nothing between them", "u",
        "c = Conv(x, W) u = Clip(c, low, high) v = BN(u) y = Tanh(v)", {"low": 0.7, "high": 0.5}, gamma=DEAD,
    ),
    shifted("multiplies by its slope, which is carried as it is", "y", "y = PRelu(x, v)"),
    uniform(
        "adds tensors, which must agree in their scale", "z", "p = GlobalAveragePool(u) z = Add(v, p) y = Conv(z, W)"
    ),
    shifted(
        "compares tensors, which must agree in a positive scale and in their shift", "z",
        "t = Tanh(x) z = Max(v, t) y = Conv(z, W)",
    ),
    shifted("… (…) squares its input", "y", "y = Mul(v, v)"),
    shifted(
        "multiplies by it, so it is carried as it is", "z", "p = GlobalAveragePool(v) z = Mul(x, p) y = Tanh(z)"
    ),
    shifted(
        "multiplies by a computed gate, so its input may carry no shift", "z",
        "p = GlobalAveragePool(x) t = Sigmoid(p) z = Mul(v, t) y = Conv(z, W)",
    ),
    # pools and reductions
    Case(
        "takes a maximum, which lets only positive scales pass, one for each channel", "m",
        "v = BN(x) m = MaxPool <kernel_shape = [2, 2]> (v) y = Conv(m, W)",
    ),
    uniform(
        "takes a mean over space, which lets one gauge for each channel pass", "m",
        "t = Transpose <perm = [0, 2, 1, 3]> (v) m = GlobalAveragePool(t) y = Conv(m, K)", tensors={"K": (5, 6, 1, 1)},
    ),
    shifted(
        "counts the zeros that it pads with, so its input may carry no shift", "m",
        "m = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (v) y = Conv(m, W)",
    ),
    *(
        uniform(demand, "m", f"m = {op}(v, axes) y = Conv(m, K)", tensors={"K": (5, 1, 1, 1), "axes": [1]})
        for op, demand in {
            "ReduceMean": "takes a mean, over which the gauge must be the same",
            "ReduceSum": "takes a sum, over which the gauge must be the same",
            "ReduceMax": "takes an extremum, which lets only positive scales pass, "
            "and over which the gauge must be the same",
        }.items()
    ),
    shifted(
        "sums elements whose number is not known, so its input may carry no shift", "m",
        "m = ReduceSum(v, axes) y = Conv(m, W)", tensors={"axes": [2]}, x="n, 4, h, 7",
    ),
    shifted(
        "… (…) takes its axes at run time", "m", "a = Abs(axes) m = ReduceSum(v, a) y = Tanh(m)",
        tensors={"axes": [2]}, inferred="double[n, 4, 1, 7] m",
    ),
    # what moves data
    shifted(
        "concatenates along axis …, whose size is not known, so that all inputs must agree in their gauge", "z",
        "t = Tanh(x) z = Concat <axis = 2> (v, t) y = Conv(z, W)", x="n, 4, h, 7",
    ),
    uniform(
        "cuts axis … into pieces of computed sizes", "a",
        "s = Abs(sizes) a, b = Split <axis = 1> (v, s) p = Conv(a, K) q = Conv(b, L) y = Concat <axis = 1> (p, q)",
        tensors={"K": (5, 1, 1, 1), "L": (2, 3, 1, 1), "sizes": [1, 3]},
        inferred="double[n, 1, 6, 7] a, double[n, 3, 6, 7] b",
    ),
    uniform(
        "takes a slice that is known only at run time, over which the gauge must be the same", "z",
        "s = Abs(start) z = Slice(v, s, end, start) y = Conv(z, K)",
        tensors={"K": (5, 3, 1, 1), "start": [1], "end": [4]},
    ),
    uniform(
        "takes places of axis … that are known only at run time", "z",
        "i = Abs(places) z = Gather <axis = 1> (v, i) y = Conv(z, K)",
        tensors={"K": (5, 3, 1, 1), "places": [1, 3, 0]},
    ),
    uniform(
        "repeats its input a number of times that is known only at run time", "z",
        "r = Abs(times) z = Tile(v, r) y = Conv(z, K)", tensors={"K": (5, 8, 1, 1), "times": [1, 2, 1, 1]},
    ),
    uniform(
        "turns channels into places, which lets one gauge for the channels of a block and all of space pass", "z",
        "z = DepthToSpace <blocksize = 2> (v) y = Conv(z, K)", tensors={"K": (5, 1, 1, 1)},
    ),
    uniform(
        "turns places into channels, over which the gauge must be the same", "z",
        "t = Transpose <perm = [0, 2, 1, 3]> (v) z = SpaceToDepth <blocksize = 2> (t) y = Conv(z, K)",
        tensors={"K": (5, 24, 1, 1)}, x="n, 4, 6, 8",
    ),
    uniform(
        "merges dimensions whose sizes are not known, over which the gauge must be the same", "z",
        "z = Reshape(v, shape) y = MatMul(z, K)", tensors={"K": (7, 5), "shape": [-1, 7]}, x="n, 4, h, 7",
    ),
    shifted(
        "… (…) changes the shape in a way that channels cannot be followed through", "z",
        "e = Slice(v, none, none, last) z = Reshape <allowzero = 1> (e, shape) y = ReduceSum(z, axes)",
        tensors={"none": [0], "last": [3], "shape": [2, 0], "axes": [1]}, x="2, 4, 6, 7",
    ),
    shifted("… (…) converts to another type", "i", "i = Cast <to = 6> (v) d = Cast <to = 11> (i) y = Tanh(d)"),
    Case(
        "… (…) may be in training mode", "d", "c = Conv(x, W) d = Dropout(c, ratio, training) v = BN(d) y = Tanh(v)",
        {"ratio": 0.0, "training": True}, gamma=DEAD,
    ),
    Case(
        "pads its input with infinities, which lets only positive scales pass", "z",
        "v = BN(x) z = Pad(v, pads, low) s = Slice(z, start, end, axes) y = Conv(s, W)",
        {"pads": [0, 0, 1, 0, 0, 0, 0, 0], "low": -np.inf, "start": [1], "end": [7], "axes": [2]},
    ),
    uniform(
        "pads with what lies along the same axis, over which the gauge must be the same", "z",
        'z = Pad <mode = "reflect"> (v, pads) y = Conv(z, K)',
        tensors={"K": (3, 5, 1, 1), "pads": [0, 1, 0, 0, 0, 0, 0, 0]},
    ),
    Case(
        "… (…) pads with a number that is neither zero nor infinite", "z",
        "c = Conv(x, W) z = Pad(c, pads, value) v = BN(z) y = Tanh(v)",
        {"pads": [0, 0, 1, 0, 0, 0, 0, 0], "value": 1.5}, gamma=DEAD,
    ),
    uniform(
        "interpolates, which lets one gauge along all that it resizes pass", "z",
        "z = Resize(v, , scales) y = Conv(z, K)", tensors={"K": (3, 8, 1, 1), "scales": float32(1, 2, 1, 1)},
    ),
    Case(
        "… (…) resizes by …, which may take something else than its input", "z",
        'c = Conv(x, W) z = Resize <coordinate_transformation_mode = "tf_crop_and_resize", mode = "linear">'
        "(c, region, scales) v = BN(z) y = Tanh(v)",
        {"region": float32(0, 0, 0, 0, 1, 1, 1, 1), "scales": float32(1, 1, 2, 2)}, gamma=DEAD,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: bare(case.reason))
def test_the_reason_and_the_culprit_are_told_and_the_output_is_exact(case: Case) -> None:
    model = case.model()
    if case.unchanged:
        folded, report = fold.fold_model(model)
        assert ir.to_proto(folded) == ir.to_proto(model)
    else:
        _, report = check_fold(model)
    words = re.escape(bare(case.reason)).replace("…", ".+")  # a sentence, its start, or behind who demands it
    told = [kept for kept in report.kept if re.search(rf"(^|[ :]){words}($|:)", kept.reason)]
    assert [kept.culprit for kept in told] == [case.culprit], report.kept


def test_a_batchnorm_that_the_caller_names_is_left() -> None:
    model = Case("", "", "c = Conv(x, W) a = BN(c) d = Conv(a, W) y = BN(d)").model()
    _, report = check_fold(model, kept=0)
    assert [entry.name for entry in report.folded] == ["a", "y"]
    report = fold_graph(model, leave=frozenset({"y"})).report
    assert [entry.name for entry in report.folded] == ["a"]
    assert [(kept.name, kept.reason, kept.culprit) for kept in report.kept] == [("y", LEFT, "y")]


def test_every_reason_has_a_graph_that_runs_into_it() -> None:
    assert {bare(case.reason) for case in CASES} | NEVER_LAST | {LEFT, WARNING} == reasons()


def test_every_reason_stands_in_the_documentation_and_no_other() -> None:
    text = (ROOT / "docs" / "folding.md").read_text()
    section = text.split("\n## Why a BatchNorm is kept\n")[1].split("\n## ")[0]
    documented = {bare(" ".join(quoted.split())) for quoted in re.findall(r'"([^"]+)"', section)}
    assert documented == reasons()

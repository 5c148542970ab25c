"""Parallel branches of one tensor become one convolution: which do, with what weights, and which may not."""

import re
import time
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fold
from fold.engine import branches, kernels
from support.folding import GraphBuilder, batchnorms, check_fold

Shape = int | tuple[int, ...]


def parsed(
    body: str, x: str = "double[N, 4, 9, 8] x", y: str = "double y", seed: int = 0, **weights: Shape | np.ndarray
) -> ir.Model:
    """A graph as ONNX text, `norm(a, n)` standing for a BatchNorm, with its weights drawn: a tuple is a shape, a number
    the channels of a BatchNorm, whose γ has both signs and a zero."""
    parameters = ", ".join(rf"\2.{name}" for name in ("weight", "bias", "mean", "var")).replace(".", "_")
    body = re.sub(r"norm\((\w+), (\w+)\)", rf"BatchNormalization(\1, {parameters})", body)
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]> g ({x}) => ({y}) {{ {body} }}')
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")  # it is inferred
    random = np.random.default_rng(seed)
    for name, given_ in weights.items():
        if isinstance(given_, int):
            gamma = random.choice([-1, 1], given_) * random.uniform(0.2, 2, given_)
            gamma[0] = 0
            drawn = {"weight": gamma, "bias": random.standard_normal(given_)}
            drawn |= {"mean": random.standard_normal(given_), "var": random.uniform(0.1, 3, given_)}
            tensors = {f"{name}_{kind}": array for kind, array in drawn.items()}
        else:
            tensors = {name: random.standard_normal(given_) if isinstance(given_, tuple) else given_}
        model.graph.initializer.extend(onnx.numpy_helper.from_array(a, key) for key, a in tensors.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True))


def count(model: ir.Model, *operators: str) -> int:
    return sum(node.op_type in operators for node in model.graph)


def check_merge(model: ir.Model, merged: int) -> ir.Model:
    """One convolution is left of so many branches, and nothing else."""
    folded, report = check_fold(model, kept=0)
    assert [node.op_type for node in folded.graph] == ["Conv"]
    assert report.branches_merged == merged
    return folded


def check_apart(model: ir.Model) -> ir.Model:
    """Everything is folded but nothing merged."""
    folded, report = check_fold(model)
    assert report.branches_merged == 0
    assert count(folded, "Conv") == count(model, "Conv")
    assert count(folded, "Add", "Sub") >= count(model, "Add", "Sub")
    return folded


def convolutions(*attributes_and_shapes: tuple[str, tuple[int, ...]], x: str = "double[N, 4, 9, 8] x") -> ir.Model:
    """A sum of convolutions of x and a BatchNorm behind it."""
    body, total, channels = "", "c0", attributes_and_shapes[0][1][0]
    weights = {}
    for i, (attributes, shape) in enumerate(attributes_and_shapes):
        body += f"c{i} = Conv <{attributes}> (x, w{i})\n" if attributes else f"c{i} = Conv (x, w{i})\n"
        weights[f"w{i}"] = shape
        if i:
            body, total = f"{body} s{i} = Add ({total}, c{i})\n", f"s{i}"
    return parsed(f"{body} y = norm({total}, n)", x, n=channels, **weights)


@pytest.mark.parametrize(
    "members",
    [
        [("pads=[1, 1, 1, 1]", (6, 4, 3, 3)), ("", (6, 4, 1, 1))],
        [("", (6, 4, 1, 1)), ("pads=[1, 1, 1, 1]", (6, 4, 3, 3))],
        [("pads=[0, 1, 0, 1]", (6, 4, 1, 3)), ("pads=[1, 0, 1, 0]", (6, 4, 3, 1)), ("", (6, 4, 1, 1))],
        [("pads=[2, 2, 2, 2]", (6, 4, 5, 5)), ("pads=[1, 1, 1, 1]", (6, 4, 3, 3))],
        [("pads=[0, 1, 1, 0]", (6, 4, 2, 2)), ("pads=[1, 1, 1, 1]", (6, 4, 3, 3))],
        [("pads=[1, 1, 2, 2]", (6, 4, 4, 4)), ("pads=[0, 1, 1, 0]", (6, 4, 2, 2)), ("", (6, 4, 1, 1))],
        [("strides=[2, 2], pads=[1, 1, 1, 1]", (6, 4, 3, 3)), ("strides=[2, 2]", (6, 4, 1, 1))],
        [("strides=[2, 1], pads=[1, 1, 1, 1]", (6, 4, 3, 3)), ("strides=[2, 1], pads=[0, 2, 0, 2]", (6, 4, 1, 5))],
        [("dilations=[2, 2], pads=[2, 2, 2, 2]", (6, 4, 3, 3)), ("pads=[1, 1, 1, 1]", (6, 4, 3, 3))],
        [("dilations=[3, 2], pads=[3, 2, 3, 2]", (6, 4, 3, 3)), ("dilations=[2, 1], pads=[2, 1, 2, 1]", (6, 4, 3, 3))],
        [("dilations=[2, 2], pads=[2, 2, 2, 2]", (6, 4, 3, 3)), ("", (6, 4, 1, 1))],
        [("group=2, pads=[1, 1, 1, 1]", (6, 2, 3, 3)), ("", (6, 4, 1, 1))],
        [("pads=[1, 1, 1, 1]", (6, 4, 3, 3)), ("pads=[1, 1, 1, 1]", (6, 4, 3, 3)), ("group=2", (6, 2, 1, 1))],
        [("", (6, 4, 3, 3)), ("", (6, 4, 3, 3))],
        [("pads=[0, 0, 2, 2]", (6, 4, 3, 3)), ("pads=[2, 2, 0, 0]", (6, 4, 3, 3))],
    ],
    ids=lambda members: "+".join("x".join(map(str, shape[2:])) for _, shape in members),
)
def test_kernels_are_laid_over_each_other_by_where_their_taps_fall(members) -> None:
    check_merge(convolutions(*members), len(members))


def test_dilations_that_agree_are_kept() -> None:
    wide = ("dilations=[2, 3], pads=[2, 3, 2, 3]", (6, 4, 3, 3))
    conv = check_merge(convolutions(wide, ("", (6, 4, 1, 1))), 2).graph[0]
    assert list(conv.attributes["dilations"].as_ints()) == [2, 3]
    assert list(conv.attributes["kernel_shape"].as_ints()) == [3, 3]


@pytest.mark.parametrize(
    ("groups", "expected"), [((2, 3), 1), ((6, 3), 3), ((6, 2, 3), 1), ((4, 6), 2), ((12, 4), 4), ((12, 1), 1)]
)
def test_groups_become_those_that_the_branches_have_in_common(groups, expected) -> None:
    members = [(f"group={g}, pads=[{i}, 0, {i}, 0]", (12, 12 // g, 2 * i + 1, 1)) for i, g in enumerate(groups)]
    conv = check_merge(convolutions(*members, x="double[N, 12, 5, 7] x"), len(groups)).graph[0]
    assert conv.attributes["group"].as_int() == expected


def test_one_and_three_dimensions() -> None:
    check_merge(convolutions(("pads=[1, 1]", (6, 4, 3)), ("", (6, 4, 1)), x="double[N, 4, 9] x"), 2)
    cube = ("pads=[1, 0, 1, 1, 0, 1]", (6, 4, 3, 1, 3))
    check_merge(convolutions(cube, ("", (6, 4, 1, 1, 1)), x="double[N, 4, 5, 3, 4] x"), 2)


def test_sizes_that_are_only_known_at_run_time() -> None:
    wide = ("strides=[2, 2], pads=[1, 1, 1, 1]", (6, 4, 3, 3))
    folded, report = check_fold(convolutions(wide, ("strides=[2, 2]", (6, 4, 1, 1)), x="double[N, 4, N, N] x"), kept=0)
    assert report.branches_merged == 2
    assert count(folded, "Conv") == 1


BRANCHES: dict[str, tuple[int, str, dict[str, Shape]]] = {
    "conv-bn + bn": (
        2,
        "a = Conv <pads=[1, 1, 1, 1]> (x, w) b = norm(a, n) c = norm(x, m) y = Add (b, c)",
        {"w": (4, 4, 3, 3), "n": 4, "m": 4},
    ),
    "repvgg": (
        3,
        """a = Conv <pads=[1, 1, 1, 1]> (x, w) b = norm(a, n) c = Conv (x, v) d = norm(c, m) e = norm(x, k)
        f = Add (b, d) y = Add (f, e)""",
        {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), "n": 4, "m": 4, "k": 4},
    ),
    "depthwise, each with a bias, four branches": (
        4,
        """a = Conv <group=4, pads=[1, 1, 1, 1]> (x, w, p) b = norm(a, n) c = Conv <group=4> (x, v, q)
        d = Conv <group=4, pads=[2, 0, 2, 0]> (x, u) e = Add (x, c) f = Add (d, e) y = Add (f, b)""",
        {"w": (4, 1, 3, 3), "p": (4,), "v": (4, 1, 1, 1), "q": (4,), "u": (4, 1, 5, 1), "n": 4},
    ),
    "identity": (2, "a = Conv <pads=[1, 1, 1, 1]> (x, w) b = norm(a, n) y = Add (x, b)", {"w": (4, 4, 3, 3), "n": 4}),
    "bn + identity": (2, "a = norm(x, n) y = Add (a, x)", {"n": 4}),
    "difference": (
        2,
        "a = Conv <pads=[1, 1, 1, 1]> (x, w, p) b = norm(a, n) c = Conv (x, v, q) y = Sub (c, b)",
        {"w": (4, 4, 3, 3), "p": (4,), "v": (4, 4, 1, 1), "q": (4,), "n": 4},
    ),
    "difference of differences": (
        3,
        "a = Conv (x, w) b = norm(x, n) c = Sub (x, b) y = Sub (a, c)",
        {"w": (4, 4, 1, 1), "n": 4},
    ),
    "layer scale": (
        2,
        "a = Conv <pads=[1, 1, 1, 1]> (x, w) b = norm(a, n) c = Mul (b, s) d = Add (t, c) y = Add (x, d)",
        {"w": (4, 4, 3, 3), "n": 4, "s": (4, 1, 1), "t": (1, 4, 1, 1)},
    ),
    "constants on either side": (
        2,
        "a = Conv (x, w) b = norm(a, n) c = Sub (t, b) d = Div (c, s) e = Add (x, d) y = Mul (e, k)",
        {"w": (4, 4, 1, 1), "n": 4, "s": (4, 1, 1), "t": (1, 4, 1, 1), "k": ()},
    ),
    "a pool": (
        2,
        """a = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1> (x) b = Conv (x, w)
        c = norm(b, n) y = Sub (a, c)""",
        {"w": (4, 4, 1, 1), "n": 4},
    ),
    "a pool that pads nothing": (
        2,
        """a = AveragePool <kernel_shape=[2, 3], strides=[2, 2]> (x) b = Conv <strides=[2, 2]> (x, w)
        d = Conv <kernel_shape=[2, 3], strides=[2, 2]> (x, v) c = norm(d, n) y = Add (a, c)""",
        {"w": (4, 4, 1, 1), "v": (4, 4, 2, 3), "n": 4},
    ),
    "a dilated pool": (
        2,
        """a = AveragePool <kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1> (x)
        b = norm(x, n) y = Add (a, b)""",
        {"n": 4},
    ),
    "explicit zeros": (
        2,
        'a = Conv <auto_pad="VALID"> (x, w) b = norm(a, n) y = Add (x, b)',
        {"w": (4, 4, 1, 1), "n": 4},
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches(name) -> None:
    merged, body, weights = BRANCHES[name]
    folded, report = check_fold(parsed(body, **weights), kept=0)
    used = {value for node in folded.graph for value in node.inputs}
    assert report.branches_merged == merged
    assert [node.op_type for node in folded.graph if node.outputs[0].is_graph_output()] == ["Conv"]
    assert all(value in used for value in folded.graph.initializers.values())


SAME: dict[str, tuple[str, dict[str, Shape]]] = {
    "stride 1": ('a = Conv <auto_pad="SAME_UPPER"> (x, w) b = Conv (x, v)', {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)}),
    "even kernels": (
        'a = Conv <auto_pad="SAME_UPPER"> (x, w) b = Conv <auto_pad="SAME_LOWER"> (x, v)',
        {"w": (4, 4, 2, 4), "v": (4, 4, 2, 2)},
    ),
    "stride 2": (
        """a = Conv <auto_pad="SAME_UPPER", strides=[2, 2]> (x, w)
        b = Conv <auto_pad="SAME_LOWER", strides=[2, 2]> (x, v)""",
        {"w": (4, 4, 3, 3), "v": (4, 4, 2, 2)},
    ),
    "stride 2 beside explicit zeros": (
        'a = Conv <auto_pad="SAME_UPPER", strides=[2, 2]> (x, w) b = Conv <strides=[2, 2]> (x, v)',
        {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)},
    ),
    "stride beyond the kernel": (
        'a = Conv <auto_pad="SAME_UPPER", strides=[3, 3]> (x, w) b = Conv <strides=[3, 3]> (x, v)',
        {"w": (4, 4, 2, 1), "v": (4, 4, 1, 1)},
    ),
    "a pool": (
        """a = AveragePool <auto_pad="SAME_LOWER", kernel_shape=[3, 2], strides=[2, 1], count_include_pad=1> (x)
        b = Conv <auto_pad="SAME_UPPER", strides=[2, 1]> (x, v)""",
        {"v": (4, 4, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_padding_that_follows_from_the_sizes(name) -> None:
    body, weights = SAME[name]
    check_merge(parsed(f"{body} c = Add (a, b) y = norm(c, n)", n=4, **weights), 2)


@pytest.mark.parametrize(("name", "merged"), [("stride 1", 2), ("even kernels", 2), ("stride 2", 0), ("1x1", 2)])
def test_padding_that_follows_from_sizes_which_are_not_known(name, merged) -> None:
    one = 'a = Conv <auto_pad="SAME_LOWER", strides=[2, 2]> (x, w) b = Conv <strides=[2, 2]> (x, v)'
    body, weights = (SAME | {"1x1": (one, {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)})})[name]
    model = parsed(f"{body} c = Add (a, b) y = norm(c, n)", "double[N, 4, N, N] x", n=4, **weights)
    assert check_fold(model)[1].branches_merged == merged


def test_same_with_dilations_means_something_else_in_every_runtime() -> None:
    body = 'a = Conv <auto_pad="SAME_UPPER", dilations=[2, 2]> (x, w) b = Conv (x, v) c = Add (a, b) y = norm(c, n)'
    model = parsed(body, w=(4, 4, 3, 3), v=(4, 4, 1, 1), n=4)
    assert fold.fold_model(model)[1].branches_merged == 0


PRODUCTS: dict[str, tuple[str, dict[str, Shape]]] = {
    "1x1, 3x3": (
        "a = Conv (x, w, p) b = norm(a, m) c = Conv (b, v, q) z = Conv (x, u)",
        {"w": (5, 4, 1, 1), "p": (5,), "m": 5, "v": (6, 5, 3, 3), "q": (6,), "u": (6, 4, 3, 3)},
    ),
    "1x1, 3x3 with padding and no bias": (
        "a = Conv (x, w) c = Conv <pads=[1, 1, 1, 1]> (a, v, q) z = Conv (x, u)",
        {"w": (5, 4, 1, 1), "v": (6, 5, 3, 3), "q": (6,), "u": (6, 4, 1, 1)},
    ),
    "3x3, 1x1": (
        "a = Conv <pads=[1, 1, 1, 1]> (x, w, p) b = norm(a, m) c = Conv (b, v, q) z = Conv (x, u)",
        {"w": (5, 4, 3, 3), "p": (5,), "m": 5, "v": (6, 5, 1, 1), "q": (6,), "u": (6, 4, 1, 1)},
    ),
    "1x1, pool": (
        """a = Conv (x, w, p) b = norm(a, m) c = AveragePool <kernel_shape=[3, 3], strides=[2, 2]> (b)
        z = Conv <strides=[2, 2]> (x, u)""",
        {"w": (6, 4, 1, 1), "p": (6,), "m": 6, "u": (6, 4, 3, 3)},
    ),
    "strides in a row": (
        """a = Conv <strides=[2, 1], pads=[1, 0, 1, 0]> (x, w, p) c = Conv <strides=[1, 2]> (a, v)
        z = Conv <strides=[2, 2]> (x, u)""",
        {"w": (5, 4, 3, 1), "p": (5,), "v": (6, 5, 1, 1), "u": (6, 4, 1, 1)},
    ),
    "taps between strides": (
        """a = Conv <strides=[2, 2], pads=[1, 1, 1, 1]> (x, w, p) c = Conv <dilations=[1, 2]> (a, v)
        z = Conv <strides=[2, 2], pads=[0, 1, 0, 0]> (x, u)""",
        {"w": (5, 4, 3, 3), "p": (5,), "v": (6, 5, 2, 2), "u": (6, 4, 3, 6)},
    ),
    "groups": (
        """a = Conv <group=2> (x, w, p) b = norm(a, m) c = Conv <group=6, pads=[0, 0, 0, 0]> (b, v, q)
        z = Conv <group=2> (x, u)""",
        {"w": (6, 2, 1, 1), "p": (6,), "m": 6, "v": (6, 1, 3, 3), "q": (6,), "u": (6, 2, 3, 3)},
    ),
    "depthwise, dense": (
        "a = Conv <group=4, pads=[1, 1, 1, 1]> (x, w, p) c = Conv (a, v, q) z = Conv (x, u)",
        {"w": (8, 1, 3, 3), "p": (8,), "v": (6, 8, 1, 1), "q": (6,), "u": (6, 4, 1, 1)},
    ),
    "three in a row": (
        "a = Conv (x, w) b = Conv <pads=[1, 1, 1, 1]> (a, v, p) c = Conv (b, t) z = Conv (x, u)",
        {"w": (5, 4, 1, 1), "v": (3, 5, 3, 3), "p": (3,), "t": (6, 3, 1, 1), "u": (6, 4, 1, 1)},
    ),
    "a product of a sum": (
        "a = Conv (x, w, p) b = Conv (x, v) d = Sub (a, b) c = Conv (d, t) z = Conv (x, u)",
        {"w": (5, 4, 1, 1), "p": (5,), "v": (5, 4, 1, 1), "t": (6, 5, 3, 3), "u": (6, 4, 3, 3)},
    ),
    "bn, 3x3": (
        "a = norm(x, m) c = Conv (a, v, q) z = Conv (x, u)",
        {"m": 4, "v": (6, 4, 3, 3), "q": (6,), "u": (6, 4, 3, 3)},
    ),
    "full convolution, 3x3": (
        "a = Conv <pads=[2, 2, 2, 2]> (x, w) c = Conv <pads=[1, 1, 1, 1]> (a, v) z = Conv <pads=[2, 2, 2, 2]> (x, u)",
        {"w": (5, 4, 3, 3), "v": (6, 5, 3, 3), "u": (6, 4, 3, 3)},
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_convolutions_in_a_row_are_one_branch(name, monkeypatch) -> None:
    monkeypatch.setattr(kernels, "PASS", 1000)
    body, weights = PRODUCTS[name]
    for seed in range(3):
        model = parsed(f"{body} e = Add (c, z) y = norm(e, n)", seed=seed, n=6, **weights)
        check_merge(model, 3 if name == "a product of a sum" else 2)


def test_a_product_has_the_groups_that_both_have_in_common() -> None:
    body, weights = PRODUCTS["groups"]
    conv = check_merge(parsed(f"{body} e = Add (c, z) y = norm(e, n)", n=6, **weights), 2).graph[0]
    assert conv.attributes["group"].as_int() == 2


def test_diverse_branch_block() -> None:
    """Where it pads between two convolutions, the first one has no shift that the padding would have to carry."""
    body = """
        a = Conv <pads=[1, 1, 1, 1]> (x, wa) a1 = norm(a, na)
        b = Conv (x, wb) b1 = norm(b, nb)
        c = Conv (x, wc) c1 = Conv <pads=[1, 1, 1, 1]> (c, wd) c2 = norm(c1, nc)
        d = Conv (x, we) d1 = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1> (d)
        d2 = norm(d1, nd)
        ab = Add (a1, b1) abc = Add (ab, c2) y = Add (abc, d2)"""
    weights = {"wa": (8, 4, 3, 3), "wb": (8, 4, 1, 1), "wc": (4, 4, 1, 1), "wd": (8, 4, 3, 3), "we": (8, 4, 1, 1)}
    conv = check_merge(parsed(body, **weights, na=8, nb=8, nc=8, nd=8), 4).graph[0]
    assert [value.name for value in conv.inputs[1:]] == ["wa", "wa_bias"]


@pytest.mark.parametrize(("stride", "left"), [(1, 3), (2, 1)])
def test_a_product_costs_what_its_positions_cost(stride, left) -> None:
    """Two narrow convolutions are cheaper than their product; but before a stride of 2 the first one runs at four
    positions for one of the result."""
    steps = f"strides=[{stride}, {stride}]"
    body = (
        f"a = Conv (x, w) c = Conv <{steps}> (a, v) z = Conv <group=256, {steps}> (x, u) e = Add (c, z) y = norm(e, n)"
    )
    weights: dict[str, Shape] = {"w": (32, 256, 1, 1), "v": (256, 32, 1, 1), "u": (256, 1, 1, 1), "n": 256}
    folded, _ = check_fold(parsed(body, "double[N, 256, 2, 3] x", **weights), kept=0)
    assert count(folded, "Conv") == left


def test_convolutions_in_a_row_stay_where_nothing_is_added() -> None:
    check_apart(parsed("a = Conv (x, w) b = Conv (a, v) y = norm(b, n)", w=(4, 4, 1, 1), v=(4, 4, 3, 3), n=4))
    body = "a = Conv (x, w) b = Conv (x, v) c = Add (a, b) d = Conv (c, t) y = norm(d, n)"
    folded, _ = check_fold(parsed(body, w=(4, 4, 1, 1), v=(4, 4, 1, 1), t=(4, 4, 3, 3), n=4), kept=0)
    assert [node.op_type for node in folded.graph] == ["Conv", "Conv"]


MIXED: dict[str, tuple[str, dict[str, Shape], int, int]] = {
    "interleaved": (
        "a = Conv <pads=[1, 1, 1, 1]> (x, w) b = Conv (x, v) r = Relu (x) c = Add (a, r) e = Add (c, b)",
        {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1)},
        2,
        1,
    ),
    "signs": (
        """a = Conv (x, w, p) b = Conv (x, v, q) r = Relu (x) t = Tanh (x)
        c = Sub (r, a) d = Sub (t, b) e = Sub (c, d)""",
        {"w": (4, 4, 1, 1), "p": (4,), "v": (4, 4, 1, 1), "q": (4,)},
        2,
        1,
    ),
    "the tensor itself": (
        "r = Relu (x) c = Add (r, x) b = norm(x, m) d = Sub (b, c) a = Conv (x, w) e = Add (d, a)",
        {"m": 4, "w": (4, 4, 1, 1)},
        3,
        1,
    ),
    "two whole sums": (
        """r = Relu (x) a = Conv (x, w) b = norm(x, m) c = Conv (r, v) d = norm(r, k) f = Add (a, b) g = Add (c, d)
        e = Sub (f, g)""",
        {"m": 4, "w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "k": 4},
        4,
        2,
    ),
    "a part of a larger sum that is read elsewhere": (
        """r = Relu (x) a = Conv (x, w) c = Add (a, r) b = norm(x, m) d = Add (c, b) s = Sigmoid (c) h = Conv (x, v)
        i = Sub (h, d) e = Mul (i, s)""",
        {"m": 4, "w": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
        2,
        2,
    ),
}


@pytest.mark.parametrize("name", MIXED)
def test_sums_of_maps_of_several_tensors(name) -> None:
    body, weights, merged, left = MIXED[name]
    folded, report = check_fold(parsed(f"{body} y = norm(e, n)", n=4, **weights))
    assert (report.branches_merged, count(folded, "Conv")) == (merged, left)


def test_a_sum_of_several_tensors_that_is_an_output() -> None:
    body = "r = Relu (x) a = Conv (x, w) b = norm(a, n) c = Sub (r, b) d = Conv (x, v) y = Add (c, d)"
    folded, _ = check_fold(parsed(body, w=(4, 4, 1, 1), v=(4, 4, 1, 1), n=4), kept=0)
    assert [node.op_type for node in folded.graph] == ["Relu", "Conv", "Add"]


def test_a_sum_that_is_spread_over_a_larger_tensor() -> None:
    body = "a = Conv (x, w) b = norm(a, n) c = Add (b, z) d = Conv (x, v) y = Add (c, d)"
    x = "double[N, 4, 1, 1] x, double[N, 4, 3, 5] z"
    check_apart(parsed(body, x, w=(4, 4, 1, 1), v=(4, 4, 1, 1), n=4))


APART: dict[str, tuple[str, dict[str, Shape]]] = {
    "different bases": ("a = Conv (x, w) b = Relu (x) c = norm(b, m) e = Add (a, c)", {"w": (4, 4, 1, 1), "m": 4}),
    "different strides": (
        "a = Conv <strides=[8, 7]> (x, w) b = Conv <strides=[7, 8]> (x, v) e = Add (a, b)",
        {"w": (4, 4, 3, 3), "v": (4, 4, 3, 3)},
    ),
    "strides and what is not strided": ("a = Conv <strides=[9, 8]> (x, w) e = Add (a, x)", {"w": (4, 4, 9, 8)}),
    "read twice": (
        "a = Conv (x, w) b = Relu (a) c = norm(x, m) d = Add (a, c) e = Mul (b, d)",
        {"w": (4, 4, 1, 1), "m": 4},
    ),
    "another shape of the same channels": (
        "a = Conv (x, w) b = Conv (x, v) e = Add (a, b)",
        {"w": (4, 4, 1, 1), "v": (4, 4, 9, 8)},
    ),
    "one channel and many": (
        "a = Conv (x, w) b = Conv (x, v) e = Add (a, b)",
        {"w": (4, 4, 1, 1), "v": (1, 4, 1, 1)},
    ),
    "one row and many": (
        "a = Conv (x, w) b = Conv (x, v) e = Add (a, b)",
        {"w": (4, 4, 9, 1), "v": (4, 4, 1, 1)},
    ),
    "strides at which both write one row": (
        "a = Conv <strides=[9, 8]> (x, w) b = Conv <strides=[3, 8], pads=[0, 0, 0, 0]> (x, v) e = Add (a, b)",
        {"w": (4, 4, 1, 1), "v": (4, 4, 8, 3)},
    ),
    "a pool that does not count its padding": (
        """a = AveragePool <kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0> (x) b = Conv (x, w)
        e = Add (a, b)""",
        {"w": (4, 4, 1, 1)},
    ),
    "a pool that rounds up": (
        """a = AveragePool <kernel_shape=[2, 3], strides=[2, 2], ceil_mode=1, count_include_pad=1> (x)
        b = Conv <strides=[2, 2], pads=[0, 0, 1, 1]> (x, w) e = Add (a, b)""",
        {"w": (4, 4, 2, 3)},
    ),
    "padding between, of what has a bias": (
        "a = Conv (x, w, p) b = Conv <pads=[1, 1, 1, 1]> (a, v) c = Conv (x, u) e = Add (b, c)",
        {"w": (5, 4, 1, 1), "p": (5,), "v": (4, 5, 3, 3), "u": (4, 4, 1, 1)},
    ),
    "padding between, of what has a shift": (
        "a = norm(x, m) b = Conv <pads=[1, 1, 1, 1]> (a, v) c = Conv (x, u) e = Add (b, c)",
        {"m": 4, "v": (4, 4, 3, 3), "u": (4, 4, 1, 1)},
    ),
    "padding between, of what would not be zero": (
        "a = Conv <pads=[1, 1, 1, 1]> (x, w) b = Conv <pads=[1, 1, 1, 1]> (a, v) c = Conv (x, u) e = Add (b, c)",
        {"w": (5, 4, 3, 3), "v": (4, 5, 3, 3), "u": (4, 4, 1, 1)},
    ),
    "padding between, of what would not be zero before": (
        "a = Conv <pads=[0, 0, 2, 2]> (x, w) b = Conv <pads=[2, 2, 0, 0]> (a, v) c = Conv (x, u) e = Add (b, c)",
        {"w": (5, 4, 3, 3), "v": (4, 5, 3, 3), "u": (4, 4, 1, 1)},
    ),
    "padding between, of what would not be zero behind": (
        "a = Conv <pads=[2, 2, 0, 0]> (x, w) b = Conv <pads=[2, 2, 0, 0]> (a, v) c = Conv (x, u) e = Add (b, c)",
        {"w": (5, 4, 3, 3), "v": (4, 5, 3, 3), "u": (4, 4, 1, 1)},
    ),
    "an inner value read twice": (
        "a = Conv (x, w) b = Conv (a, v) c = Conv (x, u) d = Add (b, c) r = Relu (a) q = Conv (r, v) e = Mul (d, q)",
        {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3), "u": (4, 4, 3, 3)},
    ),
    "the tensor itself twice, which is no less": ("r = Relu (x) c = Add (x, r) e = Add (c, x)", {}),
    "a map that varies over positions": (
        "a = Conv (x, w) b = Mul (a, s) e = Add (x, b)",
        {"w": (4, 4, 1, 1), "s": (9, 8)},
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_is_not_one_convolution_stays_apart(name) -> None:
    body, weights = APART[name]
    check_apart(parsed(f"{body} y = norm(e, n)", n=4, **weights))


def test_asymmetric_slack_at_sizes_that_are_not_known() -> None:
    """With an even size both write alike, with an odd one they do not."""
    body = """a = Conv <strides=[2, 2], pads=[0, 0, 1, 1]> (x, w) b = Conv <strides=[2, 2]> (x, v)
        e = Add (a, b) y = norm(e, n)"""
    weights: dict[str, Shape] = {"w": (4, 4, 3, 3), "v": (4, 4, 1, 1), "n": 4}
    check_merge(parsed(body, "double[N, 4, 10, 8] x", **weights), 2)
    _, report = fold.fold_model(parsed(body, "double[N, 4, N, N] x", **weights))
    assert report.branches_merged == 0


@pytest.mark.parametrize(("body", "outputs"), [
    ("b = Conv (x, w) c = norm(b, n) y = Add (x, c)", "double y, double b"),
    ("b = Conv (x, w) c = norm(b, n) y = Add (x, c)", "double y, double c"),
    ("a = Conv (x, w) b = Conv (a, v) c = norm(b, n) y = Add (x, c)", "double y, double a"),
])  # fmt: skip
def test_an_output_of_the_graph_is_still_delivered(body, outputs) -> None:
    folded, report = check_fold(parsed(body, y=outputs, w=(4, 4, 1, 1), v=(4, 4, 1, 1), n=4))
    assert report.branches_merged == 0
    assert count(folded, "Add") == 1


def test_weights_that_a_caller_may_override() -> None:
    x = "double[N, 4, 9, 8] x, double[4, 4, 1, 1] w"
    check_apart(parsed("a = Conv (x, w) b = norm(a, n) y = Add (x, b)", x, n=4))
    model = parsed("a = Conv (x, w) b = norm(a, n) y = Add (x, b)", x, w=(4, 4, 1, 1), n=4)
    assert fold.fold_model(model)[1].branches_merged == 0


def test_a_batchnorm_in_training_mode_is_no_branch() -> None:
    model = parsed("a = Conv (x, w) b = norm(a, n) y = Add (x, b)", w=(4, 4, 1, 1), n=4)
    model.graph[1].attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    folded, report = fold.fold_model(model)
    assert report.branches_merged == 0
    assert len(report.kept) == batchnorms(folded) == 1


def test_a_merge_that_does_not_pay_is_left() -> None:
    """A depthwise convolution of many taps would become a dense one."""
    wide, dense = ("group=64, pads=[3, 3, 3, 3]", (64, 1, 7, 7)), ("", (64, 64, 1, 1))
    check_apart(convolutions(wide, dense, x="double[N, 64, 3, 4] x"))
    check_merge(convolutions(("group=64, pads=[3, 3, 3, 3]", (64, 1, 7, 7)), wide, x="double[N, 64, 3, 4] x"), 2)


@pytest.mark.parametrize("op", ["Mul", "Conv", "Add"])
def test_long_rows_and_sums(op) -> None:
    """Nothing recurses through them, and no time is lost on sums of many tensors."""
    g = GraphBuilder("batch", 2, 1, 3)
    y, relu = g.x, g.op("Relu", g.x)
    weights = {"Mul": g.constant(np.array([[[-1.01]], [[1.01]]])), "Conv": g.constant(np.eye(2)[..., None, None])}
    for _ in range(600):
        y = g.op(op, y, weights.get(op) or g.op("Sigmoid", g.x))
    model = g.finish(g.batchnorm(g.op("Sub", g.batchnorm(y, 2), g.op("Add", g.x, relu)), 2))
    started = time.perf_counter()
    branches.find_branches(model.graph)
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(("terms", "most"), [(40, 1), (150, 3)])
def test_a_sum_of_many_terms(terms, most) -> None:
    """One convolution stands for so many nodes only that computing its weights does not recurse too deep."""
    g = GraphBuilder("batch", 3, 2, 4)
    y = g.batchnorm(g.x, 3)
    for _ in range(terms - 1):
        y = g.op("Add", g.batchnorm(g.x, 3), y)
    folded, report = check_fold(g.finish(y), kept=None if most > 1 else 0)
    assert report.branches_merged >= (terms if most == 1 else 50)
    assert 1 <= count(folded, "Conv") <= most


def halves(scale: float) -> ir.Model:
    body = "a = Conv (x, w) b = norm(a, n) c = Conv (x, v) y = Add (b, c)"
    random = np.random.default_rng(0)
    weights = {name: (scale * random.uniform(0.5, 1, (4, 4, 1, 1))).astype(np.float16) for name in "wv"}
    parameters = {"weight": 1.0, "bias": 0.5, "mean": 0.0, "var": 1.0}
    weights |= {f"n_{name}": np.full(4, number, np.float16) for name, number in parameters.items()}
    return parsed(body, "float16[N, 4, 9, 8] x", "float16 y", **weights)


def test_weights_that_would_overflow_stay_apart() -> None:
    folded, report = fold.fold_model(halves(60000))
    assert (report.branches_merged, count(folded, "Conv")) == (0, 2)
    folded, report = fold.fold_model(halves(20000))
    assert (report.branches_merged, count(folded, "Conv")) == (2, 1)
    assert all(np.isfinite(value.const_value.numpy()).all() for value in folded.graph.initializers.values())


def test_weights_that_are_not_finite_stay_apart() -> None:
    """A zero of a widened group times infinity would be no number where there was one."""
    weights = np.random.default_rng(0).standard_normal((4, 4, 1, 1))
    weights[1, 0] = np.inf
    body = "a = Conv <group=2> (x, v) b = Conv (x, w) c = Conv (b, u) d = Sub (a, c) y = norm(d, n)"
    model = parsed(body, w=weights, v=(4, 2, 1, 1), u=(4, 4, 1, 1), n=4)
    assert fold.fold_model(model)[1].branches_merged == 0


def test_names_types_and_metadata() -> None:
    """The weights take the name of the largest, the convolution the place of the root."""
    model = parsed("a = Conv (x, v) b = norm(a, n) c = Conv <pads=[1, 1, 1, 1]> (x, w) y = Add (b, c)",
                   v=(4, 4, 1, 1), w=(4, 4, 3, 3), n=4)  # fmt: skip
    for node, name in zip(model.graph, ("one", "bn", "three", "add"), strict=True):
        node.name = name
        node.metadata_props["scope"] = name
    for old, new in (("v", "one.weight"), ("w", "three.weight")):
        model.graph.initializers[old].name = new
    folded = check_merge(model, 2)
    conv = folded.graph[0]
    assert [value.name for value in conv.inputs] == ["x", "three.weight", "three.bias"]
    assert sorted(folded.graph.initializers) == ["three.bias", "three.weight"]
    assert folded.graph.outputs[0].name == "y"
    assert (conv.name, conv.metadata_props["scope"]) == ("add_merged", "add")
    assert fold.fold_model(model)[1].folded[0].into == ("three.weight", "three.bias")


def test_a_weight_that_others_share_is_not_overwritten() -> None:
    body = "a = Conv (x, w) b = norm(a, n) c = Add (x, b) d = Relu (c) y = Conv (d, w)"
    folded, report = check_fold(parsed(body, w=(4, 4, 1, 1), n=4), kept=0)
    assert report.branches_merged == 2
    assert [node.op_type for node in folded.graph] == ["Conv", "Relu", "Conv"]


@st.composite
def branch_sets(draw: st.DrawFn) -> tuple[ir.Model, int]:
    """Branches of one tensor that move over it alike, and how many."""
    rank, inputs, outputs = draw(st.integers(1, 2)), draw(st.sampled_from([2, 4, 6])), draw(st.sampled_from([2, 4, 6]))
    sizes: list[int | str] = draw(st.lists(st.integers(9, 12), min_size=rank, max_size=rank))
    strides = draw(st.lists(st.integers(1, 2), min_size=rank, max_size=rank))
    slack = draw(st.integers(0, 1))
    g = GraphBuilder("batch", inputs, *sizes, seed=draw(st.integers(0, 99)))

    def conv(
        x: ir.Value, shape: tuple[int, int], slack: int | None, steps: list[int], *, bias: bool = True
    ) -> ir.Value:
        """A convolution that is padded as `slack` says, or (None) not at all."""
        groups = draw(st.sampled_from([n for n in (1, 2, 3, 4, 6) if shape[0] % n == 0 == shape[1] % n]))
        kernel, dilations, pads, behind = [], [], [], []
        for _ in steps:
            k, d = draw(st.integers(1, 3)), draw(st.integers(1, 2))
            before = 0 if slack is None else draw(st.integers(0, (k - 1) * d))
            kernel, dilations, pads = [*kernel, k], [*dilations, d], [*pads, before]
            behind.append(0 if slack is None else (k - 1) * d - before + slack)
        attributes: dict[str, Any] = {"group": groups, "strides": steps, "dilations": dilations, "pads": pads + behind}
        weights = g.normal(shape[0], shape[1] // groups, *kernel)
        return g.op("Conv", x, weights, *([g.normal(shape[0])] if bias else []), **attributes)

    def pointwise(x: ir.Value, shape: tuple[int, int], pads: list[int], *, bias: bool) -> ir.Value:
        weights = g.normal(*shape, *[1] * rank)
        return g.op("Conv", x, weights, *([g.normal(shape[0])] if bias else []), pads=pads)

    def branch() -> ir.Value:
        middle = draw(st.sampled_from([2, 4, 6]))
        kinds = ["conv", "then 1x1", "1x1 first", "padded before"]
        if inputs == outputs and slack == 0:
            kinds += ["pool"] + (["identity"] if max(strides) == 1 else [])
        match draw(st.sampled_from(kinds)):
            case "identity":
                return g.x
            case "pool":
                kernel = draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))
                before = [draw(st.integers(0, k - 1)) for k in kernel]
                pads = before + [k - 1 - b for k, b in zip(kernel, before, strict=True)]
                return g.op("AveragePool", g.x, kernel_shape=kernel, strides=strides, pads=pads, count_include_pad=1)
            case "then 1x1":
                inner = normed(conv(g.x, (middle, inputs), slack, strides), middle)
                return pointwise(inner, (outputs, middle), [0] * 2 * rank, bias=True)
            case "1x1 first":
                inner = pointwise(g.x, (middle, inputs), [0] * 2 * rank, bias=False)
                return conv(inner, (outputs, middle), slack, strides)
            case "padded before":
                k = draw(st.integers(1, 3))
                before = [draw(st.integers(0, k - 1)) for _ in strides]
                pads = before + [k - 1 - b + slack for b in before]
                inner = pointwise(g.x, (middle, inputs), pads, bias=True)
                weights = g.normal(outputs, middle, *[k] * rank)
                return g.op("Conv", normed(inner, middle), weights, strides=strides)
        return conv(g.x, (outputs, inputs), slack, strides)

    def normed(x: ir.Value, channels: int) -> ir.Value:
        return g.batchnorm(x, channels, hostile=True) if draw(st.booleans()) else x

    number = draw(st.integers(2, 4))
    total = normed(branch(), outputs)
    for _ in range(number - 1):
        total = g.op(draw(st.sampled_from(["Add", "Sub"])), total, normed(branch(), outputs))
    return g.finish(g.batchnorm(total, outputs)), number


@settings(derandomize=True, deadline=None, max_examples=60)
@given(branch_sets())
def test_any_branches_that_move_alike(drawn: tuple[ir.Model, int]) -> None:
    model, number = drawn
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "PASS", 10**6)  # so that all of it pays
        check_merge(model, number)

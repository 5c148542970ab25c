"""Every rewrite that docs/folding.md lists, from an `.onnx` to the published directory: folded, proven, and written.

The rewrites of one input are paths of one graph, so one fold certifies all of them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import pytest

from support.commands import run

CHANNELS = 4
KERNELS = {"K1": (4, 4, 1, 1), "K3": (4, 4, 3, 3), "T3": (4, 4, 3, 3), "F": (4, 5), "FC": (168, 5), "D": (16, 4, 1, 1)}


@dataclass(frozen=True)
class Rewrite:
    """A path from `x` to `y` in ONNX's text, and the operators that are `left` of it.

    `BN(u)` is a BatchNorm of u with γ of both signs, `BNP(u)` one with γ > 0, `BN0(u)` one with a dead channel.
    `tensors` are constants, or the shapes of random ones.
    """

    law: str
    nodes: str
    left: str
    tensors: dict[str, object] = field(default_factory=dict)

    def parsed(self, index: int, opset: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Its nodes and constants, with names that no other path has."""
        random = np.random.default_rng(index)
        shapes = {name: shape for name, shape in KERNELS.items() if re.search(rf"\b{name}\b", self.nodes)}
        arrays = {name: _drawn(given, random) for name, given in (shapes | self.tensors).items()}

        def batchnorm(match: re.Match[str]) -> str:
            output, kind, channels, u = match.groups()
            C = int(channels or CHANNELS)
            gamma = random.uniform(0.4, 2, C) * (1 if kind == "P" else np.resize([1, -1], C))
            gamma[1] *= kind != "0"
            drawn = {"g": gamma, "b": random.standard_normal(C), "m": random.standard_normal(C)}
            drawn["v"] = random.uniform(0.2, 3, C)
            arrays.update({f"{output}_{name}": array.astype(np.float32) for name, array in drawn.items()})
            return f"{output} = BatchNormalization({u}, {', '.join(f'{output}_{name}' for name in drawn)})"

        nodes = re.sub(r"(\w+) = BN([P0]?)(\d*)\((\w+)\)", batchnorm, self.nodes)
        proto = onnx.parser.parse_model(
            f'<ir_version: 9, opset_import: ["": {opset}]> g (float[n] x) => (float y) {{ {nodes} }}'
        )
        for node in proto.graph.node:
            node.input[:] = [name if name in ("x", "") else f"{name}{index}" for name in node.input]
            node.output[:] = [f"{name}{index}" for name in node.output]
            node.name = node.output[0]
        tensors = [onnx.numpy_helper.from_array(array, f"{name}{index}") for name, array in arrays.items()]
        return list(proto.graph.node), tensors


def _drawn(given: object, random: np.random.Generator) -> np.ndarray:
    if isinstance(given, tuple):
        return (random.standard_normal(given) / np.sqrt(max(np.prod(given[1:]), 1))).astype(np.float32)
    array = np.asarray(given)
    return array.astype(np.float32) if array.dtype == np.float64 else array


def published(
    folder: Path,
    rewrites: Sequence[Rewrite],
    x: str = "float[n, 4, 6, 7]",
    opset: int = 18,
    *options: str,
) -> dict:
    """Fold all paths as a user does; returns the JSON. Each path must have in the published file what is left of it."""
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": {opset}]> g ({x} x) => (float y) {{ }}')
    del model.graph.output[:]
    for index, rewrite in enumerate(rewrites):
        nodes, tensors = rewrite.parsed(index, opset)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(tensors)
        model.graph.output.add().name = f"y{index}"
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    for output in model.graph.output:
        assert output.type.tensor_type.elem_type, output.name
    onnx.save(model, folder / "m.onnx")
    answer, _ = run("fold", folder / "m.onnx", "--out", folder / "repository", *options)
    assert answer["verdict"]["equivalent"] is True
    stored = onnx.load(folder / "repository" / "m" / "1" / "model.onnx").graph
    left = {rewrite.law: _path(stored, f"y{index}") for index, rewrite in enumerate(rewrites)}
    assert left == {rewrite.law: rewrite.left.split() for rewrite in rewrites}
    return answer


def _path(graph: onnx.GraphProto, output: str) -> list[str]:
    """The operators before an output, in graph order."""
    wanted, found = {output}, list[str]()
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node.op_type)
    return found[::-1]


MEAN_AXES = {"axes": [2, 3]}
INT8 = np.random.default_rng(0).integers(-127, 128, (4, 4, 3, 3)).astype(np.int8)
QUANTIZED = {"Q": INT8, "s": [0.01, 0.02, 0.005, 0.01]}
HALF = {"H": _drawn((4, 4, 3, 3), np.random.default_rng(1)).astype(np.float16)}
LAWS = [
    Rewrite("Conv, behind", "c = Conv(x, K3) y = BN(c)", "Conv"),
    Rewrite("Conv, in front", "v = BN(x) y = Conv(v, K3)", "Conv"),
    Rewrite("Gemm and Flatten", "v = BN(x) f = Flatten(v) y = Gemm(f, FC)", "Flatten Gemm"),
    Rewrite(
        "MatMul with a bias, Reshape and Transpose",
        "r = Reshape(x, s) m = MatMul(r, W) a = Add(m, b) t = Transpose <perm = [0, 2, 1]> (a) y = BN6(t)",
        "Reshape MatMul Add Transpose",
        {"s": [0, 4, 42], "W": (42, 6), "b": (6,)},
    ),
    Rewrite("ConvTranspose, behind", "c = ConvTranspose(x, T3) y = BN(c)", "ConvTranspose"),
    Rewrite("InstanceNormalization", "i = InstanceNormalization(x, g, b) y = BN(i)", "InstanceNormalization",
            {"g": (4,), "b": (4,)}),
    Rewrite("BatchNormalization twice", "c = Conv(x, K1) u = BN(c) y = BN(u)", "Conv"),
    Rewrite(
        "Mul and Add by constants", "c = Conv(x, K3) m = Mul(c, s) y = Add(m, t)", "Conv",
        {"s": (4, 1, 1), "t": (4, 1, 1)},
    ),
    Rewrite(
        "Div and Sub by constants", "c = Conv(x, K3) m = Div(c, s) y = Sub(t, m)", "Conv",
        {"s": [[[2.0]], [[-3.0]], [[0.5]], [[1.5]]], "t": (4, 1, 1)},
    ),
    Rewrite("Add", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Add(a, b) y = BN(z)", "Tanh Conv Conv Add"),
    Rewrite("Sub", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Sub(a, b) y = BN(z)", "Tanh Conv Conv Sub"),
    Rewrite("Sum", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Sum(a, b, a) y = BN(z)", "Tanh Conv Conv Sum"),
    Rewrite("Mean", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Mean(a, b) y = BN(z)", "Tanh Conv Conv Mean"),
    Rewrite(
        "Mul by a gate", "g = Sigmoid(x) c = Conv(x, K1) z = Mul(c, g) v = BN(z) y = Conv(v, K3)",
        "Sigmoid Conv Mul Conv",
    ),
    Rewrite(
        "Mul by a computed number", "c = Conv(x, K1) v = BN(c) m = ReduceMean <keepdims = 0> (x) k = Mul(m, half)"
        " y = Mul(v, k)", "Conv ReduceMean Mul Mul", {"half": 0.5},
    ),
    Rewrite("Max", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Max(a, b) y = BNP(z)", "Tanh Conv Conv Max"),
    Rewrite("Min", "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Min(a, b) y = BNP(z)", "Tanh Conv Conv Min"),
    Rewrite("Relu, closed", "c = Conv(x, K1) r = Relu(c) v = BNP(r) y = Conv(v, K3)", "Conv Relu Conv"),
    Rewrite("Clip, closed", "c = Conv(x, K1) r = Clip(c, low) v = BNP(r) y = Conv(v, K3)", "Conv Clip Conv",
            {"low": 0.0}),
    Rewrite("LeakyRelu", "c = Conv(x, K1) r = LeakyRelu(c) v = BNP(r) y = Conv(v, K3)", "Conv LeakyRelu Conv"),
    Rewrite("PRelu", "c = Conv(x, K1) r = PRelu(c, p) v = BNP(r) y = Conv(v, K3)", "Conv PRelu Conv",
            {"p": (4, 1, 1)}),
    Rewrite("Abs", "c = Conv(x, K1) r = Abs(c) v = BNP(r) y = Conv(v, K3)", "Conv Abs Conv"),
    Rewrite("Neg", "c = Conv(x, K1) r = Neg(c) y = BN(r)", "Conv Neg"),
    Rewrite("MaxPool", "c = Conv(x, K1) r = MaxPool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (c) y = BNP(r)",
            "Conv MaxPool"),
    Rewrite("GlobalMaxPool", "c = Conv(x, K1) r = GlobalMaxPool(c) y = BNP(r)", "Conv GlobalMaxPool"),
    Rewrite("ReduceMax", "c = Conv(x, K1) r = ReduceMax(c, axes) y = BNP(r)", "Conv ReduceMax", MEAN_AXES),
    Rewrite("ReduceMin", "c = Conv(x, K1) r = ReduceMin(c, axes) y = BNP(r)", "Conv ReduceMin", MEAN_AXES),
    Rewrite("AveragePool", "c = Conv(x, K1) r = AveragePool <kernel_shape = [2, 2], pads = [1, 1, 0, 0]> (c) y = BN(r)",
            "Conv AveragePool"),
    Rewrite("GlobalAveragePool", "c = Conv(x, K1) r = GlobalAveragePool(c) y = BN(r)", "Conv GlobalAveragePool"),
    Rewrite("ReduceMean", "c = Conv(x, K1) r = ReduceMean(c, axes) y = BN(r)", "Conv ReduceMean", MEAN_AXES),
    Rewrite("ReduceSum", "c = Conv(x, K1) v = BN(c) y = ReduceSum(v, axes)", "Conv ReduceSum", MEAN_AXES),
    Rewrite(
        "Concat and Split",
        "t = Tanh(x) a = Conv(x, K1) b = Conv(t, K1) z = Concat <axis = 1> (a, b) v = BN8(z)"
        " p, q = Split <axis = 1, num_outputs = 2> (v) e = Exp(p) y = Mul(e, q)",
        "Tanh Conv Conv Concat Split Exp Mul",
    ),
    Rewrite("Slice", "c = Conv(x, K1) z = Slice(c, one, four, one) y = BN3(z)", "Conv Slice",
            {"one": [1], "four": [4]}),
    Rewrite("Gather", "c = Conv(x, K1) z = Gather <axis = 1> (c, i) y = BN3(z)", "Conv Gather", {"i": [2, 0, 3]}),
    Rewrite(
        "moves",
        "c = Conv(x, K1) t = Transpose <perm = [0, 2, 3, 1]> (c) i = Identity(t) u = Unsqueeze(i, one)"
        " d = Dropout(u) e = Expand(d, twice) k = Cast <to = 1> (e) l = CastLike(k, x) m = Tile(l, thrice)"
        " r = ReduceMean(m, one) z = Squeeze(r, one) w = Transpose <perm = [0, 3, 1, 2]> (z) y = BN(w)",
        "Conv Transpose Unsqueeze Expand Tile ReduceMean Squeeze Transpose",
        {"one": [1], "twice": [1, 2, 1, 1, 1], "thrice": [1, 1, 3, 1, 1]},
    ),
    Rewrite("DepthToSpace", "c = Conv(x, D) z = DepthToSpace <blocksize = 2> (c) y = BN(z)", "Conv DepthToSpace"),
    Rewrite(
        "SpaceToDepth", "p = AveragePool <kernel_shape = [1, 2]> (x) c = Conv(p, K1) v = BN(c)"
        " z = SpaceToDepth <blocksize = 2> (v) y = Exp(z)", "AveragePool Conv SpaceToDepth Exp",
    ),
    Rewrite("Resize", "c = Conv(x, K1) z = Resize(c, , s) y = BN(z)", "Conv Resize", {"s": [1.0, 1.0, 2.0, 2.0]}),
    Rewrite("Pad by reflection", 'c = Conv(x, K1) z = Pad <mode = "reflect"> (c, p) y = BN(z)', "Conv Pad",
            {"p": [0, 0, 1, 1, 0, 0, 1, 1]}),
    Rewrite("Pad before a convolution", "p = Pad(x, a) c = Conv(p, K3) y = BN(c)", "Conv",
            {"a": [0, 0, 2, 1, 0, 0, 0, 1]}),
    Rewrite("Conv with integer weights", "d = DequantizeLinear <axis = 0> (Q, s) c = Conv(x, d) y = BN(c)",
            "DequantizeLinear Conv", QUANTIZED),
    Rewrite(
        "Conv with integer weights around zero points",
        "d = DequantizeLinear <axis = 0> (Q, s, z) c = Conv(x, d, b) y = BNP(c)", "DequantizeLinear Conv",
        {"Q": INT8.view(np.uint8), "s": QUANTIZED["s"], "z": np.array([128, 3, 0, 255], np.uint8), "b": (4,)},
    ),
    Rewrite("ConvTranspose with integer weights", "d = DequantizeLinear(Q, s) c = ConvTranspose(x, d) y = BN0(c)",
            "DequantizeLinear ConvTranspose", QUANTIZED),
    Rewrite(
        "Gemm with integer weights",
        "f = Flatten(x) d = DequantizeLinear(Q, s) c = Gemm <alpha = 0.5, beta = 2.0> (f, d, b) y = BN(c)",
        "Flatten DequantizeLinear Gemm", {**QUANTIZED, "Q": np.resize(INT8, (168, 4)), "b": (4,)},
    ),
    Rewrite(
        "MatMul with integer weights and a bias",
        "r = Reshape(x, n) d = DequantizeLinear(Q, s) m = MatMul(r, d) a = Add(m, b)"
        " t = Transpose <perm = [0, 2, 1]> (a) y = BN(t)", "Reshape DequantizeLinear MatMul Add Transpose",
        {**QUANTIZED, "Q": np.resize(INT8, (42, 4)), "b": (4,), "n": [0, 4, 42]},
    ),
    Rewrite("MatMul with integer weights", "f = Flatten(x) d = DequantizeLinear(Q, s) m = MatMul(f, d) y = BN(m)",
            "Flatten DequantizeLinear MatMul Add", {**QUANTIZED, "Q": np.resize(INT8, (168, 4))}),
    Rewrite("Shape", "c = Conv(x, K1) v = BN(c) s = Shape(c) n = Cast <to = 1> (s) m = ReduceMax <keepdims = 0> (n)"
            " y = Div(v, m)", "Conv Shape Cast ReduceMax Div"),
    Rewrite("a dead channel before nobody else", "c = Conv(x, K1) y = BN0(c)", "Conv"),
    Rewrite("a dead channel before weights", "v = BN0(x) y = Conv(v, K3)", "Conv"),
    Rewrite(
        "a constant map, where it is no larger",
        "v = BN(x) y = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (v, K3)", "Conv Add",
    ),
]  # fmt: skip
STORED_TYPES = [
    Rewrite("float32 parameters behind float16 weights", "c = Conv(x, H) y = BN(c)", "Conv", HALF),
    Rewrite(
        "a BatchNorm in float32 between float16 tensors",
        "c = Conv(x, H) d = Cast <to = 1> (c) v = BN(d) y = Cast <to = 10> (v)", "Conv", HALF,
    ),
    Rewrite(
        "a BatchNorm in float32 that is read in float32, too",
        "c = Conv(x, H) d = Cast <to = 1> (c) v = BN(d) t = Tanh(v) e = Cast <to = 10> (v) f = Conv(e, J)"
        " g = Cast <to = 1> (f) y = Add(g, t)", "Conv Cast Tanh Conv Cast Add",
        HALF | {"J": _drawn((4, 4, 1, 1), np.random.default_rng(2)).astype(np.float16)},
    ),
    Rewrite(
        "a BatchNorm and a ReLU in float32 between convolutions in float16",
        "c = Conv(x, H) d = Cast <to = 1> (c) v = BN(d) r = Relu(v) e = Cast <to = 10> (r) f = Conv(e, H)"
        " y = Cast <to = 1> (f)", "Conv Cast Relu Cast Conv Cast", HALF,
    ),
]  # fmt: skip
BRANCHES = [
    Rewrite(
        "a kernel, a 1x1 kernel and the tensor itself",
        "a = Conv <pads = [1, 1, 1, 1]> (x, K3) b = Conv(x, K1) p = BN(a) q = BN(b) i = BN(x) s = Add(p, q)"
        " y = Add(s, i)", "Conv",
    ),
    Rewrite(
        "an average pool",
        "a = Conv <pads = [1, 1, 1, 1]> (x, K3) v = BN(a) s = Mul(v, two)"
        " p = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1> (x) y = Sub(s, p)",
        "Conv", {"two": 2.0},
    ),
    Rewrite(
        "two convolutions in a row",
        "a = Conv(x, K1) b = Conv <pads = [1, 1, 1, 1]> (a, K3) c = Conv <pads = [1, 1, 1, 1]> (x, J) s = Add(b, c)"
        " y = BN(s)", "Conv", {"J": (4, 4, 3, 3)},
    ),
    Rewrite(
        "two maps of one tensor in a longer sum",
        "t = Tanh(x) a = Conv <pads = [1, 1, 1, 1]> (x, K3) u = BN(a) s = Add(u, t) b = Conv(x, K1) y = Add(s, b)",
        "Tanh Conv Add",
    ),
]  # fmt: skip
OPENED = [
    Rewrite("Relu, opened", "v = BN(x) r = Relu(v) y = Conv(r, K3)", "Max Min Conv"),
    Rewrite("Clip, opened", "v = BN(x) r = Clip(v, l, h) y = Conv(r, K3)", "Max Min Conv", {"l": 0.0, "h": 6.0}),
    Rewrite("a dead channel before a ReLU", "v = BN0(x) r = Relu(v) y = Conv(r, K3)", "Max Min Conv"),
    Rewrite("a maximum before a ReLU", "c = Conv(x, K1) m = MaxPool <kernel_shape = [2, 2]> (c) v = BN(m) r = Relu(v)"
            " y = Conv(r, K3)", "Conv MaxPool Max Min Conv"),
    Rewrite("a constant map", "v = BN(x) c = Conv <pads = [1, 1, 1, 1]> (v, K3) y = Relu(c)", "Conv Add Relu"),
    Rewrite("a constant map behind ConvTranspose", "v = BN(x) y = ConvTranspose(v, T3)", "ConvTranspose Add"),
]  # fmt: skip
BORDERS = [
    Rewrite("explicit pads", "v = BN(x) y = Conv <pads = [1, 0, 2, 1], strides = [2, 1]> (v, K3)", "Pad Conv"),
    Rewrite("SAME_UPPER", 'v = BN(x) y = Conv <auto_pad = "SAME_UPPER"> (v, K3)', "Pad Conv"),
    Rewrite("SAME_LOWER", 'v = BN(x) y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (v, K3)', "Pad Conv"),
    Rewrite("ConvTranspose", "v = BN(x) y = ConvTranspose <strides = [2, 2]> (v, T3)", "Pad ConvTranspose"),
    Rewrite("Pad before it", "v = BN(x) p = Pad(v, a) y = Conv(p, K3)", "Pad Conv", {"a": [0, 0, 2, 0, 0, 0, 0, 1]}),
]  # fmt: skip
CAUSAL = "v = BN(x) z = Transpose <perm = [0, 2, 1]> (v) p = Pad(z, a) q = Transpose <perm = [0, 2, 1]> (p)"


def test_every_law_is_published(tmp_path) -> None:
    answer = published(tmp_path, LAWS)
    assert not answer["kept"]


def test_graphs_of_mixed_precision_are_published(tmp_path) -> None:
    answer = published(tmp_path, STORED_TYPES, "float16[n, 4, 6, 7]")
    assert not answer["kept"]
    weights = onnx.load(tmp_path / "repository" / "m" / "1" / "model.onnx").graph.initializer
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.FLOAT16}


@pytest.mark.parametrize(("gamma", "beta"), [(9e3, 1.0), (1e-6, 1.0)], ids=["overflow", "lost signal"])
def test_a_batchnorm_in_float32_stays_if_float16_cannot_hold_what_it_writes(tmp_path, gamma, beta) -> None:
    parameters = {"g": np.full(4, gamma, np.float32), "b": np.full(4, beta, np.float32)}
    parameters |= {"m": np.zeros(4, np.float32), "v": np.ones(4, np.float32)}
    nodes = "c = Conv(x, H) d = Cast <to = 1> (c) y = BatchNormalization(d, g, b, m, v)"
    kept = Rewrite("in float32", nodes, "Conv Cast BatchNormalization", HALF | parameters)
    answer = published(tmp_path, [kept], "float16[n, 4, 6, 7]")
    assert [entry["code"] for entry in answer["kept"]] == ["float16_range"]


def test_every_kind_of_parallel_branch_is_published(tmp_path) -> None:
    answer = published(tmp_path, BRANCHES)
    assert answer["branches_merged"] == 9


def test_every_opened_rewrite_is_published(tmp_path) -> None:
    answer = published(tmp_path, OPENED, "float[n, 4, 6, 7]", 18, "--open-activations")
    assert not answer["kept"]


@pytest.mark.parametrize(("opset", "sizes"), [(17, "h, w"), (18, "?, ?"), (21, "6, w")])
def test_every_writing_of_a_channel_of_ones_is_published(tmp_path, opset, sizes) -> None:
    answer = published(tmp_path, BORDERS, f"float[n, 4, {sizes}]", opset, "--open-activations")
    assert not answer["kept"]


def test_a_causal_convolution_that_pads_and_transposes_first_is_published(tmp_path) -> None:
    """As Keras writes it: the channels are last, and are padded and moved between the BatchNorm and its reader."""
    tensors = {"a": [0, 2, 0, 0, 0, 0], "W": (5, 4, 3), "V": (5, 4, 1, 3), "two": [2]}
    causal = [
        Rewrite("one axis", f"{CAUSAL} y = Conv(q, W)", "Transpose Transpose Pad Conv", tensors),
        Rewrite(
            "one axis as two", f"{CAUSAL} u = Unsqueeze(q, two) y = Conv(u, V)",
            "Transpose Transpose Unsqueeze Pad Conv", tensors,
        ),
    ]  # fmt: skip
    assert not published(tmp_path, causal, "float[n, 4, l]", 18, "--open-activations")["kept"]


def test_a_causal_convolution_that_is_not_opened_folds_where_no_channel_of_ones_is_needed(tmp_path) -> None:
    """The padding is 0, so the BatchNorm's shift is missing there; the reason names the Pad, which the file has."""
    tensors: dict[str, object] = {"a": [0, 2, 0, 0, 0, 0], "W": (4, 4, 3)}
    nodes = f"{CAUSAL} y = Conv(q, W)"
    kept = Rewrite("of free sizes", nodes, "BatchNormalization Transpose Transpose Conv", tensors)
    unshifted = Rewrite(
        "without a shift", nodes.replace("BN(x)", "BatchNormalization(x, s, o, o, s)"), "Transpose Transpose Conv",
        {**tensors, "s": [0.5, 1.5, 2.0, 1.0], "o": [0.0] * 4},
    )  # fmt: skip
    (reason,) = published(tmp_path, [kept, unshifted], "float[n, 4, l]")["kept"]
    assert (reason["code"], reason["blocked"], reason["culprit"]) == ("zero_padding", "shift", "p0")
    assert reason["reason"].endswith(": p0 pads its input with zeros, so that may carry no shift")
    (tmp_path / "known").mkdir()
    known = Rewrite("of known sizes", nodes, "Transpose Transpose Conv Add", tensors)
    assert not published(tmp_path / "known", [known], "float[n, 4, 9]")["kept"]


def test_an_embedding_is_published(tmp_path) -> None:
    table = Rewrite("a table", "e = Gather(E, x) t = Transpose <perm = [0, 2, 1]> (e) y = BN(t)", "Gather Transpose",
                    {"E": (2, 4)})  # fmt: skip
    assert not published(tmp_path, [table], "int64[n, 5]")["kept"]

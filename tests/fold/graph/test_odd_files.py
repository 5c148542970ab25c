"""Files that runtimes take and that are spelt unusually, from `bnfold fold` to the published directory.

The witness is ONNX Runtime on the file as it is, or on the same graph in the usual spelling.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fold.cli import main
from fold.runtime import open_session, run

Nodes = list[onnx.NodeProto]


class Net:
    """Conv and BatchNorm on [n, 3, 6, 5], and what a test puts around them."""

    def __init__(self, opset: int = 17) -> None:
        self.opset, self.random = opset, np.random.default_rng(0)
        self.nodes: Nodes = []
        self.tensors: list[onnx.TensorProto] = []
        self.weights = {"w": self.drawn(4, 3, 3, 3), "b": self.drawn(4)}

    def drawn(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def constant(self, name: str, array: np.ndarray) -> str:
        self.tensors.append(numpy_helper.from_array(array, name))
        return name

    def op(self, op_type: str, inputs: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=output, **attributes))
        return output

    def conv_bn(self, x: str = "x") -> str:
        for name in "wb":
            self.constant(name, self.weights[name])
        variance = np.abs(self.drawn(4)) + 0.5
        for name, array in zip(("gamma", "beta", "mean", "var"), (*self.random.random((3, 4)), variance), strict=True):
            self.constant(name, array.astype(np.float32))
        c = self.op("Conv", [x, "w", "b"], "c", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        return self.op("BatchNormalization", [c, "gamma", "beta", "mean", "var"], "n")

    def model(self, output: str, shape: list[int | str] | None) -> onnx.ModelProto:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 6, 5])
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8)


X = np.random.default_rng(1).standard_normal((3, 3, 6, 5)).astype(np.float32)


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def folded(capsys, tmp_path: Path, given: onnx.ModelProto, witness: onnx.ModelProto | None = None, *more: str) -> dict:
    """The JSON of the fold; the published graph computes what the witness, or else the given file, does."""
    onnx.save(given, tmp_path / "m.onnx")
    status = command("fold", tmp_path / "m.onnx", "--out", tmp_path / "r", "--samples", 2, "--json", *more)
    out, err = capsys.readouterr()
    assert not status, err
    answer = json.loads(out)
    assert answer["verdict"]["equivalent"] is True
    published = open_session(tmp_path / "r" / "m" / "1" / "model.onnx", provider="cpu")
    expected = run(open_session((witness or given).SerializeToString(), provider="cpu"), {"x": X})
    for name, array in run(published, {"x": X}).items():
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())
    assert command("verify", tmp_path / "r" / "m" / "1", "--samples", 2, "--json") == 0
    capsys.readouterr()
    return answer


def refused(capsys, tmp_path: Path, given: onnx.ModelProto) -> str:
    onnx.save(given, tmp_path / "m.onnx")
    assert command("fold", tmp_path / "m.onnx", "--out", tmp_path / "r") == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("bnfold: ")] or err.splitlines()
    assert out == ""
    assert "Traceback" not in err
    assert not list((tmp_path / "r").rglob("model.onnx"))
    return lines[-1]


def sparse(name: str, array: np.ndarray, *, flat: bool) -> onnx.SparseTensorProto:
    places = np.argwhere(array) if not flat else np.flatnonzero(array)
    values = numpy_helper.from_array(array[array != 0], name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(places.astype(np.int64), "i"), list(array.shape))


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_sparse_weights_become_dense(capsys, tmp_path, flat, constant) -> None:
    net = Net()
    net.weights["w"][:, :, ::2] = 0
    usual = net.model(net.conv_bn(), ["n", 4, 6, 5])
    given = onnx.ModelProto()
    given.CopyFrom(usual)
    stored = sparse("w", net.weights["w"], flat=flat)
    given.graph.initializer.remove(next(tensor for tensor in given.graph.initializer if tensor.name == "w"))
    if constant:
        given.graph.node.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=stored))
    else:
        given.graph.sparse_initializer.append(stored)
    answer = folded(capsys, tmp_path, given, usual)
    assert (answer["kept"], answer["changes"]) == ([], ["sparse tensors are dense: 1"])


def test_a_sparse_tensor_of_false_indices_gets_one_line(capsys, tmp_path) -> None:
    net = Net()
    given = net.model(net.conv_bn(), ["n", 4, 6, 5])
    stored = sparse("other", np.eye(3, dtype=np.float32), flat=True)
    stored.indices.CopyFrom(numpy_helper.from_array(np.array([0, 4, 99]), "i"))
    given.graph.sparse_initializer.append(stored)
    assert "m.onnx: sparse tensor 'other' cannot be read: index 99 is out of bounds" in refused(capsys, tmp_path, given)
    stored.dims[0] = 10**12
    given.graph.sparse_initializer[0].CopyFrom(stored)
    assert "its shape [1000000000000, 3] is too large" in refused(capsys, tmp_path, given)


@pytest.mark.parametrize("opset", [7, 9, 12])
def test_empty_names_of_trailing_outputs_are_stripped(capsys, tmp_path, opset) -> None:
    """ONNX Runtime ends in a segmentation fault on them."""
    net = Net(opset)
    usual = net.model(net.conv_bn(), ["n", 4, 6, 5])
    given = onnx.ModelProto()
    given.CopyFrom(usual)
    given.graph.node[1].output.extend(["", "", "", ""])
    answer = folded(capsys, tmp_path, given, usual)
    assert answer["kept"] == []
    assert answer["changes"][0] == "empty names of trailing outputs are left out: 4"


def test_the_default_domain_may_be_spelt_out(capsys, tmp_path) -> None:
    net = Net()
    given = net.model(net.op("Relu", [net.conv_bn()], "y"), ["n", 4, 6, 5])
    given.opset_import[0].domain = "ai.onnx"
    for node in given.graph.node:
        node.domain = "ai.onnx"
    answer = folded(capsys, tmp_path, given)
    assert (answer["kept"], answer["changes"]) == ([], ["the domain ai.onnx is written as the default domain"])


def flattened(net: Net) -> onnx.ModelProto:
    y = net.op("Flatten", [net.op("Relu", [net.conv_bn()], "r")], "f")
    return net.model(net.op("MatMul", [y, net.constant("v", net.drawn(120, 2))], "y"), ["n", 2])


@pytest.mark.parametrize("wrong", [["n", 6, 5, 4], ["n", 4, 7, 5], ["n", 120]], ids=str)
def test_wrong_shapes_of_intermediate_tensors_are_inferred_anew(capsys, tmp_path, wrong) -> None:
    """As jax2onnx writes NHWC sizes of NCHW tensors; it folds as without them."""
    usual, given = flattened(Net()), flattened(Net())
    for name in ("c", "n", "r"):
        given.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, wrong))
    answer = folded(capsys, tmp_path, given, usual)
    assert (len(answer["folded"]), answer["kept"]) == (1, [])
    assert answer["changes"] == ["a stored shape of an intermediate tensor is wrong, so all of them are inferred anew"]
    assert command("inspect", tmp_path / "m.onnx", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["batchnorms"]) == 1


def test_an_input_without_a_shape_needs_one(capsys, tmp_path) -> None:
    net = Net()
    given = net.model(net.conv_bn(), None)
    given.graph.input[0].type.tensor_type.ClearField("shape")
    assert "x: the type or shape of this graph input or output is not known" in refused(capsys, tmp_path, given)
    assert folded(capsys, tmp_path, given, None, "--input", "x:3,6,5")["kept"] == []


def quantised(net: Net) -> onnx.ModelProto:
    scale, zero = net.constant("scale", np.array(0.05, np.float32)), net.constant("zero", np.array(120, np.uint8))
    q = net.op("QuantizeLinear", [net.conv_bn(), scale, zero], "q")
    return net.model(net.op("Relu", [net.op("DequantizeLinear", [q, scale, zero], "d")], "y"), ["n", 4, 6, 5])


def split(net: Net) -> onnx.ModelProto:
    halves = net.op("SplitToSequence", [net.conv_bn(), net.constant("two", np.array(2))], "halves", axis=1)
    first = net.op("SequenceAt", [halves, net.constant("zero", np.array(0))], "first")
    return net.model(net.op("Relu", [first], "y"), ["n", 2, 6, 5])


def joined(net: Net) -> onnx.ModelProto:
    pair = net.op("SequenceConstruct", ["x", net.op("Neg", ["x"], "m")], "pair")
    one = net.op("SequenceAt", [pair, net.constant("last", np.array(-1))], "one")
    both = net.op("SequenceConstruct", [net.conv_bn(one), "n"], "both")
    return net.model(net.op("ConcatFromSequence", [both], "y", axis=1), ["n", 8, 6, 5])


def scaled(net: Net) -> onnx.ModelProto:
    y = net.op("Mul", [net.conv_bn(), net.op("Constant", [], "factor", value_float=0.1)], "y")
    sizes = net.op("Constant", [], "sizes", value_floats=[0.1, 0.2, 0.3, 0.4, 0.5])
    return net.model(net.op("Max", [y, sizes], "z"), ["n", 4, 6, 5])


def filled(net: Net) -> onnx.ModelProto:
    zeros = net.op("ConstantOfShape", [net.constant("size", np.array([5]))], "zeros")
    return net.model(net.op("Add", [net.conv_bn(), zeros], "y"), ["n", 4, 6, 5])


def diagonal(net: Net) -> onnx.ModelProto:
    square = net.op("ConstantOfShape", [net.constant("size", np.array([5, 5]))], "square")
    eye = net.op("EyeLike", [square], "eye", dtype=TensorProto.FLOAT)
    return net.model(net.op("MatMul", [net.conv_bn(), eye], "y"), ["n", 4, 6, 5])


def standardised(net: Net) -> onnx.ModelProto:
    return net.model(net.op("MeanVarianceNormalization", [net.conv_bn()], "y", axes=[2, 3]), ["n", 4, 6, 5])


def local(net: Net) -> onnx.ModelProto:
    y = net.op("LRN", [net.op("Relu", [net.conv_bn()], "r")], "y", size=3, alpha=0.3, beta=0.75, bias=1.0)
    return net.model(y, ["n", 4, 6, 5])


def normalised(net: Net) -> onnx.ModelProto:
    scale = net.constant("scale", np.linspace(0.5, 2, 5, dtype=np.float32))
    return net.model(net.op("LayerNormalization", [net.conv_bn(), scale], "y", stash_type=1), ["n", 4, 6, 5])


def recurrent(net: Net) -> onnx.ModelProto:
    """A GRU over the four channels, of which each row reads three."""
    rows = net.op("Gather", [net.op("Shape", ["x"], "sizes"), net.constant("zero", np.array([0]))], "rows")
    lengths = net.op("ConstantOfShape", [rows], "l", value=numpy_helper.from_array(np.array([3], np.int32)))
    flat = net.op("Reshape", [net.conv_bn(), net.constant("flat", np.array([0, 4, 30]))], "f")
    steps = net.op("Transpose", [flat], "steps", perm=[1, 0, 2])
    weights = [net.constant("W", net.drawn(1, 15, 30) / 5), net.constant("R", net.drawn(1, 15, 5) / 5)]
    states = net.op("GRU", [steps, *weights, "", lengths], "states", hidden_size=5)
    return net.model(net.op("Transpose", [states], "y", perm=[2, 0, 1, 3]), ["n", 4, 1, 5])


def counted(net: Net) -> onnx.ModelProto:
    """A Loop with a trip count and without a condition."""
    types = {"i": TensorProto.INT64, "on": TensorProto.BOOL, "a": TensorProto.FLOAT}
    inputs = [helper.make_tensor_value_info(name, kind, None if name == "a" else []) for name, kind in types.items()]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Mul", ["a", "a"], ["squared"])],
        "body",
        inputs,
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("squared", TensorProto.FLOAT, None),
        ],
    )
    return net.model(
        net.op("Loop", [net.constant("times", np.array(2)), "", net.conv_bn()], "y", body=body), ["n", 4, 6, 5]
    )


def sampled(net: Net) -> onnx.ModelProto:
    """A cubic GridSample that reads beyond the border."""
    rows = net.op("Gather", [net.op("Shape", ["x"], "sizes"), net.constant("zero", np.array([0]))], "rows")
    times = net.op("Concat", [rows, net.constant("ones", np.array([1, 1, 1]))], "times", axis=0)
    places = net.op("Tile", [net.constant("g", net.drawn(1, 3, 2, 2)), times], "places")
    y = net.op("GridSample", [net.conv_bn(), places], "y", mode="bicubic", padding_mode="border")
    return net.model(y, ["n", 4, 3, 2])


def gathered(net: Net) -> onnx.ModelProto:
    largest = net.op("ArgMax", [net.conv_bn()], "largest", axis=2)
    return net.model(net.op("GatherElements", ["n", largest], "y", axis=2), ["n", 4, 1, 5])


def powered(net: Net) -> onnx.ModelProto:
    return net.model(net.op("GlobalLpPool", [net.conv_bn()], "y", p=3), ["n", 4, 1, 1])


NETS: list[tuple[Callable[[Net], onnx.ModelProto], int]] = [
    *((quantised, opset) for opset in (10, 13, 17, 18, 19)),
    *((one, 17) for one in (split, joined, scaled, filled, diagonal, standardised, local, normalised)),
    *((one, 17) for one in (recurrent, counted, sampled, gathered, powered)),
]


@pytest.mark.parametrize(("build", "opset"), NETS, ids=lambda part: getattr(part, "__name__", part))
def test_operators_that_the_evaluator_refused_or_got_wrong(capsys, tmp_path, build, opset) -> None:
    answer = folded(capsys, tmp_path, build(Net(opset)))
    assert answer["kept"] == []
    assert answer["folded"]


@pytest.mark.parametrize("options", [("--batch", "3"), ("--input", "x:3,6,5")], ids=" ".join)
@pytest.mark.parametrize("build", [split, joined])
def test_sizes_may_be_fixed_in_a_graph_with_sequences(capsys, tmp_path, build, options) -> None:
    answer = folded(capsys, tmp_path, build(Net()), None, *options)
    assert (len(answer["folded"]), answer["kept"]) == (1, [])


def test_a_network_that_draws_numbers_gets_one_line(capsys, tmp_path) -> None:
    net = Net()
    noise = net.op("RandomNormalLike", [net.conv_bn()], "noise")
    line = refused(capsys, tmp_path, net.model(net.op("Add", ["n", noise], "y"), ["n", 4, 6, 5]))
    assert "noise: operator RandomNormalLike draws other numbers in every run" in line

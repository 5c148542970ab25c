"""An .onnx file as source: old opsets, old formats, graphs of other exporters, and weights beside the file."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from fold.artifact.directory import read_version
from fold.convert import Conversion, Target, convert
from fold.errors import BnfoldError
from fold.graph import lifting
from fold.proof.certifier import certify
from fold.sources.source import Source
from service.repository.repository import Repository
from service.settings import Settings
from support.folding import architecture, batchnorms, randomise

Shape = tuple[int | str, ...]


class Exporter:
    """Writes float32 graphs node by node, with the habits of some exporter."""

    def __init__(self, opset: int, ir_version: int, seed: int = 0, *, constants: bool = False) -> None:
        self.opset, self.ir_version = opset, ir_version
        self.random = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []
        self._constants = constants
        self._count = 0

    def weight(self, array: np.ndarray) -> str:
        """An initializer, or a Constant node where the exporter writes those."""
        self._count += 1
        tensor = numpy_helper.from_array(array, f"w{self._count}")
        if self._constants:
            self.nodes.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        else:
            self.tensors.append(tensor)
        return str(tensor.name)

    def normal(self, *shape: int) -> str:
        return self.weight(self.random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-1])))

    def op(self, op_type: str, *inputs: str, **attributes: object) -> str:
        self._count += 1
        output = f"{op_type.lower()}{self._count}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], **attributes))
        return output

    def statistics(self, channels: int, *, fixed: bool = False) -> list[np.ndarray]:
        """γ, β, μ and σ² drawn at random; γ is 1 where it is `fixed`."""
        gamma = np.ones(channels) if fixed else self.random.uniform(0.2, 2, channels)
        variance = self.random.uniform(0.1, 3, channels)
        beta, mean = self.random.standard_normal((2, channels))
        return [a.astype(np.float32) for a in (gamma, beta, mean, variance)]

    def batchnorm(self, x: str, channels: int, *, fixed: bool = False, **attributes: object) -> str:
        weights = [self.weight(a) for a in self.statistics(channels, fixed=fixed)]
        return self.op("BatchNormalization", x, *weights, epsilon=1e-3, **attributes)

    def save(self, path: Path, shape: Shape, output: str, output_shape: Shape) -> Path:
        """Initializers are listed among the inputs where the format demands it."""
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
        if self.ir_version < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.tensors]
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, output_shape)]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.tensors)
        opsets = [helper.make_opsetid("", self.opset)]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=self.ir_version), path)
        return path


def pytorch_1(path: Path) -> Path:
    """Constants as nodes, BatchNorms that share parameters by Identity, and a flatten computed from the batch."""
    g = Exporter(opset=9, ir_version=4)
    x = g.op("Conv", "x", g.normal(4, 3, 3, 3), g.normal(4), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    first = [g.weight(a) for a in g.statistics(4)]
    x = g.op("Relu", g.op("BatchNormalization", x, *first, epsilon=1e-5, momentum=0.9))
    x = g.op("Conv", x, g.normal(4, 4, 3, 3), kernel_shape=[3, 3])
    x = g.op("BatchNormalization", x, *(g.op("Identity", name) for name in first), epsilon=1e-5, momentum=0.9)
    x = g.op("MaxPool", g.op("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    index = helper.make_tensor("i", TensorProto.INT64, [], [0])
    g.nodes.append(helper.make_node("Constant", [], ["i"], value=index))
    batch = g.op("Unsqueeze", g.op("Gather", g.op("Shape", x), "i", axis=0), axes=[0])
    g.nodes.append(
        helper.make_node("Constant", [], ["rest"], value=helper.make_tensor("rest", TensorProto.INT64, [1], [-1]))
    )
    x = g.op("Reshape", x, g.op("Concat", batch, "rest", axis=0))
    x = g.op("Gemm", x, g.op("Transpose", g.normal(5, 16), perm=[1, 0]), g.normal(5))
    weights = [g.weight(a) for a in g.statistics(5)]
    x = g.op("Dropout", g.op("BatchNormalization", x, *weights, epsilon=1e-5, momentum=0.9), ratio=0.5)
    return g.save(path, ("n", 3, 6, 7), g.op("Gemm", x, g.normal(2, 5), g.normal(2), transB=1), ("n", 2))


def pytorch_0_4(path: Path) -> Path:
    """The format that lists weights among the inputs, `spatial` left at its default, and a bilinear upsampling."""
    g = Exporter(opset=7, ir_version=3)
    x = g.op("Conv", "x", g.normal(4, 3, 3, 3), kernel_shape=[3, 3])
    x = g.op("Relu", g.batchnorm(x, 4, momentum=0.9))
    x = g.op("Upsample", x, mode="linear", scales=[1.0, 1.0, 2.0, 2.0])
    x = g.op("Clip", g.batchnorm(g.op("Conv", x, g.normal(5, 4, 2, 2)), 5, momentum=0.9), min=0.0, max=6.0)
    x = g.op("Pad", x, mode="constant", pads=[0, 0, 1, 0, 0, 0, 0, 1], value=0.0)
    x = g.op("Squeeze", g.op("GlobalAveragePool", x), axes=[2, 3])
    return g.save(path, ("n", 3, 6, 7), g.op("LogSoftmax", x, axis=1), ("n", 5))


def mxnet(path: Path) -> Path:
    """γ fixed to 1, BatchNorm first on the data, `spatial` and `momentum` written out, Softmax on the flattened."""
    g = Exporter(opset=8, ir_version=3)
    x = g.batchnorm("x", 3, fixed=True, spatial=1, momentum=0.9)
    x = g.op("Conv", x, g.normal(4, 3, 3, 3), kernel_shape=[3, 3], dilations=[1, 1], group=1, pads=[0, 0, 0, 0])
    x = g.op("LeakyRelu", g.batchnorm(x, 4, spatial=1, momentum=0.9), alpha=0.1)
    x = g.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])
    x = g.op("Gemm", g.op("Flatten", x), g.normal(5, 16), g.normal(5), transB=1)
    return g.save(path, ("n", 3, 6, 7), g.op("Softmax", x), ("n", 5))


def caffe2(path: Path) -> Path:
    """Opset 6 and a fixed batch, which ONNX Runtime does not run any more: test mode by attribute, Sum as residual."""
    g = Exporter(opset=6, ir_version=3)
    x = g.op("Conv", "x", g.normal(4, 3, 1, 1), kernel_shape=[1, 1])
    x = g.batchnorm(x, 4, is_test=1)
    y = g.batchnorm(g.op("Conv", g.op("Relu", x), g.normal(4, 4, 3, 3), pads=[1, 1, 1, 1]), 4, is_test=1, spatial=1)
    x = g.op("Relu", g.op("Sum", x, y))
    x = g.op("Reshape", g.op("GlobalAveragePool", x), g.weight(np.array([0, -1])))
    return g.save(path, (1, 3, 6, 7), g.op("Gemm", x, g.normal(4, 5), g.normal(5), broadcast=1), (1, 5))


def keras(path: Path) -> Path:
    """Data with the channels last, transposed around every convolution; one BatchNorm between two transpositions."""
    g = Exporter(opset=13, ir_version=7)
    x = g.op("Conv", g.op("Transpose", "x", perm=[0, 3, 1, 2]), g.normal(4, 3, 3, 3), kernel_shape=[3, 3])
    x = g.op("Relu", g.op("Transpose", g.batchnorm(x, 4), perm=[0, 2, 3, 1]))
    x = g.op("Conv", g.op("Transpose", x, perm=[0, 3, 1, 2]), g.normal(5, 4, 2, 2), strides=[2, 2])
    x = g.op("Transpose", x, perm=[0, 2, 3, 1])
    x = g.op("Transpose", g.batchnorm(g.op("Transpose", x, perm=[0, 3, 1, 2]), 5), perm=[0, 2, 3, 1])
    x = g.op("ReduceMean", x, axes=[1, 2], keepdims=0)
    x = g.op("Add", g.op("MatMul", x, g.normal(5, 2)), g.normal(2))
    return g.save(path, ("n", 6, 7, 3), g.op("Softmax", x), ("n", 2))


def tf2onnx(path: Path) -> Path:
    """BatchNorms that the exporter took apart: Mul and Add by constants, or Sub, Mul, Add, or with a Div."""
    g = Exporter(opset=11, ir_version=6)

    def column(array: np.ndarray) -> str:
        return g.weight(array.reshape(1, -1, 1, 1))

    x = g.op("Conv", g.op("Transpose", "x", perm=[0, 3, 1, 2]), g.normal(4, 3, 3, 3), kernel_shape=[3, 3])
    gamma, beta, mean, variance = g.statistics(4)
    s = gamma / np.sqrt(variance + np.float32(1e-3))
    x = g.op("Relu", g.op("Add", g.op("Mul", x, column(s)), column(beta - s * mean)))
    x = g.op("Conv", x, g.normal(5, 4, 2, 2))
    gamma, beta, mean, variance = g.statistics(5)
    x = g.op("Mul", g.op("Sub", x, column(mean)), column(gamma / np.sqrt(variance + np.float32(1e-3))))
    x = g.op("Relu", g.op("Add", x, column(beta)))
    x = g.op("Transpose", g.op("Conv", x, g.normal(2, 5, 1, 1)), perm=[0, 2, 3, 1])
    gamma, beta, mean, variance = g.statistics(2)  # where the channels are last, constants need no other axes
    x = g.op("Div", g.op("Sub", x, g.weight(mean)), g.weight(np.sqrt(variance)))
    x = g.op("Add", g.op("Mul", x, g.weight(gamma)), g.weight(beta))
    return g.save(path, ("n", 6, 7, 3), g.op("ReduceMax", x, axes=[1, 2], keepdims=0), ("n", 2))


def published(path: Path, repository: Path) -> Conversion:
    return convert(Source(path), Target(repository), samples=5)


@pytest.mark.parametrize(
    ("export", "found", "kept"),
    [(pytorch_1, 3, 0), (pytorch_0_4, 2, 0), (mxnet, 2, 0), (caffe2, 2, 0), (keras, 2, 0), (tf2onnx, 3, 0)],
)
def test_graphs_of_other_exporters_fold_and_are_proven_against_the_file_as_given(tmp_path, export, found, kept) -> None:
    source = export(tmp_path / "net.onnx")
    conversion = published(source, tmp_path / "repository")
    assert conversion.certificate, conversion.certificate.message
    assert conversion.report.batchnorms == found
    assert len(conversion.report.kept) == kept, [entry.reason for entry in conversion.report.kept]
    assert conversion.path is not None
    version = read_version(conversion.path)
    assert version.reference_file.read_bytes() == source.read_bytes()
    assert [spec.name for spec in version.manifest.inputs] == ["x"]
    assert batchnorms(ir.load(version.model_file)) == kept
    assert certify(version, samples=3, seed=1)


# --- old formats


def test_what_was_changed_is_told_and_stands_in_the_manifest(tmp_path) -> None:
    conversion = published(mxnet(tmp_path / "net.onnx"), tmp_path / "repository")
    assert conversion.path is not None
    source = read_version(conversion.path).manifest.source
    assert (source["opset"], source["ir_version"]) == (8, 3)
    assert source["changes"] == ["IR version 3 or older: 11 inputs with values are constants", "lifted opset 8 to 18"]
    assert conversion.to_dict()["changes"] == list(conversion.changes) == source["changes"]
    assert ir.load(conversion.path / "model.onnx").opset_imports[""] == 18


def test_an_input_that_a_caller_may_override_stays_one(tmp_path) -> None:
    """Since IR version 4 an initializer among the inputs is a default, and its BatchNorm cannot be folded."""
    g = Exporter(opset=11, ir_version=4)
    y = g.batchnorm(g.op("Conv", "x", g.normal(4, 3, 3, 3)), 4)
    path = g.save(tmp_path / "net.onnx", ("n", 3, 6, 7), y, ("n", 4, 4, 5))
    proto = onnx.load(path)
    mean = proto.graph.node[-1].input[3]
    proto.graph.input.append(helper.make_tensor_value_info(mean, TensorProto.FLOAT, [4]))
    onnx.save(proto, path)
    conversion = convert(Source(path, overridable=True), Target(tmp_path / "repository"), samples=5)
    assert conversion.path is not None
    assert [entry.reason for entry in conversion.report.kept] == [
        "its parameters or statistics are computed, or are inputs that a caller may override"
    ]
    assert [spec.name for spec in read_version(conversion.path).manifest.inputs] == ["x", mean]
    assert mean in ir.load(conversion.path / "model.onnx").graph.initializers


def one(op_type: str, opset: int, output_shape: Shape, /, *tensors: np.ndarray, **attributes: object) -> Exporter:
    """One operator alone on x of shape 2, 3, 4, 5."""
    g = Exporter(opset, ir_version=3)
    weights = [g.weight(tensor) for tensor in tensors]
    g.nodes.append(helper.make_node(op_type, ["x", *weights], ["y"], **attributes))
    return g


OLD = {
    "BatchNormalization, opset 6": ("BatchNormalization", 6, (2, 3, 4, 5), {"is_test": 1}),
    "BatchNormalization, opset 7": ("BatchNormalization", 7, (2, 3, 4, 5), {"spatial": 1}),
    "BatchNormalization, opset 9": ("BatchNormalization", 9, (2, 3, 4, 5), {"momentum": 0.9}),
    "BatchNormalization, opset 14": ("BatchNormalization", 14, (2, 3, 4, 5), {"momentum": 0.9}),
    "Clip, opset 6": ("Clip", 6, (2, 3, 4, 5), {"min": 0.0}),
    "Dropout, opset 7": ("Dropout", 7, (2, 3, 4, 5), {"ratio": 0.5}),
    "LogSoftmax, opset 9": ("LogSoftmax", 9, (2, 3, 4, 5), {}),
    "Pad, opset 2": ("Pad", 2, (2, 3, 5, 6), {"pads": [0, 0, 1, 0, 0, 0, 0, 1], "mode": "reflect"}),
    "ReduceSum, opset 11": ("ReduceSum", 11, (2, 3), {"axes": [2, 3], "keepdims": 0}),
    "Slice, opset 9": ("Slice", 9, (2, 3, 2, 5), {"axes": [2], "starts": [1], "ends": [3]}),
    "Softmax, opset 11": ("Softmax", 11, (2, 3, 4, 5), {"axis": 2}),
    "Upsample, opset 7": ("Upsample", 7, (2, 3, 8, 10), {"mode": "linear", "scales": [1.0, 1.0, 2.0, 2.0]}),
    "Upsample, opset 9": ("Upsample", 9, (2, 3, 8, 15), {"mode": "nearest"}),
    "Resize, opset 10": ("Resize", 10, (2, 3, 8, 15), {"mode": "linear"}),
}


@pytest.mark.parametrize("case", OLD)
def test_an_old_operator_is_lifted_and_computes_what_it_did(tmp_path, case) -> None:
    """The proof holds the lifted graph against the file as given, in ONNX Runtime where it runs that opset."""
    op_type, opset, shape, attributes = OLD[case]
    tensors = Exporter(opset, 3).statistics(3) if op_type == "BatchNormalization" else []
    if op_type in ("Upsample", "Resize") and opset >= 9:
        tensors = [np.array([1, 1, 2, 3], np.float32)]
    g = one(op_type, opset, shape, *tensors, **attributes)
    conversion = published(g.save(tmp_path / "net.onnx", (2, 3, 4, 5), "y", shape), tmp_path / "repository")
    assert conversion.certificate, conversion.certificate.message
    assert conversion.path is not None
    assert ir.load(conversion.path / "model.onnx").opset_imports[""] == 18


@pytest.mark.parametrize(
    ("g", "words"),
    [
        (one("Pad", 1, (), paddings=[0, 0, 1, 1, 0, 0, 1, 1]), "'y' .Pad. cannot be lifted from opset 1"),
        (one("Add", 6, (), np.ones(3, np.float32), broadcast=1, axis=1), "'y' .Add. cannot be lifted from opset 6"),
        (one("Affine", 1, (), alpha=2.0), "'y' .Affine. cannot be lifted .*no registered schema"),
        (one("Dropout", 6, (), is_test=1), "opset 6, cannot be evaluated"),
        (one("Hardmax", 8, ()), "opset 8 cannot be lifted: its output 'y' changes"),
    ],
    ids=["no adapter", "a broadcast along an axis", "no schema", "nothing runs it", "lifted wrongly"],
)
def test_what_cannot_be_lifted_gets_one_line_and_publishes_nothing(tmp_path, g: Exporter, words) -> None:
    path = g.save(tmp_path / "net.onnx", (2, 3, 4, 5), "y", (2, 3, 4, 5))
    with pytest.raises(BnfoldError, match=words) as caught:
        published(path, tmp_path / "repository")
    assert "\n" not in str(caught.value)
    assert "export" in str(caught.value)
    assert not list((tmp_path / "repository").rglob("*.onnx"))


def test_a_wrong_lifting_is_never_proven(tmp_path, monkeypatch) -> None:
    """Reference and folded graph would agree with each other; only the file as given tells."""
    right = lifting.version_converter.convert_version

    def wrong(proto, target):
        lifted = right(proto, target)
        relu = next(node for node in lifted.graph.node if node.op_type == "Relu")
        relu.op_type = "Identity"
        return lifted

    monkeypatch.setattr(lifting.version_converter, "convert_version", wrong)
    with pytest.raises(BnfoldError, match="cannot be lifted: its output"):
        published(pytorch_0_4(tmp_path / "net.onnx"), tmp_path / "repository")


# --- weights beside the file


@pytest.fixture
def small_files(monkeypatch) -> None:
    monkeypatch.setattr("fold.graph.file.INLINE_LIMIT", 500)


def outside(path: Path) -> Path:
    """The same graph with its weights in a file of their own."""
    proto = onnx.load(path)
    path.unlink()
    onnx.save(proto, path, save_as_external_data=True, location="weights.bin", size_threshold=100)
    return path


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("export", [pytorch_1, keras])
def test_a_graph_beyond_the_limit_keeps_its_weights_beside_it(tmp_path, export) -> None:
    source = outside(export(tmp_path / "net.onnx"))
    conversion = published(source, tmp_path / "repository")
    assert conversion.path is not None
    graphs = {"model.onnx", "model.onnx.data", "unfolded.onnx", "unfolded.onnx.data"}
    assert {p.name for p in conversion.path.iterdir()} == graphs | {"canary.npz", "manifest.json", "report.html"}
    (tmp_path / "weights.bin").unlink()  # the directory needs nothing outside
    shutil.move(tmp_path / "repository", tmp_path / "elsewhere")
    folder = tmp_path / "elsewhere" / "net" / "1"
    version = read_version(folder)
    assert graphs <= set(version.manifest.files)
    assert list(version.manifest.source["external_data"]) == ["weights.bin"]
    assert certify(version, samples=3, seed=1)
    content = bytearray((folder / "model.onnx.data").read_bytes())
    content[9] ^= 1
    (folder / "model.onnx.data").write_bytes(content)
    with pytest.raises(BnfoldError, match=r"model\.onnx\.data"):
        read_version(folder)


def test_weights_beside_a_source_move_into_the_file_where_they_fit(tmp_path) -> None:
    conversion = published(outside(keras(tmp_path / "net.onnx")), tmp_path / "repository")
    assert conversion.path is not None
    files = {"canary.npz", "model.onnx", "unfolded.onnx", "manifest.json", "report.html"}
    assert {p.name for p in conversion.path.iterdir()} == files
    assert certify(read_version(conversion.path), samples=3)


@pytest.mark.usefixtures("small_files")
def test_a_checkpoint_beyond_the_limit_folds_too(tmp_path) -> None:
    module = randomise(architecture("cnn"), seed=1, hostile=False)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    source = Source(tmp_path / "net.pt", arch="models.cnn:cnn", inputs=["1,8,8"])
    conversion = convert(source, Target(tmp_path / "repository"))
    assert conversion.path is not None
    assert {"model.onnx", "model.onnx.data", "reference.pt2"} <= {p.name for p in conversion.path.iterdir()}
    assert certify(read_version(conversion.path))


@pytest.mark.usefixtures("small_files")
def test_such_a_directory_is_served(tmp_path) -> None:
    published(outside(keras(tmp_path / "net.onnx")), tmp_path / "repository")
    repository = Repository(Settings(repository=tmp_path / "repository", device="cpu"))
    repository.load()
    model = repository.find("net")
    x = np.random.default_rng(0).standard_normal((2, 6, 7, 3)).astype(np.float32)
    (y,) = model.session.run({"x": x}).values()
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "short", "elsewhere"])
def test_weights_that_cannot_be_read_are_named(tmp_path, damage) -> None:
    source = outside(keras(tmp_path / "net.onnx"))
    weights = tmp_path / "weights.bin"
    if damage == "missing":
        weights.unlink()
    elif damage == "short":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        proto = onnx.load(source, load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
        (tmp_path / "below").mkdir()
        source = tmp_path / "below" / "net.onnx"
        onnx.save(proto, source)
    with pytest.raises(BnfoldError, match=r"net\.onnx: the data of tensor 'w\d+' cannot be read") as caught:
        published(source, tmp_path / "repository")
    assert "weights.bin must lie" in str(caught.value)


def test_names_of_nodes_outlive_the_lifting(tmp_path) -> None:
    g = Exporter(opset=9, ir_version=4)
    y = g.batchnorm(g.op("Conv", "x", g.normal(4, 3, 3, 3)), 4)
    g.nodes[-1].name = "features.norm"
    conversion = published(g.save(tmp_path / "net.onnx", ("n", 3, 6, 7), y, ("n", 4, 4, 5)), tmp_path / "repository")
    (folded,) = conversion.report.folded
    assert (folded.name, folded.into) == ("features.norm", ("w1", "w1_bias"))
    json.dumps(conversion.to_dict())

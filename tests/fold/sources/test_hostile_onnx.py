"""Broken and hostile `.onnx` files: `bnfold fold` refuses them in one line, or folds what is only unusual."""

import itertools
import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper
from tritonclient.grpc import model_config_pb2

from fold.artifact.canary import check_canary
from fold.artifact.directory import read_version
from fold.evaluate import deadline
from fold.proof.run_time import judge
from support.commands import bnfold, refused, run
from support.onnxfiles import IMAGE, batchnorm, external, info, network, rename, tensor, write
from support.service import serving

Spoil = Callable[[onnx.ModelProto], object]
ESCAPES = "bn\x1b[31mred\x1b]0;title\x07<script>alert(1)</script>[bold]\n\x9b31m\u202e"

pytestmark = pytest.mark.usefixtures("own_process")


def refusal(capfd: pytest.CaptureFixture[str], folder: Path, path: Path) -> str:
    """The line that refuses a file by its own name. Nobody else prints anything, and nothing is left."""
    line = refused("fold", path, "--out", folder / "repository", "--samples", 2)
    assert capfd.readouterr() == ("", "")
    assert line.startswith(f"bnfold: {path}: ")
    assert ".incoming" not in line
    left = [file for file in (folder / "repository").rglob("*") if file.is_file() or file.name.startswith(".")]
    assert left == []
    return line.removeprefix(f"bnfold: {path}: ")


def published(folder: Path, path: Path, *options: object) -> tuple[dict, Path]:
    answer, _ = run("fold", path, "--out", folder / "repository", *options)
    assert answer["verdict"]["equivalent"] is True
    assert not list((folder / "repository" / "net").glob(".*"))
    return answer, Path(answer["model_dir"])


# --- what ends in one line


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["y"], ["back"]))
    model.graph.node[0].input[0] = "sum"
    model.graph.node.append(helper.make_node("Add", ["x", "back"], ["sum"]))


def _cycle_in_subgraph(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([helper.make_node("Add", ["q", "y"], ["q"])], "branch", [], [info("q", None)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "cond"))
    model.graph.node.append(helper.make_node("If", ["cond"], ["z"], then_branch=branch, else_branch=branch))
    model.graph.output.append(info("z", None))


def _same_names(model: onnx.ModelProto) -> None:
    model.graph.node[0].name = model.graph.node[1].name = "same"


def _half(model: onnx.ModelProto) -> None:
    """As half-precision converters leave it: a Cast before the Conv, and weights that stayed in float32."""
    model.graph.node[0].input[0] = "half"
    model.graph.node.insert(0, helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16))


def _long_parameters(model: onnx.ModelProto) -> None:
    model.graph.initializer[3].CopyFrom(tensor("mean", 5))


def _long_bias(model: onnx.ModelProto) -> None:
    """In a Constant, and of more numbers than there are output channels."""
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b"], value=tensor("b", 5)))
    model.graph.node[1].input.append("b")


def _unknown_type_of_an_input(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_type = 99
    model.graph.input.append(info("w", (4, 3, 3, 3)))


def _channels_last(model: onnx.ModelProto) -> None:
    model.graph.node[1].attribute.append(helper.make_attribute("data_layout", "NHWC"))


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a cyclic graph": (_cycle, "its graph has a cycle"),
    "a cyclic subgraph": (_cycle_in_subgraph, "its graph has a cycle"),
    "an input of 10^12": (lambda m: m.graph.input[0].CopyFrom(info("x", ("n", 3, 10**6, 10**6))), "3,000,000,000,000"),
    "a shape that overflows": (lambda m: m.graph.input[0].CopyFrom(info("x", ("n", 3, 2**40, 2**40))), "more than the"),
    "an initializer of 10^12": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 10**12), "cannot load it"),
    "an initializer that overflows": (lambda m: m.graph.initializer[0].dims.__setitem__(0, 2**62), "cannot load it"),
    "a negative size": (lambda m: m.graph.initializer[0].dims.__setitem__(0, -4), "cannot load it"),
    "parameters of another length": (_long_parameters, "cannot load it: Node (bn) Op (BatchNormalization)"),
    "weights as the bias": (lambda m: m.graph.node[0].input.append("w"), "bias of shape [4, 3, 3, 3], expected [4]"),
    "a bias of another length": (_long_bias, "has a bias of shape [5], expected [4], one number for each output"),
    "parameters that are missing": (lambda m: m.graph.node[1].input.__delitem__(slice(3, 5)), "has input size 3"),
    "an attribute of another type": (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("epsilon", "two")), "Mismatched attribute"
    ),
    "a long name of an input": (lambda m: rename(m, "x", "x" * 200_000), "xxx… (200,000 characters)'; expected at"),
    "a long name of a node": (lambda m: setattr(m.graph.node[0], "name", "n" * 200_000), "200,000 characters"),
    "an input without a name": (lambda m: rename(m, "x", ""), "an input or output of its graph has no name"),
    "duplicate node names": (_same_names, "ONNX Runtime cannot load it: two nodes with same node name (same)."),
    "broken casts": (_half, "ONNX Runtime cannot load it: Type Error: Type parameter (T) of Optype (Conv) bound to"),
    "Paddle's NHWC": (_channels_last, "Unrecognized attribute: data_layout for operator BatchNormalization"),
    "a tensor from nowhere": (lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"), "gives the tensor 'nowhere'"),
    "an output from nowhere": (lambda m: setattr(m.graph.output[0], "name", "nowhere"), "gives the tensor 'nowhere'"),
    "an operator that is not known": (lambda m: setattr(m.graph.node[0], "op_type", "Konv"), "No Op registered for"),
    "a type that is not known": (lambda m: setattr(m.graph.initializer[0], "data_type", 99), "99 is not a valid"),
    "a type that is not known, of an input": (_unknown_type_of_an_input, "has a type that ONNX has not: 99 is not a"),
    "two inputs of one name": (
        lambda m: m.graph.input.extend([info("w", (4, 3, 3, 3))] * 2), "two inputs of its graph have the name 'w'"
    ),
    "a training graph": (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("training_mode", 1)), "Training_mode = True"
    ),
    "data that is a folder": (lambda m: external(m, location="folder"), "'w' cannot be read: it is no file"),
    "data that is a pipe": (lambda m: external(m, location="pipe"), "'w' cannot be read: it is no file"),
    "data that is a device": (lambda m: external(m, location="/dev/zero"), "'w' cannot be read: it is no file"),
    "data with a short length": (lambda m: external(m, location="data", length=100), "its length is 100 bytes, and"),
    "data with a long length": (lambda m: external(m, location="data", length=999), "its length is 999 bytes, and"),
    **{
        f"data with {key} {value}": (partial(external, location="data", **{key: value}), f"its {key} is '{value}', exp")
        for key, value in (("length", -1), ("length", "ten"), ("length", 2**70), ("offset", -4), ("offset", 2**63))
    },
    "data with an offset behind its end": (
        lambda m: external(m, location="data", offset=10**9), "it ends at byte 1,000,000,432, and the file has 432"
    ),
    "data with a long file name": (lambda m: external(m, location="z" * 300), "File name too long"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_file_is_refused_in_one_line(capfd, tmp_path, case) -> None:
    spoil, words = SPOILT[case]
    model = network()
    spoil(model)
    (tmp_path / "data").write_bytes(bytes(432))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert words in refusal(capfd, tmp_path, write(model, tmp_path))


def test_inspect_refuses_it_in_the_same_words(tmp_path) -> None:
    model = network()
    _long_parameters(model)
    assert "net.onnx: ONNX Runtime cannot load it: Node (bn)" in refused("inspect", write(model, tmp_path))


def test_a_path_part_of_any_length(tmp_path) -> None:
    for long in (tmp_path / f"{'a' * 300}.onnx", tmp_path / ("a" * 300) / "net.onnx"):
        assert "aaa" in refused("fold", long, "--out", tmp_path / "r")
    path = write(network(), tmp_path)
    assert "File name too long" in refused("fold", path, "--out", tmp_path / ("r" * 300))


def _functions(count: int, calls: int) -> onnx.ModelProto:
    """A function that calls one `calls` times, which does the same, and so on."""
    model = network()
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    model.opset_import.append(opsets[1])
    for depth in range(count):
        inner = [
            helper.make_node(
                f"f{depth - 1}" if depth else "Relu", [f"t{i}"], [f"t{i + 1}"], domain="f" if depth else ""
            )
            for i in range(calls)
        ]
        model.functions.append(helper.make_function("f", f"f{depth}", ["t0"], [f"t{calls}"], inner, opsets))
    model.graph.node.append(helper.make_node(f"f{count - 1}", ["y"], ["z"], domain="f"))
    model.graph.output[0].CopyFrom(info("z", ("n", 4, 4, 3)))
    return model


def test_functions_that_call_functions_have_a_limit(capfd, tmp_path, monkeypatch) -> None:
    line = refusal(capfd, tmp_path, write(_functions(30, 2), tmp_path))
    assert "has 1,073,741,826 nodes after its functions are inlined, more than the limit of 100,000; to read it" in line
    path = write(_functions(3, 2), tmp_path)
    monkeypatch.setenv("BNFOLD_MAX_NODES", "9")
    assert "has 10 nodes after" in refusal(capfd, tmp_path, path)
    model = _functions(3, 2)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f2", "f"
    assert "calls itself" in refusal(capfd, tmp_path, write(model, tmp_path))
    monkeypatch.setenv("BNFOLD_MAX_NODES", "10")
    published(tmp_path, write(_functions(3, 2), tmp_path))


def test_a_loop_that_never_ends(capfd, tmp_path, monkeypatch) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["before"], ["after"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [info("i", (), TensorProto.INT64), info("before", (), TensorProto.BOOL), info("a", None)],
        [info("after", (), TensorProto.BOOL), info("b", None)],
    )
    loop = helper.make_node("Loop", ["", "true", "y"], ["z"], body=body)
    model = network(loop, outputs=[info("z", ("n", 4, 4, 3))])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "true"))
    path = write(model, tmp_path)
    monkeypatch.setenv("BNFOLD_MAX_RUN_SECONDS", "1")
    line = refusal(capfd, tmp_path, path)
    assert "needs more than 1 s to load it and run it once; if it ends at all, set BNFOLD_MAX_RUN_SECONDS" in line
    monkeypatch.setenv("BNFOLD_MAX_RUN_SECONDS", "a day")
    assert "BNFOLD_MAX_RUN_SECONDS: is 'a day', expected a number of seconds" in refusal(capfd, tmp_path, path)


def _counting(times: int) -> onnx.ModelProto:
    """A Loop behind the BatchNorm that runs so many times, which is soon done in ONNX Runtime."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["before"], ["after"]), helper.make_node("Relu", ["a"], ["b"])],
        "body",
        [info("i", (), TensorProto.INT64), info("before", (), TensorProto.BOOL), info("a", None)],
        [info("after", (), TensorProto.BOOL), info("b", None)],
    )
    loop = helper.make_node("Loop", ["times", "", "y"], ["z"], name="loop", body=body)
    model = network(loop, outputs=[info("z", ("n", 4, 4, 3))])
    model.graph.initializer.append(numpy_helper.from_array(np.array(times), "times"))
    return model


def test_an_evaluation_in_float64_has_a_limit(capfd, tmp_path, monkeypatch) -> None:
    """A clock that goes one second at each look: 200 s end within the Loop, and not in a graph of a few nodes."""
    path = write(_counting(300), tmp_path)
    monkeypatch.setattr(deadline, "monotonic", itertools.count().__next__)
    published(tmp_path, path)
    monkeypatch.setenv("BNFOLD_MAX_EVALUATION_SECONDS", "200")
    assert refusal(capfd, tmp_path / "limited", path) == (
        "an evaluation in float64 takes more than 200 s and has come to loop; if it ends at all, set "
        "BNFOLD_MAX_EVALUATION_SECONDS to more seconds\n"
    )
    monkeypatch.setenv("BNFOLD_MAX_EVALUATION_SECONDS", "2")
    free = network(outputs=[info("y", ("n", 4, "h", "w"))])
    free.graph.input[0].CopyFrom(info("x", ("n", 3, "height", "width")))
    line = refusal(capfd, tmp_path / "limited", write(free, tmp_path))
    assert line.startswith("an evaluation in float64 takes more than 2 s"), "other sizes are not tried"


def test_an_operator_that_never_ends_is_stopped(capfd, tmp_path, monkeypatch) -> None:
    """A regular expression that ONNX Runtime reads in linear time, and Python in 2^60 steps."""
    pattern = helper.make_node("RegexFullMatch", ["texts"], ["matches"], name="texts", pattern="(a+)+b")
    cast = helper.make_node("Cast", ["matches"], ["factor"], to=TensorProto.FLOAT)
    outputs = [info("z", ("n", 4, 4, 3))]
    model = network(pattern, cast, helper.make_node("Mul", ["y", "factor"], ["z"]), outputs=outputs, opset=20)
    model.graph.initializer.append(helper.make_tensor("texts", TensorProto.STRING, [1], ["a" * 60]))
    monkeypatch.setenv("BNFOLD_MAX_EVALUATION_SECONDS", "1")
    line = refusal(capfd, tmp_path, write(model, tmp_path))
    assert line.startswith("an evaluation in float64 takes more than 1 s and has come to ")
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def test_a_file_that_kills_onnx_runtime(capfd, tmp_path) -> None:
    """Functions nested deeper than its stack."""
    line = refusal(capfd, tmp_path, write(_functions(4000, 1), tmp_path))
    assert line.startswith("ONNX Runtime dies on it (signal 11, SIGSEGV) while it loads it; ")


# --- what is only unusual


def test_nodes_in_another_order_are_sorted(tmp_path) -> None:
    model = network()
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    answer, _ = published(tmp_path, write(model, tmp_path))
    assert answer["kept"] == []


def test_scopes_that_no_exporter_wrote(tmp_path) -> None:
    model = network()
    model.graph.node[1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="[" * 100_000)
    answer, _ = published(tmp_path, write(model, tmp_path))
    assert [one["name"] for one in answer["folded"]] == ["bn"]


def labelled(*labels: bytes) -> onnx.ModelProto:
    """The network with the label of the largest channel as an output."""
    model = network(
        helper.make_node("GlobalAveragePool", ["y"], ["p"]),
        helper.make_node("Flatten", ["p"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Gather", ["labels", "best"], ["label"]),
        outputs=[info("scores", ("n", 4)), info("label", ("n",), TensorProto.STRING)],
    )
    model.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [4], labels))
    return model


def test_labels_fold_are_proven_and_served(tmp_path) -> None:
    names = ("cat", "dog", "Käse", "")
    path = write(labelled(*(name.encode() for name in names)), tmp_path)
    answer, folder = published(tmp_path, path)
    assert answer["kept"] == []
    assert [one["name"] for one in answer["verdict"]["outputs"]] == ["scores", "label"]
    x = np.random.default_rng(0).standard_normal((5, 3, 6, 5)).astype(np.float32)
    expected = onnxruntime.InferenceSession(path).run(["label"], {"x": x})[0]
    with serving.start(tmp_path / "repository") as service:
        asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}
        outputs = service.post("/v2/models/net/infer", json=asked).json()["outputs"]
        assert [one["data"] for one in outputs if one["name"] == "label"] == [expected.tolist()]
        checked = service.post("/v2/models/net/equivalence", json={"samples": 3}).json()
        assert checked["equivalent"] is True
    done = bnfold("verify", folder, "--samples", 2)
    assert done.returncode == 0, done.stderr


def test_another_label_is_no_proof(tmp_path) -> None:
    _, folder = published(tmp_path, write(labelled(b"a", b"b", b"c", b"d"), tmp_path))
    session = onnxruntime.InferenceSession(folder / "model.onnx")

    def run_wrongly(inputs: dict) -> dict:
        scores, label = session.run(["scores", "label"], inputs)
        return {"scores": scores, "label": label + "x"}

    assert check_canary(folder, run_wrongly) == "output 'label' is another text than was proven"
    right = np.array(["a", "b"], dtype=object)
    assert judge("label", right, right, right).equivalent
    assert not judge("label", right, right, np.array(["a", "c"], dtype=object)).equivalent


def test_text_that_is_not_utf8(capfd, tmp_path) -> None:
    line = refusal(capfd, tmp_path, write(labelled(b"a", b"\xff\xfe", b"c", b"d"), tmp_path))
    assert line.startswith("the tensor 'labels' holds strings that are not UTF-8 (invalid start byte)")


# --- names


def test_names_do_not_leave_their_place_in_triton_s_configuration(tmp_path) -> None:
    inject = 'y" data_type: TYPE_BOOL } ] parameters { key: "a" value: { string_value: "b" } } x: [ { name: "\\\n'
    model = rename(rename(network(), "y", inject), "x", ESCAPES)
    _, folder = published(tmp_path, write(model, tmp_path))
    written = (folder.parent / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(written, model_config_pb2.ModelConfig())
    assert [one.name for one in config.output] == [inject]
    assert [one.name for one in config.input] == [ESCAPES]
    assert not config.parameters
    assert "\x1b" not in written


def test_names_do_not_reach_the_terminal_or_a_page_as_they_are(tmp_path) -> None:
    node, parameters = batchnorm("r", "y", 3)
    node.name = ESCAPES
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), node], "g", [info("x", IMAGE)],
        [info("y", IMAGE), info("r", IMAGE)], parameters,
    )  # fmt: skip
    path = write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    page = tmp_path / "page.html"
    for arguments in (
        ("fold", path, "--out", tmp_path / "repository", "--samples", 2),
        ("inspect", path, "--html", page),
    ):
        done = bnfold(*arguments)
        assert done.returncode == 0, done.stderr
        assert not set("\x1b\x07\x9b\u202e") & set(done.stderr)
    for file in (page, tmp_path / "repository" / "net" / "1" / "report.html"):
        text = file.read_text(encoding="utf-8")
        assert "&lt;script&gt;alert(1)" in text
        assert "<script>alert" not in text
    done = bnfold("fold", path, "--out", tmp_path / "again", "--samples", 2, "--json")
    assert json.loads(done.stdout)["kept"][0]["name"] == ESCAPES
    model = onnx.load(path)
    model.graph.node[1].input[1] = "\x1b]0;nowhere"
    line = refused("fold", write(model, tmp_path), "--out", tmp_path / "repository")
    assert r"\x1b]0;nowhere" in line
    assert "\x1b" not in line


# --- initializers among the inputs


def overridable(tmp_path: Path, opset: int = 17, ir_version: int = 8) -> Path:
    """As MXNet's exporter and PyTorch's `keep_initializers_as_inputs=True` write it."""
    model = network(opset=opset, ir_version=ir_version)
    model.graph.input.extend(info(one.name, tuple(one.dims)) for one in model.graph.initializer)
    return write(model, tmp_path)


@pytest.mark.parametrize(("opset", "ir_version"), [(17, 8), (9, 4)])
def test_weights_among_the_inputs_are_constants(tmp_path, opset, ir_version) -> None:
    path = overridable(tmp_path, opset, ir_version)
    answer, folder = published(tmp_path, path)
    assert (answer["kept"], len(answer["folded"])) == ([], 1)
    assert "5 inputs with stored values are constants; if callers override them: --overridable" in answer["changes"]
    version = read_version(folder)
    assert [one.name for one in version.manifest.inputs] == ["x"]
    assert version.reference_file.read_bytes() == path.read_bytes()
    done = bnfold("verify", folder, "--samples", 3)
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 5)).astype(np.float32)
    with serving.start(tmp_path / "repository") as service:
        asked = {"inputs": [{"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}]}
        (output,) = service.post("/v2/models/net/infer", json=asked).json()["outputs"]
        expected = onnxruntime.InferenceSession(path).run(None, {"x": x})[0]
        np.testing.assert_allclose(output["data"], expected.ravel(), rtol=0, atol=1e-5)
        assert service.post("/v2/models/net/equivalence", json={"samples": 3}).json()["equivalent"] is True


class Symbol:
    """A small ResNet-18 of the second version, as MXNet's exporter writes it: all 99 weights are inputs, too."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, op_type: str, name: str, *inputs: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv(self, x: str, name: str, channels: tuple[int, int], kernel: int, stride: int = 1) -> str:
        read, written = channels
        array = self.random.standard_normal((written, read, kernel, kernel)) * np.sqrt(2 / (read * kernel**2))
        weights = self.weight(f"{name}_weight", array)
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 2] * 4}
        return self.op("Conv", name, x, weights, dilations=[1, 1], group=1, **window)

    def bn(self, x: str, name: str, channels: int, *, fix_gamma: bool = False) -> str:
        gamma, variance = self.random.uniform(0.5, 1.5, (2, channels))
        beta, mean = self.random.normal(0, 0.3, (2, channels))
        arrays = {"gamma": gamma**0 if fix_gamma else gamma, "beta": beta, "moving_mean": mean, "moving_var": variance}
        parameters = [self.weight(f"{name}_{part}", array) for part, array in arrays.items()]
        return self.op("BatchNormalization", name, x, *parameters, epsilon=2e-5, momentum=0.9)

    def unit(self, x: str, name: str, channels: tuple[int, int], stride: int, *, project: bool) -> str:
        inner = (channels[1], channels[1])
        first = self.op("Relu", f"{name}_relu1", self.bn(x, f"{name}_bn1", channels[0]))
        y = self.bn(self.conv(first, f"{name}_conv1", channels, 3, stride), f"{name}_bn2", channels[1])
        y = self.conv(self.op("Relu", f"{name}_relu2", y), f"{name}_conv2", inner, 3)
        shortcut = self.conv(first, f"{name}_sc", channels, 1, stride) if project else x
        return self.op("Add", f"{name}_plus0", y, shortcut)

    def resnet18(self, widths: tuple[int, ...] = (4, 4, 6, 8, 10)) -> onnx.ModelProto:
        x = self.conv(self.bn("data", "bn_data", 3, fix_gamma=True), "conv0", (3, widths[0]), 7, 2)
        x = self.op("Relu", "relu0", self.bn(x, "bn0", widths[0]))
        x = self.op("MaxPool", "pooling0", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
        for stage, (read, written) in enumerate(itertools.pairwise(widths), 1):
            x = self.unit(x, f"stage{stage}_unit1", (read, written), 1 if stage == 1 else 2, project=True)
            x = self.unit(x, f"stage{stage}_unit2", (written, written), 1, project=False)
        x = self.op("GlobalAveragePool", "pool1", self.op("Relu", "relu1", self.bn(x, "bn1", widths[-1])))
        dense = self.weight("fc1_weight", self.random.standard_normal((7, widths[-1])))
        bias = self.weight("fc1_bias", self.random.standard_normal(7))
        y = self.op("Gemm", "fc1", self.op("Flatten", "flatten0", x), dense, bias, transB=1)
        y = self.op("Softmax", "softmax", y, axis=1)
        inputs = [info("data", ("n", 3, 32, 32)), *(info(one.name, tuple(one.dims)) for one in self.weights)]
        graph = helper.make_graph(self.nodes, "mxnet_converted_model", inputs, [info(y, ("n", 7))], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4)


def test_a_residual_network_of_mxnet_folds_as_if_its_weights_were_no_inputs(tmp_path) -> None:
    path = write(Symbol().resnet18(), tmp_path)
    answer, folder = published(tmp_path, path)
    assert answer["batchnorms"] == 19
    assert [(one["name"], one["code"], one["culprit"]) for one in answer["kept"]] == [
        ("stage1_unit1_bn1", "activation", "stage1_unit1_relu1")  # between MaxPool and Relu, behind a Relu
    ]
    assert "99 inputs with stored values are constants; if callers override them: --overridable" in answer["changes"]
    assert [one.name for one in read_version(folder).manifest.inputs] == ["data"]
    done = bnfold("verify", folder, "--samples", 3)
    assert done.returncode == 0, done.stderr
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    expected, found = (
        onnxruntime.InferenceSession(file).run(None, {"data": x})[0] for file in (path, folder / "model.onnx")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_weights_that_callers_override_are_kept_and_drawn_inputs_use_the_stored_ones(tmp_path) -> None:
    answer, folder = published(tmp_path, overridable(tmp_path), "--overridable")
    (kept,) = answer["kept"]
    assert kept["reason"] == "its parameters or statistics are computed, or are inputs that a caller may override"
    names = ["x", "w", "gamma", "beta", "mean", "var"]
    assert [one["name"] for one in json.loads((folder / "manifest.json").read_text())["inputs"]] == names
    assert answer["verdict"]["outputs"][0]["folded_error"] < 1e-5  # on random variances it is NaN
    done = bnfold("verify", folder, "--samples", 3)
    assert done.returncode == 0, done.stderr
    err = refused("fold", tmp_path / "net.pt2", "--overridable", "--out", tmp_path / "r")
    assert "no such file" in err

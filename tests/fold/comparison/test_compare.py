"""`bnfold compare`: right rewrites of other tools are the same; faults are found and named.

The graphs are written by hand. B is made from A by numpy in float32, as other tools do, not by code of this project.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import fold
from fold.graph import described, save_graph
from fold.sources import Source, silenced
from support.commands import assert_one_line, bnfold
from support.folding import unfolded

Weights = dict[str, np.ndarray]
CHANNELS, INNER, CLASSES = 6, 5, 4


def weights(seed: int) -> Weights:
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return {
        "conv1.w": normal(CHANNELS, 3, 3, 3),
        "bn1.gamma": normal(CHANNELS),  # negative ones, too
        "bn1.beta": normal(CHANNELS) + 1,
        "bn1.mean": normal(CHANNELS),
        "bn1.var": random.uniform(0.1, 2, CHANNELS).astype(np.float32),
        "conv2.w": normal(INNER, CHANNELS, 3, 3),
        "conv2.b": normal(INNER) + 5,
        "fc.w": normal(INNER, CLASSES),
    }


def network(
    tensors: Weights, *, folded: bool = False, prefix: str = "", kind: int = TensorProto.FLOAT, opset: int = 17
) -> onnx.ModelProto:
    """Conv, BatchNorm, Relu, Conv, Relu, mean, MatMul. With `folded`, without its BatchNorm."""
    p = prefix
    first = ["conv1.w", "conv1.b"] if folded else ["conv1.w"]
    nodes = [
        helper.make_node("Conv", ["x" + p, *first], [p + "c1"], name=p + "conv1"),
        *(
            []
            if folded
            else [
                helper.make_node(
                    "BatchNormalization",
                    [p + "c1", "bn1.gamma", "bn1.beta", "bn1.mean", "bn1.var"],
                    [p + "n1"],
                    name=p + "bn1",
                )
            ]
        ),
        helper.make_node("Relu", [p + ("c1" if folded else "n1")], [p + "r1"], name=p + "relu1"),
        helper.make_node("Conv", [p + "r1", "conv2.w", "conv2.b"], [p + "c2"], name=p + "conv2"),
        helper.make_node("Relu", [p + "c2"], [p + "r2"], name=p + "relu2"),
        helper.make_node("ReduceMean", [p + "r2"], [p + "m"], name=p + "mean", axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", [p + "m", "fc.w"], ["y" + p], name=p + "fc"),
    ]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x" + p, kind, ["n", 3, 9, 8])],
        [helper.make_tensor_value_info("y" + p, kind, ["n", CLASSES])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def folded_in_float32(tensors: Weights) -> Weights:
    factor = tensors["bn1.gamma"] / np.sqrt(tensors["bn1.var"] + np.float32(1e-5))
    return {name: array for name, array in tensors.items() if not name.startswith("bn1")} | {
        "conv1.w": tensors["conv1.w"] * factor[:, None, None, None],
        "conv1.b": tensors["bn1.beta"] - tensors["bn1.mean"] * factor,
    }


def written(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


@pytest.fixture
def a(tmp_path: Path) -> Path:
    return written(network(weights(0)), tmp_path / "a.onnx")


def compared(a: Path, b: Path, *options: object, code: int = 0) -> dict[str, Any]:
    done = bnfold("compare", a, b, *options, "--json")
    assert done.returncode == code, done.stderr
    found = json.loads(done.stdout)
    assert found["same"] is (code == 0)
    assert found["message"] in done.stderr
    return found


@pytest.mark.parametrize("prefix", ["", "other/"])
def test_a_fold_in_float32_by_another_tool_is_the_same_model(a: Path, tmp_path: Path, prefix: str) -> None:
    b = written(network(folded_in_float32(weights(0)), folded=True, prefix=prefix), tmp_path / "b.onnx")
    found = compared(a, b)
    (output,) = found["algebra"]["outputs"]
    assert 0 < output["difference"] < output["limit"] < 1e-4
    assert len(found["notes"]) == (2 if prefix else 0)


def test_a_file_of_an_old_opset_is_the_same_and_a_fault_in_it_is_not(a: Path, tmp_path: Path) -> None:
    compared(a, written(network(weights(0), opset=7), tmp_path / "old.onnx"))
    wrong = changed("fc.w", lambda w: w * np.float32(1.01))
    compared(a, written(network(wrong, opset=7), tmp_path / "wrong.onnx"), code=1)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_right_fold_fails_and_no_planted_fault_holds(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("pairs")

    def source(name: str, model: onnx.ModelProto) -> Source:
        return Source(written(model, folder / name), trial=None)  # a process of its own for each would take most time

    a, right = source("a.onnx", network(weights(seed))), folded_in_float32(weights(seed))
    assert fold.compare(a, source("right.onnx", network(right, folded=True)), samples=4)
    size = 10.0 ** -(seed % 4 + 1)
    wrong = {**right, "fc.w": right["fc.w"] * np.float32(1 + size)}
    assert not fold.compare(a, source("wrong.onnx", network(wrong, folded=True)), samples=4)


def test_what_the_exporter_s_optimiser_writes_is_the_same_and_a_fault_in_it_is_named(tmp_path: Path) -> None:
    model = unfolded("cnn")
    save_graph(model, tmp_path / "a.onnx")
    program = torch.onnx.ONNXProgram(model.clone(), None)
    with silenced():
        program.optimize()
    save_graph(program.model, tmp_path / "b.onnx")
    assert len(program.model.graph) < len(model.graph)
    compared(tmp_path / "a.onnx", tmp_path / "b.onnx")
    node = [node for node in program.model.graph if node.op_type == "Conv"][1]
    weight = node.inputs[1]
    array = weight.const_value.numpy().copy()
    array.flat[1] += np.float32(0.1) * abs(array).max()
    weight.const_value = ir.tensor(array, name=weight.name)
    save_graph(program.model, tmp_path / "b.onnx")
    found = compared(tmp_path / "a.onnx", tmp_path / "b.onnx", code=1)["parting"]
    assert found["counterpart"] == described(node)


def test_a_model_directory_is_the_same_as_its_source(a: Path, tmp_path: Path) -> None:
    assert bnfold("fold", a, "--out", tmp_path / "repo", "--name", "net", "--samples", 2).returncode == 0
    assert compared(a, tmp_path / "repo" / "net")["algebra"]["holds"]


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Weights:
    return {**weights(0), name: change(weights(0)[name]).astype(np.float32)}


@pytest.mark.parametrize(
    ("name", "layer"),
    [("conv1.w", "conv1 (Conv)"), ("conv2.w", "conv2 (Conv)"), ("fc.w", "fc (MatMul)")],
)
@pytest.mark.parametrize("prefix", ["", "other/"])
def test_the_first_layer_that_parts_is_named(a: Path, tmp_path: Path, name: str, layer: str, prefix: str) -> None:
    def nudge(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[1] += 0.5
        return array

    b = written(network(changed(name, nudge), prefix=prefix), tmp_path / "b.onnx")
    found = compared(a, b, code=1)["parting"]
    assert found["node"] == layer
    assert found["counterpart"] == prefix + layer


def test_a_scale_by_channel_that_nothing_undoes_is_traced_to_its_start(a: Path, tmp_path: Path) -> None:
    b = written(network(changed("bn1.gamma", lambda gamma: gamma * 1.1)), tmp_path / "b.onnx")
    found = compared(a, b, code=1)["parting"]
    assert found["node"] in ("relu1 (Relu)", "conv2 (Conv)")  # Relu is no scale where the shift is not scaled with it
    assert found["scaled"] == "bn1 (BatchNormalization)"


def test_a_copy_in_half_precision_is_the_same_and_a_fault_in_it_is_not(a: Path, tmp_path: Path) -> None:
    half = TensorProto.FLOAT16
    compared(a, written(network(weights(0), kind=half), tmp_path / "half.onnx"))
    wrong = changed("conv2.w", lambda w: w * np.float32(1.05))
    found = compared(a, written(network(wrong, kind=half), tmp_path / "wrong.onnx"), code=1)
    assert not found["algebra"]["holds"]


def test_a_faulty_optimisation_of_the_runtime_is_told_apart_from_a_wrong_graph(tmp_path: Path) -> None:
    """ONNX Runtime's fusion of MatMul, Transpose and BatchNormalization scales the wrong axis."""
    random, size = np.random.default_rng(0), 6
    tensors = {name: random.uniform(0.5, 2, size).astype(np.float32) for name in ("gamma", "beta", "mean", "var")}
    tensors["w"] = random.normal(size=(size, size)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Transpose", ["m"], ["t"], perm=[1, 0]),
            helper.make_node("BatchNormalization", ["t", "gamma", "beta", "mean", "var"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = written(model, tmp_path / "net.onnx")
    found = compared(path, path, code=1)
    assert found["algebra"]["holds"]
    assert found["runtime_fault"]
    assert "without its graph optimisations" in found["message"]


def test_a_checkpoint_is_compared_with_another_exporter_s_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(
        "from torch import nn\n\n\n"
        "def make():\n    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))\n"
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    module[1].running_mean.normal_()
    torch.save(module.state_dict(), "net.pt")
    stored = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["input", "0.weight", "0.bias"], ["h"], transB=1),
            helper.make_node(
                "BatchNormalization", ["h", "1.weight", "1.bias", "1.running_mean", "1.running_var"], ["n"]
            ),
            helper.make_node("Gemm", ["n", "2.weight", "2.bias"], ["out"], transB=1),
        ],
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 3])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [None, 2])],
        [numpy_helper.from_array(array, name) for name, array in stored.items() if array.ndim],
    )
    b = written(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), Path("b.onnx"))
    options = ("--arch", "net.py:make", "--input", "3")
    assert len(compared(Path("net.pt"), b, *options)["notes"]) == 1
    with torch.no_grad():
        module[0].weight[1, 2] += 0.1
    torch.save(module.state_dict(), "net.pt")
    assert compared(Path("net.pt"), b, *options, code=1)["parting"]["counterpart"] == "h (Gemm)"


def test_a_directory_of_a_framework_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Hugging Face writes it; beside it what was published of it."""
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text("from torch import nn\n\n\ndef make():\n    return nn.Linear(3, 2)\n")
    torch.manual_seed(0)
    Path("hub").mkdir()
    torch.save(nn.Linear(3, 2).state_dict(), "hub/pytorch_model.bin")
    options = ("--arch", "net.py:make", "--input", "3")
    assert bnfold("fold", "hub", *options, "--out", "repo", "--name", "net", "--samples", 2).returncode == 0
    compared(Path("hub"), Path("repo/net"), *options)
    assert_one_line(bnfold("compare", "hub", "repo", *options), "is a repository with the models net")


def test_inputs_of_a_user_are_taken(a: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 9, 8), np.float32))
    found = compared(a, a, "--inputs", tmp_path / "x.npz")
    assert found["run_time"]["samples"] == 3
    assert found["run_time"]["seed"] is None


@pytest.mark.parametrize("same", [True, False])
def test_the_picture_shows_every_tensor(a: Path, tmp_path: Path, same: bool) -> None:
    b = written(network(weights(0) if same else changed("fc.w", lambda w: w + 1)), tmp_path / "<b>.onnx")
    compared(a, b, "--picture", tmp_path / "p.svg", code=int(not same))
    root = ElementTree.parse(tmp_path / "p.svg").getroot()
    marks = root.findall(".//{*}circle"), root.findall(".//{*}g/{*}rect")
    assert [len(each) for each in marks] == ([7, 0] if same else [6, 1])


def test_names_of_a_file_stay_text_in_the_picture(tmp_path: Path) -> None:
    hostile = '\x1b[31m"<script>'
    a = written(network(weights(0), prefix=hostile), tmp_path / "a.onnx")
    b = written(network(changed("fc.w", lambda w: w + 1), prefix=hostile), tmp_path / "b.onnx")
    assert bnfold("compare", a, b, "--picture", tmp_path / "p.svg").returncode == 1
    text = (tmp_path / "p.svg").read_text()
    assert "\x1b" not in text
    titles = [title.text or "" for title in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}title")]
    assert any('"<script>fc' in title for title in titles)


def resized(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 10
    return model


def two_outputs(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.output[0].name = "z"
    model.graph.node[-1].output[0] = "z"
    model.graph.output.append(helper.make_tensor_value_info("r2", TensorProto.FLOAT, ["n", INNER, 5, 4]))
    return model


@pytest.mark.parametrize(
    ("change", "words"),
    [(resized, ["input 'x'", "[-1, 3, 10, 8]", "[-1, 3, 9, 8]"]), (two_outputs, ["outputs z, r2", "y"])],
)
def test_models_that_do_not_correspond_are_refused(
    a: Path, tmp_path: Path, change: Callable[[onnx.ModelProto], onnx.ModelProto], words: list[str]
) -> None:
    b = written(change(network(weights(0))), tmp_path / "b.onnx")
    assert_one_line(bnfold("compare", a, b), str(b), *words)


def test_options_and_files_that_are_not_read_are_refused(a: Path, tmp_path: Path) -> None:
    assert_one_line(bnfold("compare", a, a, "--arch", "net:make"), "--arch")
    assert_one_line(bnfold("compare", a, tmp_path / "none.onnx"), "none.onnx", "no such file")
    assert_one_line(bnfold("compare", a, a, "--picture", tmp_path / "p.png"), ".svg")

"""The command line as a user has it: its output, its exit code, and what it leaves on disk."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fold import convert
from fold.artifact.directory import write_manifest
from fold.artifact.manifest import Manifest
from support.commands import Run, assert_one_line, bnfold
from support.folding import GraphBuilder, architecture, batchnorms, randomise


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "digits.pt"
    module = randomise(architecture("vgg_after"), seed=2, hostile=False)
    torch.save({"state_dict": module.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def published(checkpoint, tmp_path_factory) -> tuple[Path, Run]:
    repository = tmp_path_factory.mktemp("repository")
    done = bnfold(
        "fold", checkpoint, "--arch", "models.vgg_after:vgg_after", "--input", "1,8,8", "--out", repository, "--json"
    )
    return repository, done


def test_fold_publishes_a_model_directory_and_says_what_went_where(published) -> None:
    repository, done = published
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["batchnorms"] == len(answer["folded"]) + len(answer["kept"])
    assert {"name", "node", "channels", "into"} <= set(answer["folded"][0])
    assert {"name", "node", "channels", "code", "blocked", "reason", "culprit"} <= set(answer["kept"][0])
    assert answer["branches_merged"] == 0
    assert answer["verdict"]["equivalent"] is True
    folder = repository / "digits" / "1"
    assert Path(answer["model_dir"]) == folder
    assert {p.name for p in folder.iterdir()} == {
        "canary.npz",
        "manifest.json",
        "model.onnx",
        "reference.pt2",
        "report.html",
    }
    assert (repository / "digits" / "config.pbtxt").is_file()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fold"]["folded"] == answer["folded"]
    assert batchnorms(ir.load(folder / "model.onnx")) == len(answer["kept"])
    report = (folder / "report.html").read_text()
    assert answer["kept"][0]["name"] in report
    assert "R is the unfolded model in float64, U the unfolded model in fp32, F the folded graph" in report
    assert "http" not in report.replace("http-equiv", "")  # it needs no network


def test_verify_proves_it_again(published) -> None:
    repository, _ = published
    done = bnfold("verify", repository / "digits", "--samples", 3, "--seed", 5, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["equivalent"], answer["samples"], answer["seed"]) == (True, 3, 5)


def test_verify_on_the_users_own_inputs(published, tmp_path) -> None:
    repository, _ = published
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((6, 1, 8, 8), np.float32))
    done = bnfold("verify", repository / "digits" / "1", "--inputs", tmp_path / "x.npz")
    assert done.returncode == 0, done.stderr
    assert "over 6 samples" in done.stderr
    assert done.stdout == ""


def test_inputs_that_are_no_npz(published, tmp_path) -> None:
    repository, _ = published
    np.save(tmp_path / "x.npy", np.zeros((6, 1, 8, 8), np.float32))
    np.savez_compressed(tmp_path / "x.npz", x=np.random.default_rng(0).random((6, 1, 8, 8), np.float32))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[200:400] = bytes(200)  # in the compressed array
    (tmp_path / "x.npz").write_bytes(content)
    for name, words in (("x.npy", "holds an array without a name"), ("x.npz", "is not an .npz of plain arrays")):
        assert_one_line(bnfold("verify", repository / "digits" / "1", "--inputs", tmp_path / name), words)


def test_verify_insists_on_a_precision(published) -> None:
    path = published[0] / "digits" / "1"
    assert bnfold("verify", path, "--samples", 1, "--precision", "fp32").returncode == 0
    assert_one_line(bnfold("verify", path, "--precision", "fp16"), "model.onnx", "is in fp32, not in fp16")


def test_a_changed_byte_is_refused(published, tmp_path) -> None:
    repository, _ = published
    copy = tmp_path / "1"
    copy.mkdir()
    for file in (repository / "digits" / "1").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    content = bytearray((copy / "model.onnx").read_bytes())
    content[-100] ^= 1
    (copy / "model.onnx").write_bytes(content)
    assert_one_line(bnfold("verify", copy), "model.onnx", "was changed")


def test_a_failed_proof_publishes_nothing_and_exits_with_1(checkpoint, tmp_path, monkeypatch) -> None:
    """A fold that loses a bias, planted into the engine, is caught by the proof of what was written."""
    right = convert.fold_graph

    def wrong(model: ir.Model, **options: Any) -> Any:
        folding = right(model, **options)
        bias = next(value for name, value in folding.model.graph.initializers.items() if name.endswith("bias"))
        bias.const_value = ir.tensor(bias.const_value.numpy() + np.float32(1), name=bias.name)
        return folding

    monkeypatch.setattr(convert, "fold_graph", wrong)
    done = bnfold("fold", checkpoint, "--arch", "models.vgg_after:vgg_after", "--input", "1,8,8",
                  "--out", tmp_path, "--json")  # fmt: skip
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert answer["verdict"]["equivalent"] is False
    assert answer["model_dir"] is None
    assert "nothing was published" in done.stderr
    assert list((tmp_path / "digits").iterdir()) == []


def test_an_onnx_file_is_a_source_and_its_own_reference(tmp_path) -> None:
    g = GraphBuilder("n", 3, 6, 7)
    y = g.op("Relu", g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 3, 3)), 4))
    model = g.finish(g.op("GlobalAveragePool", y))
    for value in model.graph.initializers.values():
        value.const_value = ir.tensor(value.const_value.numpy().astype(np.float32), name=value.name)
        value.type = ir.TensorType(ir.DataType.FLOAT)
    for value in (*model.graph.inputs, *(out for node in model.graph for out in node.outputs)):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    ir.save(model, tmp_path / "net.onnx")
    done = bnfold("fold", tmp_path / "net.onnx", "--out", tmp_path / "repository", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["folded"]) == 1
    assert (tmp_path / "repository" / "net" / "1" / "unfolded.onnx").is_file()
    assert bnfold("verify", tmp_path / "repository" / "net" / "1").returncode == 0


def test_what_was_made_new_in_an_old_file_is_told_on_a_line_of_its_own(tmp_path) -> None:
    text = """
        <ir_version: 6, opset_import: ["" : 11]>
        g (float[n,1,3] x) => (float[n,2,3] y)
        <float[2,1,1] W = {2,-3}, float[2] gamma = {1,-2}, float[2] beta = {3,4}, float[2] mean = {5,6},
         float[2] variance = {1,2}> { u = Conv(x, W) y = BatchNormalization(u, gamma, beta, mean, variance) }
    """
    ir.save(ir.from_onnx_text(text), tmp_path / "net.onnx")
    done = bnfold("fold", tmp_path / "net.onnx", "--out", tmp_path / "repository", "--json")
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'net.onnx'}: lifted opset 11 to 18" in done.stderr.splitlines()
    assert json.loads(done.stdout)["changes"] == ["lifted opset 11 to 18"]


def test_a_pt2_wants_trust_and_folds_with_it(tmp_path) -> None:
    module = randomise(architecture("cnn"), seed=4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.randn(3, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    assert_one_line(bnfold("fold", tmp_path / "net.pt2", "--out", tmp_path / "r"), "net.pt2", "--trust")
    done = bnfold("fold", tmp_path / "net.pt2", "--out", tmp_path / "r", "--trust", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] == []


def test_versions_count_up_and_are_never_overwritten(published, checkpoint) -> None:
    repository, _ = published
    fold = ("fold", checkpoint, "--arch", "models.vgg_after:vgg_after", "--input", "1,8,8", "--out", repository)
    assert_one_line(bnfold(*fold, "--version", 1), "never overwritten", "--version")
    done = bnfold(*fold, "--json")
    assert json.loads(done.stdout)["version"] == "2"


def test_bench_prints_json_and_draws_a_picture(published, tmp_path) -> None:
    repository, _ = published
    picture = tmp_path / "bench.svg"
    done = bnfold("bench", repository / "digits" / "1", "--batch", "1,3", "--rounds", 2, "--device", "cpu",
                  "--picture", picture, "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [(one["provider"], one["batch"]) for one in answer["measurements"]] == [("cpu", 1), ("cpu", 3)]
    assert answer["graphs"]["unfolded"] == {**answer["graphs"]["unfolded"], "file": "reference.pt2", "batchnorms": 4}
    assert ElementTree.parse(picture).getroot().tag.endswith("svg")
    assert str(picture) in done.stderr


def test_bench_prints_a_table_on_stderr_and_takes_the_latest_version(published) -> None:
    repository, _ = published
    done = bnfold("bench", repository / "digits", "--batch", "2", "--rounds", 1, "--device", "cpu", "--threads", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for words in ("unfolded: reference.pt2", "folded: model.onnx", "Unfolded/folded", "1 threads", "onnxruntime"):
        assert words in done.stderr
    kept = len(json.loads((repository / "digits" / "1" / "manifest.json").read_text())["fold"]["kept"])
    assert f". ONNX Runtime leaves 4 of 4 BatchNorms, bnfold {kept}" in done.stderr.splitlines()[-1]


def test_bench_of_a_wrong_graph_exits_with_1_and_tells_no_time(published, tmp_path) -> None:
    repository, _ = published
    folder = tmp_path / "digits" / "1"
    shutil.copytree(repository / "digits" / "1", folder)
    model = ir.load(folder / "model.onnx")
    weight = next(value for value in model.graph.initializers.values() if value.name.endswith("weight"))
    weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1.01), name=weight.name)
    ir.save(model, folder / "model.onnx")
    write_manifest(folder, Manifest.model_validate_json((folder / "manifest.json").read_text()))
    done = bnfold("bench", tmp_path / "digits", "--rounds", 1, "--device", "cpu", "--json")
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert "the folded graph at batch 1 on cpu: NOT equivalent" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "1,two"], ["--batch 1,two", "such as 1,8,32"]),
        (["--picture", "bench.jpg"], ["bench.jpg", ".svg"]),
        (["--picture", "nowhere/bench.svg"], ["nowhere", "no folder"]),
        (["--rounds", 0], ["--rounds"]),
        (["--device", "tpu"], ["tpu"]),
    ],
)
def test_bad_options_of_bench_get_one_line(published, tmp_path, arguments, words) -> None:
    repository, _ = published
    assert_one_line(bnfold("bench", repository / "digits", *arguments, cwd=tmp_path), *words)


def test_labels_and_preprocessing_reach_the_manifest(checkpoint, tmp_path) -> None:
    (tmp_path / "labels.txt").write_text("zero\none\n")
    preprocessing = {"input": "x", "mode": "L", "height": 8, "width": 8}
    (tmp_path / "p.json").write_text(json.dumps(preprocessing))
    fold = ("fold", checkpoint, "--arch", "models.vgg_after:vgg_after", "--input", "1,8,8", "--out", tmp_path / "r")
    done = bnfold(*fold, "--labels", tmp_path / "labels.txt", "--preprocessing", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "r" / "digits" / "1" / "manifest.json").read_text())
    assert manifest["labels"] == ["zero", "one"]
    assert manifest["preprocessing"]["height"] == 8
    (tmp_path / "p.json").write_text(json.dumps({**preprocessing, "input": "image"}))
    assert_one_line(bnfold(*fold, "--preprocessing", tmp_path / "p.json"), "p.json", "no input 'image'")


def test_a_folder_beside_the_right_one_gets_a_hint(published) -> None:
    repository, _ = published
    model, version = repository / "digits", repository / "digits" / "1"
    hint = f"{repository}: is a repository with the models digits; name one of them, {model}"
    for command in ("verify", "bench", "inspect"):
        assert_one_line(bnfold(command, repository), hint)
    assert_one_line(bnfold("verify", version / "model.onnx"), "is a file; expected a folder, REPOSITORY/NAME")
    for folder in (model, version):
        done = bnfold("serve", folder, "--port", 0)
        assert_one_line(done, f"{folder}: holds one model; serve its repository, bnfold serve {repository}")
    told = "is a file; expected a model repository, made by bnfold fold --out"
    assert_one_line(bnfold("serve", version / "model.onnx", "--port", 0), told)


def test_a_model_or_a_version_that_there_is_not_is_told_its_neighbours(published) -> None:
    repository, _ = published
    expected = "no such folder; expected REPOSITORY/NAME or REPOSITORY/NAME/VERSION"
    absent = repository / "digit"
    assert_one_line(bnfold("verify", absent), f"{absent}: {expected}; {repository} has the models digits")
    assert_one_line(bnfold("bench", repository / "digits/9"), f"{expected}; {repository}/digits has the versions 1")


def test_what_is_published_is_no_source(published, tmp_path) -> None:
    repository, _ = published
    for folder, what in (
        (repository, "is a repository of published models; give the checkpoint of one"),
        (repository / "digits", "is a published model; give the checkpoint that it was folded from"),
        (repository / "digits" / "1", "is a published model; give the checkpoint that it was folded from"),
    ):
        assert_one_line(bnfold("fold", folder, "--out", tmp_path), f"{folder}: {what}")


# --- bad input, each in one line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda c: ["fold", c, "--out", "r"], ["--arch"]),
        (lambda c: ["fold", c, "--arch", "models.vgg_aftr:x", "--input", "1,8,8", "--out", "r"], ["models.vgg_after"]),
        (
            lambda c: ["fold", c, "--arch", "models.cnn:cnn", "--input", "1,8,8", "--out", "r"],
            ["missing", "unexpected"],
        ),
        (lambda c: ["fold", c, "--arch", "models.vgg_after:vgg_after", "--input", "5,8,8", "--out", "r"], ["--input"]),
        (lambda c: ["fold", c, "--arch", "models.vgg_after:vgg_after", "--input", "a,b", "--out", "r"], ["a,b"]),
        (lambda c: ["fold", "nowhere.pt", "--out", "r"], ["nowhere.pt", "no such file"]),
        (lambda c: ["fold", c], ["--out"]),
        (lambda c: ["fold", c, "--out", "r", "--colour"], ["--colour", "--help"]),
        (lambda c: ["fold", c, "--out", "r", "--name", "../up"], ["../up"]),
        (lambda c: ["verify", "nowhere"], ["nowhere", "REPOSITORY/NAME/VERSION"]),
        (lambda c: ["bench", "nowhere"], ["nowhere", "REPOSITORY/NAME/VERSION"]),
        (lambda c: ["serve", "nowhere"], ["nowhere"]),
        (lambda c: ["mend"], ["mend"]),
        (lambda c: ["Verify"], ["Did you mean 'verify'? See bnfold --help."]),
    ],
)
def test_bad_input_gets_one_line(checkpoint, tmp_path, arguments: Callable[[Path], list[object]], words) -> None:
    assert_one_line(bnfold(*arguments(checkpoint), cwd=tmp_path), *words)


@pytest.mark.parametrize("content", [b"<html>404</html>", b"\x89HDF\r\n\x1a\n", b"class Net:\n    pass\n", b""])
def test_what_is_no_checkpoint_gets_no_advice_to_trust_it(tmp_path, content) -> None:
    """A page in place of a download, a file of Keras, a program: their bytes may look like a pickle's."""
    (tmp_path / "net.pt").write_bytes(content)
    told = "net.pt: is not a PyTorch checkpoint; expected a file of torch.save(model.state_dict(), FILE)"
    done = bnfold("fold", tmp_path / "net.pt", "--arch", "models.cnn:cnn", "--out", tmp_path / "r")
    assert_one_line(done, told)
    assert "--trust" not in done.stderr


@pytest.mark.parametrize("name", ["net.pt", "net.pt2", "net.onnx", "net.safetensors"])
def test_a_foreign_file_gets_one_line(tmp_path, name) -> None:
    (tmp_path / name).write_bytes(b"this is none of them")
    extra = ["--trust"] if name.endswith("pt2") else []
    assert_one_line(bnfold("fold", tmp_path / name, "--arch", "models.cnn:cnn", "--out", tmp_path / "r", *extra), name)


def test_help_names_every_option() -> None:
    done = bnfold("fold", "--help")
    assert done.returncode == 0
    for option in ("--out", "--arch", "--arch-arg", "--input", "--name", "--version", "--json", "--trust"):
        assert option in done.stdout


# --- the same as a process


def test_a_process_prints_exits_and_warns_of_nothing(published, tmp_path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "fold"]
    verify = [*command, "verify", str(published[0] / "digits"), "--samples", "1", "--json"]
    done = subprocess.run(verify, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["equivalent"] is True
    done = subprocess.run([*command, "mend"], capture_output=True, text=True, check=False)
    assert_one_line(done, "mend")

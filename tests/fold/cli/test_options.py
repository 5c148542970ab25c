"""Options that a source does not read are refused, and sizes that it leaves free are fixed by `--input` and `--batch`:
from the command line to the published directory."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from fold.sources import silenced
from support import loadable
from support.commands import refused, run
from support.folding import randomise
from support.service import serving


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """One small network in every kind of file."""
    folder = tmp_path_factory.mktemp("files")
    module = randomise(loadable.plain(), seed=1).eval()
    torch.save(module.state_dict(), folder / "m.pt")
    torch.save(module, folder / "w.pt")
    save_file(module.state_dict(), folder / "m.safetensors")
    with silenced():
        free = torch.export.Dim.DYNAMIC
        program = torch.export.export(
            module, (torch.randn(3, 3, 7, 9),), dynamic_shapes=({0: torch.export.Dim("batch"), 2: free, 3: free},)
        )
        program.example_inputs = None
        torch.export.save(program, folder / "m.pt2")
    onnx.save(convolution(["N", 3, "H", "W"]), folder / "m.onnx")
    return folder


def convolution(shape: list) -> onnx.ModelProto:
    """Conv and BatchNorm, whose output sizes are written as expressions of those of the input."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.standard_normal((4, 3, 3, 3)), "s": [1, -2, 0.5, 3], "b": [0, 1, 2, 3], "m": [1, 0, -1, 2]}
    arrays["v"] = [1, 2, 0.5, 4]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"], name="bn"),
    ]
    sizes = [shape[0], 4, *(size if isinstance(size, int) else f"{size} - 2" for size in shape[2:])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, sizes)],
        [numpy_helper.from_array(np.asarray(array, np.float32), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


ARCH = ("--arch", "support.loadable:plain")


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("m.onnx", ARCH, "m.onnx: --arch is for checkpoints, not for .onnx; leave it out"),
        (
            "m.onnx",
            ("--arch-arg", "a=1", "--ema"),
            "--arch-arg and --ema are for checkpoints, not for .onnx",
        ),
        ("m.onnx", ("--key", "a"), "--key is for checkpoints"),
        ("m.onnx", ("--trust",), "--trust is for files that can run code, not for .onnx; leave it out"),
        ("m.pt2", ARCH, "m.pt2: --arch is for checkpoints, not for .pt2"),
        ("m.pt2", ("--arch-arg", "a=1"), "--arch-arg is for checkpoints"),
        ("m.pt2", ("--key", "a", "--trust"), "--key is for checkpoints"),
        ("m.safetensors", (*ARCH, "--trust"), "--trust is for files that can run code, not for .safetensors"),
        ("w.pt", ("--arch-arg", "a=1", "--trust"), "--arch-arg is an argument of --arch; give --arch, or leave it out"),
        ("m.onnx", ("--input", "y:3,8,8"), "--input y: the graph has no input 'y'; it takes x"),
        ("m.onnx", ("--input", "3,8,8", "--input", "3"), "--input 3: is one too many"),
        ("m.onnx", ("--input", "1,3,8,8"), "the first, the batch; leave the batch out, --input 3,8,8"),
        ("m.pt", (*ARCH, "--input", "1,3,8,8"), "--input 1,3,8,8: holds the batch; leave it out, --input 3,8,8"),
        ("m.pt", (*ARCH, "--input", "8,8"), "Sequential: torch.export cannot trace it with an input of 8,8: "),
        ("m.onnx", ("--input", "4,8,8"), "--input x: axis 1 of input 'x' is 3 in the file, not 4"),
        ("m.onnx", ("--input", "x:3,8,8:uint8"), "--input x: is float32 in the file, not uint8"),
        ("m.pt2", ("--input", "4,8,8"), "axis 1 of input 'input' is 3 in the file, not 4"),
    ],
)
def test_an_option_that_a_source_does_not_read_is_refused(tmp_path, files, file, options, message) -> None:
    for command in (("inspect",), ("fold", "--out", tmp_path / "r")):
        assert message in refused(command[0], files / file, *options, *command[1:])
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("file", ["m.onnx", "m.pt2", "m.pt"])
def test_free_sizes_are_fixed_by_options(tmp_path, files, file) -> None:
    arch = ARCH if file == "m.pt" else ()
    sizes = ("--input", "3,8,10", "--batch", "2")
    answer, _ = run("fold", files / file, *arch, *sizes, "--out", tmp_path / "r", "--name", "m")
    assert answer["verdict"]["equivalent"] is True
    manifest = json.loads((tmp_path / "r/m/1/manifest.json").read_text())
    assert manifest["inputs"][0]["shape"] == [2, 3, 8, 10]
    assert -1 not in manifest["outputs"][0]["shape"]
    assert (manifest["source"]["batch"], manifest["source"]["inputs"]) == (2, ["3,8,10"])
    assert "max_batch_size: 0" in (tmp_path / "r/m/config.pbtxt").read_text()
    session = onnxruntime.InferenceSession(tmp_path / "r/m/1/model.onnx")
    (served,) = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 8, 10), np.float32)})
    assert list(served.shape) == manifest["outputs"][0]["shape"]


def test_a_size_may_be_fixed_without_the_batch(tmp_path, files) -> None:
    run("fold", files / "m.onnx", "--input", "x:3,8,W:float32", "--out", tmp_path / "r")
    manifest = json.loads((tmp_path / "r/m/1/manifest.json").read_text())
    assert (manifest["inputs"][0]["shape"], manifest["outputs"][0]["shape"]) == ([-1, 3, 8, -1], [-1, 4, 6, -1])


class Regrouped(nn.Module):
    """Its code takes a batch of 2 and no other."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(36, 36), nn.BatchNorm1d(36))
        self.head = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).reshape(2, 6, 6))


def test_a_batch_that_the_code_fixes(tmp_path) -> None:
    module = randomise(Regrouped(), seed=1).eval()
    torch.save(module, tmp_path / "m.pt")
    fold = ("fold", tmp_path / "m.pt", "--trust", "--input", "x:36", "--out", tmp_path / "r")
    assert "Regrouped: its code fixes the batch; give it, --batch 2" in refused(*fold)
    assert run(*fold, "--batch", "2")[0]["kept"] == []
    manifest = json.loads((tmp_path / "r/m/1/manifest.json").read_text())
    assert [spec["shape"] for spec in manifest["inputs"] + manifest["outputs"]] == [[2, 36], [2, 6, 3]]
    x = np.random.default_rng(0).standard_normal((2, 36)).astype(np.float32)
    with serving.start(tmp_path / "r") as service:

        def infer(rows: np.ndarray) -> httpx.Response:
            tensor = {"name": "x", "datatype": "FP32", "shape": rows.shape, "data": rows.ravel().tolist()}
            return service.post("/v2/models/m/infer", json={"inputs": [tensor]})

        (output,) = infer(x).json()["outputs"]
        served = np.reshape(output["data"], output["shape"])
        np.testing.assert_allclose(served, module(torch.from_numpy(x)).detach(), rtol=0, atol=1e-5)
        refusal = infer(x[:1])
        assert (refusal.status_code, "[2, 36] is expected" in refusal.json()["error"]) == (400, True)


def test_a_published_model_reads_no_options_of_files_and_holds_no_other_model(tmp_path, files) -> None:
    run("fold", files / "m.onnx", "--out", tmp_path / "r")
    assert "m: is a published model; --arch" in refused("inspect", tmp_path / "r/m", *ARCH)
    for out in ("r/m/1", "r/m/1/x"):
        err = refused("fold", files / "m.onnx", "--out", tmp_path / out)
        assert f"lies in the published version {tmp_path}/r/m/1; choose another --out" in err
    err = refused("fold", files / "m.onnx", "--out", tmp_path / "r/m")
    assert f"is the folder of a model; give its repository, --out {tmp_path}/r\n" in err
    assert sorted(path.name for path in (tmp_path / "r/m").iterdir()) == ["1", "config.pbtxt"]


class Clipped(nn.Module):
    """A bound that is a float, and one that is written as a whole number."""

    def __init__(self, clip: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.layers, self.clip = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), clip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.clip(self.layers(x))


def clamp(x: torch.Tensor) -> torch.Tensor:
    return x.clamp(0.1, 6)


def hardtanh(x: torch.Tensor) -> torch.Tensor:
    return nn.functional.hardtanh(x, -1, 0.5)


def sorted_by_rows(x: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svd(x)[1]


@pytest.mark.parametrize("clip", [clamp, hardtanh])
def test_a_clip_by_a_float_and_a_whole_number(tmp_path, clip) -> None:
    module = randomise(Clipped(clip), seed=1).eval()
    torch.save(module, tmp_path / "m.pt")
    run("fold", tmp_path / "m.pt", "--trust", "--input", "3,8,8", "--out", tmp_path / "r")
    x = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    (served,) = onnxruntime.InferenceSession(tmp_path / "r/m/1/model.onnx").run(None, {"x": x})
    np.testing.assert_allclose(served, module(torch.from_numpy(x)).detach(), rtol=0, atol=1e-5)


def test_an_operator_that_onnx_has_not_is_named_in_one_line(tmp_path) -> None:
    torch.save(randomise(Clipped(sorted_by_rows), seed=1), tmp_path / "m.pt")
    err = refused("fold", tmp_path / "m.pt", "--trust", "--input", "3,8,8", "--out", tmp_path / "r")
    assert "torch.onnx.export cannot express the model in ONNX: " in err
    assert "svd" in err
    assert "\x1b" not in err


@pytest.mark.parametrize("command", ["fold", "inspect", "verify", "bench", "recalibrate"])
def test_a_misspelt_variable_is_refused_by_every_command(tmp_path, monkeypatch, command) -> None:
    monkeypatch.setenv("BNFOLD_MAX_RUN_SECOND", "5")
    needed = {"fold": ("--out", tmp_path), "recalibrate": ("--data", tmp_path, "--out", tmp_path / "new.pt")}
    line = refused(command, tmp_path / "net.onnx", *needed.get(command, ()))
    words = "there is no BNFOLD_MAX_RUN_SECOND; the nearest name is BNFOLD_MAX_RUN_SECONDS"
    assert line == f"bnfold: settings: {words}\n"

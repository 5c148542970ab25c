"""The loading options of `bnfold fold`, from the command line to a proof that was published."""

import json
from pathlib import Path

import pytest
import torch

from fold.sources.quiet import silenced
from support import loadable
from support.commands import refused, run
from support.folding import randomise


@pytest.fixture
def averaged(tmp_path) -> Path:
    """Plain weights, and averaged ones without statistics."""
    module = randomise(loadable.plain(), seed=1)
    ema = {f"module.{name}": tensor.detach() * 0.5 for name, tensor in module.named_parameters()}
    torch.save({"model": module.state_dict(), "model_ema": ema}, tmp_path / "m.pt")
    return tmp_path / "m.pt"


def test_averaged_weights_of_a_free_size(tmp_path, averaged) -> None:
    fold = ("fold", averaged, "--arch", "support.loadable:plain", "--out", tmp_path / "r")
    assert "choose with --key, or --ema" in refused(*fold)
    answer, err = run(*fold, "--ema")
    assert answer["verdict"]["equivalent"] is True
    assert answer["kept"] == []
    completed, shape = answer["changes"]
    assert "bnfold recalibrate" in completed
    assert shape == "took the shape of input input: 3,H,W from its first layer, Conv2d; --input overrides it"
    assert f"{averaged}: {shape}" in err.splitlines()
    manifest = json.loads((tmp_path / "r" / "m" / "1" / "manifest.json").read_text())
    assert manifest["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 3, -1, -1]}]
    source = manifest["source"]
    assert (source["ema"], source["inputs"], source["changes"]) == (True, ["3,H,W"], answer["changes"])


def test_named_weights_with_several_inputs_and_nested_outputs(tmp_path) -> None:
    torch.save(
        {"a": loadable.plain().state_dict(), "b": randomise(loadable.Nested(), 1).state_dict()}, tmp_path / "m.pt"
    )
    answer, _ = run(
        "fold", tmp_path / "m.pt", "--arch", "support.loadable:Nested", "--key", "b", "--input", "word::int64",
        "--input", "image:3,6,5", "--out", tmp_path / "r",
    )  # fmt: skip
    assert answer["verdict"]["equivalent"] is True
    manifest = json.loads((tmp_path / "r" / "m" / "1" / "manifest.json").read_text())
    assert [(one["name"], one["datatype"]) for one in manifest["inputs"]] == [("image", "FP32"), ("word", "INT64")]
    assert [one["name"] for one in manifest["outputs"]] == ["zeta", "aux.logits", "maps_0", "maps_1_0"]


def test_a_program_and_a_whole_module(tmp_path) -> None:
    module = randomise(loadable.plain(), seed=1).eval()
    with silenced():
        program = torch.export.export(
            module, (torch.randn(3, 3, 7, 9),), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        torch.export.save(program, tmp_path / "m.pt2")
    assert "program.example_inputs = None" in refused("fold", tmp_path / "m.pt2", "--out", tmp_path / "r")
    assert "--ema is for checkpoints, not for .pt2" in refused(
        "fold", tmp_path / "m.pt2", "--ema", "--out", tmp_path / "r"
    )
    torch.save(module, tmp_path / "w.pt")
    fold = ("fold", tmp_path / "w.pt", "--input", "3,7,9", "--out", tmp_path / "r")
    assert "torch.save(model.state_dict(), FILE)" in refused(*fold)
    assert run(*fold, "--trust")[0]["kept"] == []

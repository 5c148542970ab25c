"""A checkpoint written back: other numbers in the same places, everything else as it was, whole or not at all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from fold.errors import BnfoldError
from fold.sources.checkpoint.checkpoint import load_checkpoint, write_checkpoint
from support.loadable import plain

MEAN = torch.arange(5, dtype=torch.float64) / 3


def test_a_wrapped_checkpoint_keeps_its_layout_its_entries_and_its_dtypes(tmp_path) -> None:
    state = {f"module._orig_mod.{name}": tensor for name, tensor in plain().half().state_dict().items()}
    content = {"epoch": 3, "best": np.float64(0.5), "model": state, "optimizer": {"state": {0: torch.ones(2)}}}
    torch.save(content, tmp_path / "m.pt")
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    checkpoint = replace(checkpoint, metadata={"recalibrated": {"samples": 7}})
    write_checkpoint(checkpoint, {"1.running_mean": MEAN}, tmp_path / "n.pt")
    written = load_checkpoint(tmp_path / "n.pt").content
    assert list(written) == [*content, "bnfold"]
    assert (written["epoch"], written["best"], written["bnfold"]) == (3, 0.5, {"recalibrated": {"samples": 7}})
    assert torch.equal(written["optimizer"]["state"][0], torch.ones(2))
    assert list(written["model"]) == list(state)
    assert torch.equal(written["model"]["module._orig_mod.1.running_mean"], MEAN.half())
    same = [name for name in state if name != "module._orig_mod.1.running_mean"]
    assert all(torch.equal(written["model"][name], state[name]) for name in same)
    assert torch.equal(checkpoint.tensors["1.running_mean"], torch.zeros(5).half())  # the one read is untouched


def test_a_bare_state_dict_stays_one(tmp_path) -> None:
    module = plain()
    torch.save(module.state_dict(), tmp_path / "m.pt")
    checkpoint = replace(load_checkpoint(tmp_path / "m.pt"), metadata={"recalibrated": {}})
    write_checkpoint(checkpoint, {"1.running_mean": MEAN}, tmp_path / "n.pt")
    written = torch.load(tmp_path / "n.pt", weights_only=True)
    module.load_state_dict(written)  # strictly
    assert torch.equal(module[1].running_mean, MEAN.float())
    assert written._metadata == module.state_dict()._metadata


def test_safetensors_stays_safetensors(tmp_path) -> None:
    state = {name: tensor.clone() for name, tensor in plain().bfloat16().state_dict().items()}
    save_file(state, tmp_path / "m.safetensors", {"format": "pt"})
    checkpoint = replace(load_checkpoint(tmp_path / "m.safetensors"), metadata={"recalibrated": 1})
    write_checkpoint(checkpoint, {"1.running_mean": MEAN}, tmp_path / "n.safetensors")
    with safe_open(tmp_path / "n.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "bnfold": '{"recalibrated": 1}'}
        assert torch.equal(file.get_tensor("1.running_mean"), MEAN.bfloat16())
        assert torch.equal(file.get_tensor("0.weight"), state["0.weight"])
    assert load_checkpoint(tmp_path / "n.safetensors").metadata == {"recalibrated": 1}


def test_statistics_that_averaging_left_out_are_written_beside_the_averaged_weights(tmp_path) -> None:
    module = plain()
    torch.save({"model": module.state_dict(), "ema": dict(module.named_parameters())}, tmp_path / "m.pt")
    write_checkpoint(load_checkpoint(tmp_path / "m.pt", ema=True), {"1.running_mean": MEAN}, tmp_path / "n.pt")
    written = load_checkpoint(tmp_path / "n.pt", ema=True)
    assert torch.equal(written.tensors["1.running_mean"], MEAN.float())
    assert torch.equal(written.content["model"]["1.running_mean"], torch.zeros(5))


def test_nothing_is_overwritten_and_nothing_is_left_half_written(tmp_path, monkeypatch) -> None:
    torch.save(plain().state_dict(), tmp_path / "m.pt")
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    before = (tmp_path / "m.pt").read_bytes()
    with pytest.raises(BnfoldError, match="already exists"):
        write_checkpoint(checkpoint, {"1.running_mean": MEAN}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="suffix"):
        write_checkpoint(checkpoint, {}, tmp_path / "n.safetensors")
    with pytest.raises(BnfoldError, match=r"no place for 9\.running_mean"):
        write_checkpoint(checkpoint, {"9.running_mean": MEAN}, tmp_path / "n.pt")
    with pytest.raises(BnfoldError, match="cannot be written"):
        write_checkpoint(checkpoint, {}, tmp_path / "nowhere" / "n.pt")

    def half(content, stream) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(BnfoldError, match="No space left"):
        write_checkpoint(checkpoint, {}, tmp_path / "n.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt"]
    assert (tmp_path / "m.pt").read_bytes() == before

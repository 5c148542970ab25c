"""Every kind of file: read, refused or explained, and never run."""

import os
from pathlib import Path

import pytest
import torch
from folding import architecture
from safetensors.torch import save_file
from torch import nn

from fold.errors import BnfoldError
from fold.export import export_program, save_program
from fold.sources.architecture import build_module, load_architecture, parse_arch_args
from fold.sources.archive import load_program
from fold.sources.checkpoint import load_checkpoint
from fold.sources.shapes import example_inputs, parse_input


class Malicious:
    """Unpickling one of these writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return architecture("cnn").state_dict()


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_a_state_dict_is_found_in_its_wrapper(tmp_path, state, wrapper, prefix) -> None:
    content = {f"{prefix}{key}": value for key, value in state.items()}
    torch.save({wrapper: content, "epoch": 3} if wrapper else content, tmp_path / "m.pt")
    assert set(load_checkpoint(tmp_path / "m.pt").tensors) == set(state)


def test_safetensors(tmp_path, state) -> None:
    save_file(state, tmp_path / "m.safetensors")
    checkpoint = load_checkpoint(tmp_path / "m.safetensors")
    module = build_module(checkpoint, "models.cnn:cnn", {})
    assert not module.training
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path) -> None:
    torch.save({"state_dict": Malicious(tmp_path / "written")}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="wants to run code"):
        load_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "written").exists()


def test_a_whole_pickled_module_is_refused(tmp_path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match=r"save model\.state_dict\(\) instead"):
        load_checkpoint(tmp_path / "m.pt")


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.ckpt"])
@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint at all", b"PK\x03\x04 half an archive", b"\x80\x02}q\x00."]
)
def test_a_file_that_is_no_checkpoint(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BnfoldError, match=name):
        load_checkpoint(tmp_path / name)


def test_a_truncated_checkpoint(tmp_path, state) -> None:
    torch.save(state, tmp_path / "m.pt")
    content = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(BnfoldError, match="is no PyTorch checkpoint"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_missing_file_and_a_file_without_tensors(tmp_path) -> None:
    with pytest.raises(BnfoldError, match="check the path"):
        load_checkpoint(tmp_path / "m.pt")
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="holds no tensors"):
        load_checkpoint(tmp_path / "m.pt")
    torch.save([1, 2], tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="holds a list"):
        load_checkpoint(tmp_path / "m.pt")


def test_keys_that_do_not_fit_are_listed(tmp_path, state) -> None:
    first = next(iter(state))
    state["left.over"] = torch.zeros(1)
    wrong = state.pop(first)
    last = [key for key in state if key.endswith("weight")][-1]
    state[last] = torch.zeros(7, 7)
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BnfoldError) as caught:
        build_module(load_checkpoint(tmp_path / "m.pt"), "models.cnn:cnn", {})
    message = str(caught.value)
    assert f"1 missing: {first}" in message
    assert "1 unexpected: left.over" in message
    assert f"{last} is [7, 7] in the checkpoint" in message
    assert wrong is not None


def test_old_checkpoints_do_not_count_batches(tmp_path, state) -> None:
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "m.pt")
    build_module(load_checkpoint(tmp_path / "m.pt"), "models.cnn:cnn", {})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("models.resnt:resnet", "models.resnet"),
        ("models.resnet:resnt", "did you mean resnet"),
        ("models.resnet", "expected module:callable"),
        ("nowhere.at.all:x", "no module"),
    ],
)
def test_an_unknown_architecture_is_told_its_neighbours(spec, message) -> None:
    with pytest.raises(BnfoldError, match=message):
        load_architecture(spec)


def test_an_architecture_that_takes_other_arguments(tmp_path, state) -> None:
    torch.save(state, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="check --arch-arg"):
        build_module(load_checkpoint(tmp_path / "m.pt"), "models.cnn:cnn", {"colour": 3})


def test_arguments_are_typed() -> None:
    given = ["a=3", "b=0.5", "c=true", "d=[1, 2]", "e=(3, 4)", "f=relu", "g=None", "h=a=b"]
    expected = {"a": 3, "b": 0.5, "c": True, "d": [1, 2], "e": (3, 4), "f": "relu", "g": None, "h": "a=b"}
    assert parse_arch_args(given) == expected
    with pytest.raises(BnfoldError, match="key=value"):
        parse_arch_args(["channels"])


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("3,224,224", None, (3, 224, 224), torch.float32),
        ("x:3,8:float16", "x", (3, 8), torch.float16),
        ("ids:7:int64", "ids", (7,), torch.int64),
        ("3,8:float64", None, (3, 8), torch.float64),
    ],
)
def test_input_shapes(text, name, shape, dtype) -> None:
    parsed = parse_input(text)
    assert (parsed.name, parsed.shape, parsed.dtype) == (name, shape, dtype)


@pytest.mark.parametrize("text", ["3,x", "0,3", "-1", "x:3:float99", "a:b:c:d", "3,,4"])
def test_a_shape_that_is_none(text) -> None:
    with pytest.raises(BnfoldError, match="expected a shape without the batch"):
        parse_input(text)


def test_named_inputs_are_ordered_as_forward_takes_them() -> None:
    class Two(nn.Module):
        def forward(self, left, right):
            return left @ right

    inputs = example_inputs(Two(), [parse_input("right:3,4"), parse_input("left:2,3")])
    assert [tuple(x.shape) for x in inputs] == [(2, 2, 3), (2, 3, 4)]
    with pytest.raises(BnfoldError, match="left, right"):
        example_inputs(Two(), [parse_input("middle:3")])


def test_our_own_archive_holds_nothing_that_would_be_unpickled(tmp_path) -> None:
    program = export_program(architecture("cnn"), torch.randn(2, 1, 8, 8))
    save_program(program, tmp_path / "reference.pt2")
    loaded = load_program(tmp_path / "reference.pt2")
    x = torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded.module()(x), program.module()(x))


def test_an_archive_with_a_pickle_is_refused_unless_trusted(tmp_path) -> None:
    program = torch.export.export(architecture("cnn"), (torch.randn(2, 1, 8, 8),))
    with (tmp_path / "m.pt2").open("wb") as stream:
        torch.export.save(program, stream)  # with its sample inputs
    with pytest.raises(BnfoldError, match="--trust"):
        load_program(tmp_path / "m.pt2")
    assert load_program(tmp_path / "m.pt2", trust=True)
    (tmp_path / "n.pt2").write_bytes(b"no archive")
    with pytest.raises(BnfoldError, match=r"n\.pt2"):
        load_program(tmp_path / "n.pt2")

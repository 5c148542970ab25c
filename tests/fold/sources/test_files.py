"""Every kind of file and every kind of damage: read, refused or explained, and never run."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fold.errors import BnfoldError
from fold.sources.checkpoint.checkpoint import load_checkpoint
from support.folding import architecture


class Malicious:
    """Unpickling one of these writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return architecture("cnn").state_dict()


@pytest.mark.parametrize("suffix", ["pt", "pth", "ckpt", "bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_save_writes(tmp_path, state, suffix, zipped) -> None:
    path = tmp_path / f"m.{suffix}"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path)
    assert list(loaded.tensors) == list(state)
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in state.items())
    assert loaded.notes == ()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_safetensors_by_its_suffix_or_its_header(tmp_path, state, suffix) -> None:
    path = tmp_path / f"m.{suffix}"
    save_file(state, path, {"bnfold": '{"arch_args": {"channels": 3}}', "format": "pt"})
    loaded = load_checkpoint(path)
    assert set(loaded.tensors) == set(state)
    assert loaded.metadata == {"arch_args": {"channels": 3}}


def test_plain_values_beside_the_weights_are_read(tmp_path, state) -> None:
    beside = {
        "args": argparse.Namespace(lr=np.float32(0.5), sizes=[np.int64(3)]),
        "best": np.float64(0.25),
        "curve": np.arange(6, dtype=np.int16).reshape(2, 3),
        "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big_endian": np.array([1, 2], dtype=">i4"),
        "counts": collections.defaultdict(int, {"a": 1}),
        "folder": pathlib.Path("run"),
        "saved": datetime.datetime(2026, 1, 2, 3, 4, 5),
    }
    torch.save({"model": state, **beside}, tmp_path / "m.pt")
    content = load_checkpoint(tmp_path / "m.pt").content
    assert content["args"] == beside["args"]
    for name in ("best", "counts", "folder", "saved"):
        assert content[name] == beside[name]
    for name in ("curve", "turned", "big_endian"):
        assert content[name].dtype == beside[name].dtype
        np.testing.assert_array_equal(content[name], beside[name])


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}], dtype=object),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
        np.dtype("O"),
        np.array(["text"]),
    ],
)
def test_arrays_of_anything_but_numbers_are_not_rebuilt(tmp_path, state, value) -> None:
    torch.save({"model": state, "value": value}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match=r"m\.pt"):
        load_checkpoint(tmp_path / "m.pt")


def test_numpys_own_dtype_is_never_given_flags_from_the_file(tmp_path, state, monkeypatch) -> None:
    """Its __setstate__ would take NPY_ITEM_IS_POINTER from a file: here is one with every flag set."""

    class Crafted:
        def __reduce__(self):
            return np.dtype, ("f8", False, True), (3, "<", None, None, None, -1, -1, 63)

    torch.save({"model": state, "dtype": Crafted()}, tmp_path / "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").content["dtype"] == np.dtype("f8")
    assert load_checkpoint(tmp_path / "m.pt").content["dtype"].flags == 0


# --- what would run code


@pytest.mark.parametrize("place", ["top", "wrapper", "beside", "inside"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_code_is_refused_and_not_run(tmp_path, state, place, zipped) -> None:
    bad = Malicious(tmp_path / "written")
    content = {"top": bad, "wrapper": {"state_dict": bad}, "beside": {"model": state, "args": [bad]},
               "inside": {"model": {**state, "x": bad}}}[place]  # fmt: skip
    torch.save(content, tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(BnfoldError, match=r"would run code \(.*system\)"):
        load_checkpoint(tmp_path / "m.pt")
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    "crafted",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.',
        b"cbuiltins\ngetattr\n(cargparse\nNamespace\nS'__init__'\ntR.",
        b"cargparse\nFileType\n(S'w'\ntR.",
        b"cnumpy\nload\n(S'%s'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'%s'\ntR.",
        b"cpathlib\nPath.touch\n(cpathlib\nPosixPath\n(S'%s'\ntRtR.",
        b"ccollections\ndefaultdict\n(cos\nsystem\ntR.",
    ],
)
def test_a_handwritten_pickle_gets_at_nothing(tmp_path, crafted) -> None:
    written = tmp_path / "written"
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("m/data.pkl", crafted.replace(b"%s", str(written).encode()))
        archive.writestr("m/version", "3\n")
    with pytest.raises(BnfoldError, match=r"m\.pt"):
        load_checkpoint(tmp_path / "m.pt")
    (tmp_path / "bare.pt").write_bytes(crafted.replace(b"%s", str(written).encode()))
    with pytest.raises(BnfoldError, match=r"bare\.pt"):
        load_checkpoint(tmp_path / "bare.pt")
    assert not written.exists()


def test_a_whole_pickled_module_is_refused_with_the_words_for_a_state_dict(tmp_path) -> None:
    torch.save({"ema": nn.Linear(2, 3)}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match=r"whole object .*torch\.save\(model\.state_dict\(\), FILE\).*--trust"):
        load_checkpoint(tmp_path / "m.pt")


def test_a_whole_module_is_unpickled_where_it_is_trusted(tmp_path) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save({"epoch": 3, "model": nn.DataParallel(module)}, tmp_path / "m.pt")
    loaded = load_checkpoint(tmp_path / "m.pt", trust=True)
    assert isinstance(loaded.module, nn.Sequential)
    assert list(loaded.tensors) == list(module.state_dict())


def test_trust_does_not_change_how_weights_are_read(tmp_path, state, monkeypatch) -> None:
    asked = []
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **options: asked.append(options) or load(*args, **options))
    torch.save(state, tmp_path / "m.pt")
    load_checkpoint(tmp_path / "m.pt", trust=True)
    assert [options["weights_only"] for options in asked] == [True]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", ["m.pt", "m.ckpt"])
def test_torchscript_is_refused_and_its_weights_are_taken_where_it_is_trusted(tmp_path, name) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    torch.jit.script(module).save(str(tmp_path / name))
    with pytest.raises(BnfoldError, match=r"TorchScript archive.*torch\.jit\.load\(FILE\)\.state_dict\(\).*--trust"):
        load_checkpoint(tmp_path / name)
    loaded = load_checkpoint(tmp_path / name, trust=True)
    assert {key: tensor.shape for key, tensor in loaded.tensors.items()} == {
        key: tensor.shape for key, tensor in module.state_dict().items()
    }


# --- damage


@pytest.mark.parametrize("name", ["m.pt", "m.pth", "m.bin", "m.ckpt", "m.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint at all",
        b"PK\x03\x04 half an archive",
        b"\x80\x02}q\x00.",
        b"\x02\x00\x00\x00\x00\x00\x00\x00{}",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        pickle.dumps([1, 2]),
    ],
)
def test_a_foreign_file(tmp_path, name, content) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BnfoldError, match=name) as caught:
        load_checkpoint(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_a_truncated_file(tmp_path, state, name, share) -> None:
    save_file(state, tmp_path / name) if name.endswith("s") else torch.save(state, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(len(content) * share)])
    with pytest.raises(BnfoldError, match=r"is not a (PyTorch checkpoint|safetensors file)"):
        load_checkpoint(tmp_path / name)


def test_a_missing_file_and_a_file_without_tensors(tmp_path) -> None:
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(BnfoldError, match="check the path"):
            load_checkpoint(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="holds no tensors"):
        load_checkpoint(tmp_path / "m.pt")
    torch.save([1, 2], tmp_path / "m.pt")
    with pytest.raises(BnfoldError, match="holds a list"):
        load_checkpoint(tmp_path / "m.pt")

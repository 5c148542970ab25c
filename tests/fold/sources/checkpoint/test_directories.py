"""What frameworks write: directories, shards, distributed checkpoints. The fixtures hold the same files and keys as the
named save functions write (tests/frameworks runs these functions); what PyTorch writes is written by PyTorch."""

import io
import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, ChunkStorageMetadata, MetadataIndex

from fold.errors import BnfoldError
from fold.sources.checkpoint.checkpoint import load_checkpoint
from fold.sources.checkpoint.directory import find
from support.commands import bnfold, refused, run
from support.folding import randomise
from support.loadable import plain

ARCH = "support.loadable:plain"
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(1)
    return randomise(plain(), seed=1).eval()


def shards(folder: Path, state: dict[str, torch.Tensor], kind: str = "safetensors", parts: int = 2) -> Path:
    """As transformers' `save_pretrained(max_shard_size=…)`."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    index = {}
    for number in range(parts):
        name = f"{stem}-{number + 1:05d}-of-{parts:05d}.{kind}"
        own = dict(list(state.items())[number::parts])
        save_file(own, folder / name, {"format": "pt"}) if kind == "safetensors" else torch.save(own, folder / name)
        index |= dict.fromkeys(own, name)
    size = sum(tensor.nbytes for tensor in state.values())
    path = folder / f"{stem}.{kind}.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}))
    return path


def trainer(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """As transformers' `Trainer` writes `checkpoint-2`."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in ("optimizer.pt", "scheduler.pt", "scaler.pt"):
        torch.save(OPTIMIZER, folder / name)
    (folder / "rng_state.pth").write_bytes(pickle.dumps({"python": (3, (1, 2), None)}))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Path))
    (folder / "trainer_state.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"architectures": ["Net"]}))


def accelerate(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """As Accelerate's `save_state`."""
    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    for name in ("optimizer.bin", "scheduler.bin", "sampler.bin", "custom_checkpoint_0.pkl", "random_states_0.pkl"):
        torch.save(OPTIMIZER, folder / name)


def deepspeed(folder: Path, state: dict[str, torch.Tensor], name: str = "mp_rank_00_model_states.pt") -> None:
    """As DeepSpeed's `save_checkpoint` of ZeRO stage 1 and 2."""
    tag = folder / "global_step4"
    tag.mkdir(parents=True)
    (folder / "latest").write_text("global_step4")
    (folder / "zero_to_fp32.py").write_text("raise SystemExit('this script was run')")
    shapes = [{name: tensor.shape for name, tensor in state.items()}]
    content = {"module": state, "buffer_names": [], "optimizer": None, "param_shapes": shapes, "ds_version": "0.18.2",
               "lr_scheduler": None, "global_steps": 4, "dp_world_size": 1, "ds_config": {"fp16": {}}}  # fmt: skip
    torch.save(content, tag / name)
    torch.save({"optimizer_state_dict": OPTIMIZER}, tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def distributed(folder: Path, content: dict[str, object]) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=str(folder), no_dist=True)
    return folder


def split(folder: Path, name: str) -> None:
    """Let two ranks have a half of a tensor each, as FSDP writes it, in place of the one chunk that is there."""
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    whole = load_checkpoint(folder).tensors[name.removeprefix("model.")]
    old = next(index for index in metadata.storage_data if index.fqn == name)
    del metadata.storage_data[old]
    chunks = []
    for rank, part in enumerate(whole.split(whole.shape[0] // 2 + 1)):
        offsets = torch.Size([rank * (whole.shape[0] // 2 + 1), *[0] * (whole.ndim - 1)])
        stream = io.BytesIO()
        torch.save(part.clone(), stream)
        (folder / f"__{rank + 1}_0.distcp").write_bytes(stream.getvalue())
        chunks.append(ChunkStorageMetadata(offsets, part.shape))
        index = MetadataIndex(name, offsets, rank)
        metadata.storage_data[index] = _StorageInfo(f"__{rank + 1}_0.distcp", 0, len(stream.getvalue()))
    metadata.state_dict_metadata[name].chunks = chunks
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(find(path).path).tensors


def inspected(folder: Path, *options: str) -> tuple[dict[str, object], str]:
    done = bnfold("inspect", folder, "--arch", ARCH, "--input", "3,8,8", "--json", *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("given", "name"), [("net-1.5", "net-1.5"), ("net-1.5/model.safetensors.index.json", "model")])
def test_shards_are_merged_folded_and_published(tmp_path, module, given, name) -> None:
    shards(tmp_path / "net-1.5", module.state_dict())
    answer, err = run("fold", tmp_path / given, "--arch", ARCH, "--input", "3,8,8", "--out", tmp_path / "r")
    assert "found model.safetensors.index.json with 2 parts" in err
    assert (answer["model"], len(answer["folded"])) == (name, 2)
    source = json.loads((tmp_path / "r" / name / "1/manifest.json").read_text())["source"]
    assert source["file"] == Path(given).name
    assert list(source["files"]) == ["model.safetensors.index.json", *(
        f"model-0000{part}-of-00002.safetensors" for part in (1, 2))]  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (found,) = onnxruntime.InferenceSession(tmp_path / "r" / name / "1/model.onnx").run(None, {"input": x})
    np.testing.assert_allclose(found, module(torch.from_numpy(x)).detach(), rtol=1e-4, atol=1e-5)


def by_name(self: _MEM_FORMAT_ENCODING, protocol: int) -> tuple[Any, ...]:
    """As Python 3.11.2 pickles a member of an enumeration."""
    return getattr, (type(self), self.name)


@pytest.mark.parametrize("reduce", [_MEM_FORMAT_ENCODING.__reduce_ex__, by_name])
def test_chunks_of_a_distributed_checkpoint_are_merged_as_pytorch_does(monkeypatch, tmp_path, module, reduce) -> None:
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", reduce)
    content = {"model": module.state_dict(), "optimizer": {"lr": 0.1, "exp_avg": torch.ones(3)}, "epoch": 3}
    folder = distributed(tmp_path / "net", content)
    split(folder, "model.3.weight")
    dcp_to_torch_save(folder, tmp_path / "witness.pt")
    witness = torch.load(tmp_path / "witness.pt", weights_only=False)["model"]
    assert equal(witness, module.state_dict())
    assert equal(tensors(folder), witness)
    answer, err = inspected(folder)
    assert "found a distributed checkpoint of 3 files" in err
    assert len(answer["batchnorms"]) == 2


LAYOUTS = {
    "index": (shards, "model.safetensors.index.json with 2 parts"),
    "pickles": (lambda folder, state: shards(folder, state, "bin", 3), "pytorch_model.bin.index.json with 3 parts"),
    "trainer": (lambda folder, state: trainer(folder / "checkpoint-2", state), "checkpoint-2/model.safetensors"),
    "accelerate": (accelerate, "model.safetensors"),
    "deepspeed": (deepspeed, "global_step4/mp_rank_00_model_states.pt"),
    "accelerate with deepspeed": (
        lambda folder, state: deepspeed(folder / "pytorch_model", state),
        "pytorch_model/global_step4/mp_rank_00_model_states.pt",
    ),
    "fsdp": (
        lambda folder, state: distributed(folder / "pytorch_model_fsdp_0", {"model": state}),
        "pytorch_model_fsdp_0 with a distributed checkpoint of 1 file",
    ),
    "bare tensors": (lambda folder, state: distributed(folder, dict(state)), "a distributed checkpoint of 1 file"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_directory_is_looked_through_and_what_is_found_is_told(tmp_path, module, layout) -> None:
    write, told = LAYOUTS[layout]
    write(tmp_path / "net", module.state_dict())
    answer, err = inspected(tmp_path / "net")
    assert err.splitlines()[-1] == f"{tmp_path / 'net'}: found {told}"
    assert len(answer["batchnorms"]) == 2
    assert equal(tensors(tmp_path / "net"), module.state_dict())


def test_safetensors_are_taken_where_a_model_is_there_twice(tmp_path, module) -> None:
    accelerate(tmp_path / "net", module.state_dict())
    torch.save(plain().state_dict(), tmp_path / "net" / "pytorch_model.bin")
    assert find(tmp_path / "net").notes == ("found model.safetensors; left aside pytorch_model.bin",)
    assert equal(tensors(tmp_path / "net"), module.state_dict())


def test_the_averaged_weights_of_lightning(tmp_path, module) -> None:
    """The keys are those that `lightning.pytorch.callbacks.WeightAveraging` writes."""
    plain_state = {f"net.{name}": tensor for name, tensor in plain().state_dict().items()}
    averaged = {f"net.{name}": tensor for name, tensor in module.state_dict().items()}
    content = {"state_dict": averaged, "current_model_state": plain_state, "epoch": 1,
               "averaging_state": {"n_averaged": torch.tensor(5)}, "loops": {}}  # fmt: skip
    torch.save(content, tmp_path / "last.ckpt")
    assert equal(load_checkpoint(tmp_path / "last.ckpt", ema=True).tensors, averaged)
    loaded = load_checkpoint(tmp_path / "last.ckpt")
    assert equal(loaded.tensors, averaged)
    assert "averaged weights under 'state_dict'" in loaded.notes[0]
    assert equal(load_checkpoint(tmp_path / "last.ckpt", key="current_model_state").tensors, plain_state)


def refusal(path: Path) -> str:
    return refused("fold", path, "--arch", ARCH, "--out", path.parent / "r")


def test_a_part_alone_is_told_to_be_one(tmp_path, module) -> None:
    index = shards(tmp_path / "net", module.state_dict())
    part = tmp_path / "net" / "model-00001-of-00002.safetensors"
    assert f"is one of 2 parts of a checkpoint; give {index}" in refusal(part)
    index.unlink()
    assert "the index model.safetensors.index.json is missing" in refusal(tmp_path / "net")
    shards(tmp_path / "one", module.state_dict(), parts=1)
    assert equal(tensors(tmp_path / "one" / "model-00001-of-00001.safetensors"), module.state_dict())
    folder = distributed(tmp_path / "dcp", {"model": module.state_dict()})
    assert "is one file of a distributed checkpoint" in refusal(folder / "__0_0.distcp")
    assert equal(tensors(folder / ".metadata"), module.state_dict())
    deepspeed(tmp_path / "zero3", {}, "zero_pp_rank_0_mp_rank_00_model_states.pt")
    assert "zero_to_fp32.py" in refusal(tmp_path / "zero3")
    deepspeed(tmp_path / "tp", {})
    (tmp_path / "tp/global_step4/mp_rank_01_model_states.pt").touch()
    assert "one of 2 parts of a tensor-parallel model" in refusal(tmp_path / "tp")


def test_what_cannot_be_chosen_or_is_not_there_is_one_line(tmp_path, module) -> None:
    for step in (2, 4):
        trainer(tmp_path / "run" / f"checkpoint-{step}", module.state_dict())
    told = "holds several checkpoints; give one: checkpoint-2/model.safetensors, checkpoint-4/model.safetensors"
    assert told in refusal(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    assert "holds no weights; expected model.safetensors" in refusal(tmp_path / "empty")
    assert "no such file or directory" in refusal(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    assert "describes a model and holds no weights" in refusal(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"weight_map": {"0.weight": "../other.safetensors"}}, "expected the name of a file in the same directory"),
        ({"weight_map": {"0.weight": "/etc/passwd"}}, "expected the name of a file in the same directory"),
        ({"weight_map": {"0.weight": "model-00003-of-00002.safetensors"}}, "which is missing"),
        ({"weight_map": {"absent": "model-00001-of-00002.safetensors"}}, "lacks absent"),
        ({"weight_map": []}, "has no weight_map"),
        ({}, "has no weight_map"),
        ([], "holds a list, expected an object"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_an_index_that_is_wrong_is_refused(tmp_path, module, content, told) -> None:
    index = shards(tmp_path / "net", module.state_dict())
    save_file(module.state_dict(), tmp_path / "other.safetensors")
    index.write_text(content if isinstance(content, str) else json.dumps(content))
    assert told in refusal(index)


class Runs:
    """Unpickling one of these writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Counts:
    """Unpickling one of these takes a method of a class that the metadata may name."""

    def __reduce__(self):
        return getattr, (torch.Size, "count")


def test_metadata_runs_no_code_without_trust(tmp_path, module) -> None:
    folder = distributed(tmp_path / "net", {"model": module.state_dict()})
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data["more"] = Runs(tmp_path / "was-run")
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    told = refusal(folder)
    assert "pathlib.Path" in told or "builtins.getattr" in told
    assert "pass --trust if you know who made it" in told
    assert not (tmp_path / "was-run").exists()
    assert len(inspected(folder, "--trust")[0]["batchnorms"]) == 2
    assert (tmp_path / "was-run").exists()
    metadata.planner_data["more"] = Counts()
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "names builtins.getattr" in refusal(folder)


def test_metadata_that_is_wrong_is_refused(tmp_path, module) -> None:
    folder = distributed(tmp_path / "net", {"model": {"weight": torch.ones(4, 3)}})
    good = (folder / ".metadata").read_bytes()

    def changed(change) -> str:
        metadata = pickle.loads(good)
        change(metadata, next(iter(metadata.storage_data.values())), metadata.state_dict_metadata["model.weight"])
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        with pytest.raises(BnfoldError) as caught:
            load_checkpoint(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "expected the name of a file" in changed(lambda _, info, __: setattr(info, "relative_path", "../x"))
    assert "which is missing" in changed(lambda _, info, __: setattr(info, "relative_path", "x"))
    assert "ends before model.weight" in changed(lambda _, info, __: setattr(info, "length", 1 << 40))
    assert "cannot be read" in changed(lambda _, info, __: setattr(info, "length", info.length - 9))
    assert "by an extension" in changed(lambda _, info, __: setattr(info, "transform_descriptors", ["zstd"]))
    assert "chunks of model.weight are missing" in changed(lambda _, __, one: setattr(one, "size", torch.Size([8, 3])))
    assert "not as .metadata says" in changed(lambda _, __, one: setattr(one.chunks[0], "sizes", torch.Size([3, 4])))
    assert "unpacks to" in changed(lambda _, __, one: setattr(one, "size", torch.Size([1 << 40, 3])))
    assert "not as PyTorch writes it" in changed(lambda all_, *_: setattr(all_, "storage_data", None))
    (folder / ".metadata").write_bytes(good[:50])
    with pytest.raises(BnfoldError, match="is no metadata of a distributed checkpoint"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["net/model.safetensors", "net.pt", "net.onnx"])
def test_a_file_that_git_lfs_did_not_download_is_told(tmp_path, name) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 46830571\n")
    given = path.parent if "/" in name else path
    arch = () if name.endswith("onnx") else ("--arch", ARCH)
    told = f"{path}: is a pointer of Git LFS, and the file itself was not downloaded; run git lfs pull"
    assert told in refused("inspect", given, *arch)


def test_a_published_model_is_no_source(tmp_path) -> None:
    for name in ("manifest.json", "model.onnx"):
        (tmp_path / name).touch()
    assert "is a published model" in refusal(tmp_path)

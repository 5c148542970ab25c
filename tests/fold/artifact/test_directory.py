"""The model directory: all of it or none of it, and not one byte changed."""

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from fold.artifact.directory import (
    ABANDONED_SECONDS,
    INCOMING,
    new_version,
    next_version,
    read_version,
    remove_abandoned,
    write_manifest,
)
from fold.artifact.files import model_folders, version_numbers
from fold.artifact.manifest import Manifest, Preprocessing, TensorSpec
from fold.artifact.triton import write_triton_config
from fold.errors import BnfoldError

MANIFEST = Manifest(
    name="m",
    version="1",
    created="2026-11-21T00:00:00+00:00",
    source={"file": "m.pt"},
    reference="reference.pt2",
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
    fold={},
    verdict={"equivalent": True},
    versions={},
)


def publish(repository: Path, version: int = 1) -> Path:
    with new_version(repository, "m", version) as folder:
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "reference.pt2").write_bytes(b"reference")
        write_manifest(folder, MANIFEST.model_copy(update={"version": str(version)}))
    return repository / "m" / str(version)


def test_what_is_written_is_read_back(tmp_path) -> None:
    path = publish(tmp_path)
    version = read_version(path)
    assert version.manifest.inputs == MANIFEST.inputs
    assert set(version.manifest.files) == {"model.onnx", "reference.pt2"}
    assert version.model_file.read_bytes() == b"graph"
    assert model_folders(tmp_path).found == ("m",)


def test_a_manifest_from_before_there_was_a_key_is_read(tmp_path) -> None:
    path = publish(tmp_path)
    content = json.loads((path / "manifest.json").read_text())
    del content["labels"], content["preprocessing"], content["digest"]
    content["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))
    assert read_version(path).manifest.labels is None


def test_versions_are_numbers_and_the_next_one_is_free(tmp_path) -> None:
    publish(tmp_path, 9)
    publish(tmp_path, 10)
    assert version_numbers(tmp_path / "m") == [9, 10]
    assert next_version(tmp_path, "m") == 11
    assert next_version(tmp_path, "other") == 1


@pytest.mark.parametrize("file", ["model.onnx", "reference.pt2", "manifest.json"])
def test_one_changed_byte_anywhere_is_found(tmp_path, file) -> None:
    path = publish(tmp_path)
    content = bytearray((path / file).read_bytes())
    content[len(content) // 2] ^= 1
    (path / file).write_bytes(content)
    with pytest.raises(BnfoldError, match=file):
        read_version(path)


def test_a_missing_file_is_named(tmp_path) -> None:
    path = publish(tmp_path)
    (path / "model.onnx").unlink()
    with pytest.raises(BnfoldError, match=r"model\.onnx"):
        read_version(path)
    with pytest.raises(BnfoldError, match="expected a model directory"):
        read_version(tmp_path)


def test_a_version_that_fails_leaves_nothing(tmp_path) -> None:
    def fail() -> None:
        with new_version(tmp_path, "m", 1) as folder:
            (folder / "model.onnx").write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "m").iterdir()) == []


def test_a_published_version_is_never_overwritten(tmp_path) -> None:
    path = publish(tmp_path)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(BnfoldError, match="never overwritten"):
        publish(tmp_path)
    assert (path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["../escape", "a/b", "", ".hidden", "-x"])
def test_names_never_become_paths(tmp_path, name) -> None:
    with pytest.raises(BnfoldError, match="model name"), new_version(tmp_path, name, 1):
        pass


def test_a_writer_killed_in_the_middle_leaves_no_half_version(tmp_path) -> None:
    """A real process is killed while it writes; readers see no version, and the next writer is not disturbed."""
    code = f"""
import time
from pathlib import Path
from fold.artifact.directory import new_version
with new_version(Path({str(tmp_path)!r}), "m", 1) as folder:
    (folder / "model.onnx").write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    with writer.stdout:
        assert writer.stdout.readline() == "writing\n"
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert version_numbers(tmp_path / "m") == []
    assert len(list((tmp_path / "m").glob(f"{INCOMING}*"))) == 1
    publish(tmp_path)
    assert read_version(tmp_path / "m" / "1")
    assert list((tmp_path / "m").glob(f"{INCOMING}*")) == []


@pytest.mark.parametrize("locks", [True, False])
def test_only_what_nobody_writes_is_removed(tmp_path, monkeypatch, locks) -> None:
    """A writer holds a lock; where the file system has none, as NFS for folders, age decides."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    if not locks:
        monkeypatch.setattr("fcntl.flock", refuse)
    gone = tmp_path / "m" / f"{INCOMING}gone"  # a folder that was listed, and published meanwhile
    with new_version(tmp_path, "m", 1) as folder:
        (folder / "model.onnx").write_bytes(b"half")
        gone.symlink_to("nowhere")
        publish(tmp_path, 2)
        remove_abandoned(tmp_path)
        gone.unlink()
        assert (folder / "model.onnx").exists()
    file, directory = tmp_path / "m" / f"{INCOMING}1-config.pbtxt", tmp_path / "m" / f"{INCOMING}1"
    file.write_text("half")
    directory.mkdir()
    old = time.time() - ABANDONED_SECONDS - 1
    for path in (file, directory) if not locks else ():
        os.utime(path, (old, old))
    remove_abandoned(tmp_path)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "2"]


def test_a_configuration_that_cannot_be_written_leaves_nothing(tmp_path) -> None:
    publish(tmp_path)
    (tmp_path / "m" / "config.pbtxt").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_triton_config(tmp_path / "m", MANIFEST)
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["1", "config.pbtxt"]


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (16, [1, 2, 4, 8, 16]), (24, [1, 2, 4, 8, 16, 24])])
def test_triton_reads_the_same_folder(most: int, sizes: list[int], tmp_path) -> None:
    """Read by protobuf into Triton's own message, which refuses what it does not know."""
    publish(tmp_path)
    write_triton_config(tmp_path / "m", MANIFEST, max_batch_size=most)
    config = text_format.Parse((tmp_path / "m" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.platform, config.max_batch_size) == ("m", "onnxruntime_onnx", most)
    [tensor] = config.input
    assert (tensor.name, tensor.data_type, list(tensor.dims)) == ("x", model_config_pb2.TYPE_FP32, [3])
    assert list(config.dynamic_batching.preferred_batch_size) == sizes
    [accelerator] = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
def test_triton_has_tf32_on_where_that_was_proven(precision, tmp_path) -> None:
    """In 16 bits as well: ONNX Runtime takes no tensor cores for any type without it."""
    publish(tmp_path)
    write_triton_config(tmp_path / "m", MANIFEST.model_copy(update={"fold": {"precision": {"type": precision}}}))
    assert 'key: "use_tf32" value: "1"' in (tmp_path / "m" / "config.pbtxt").read_text()


def test_triton_gets_no_batches_of_a_model_without_them(tmp_path) -> None:
    publish(tmp_path)
    alone = MANIFEST.model_copy(update={"inputs": (TensorSpec(name="x", datatype="FP32", shape=(3,)),)})
    write_triton_config(tmp_path / "m", alone)
    config = text_format.Parse((tmp_path / "m" / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")


def test_preprocessing_is_validated() -> None:
    with pytest.raises(ValueError, match="height"):
        Preprocessing(input="x", mode="L", height=0, width=8)


def test_what_cannot_be_written_is_named_by_its_place_in_the_repository(tmp_path) -> None:
    """The folder that is being written is removed, and nobody could look there."""
    with pytest.raises(BnfoldError) as caught, new_version(tmp_path, "m", 1) as folder:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "model.onnx"))
    assert str(caught.value) == f"{tmp_path / 'm' / '1' / 'model.onnx'}: cannot be written (No space left on device)"
    assert not list((tmp_path / "m").iterdir())

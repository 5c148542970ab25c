"""The model directory: `REPOSITORY/NAME/VERSION/`, written whole or not at all, and checked when it is read.

A version is written into a hidden folder beside its final place and renamed once every byte is on disk, so a reader
sees all of it or none. The manifest holds the SHA-256 of every other file, and of itself without that one field.
"""

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fold.errors import BnfoldError

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
"""The Open Inference Protocol's datatypes that numpy has, by their name there."""

PrecisionName = Literal["fp32", "tf32", "fp16", "bf16"]
"""In which type a graph computes. `tf32` is stored in float32, and a GPU rounds the factors of products to 11 bits."""

NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
INCOMING = ".incoming-"
ABANDONED_SECONDS = 24 * 3600


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Strict):
    """A graph input or output. `shape` has -1 where a dimension is free; the batch, where there is one, is first."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Preprocessing(_Strict):
    """How an image becomes the tensor `input`: decode to `mode`, bring to `height` by `width`, then
    `(pixel * scale - mean) / std` for each channel, laid out as `layout` says. Pixels are 0 to 255.

    To `height` by `width` it is resized (bilinear), or, with `resize` and `crop`, resized until its shorter edge is
    `resize` and then cut out of the centre.
    """

    input: str
    mode: Literal["L", "RGB"]
    height: Annotated[int, Field(gt=0, le=8192)]
    width: Annotated[int, Field(gt=0, le=8192)]
    resize: Annotated[int, Field(gt=0, le=8192)] | None = None
    crop: Literal["center"] | None = None
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    layout: Literal["nchw", "nhwc"] = "nchw"

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.resize is None) != (self.crop is None):
            raise PydanticCustomError("resize_and_crop", "resize and crop belong together")
        if self.resize is not None and self.resize < max(self.height, self.width):
            raise PydanticCustomError("resize_and_crop", "resize is smaller than what is to be cut out of the image")
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            raise PydanticCustomError("channels", "mean and std have one number, or one for each channel of mode")
        return self


class Manifest(_Strict):
    """What `manifest.json` says of one version of a model."""

    format: Literal[1] = 1
    name: str
    version: str
    created: str
    source: dict[str, Any]
    reference: Literal["reference.pt2", "unfolded.onnx"]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    fold: dict[str, Any]
    verdict: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, str] = {}
    digest: str = ""

    @property
    def precision(self) -> PrecisionName:
        """In which type the graph computes; one that was published before there was a choice does so in float32."""
        precision: PrecisionName = self.fold.get("precision", {}).get("type", "fp32")
        return precision

    def precision_on(self, provider: str) -> PrecisionName:
        """In which type the graph computes on `cpu` or `cuda`: a CPU has no TF32, and computes such a graph in fp32."""
        return "fp32" if self.precision == "tf32" and provider == "cpu" else self.precision

    @property
    def batched(self) -> bool:
        """Whether the first axis of every input and output is the free batch axis."""
        return all(len(spec.shape) > 0 and spec.shape[0] == -1 for spec in (*self.inputs, *self.outputs))


@dataclass(frozen=True)
class ModelVersion:
    """A version that was read from disk: its folder and what its manifest says."""

    path: Path
    manifest: Manifest

    @property
    def model_file(self) -> Path:
        return self.path / "model.onnx"

    @property
    def reference_file(self) -> Path:
        return self.path / self.manifest.reference


def model_names(repository: Path) -> list[str]:
    """Names of the models in `repository`: folders that hold at least one numbered version."""
    if not repository.is_dir():
        raise BnfoldError(f"{repository}: no such folder; expected a model repository, made by bnfold fold --out")
    return sorted(p.name for p in repository.iterdir() if NAME_PATTERN.fullmatch(p.name) and version_numbers(p))


def version_numbers(model: Path) -> list[int]:
    """Numbered versions in the folder of one model, ascending."""
    if not model.is_dir():
        return []
    return sorted(int(p.name) for p in model.iterdir() if p.is_dir() and re.fullmatch(r"[1-9][0-9]*", p.name))


def read_version(path: Path) -> ModelVersion:
    """Read one version and check every digest. Raises `BnfoldError` that names the file that differs."""
    file = path / "manifest.json"
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise BnfoldError(
            f"{file}: cannot be read ({error.strerror}); expected a model directory REPOSITORY/NAME/VERSION"
        ) from error
    except UnicodeDecodeError as error:
        raise BnfoldError(f"{file}: is not UTF-8 text; fold the model again") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BnfoldError(f"{file}: {where}: {first['msg']}; fold the model again") from error
    if manifest.digest != _digest(json.loads(text)):
        raise BnfoldError(f"{file}: was changed after it was written (its digest differs); fold the model again")
    for name, expected in manifest.files.items():
        try:
            actual = sha256(path / name)
        except OSError as error:
            raise BnfoldError(f"{path / name}: cannot be read ({error.strerror}); fold the model again") from error
        if actual != expected:
            raise BnfoldError(
                f"{path / name}: was changed after it was written: its SHA-256 is {actual[:12]}…, "
                f"the manifest says {expected[:12]}…; fold the model again"
            )
    return ModelVersion(path, manifest)


def next_version(repository: Path, name: str) -> int:
    """One more than the highest version of the model, 1 for a new one."""
    return max(version_numbers(repository / name), default=0) + 1


def refuse_version(repository: Path, name: str, version: int) -> None:
    """Raise `BnfoldError` for a name that is no name, or a version that exists: none is ever overwritten."""
    if not NAME_PATTERN.fullmatch(name):
        raise BnfoldError(
            f"model name {name!r}: expected letters, digits, '_', '-' and '.', and a letter or digit first"
        )
    if version < 1:
        raise BnfoldError(f"version {version}: expected a whole number from 1")
    final = repository / name / str(version)
    if final.exists():
        raise BnfoldError(f"{final}: exists, and a published version is never overwritten; choose another --version")


@contextmanager
def new_version(repository: Path, name: str, version: int) -> Iterator[Path]:
    """A folder to write one version into; it is published when the block ends well and removed when it raises.

    The block must leave a manifest there, by `write_manifest`. Raises `BnfoldError` as `refuse_version` does, and for
    what cannot be written.
    """
    refuse_version(repository, name, version)
    model = repository / name
    final = model / str(version)
    incoming = model / f"{INCOMING}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        model.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(model)
        incoming.mkdir()
    except OSError as error:
        raise BnfoldError(f"{model}: cannot be created ({error.strerror}); choose another --out") from error
    try:
        yield incoming
        for file in incoming.iterdir():
            _sync(file)
        _sync(incoming)
        refuse_version(repository, name, version)
        incoming.rename(final)
        _sync(model)
    except OSError as error:
        raise BnfoldError(f"{error.filename or incoming}: cannot be written ({error.strerror})") from error
    finally:
        if incoming.exists():
            shutil.rmtree(incoming, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Digest every file in `folder`, complete the manifest with them and write it."""
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    complete = manifest.model_copy(update={"files": files, "digest": ""})
    complete = complete.model_copy(update={"digest": _digest(complete.model_dump(mode="json"))})
    (folder / "manifest.json").write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return complete


def powers_of_two(most: int) -> tuple[int, ...]:
    """Batch sizes: 1, 2, 4 and so on below `most`, and `most` itself."""
    return (*(1 << power for power in range(most.bit_length()) if 1 << power < most), most)


def triton_tensors(manifest: Manifest) -> dict[str, list[dict[str, Any]]]:
    """`input` and `output` of Triton's ModelConfig, whose `dims` leave out the batch axis.

    `label_filename`, seen from the folder of the model, is named for the outputs that have as many values as labels.
    """

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
        dims = list(spec.shape[1:] if manifest.batched else spec.shape)
        return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": dims}

    outputs = [tensor(spec) for spec in manifest.outputs]
    for output in outputs:
        if manifest.labels and prod(output["dims"]) == len(manifest.labels):
            output["label_filename"] = f"{manifest.version}/labels.txt"
    return {"input": [tensor(spec) for spec in manifest.inputs], "output": outputs}


def write_triton_config(model: Path, manifest: Manifest, max_batch_size: int = 64) -> None:
    """`config.pbtxt` beside the versions, so that Triton serves the same folder.

    Triton prefers batches of a power of two, so that cuDNN and cuBLAS see few shapes, and its CUDA provider computes in
    TF32 only where that is what the manifest's verdict holds for.
    """

    def entry(tensor: dict[str, Any]) -> str:
        dims = ", ".join(map(str, tensor["dims"]))
        shape = f"dims: [ {dims} ]" if dims else "dims: [ 1 ] reshape: { shape: [ ] }"  # Triton knows no empty dims
        labels = f' label_filename: "{tensor["label_filename"]}"' if "label_filename" in tensor else ""
        return f'  {{ name: "{tensor["name"]}" data_type: {tensor["data_type"]} {shape}{labels} }}'

    text = f'name: "{manifest.name}"\nplatform: "onnxruntime_onnx"\n'
    text += f"max_batch_size: {max_batch_size if manifest.batched else 0}\n"
    for kind, tensors in triton_tensors(manifest).items():
        text += f"{kind} [\n" + ",\n".join(map(entry, tensors)) + "\n]\n"
    if manifest.batched:
        sizes = ", ".join(map(str, powers_of_two(max_batch_size)))
        text += f"dynamic_batching {{ preferred_batch_size: [ {sizes} ] }}\n"
    tf32 = int(manifest.precision == "tf32")
    text += (
        "optimization { execution_accelerators { gpu_execution_accelerator: [\n"
        f'  {{ name: "cuda" parameters {{ key: "use_tf32" value: "{tf32}" }} }}\n] }} }}\n'
    )
    text += "version_policy { latest { num_versions: 1 } }\n"
    partial = model / f"{INCOMING}{os.getpid()}-config.pbtxt"
    partial.write_text(text, encoding="utf-8")
    partial.rename(model / "config.pbtxt")


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """Of the manifest as it is written, so that keys which came later do not change it."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_abandoned(model: Path) -> None:
    """Remove what writers that died left behind. Age decides, since a writer may live in another container."""
    for path in model.glob(f"{INCOMING}*"):
        if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

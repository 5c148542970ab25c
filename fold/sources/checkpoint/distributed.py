"""Reads PyTorch's distributed checkpoints (DCP): `.metadata` says where the chunks of each tensor lie in `*.distcp`.

PyTorch unpickles `.metadata` without restraint. Here an unpickler knows only the names that PyTorch writes there, and
makes plain records of them, so that no class of PyTorch's runs either.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from fold.errors import BnfoldError, first_line, short
from fold.sources.checkpoint import limits
from fold.sources.checkpoint.directory import DCP
from fold.sources.checkpoint.hashing import refuse_costly_keys, refuse_costly_metadata
from fold.sources.checkpoint.index import named_file
from fold.sources.checkpoint.wrappers import NO_WEIGHTS
from fold.sources.quiet import silenced

MOST_METADATA_BYTES = 1 << 28
METADATA = "torch.distributed.checkpoint.metadata"
OLD = "torch.distributed._shard.sharded_tensor.metadata"
"""Where PyTorch before 2.3 had the properties of a tensor."""


class _Record:
    """An object of `.metadata`: the arguments that it was made with, and its state."""

    args: tuple[Any, ...] = ()
    state: Mapping[str, Any] = {}

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = state
        elif isinstance(state, tuple):
            self.args = state


RECORDS = {
    *((METADATA, name) for name in (
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    (OLD, "TensorProperties"),
    (OLD, "MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.distributed.checkpoint.filesystem", "_StoragePrefix"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),  # as Python 3.13 writes it
    ("pathlib._local", "WindowsPath"),
}  # fmt: skip


class _RefusedError(Exception):
    """A name that is none of PyTorch's metadata."""


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, *, trust: bool) -> None:
        super().__init__(stream)
        self.trust = trust

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in RECORDS and not (self.trust and module.startswith("pathlib")):  # code may want a real one
            return _Record
        if (module, name) == ("torch", "Size"):
            return torch.Size
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("builtins", "getattr"):
            return self._member
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if self.trust:
            return super().find_class(module, name)
        raise _RefusedError(f"{module}.{name}")

    def _member(self, kind: Any, name: str) -> Any:
        """A member of an enumeration, which Python 3.11.2 pickles as `getattr(class, name)`."""
        if kind is _Record:
            return _Record(name)
        if self.trust:
            return getattr(kind, name)
        raise _RefusedError("builtins.getattr")

    def persistent_load(self, pid: Any) -> Any:
        raise _RefusedError("a persistent object")


def read_distributed(folder: Path, *, trust: bool = False) -> dict[str, Any]:
    """The tensors of a distributed checkpoint, nested as the state_dict was that was saved.

    States of optimisers and such are not read, nor is anything that is no tensor. Raises `BnfoldError` if `.metadata`
    names what is not PyTorch's, and for chunks that are missing, of another shape, or do not cover their tensor.
    """
    metadata = _read_metadata(folder / DCP, trust=trust)
    try:
        places = metadata.state.get("planner_data") or {}
        entries = {
            name: (tuple(str(key) for key in places.get(name, (name,))), one.state)
            for name, one in metadata.state["state_dict_metadata"].items()
            if "chunks" in one.state
        }
        wanted = {
            name: one for name, one in entries.items() if not any(NO_WEIGHTS.search(key.lower()) for key in one[0][:-1])
        }
        stored = {
            (index.state["fqn"], tuple(index.state.get("offset") or ())): info.state
            for index, info in metadata.state["storage_data"].items()
        }
        dtypes = {name: _dtype(state) for name, (_, state) in wanted.items()}
        sizes = {name: tuple(int(size) for size in state["size"]) for name, (_, state) in wanted.items()}
        limits.refuse_larger(folder, sum(math.prod(size) * dtypes[name].itemsize for name, size in sizes.items()))
        content: dict[str, Any] = {}
        for name, (place, state) in wanted.items():
            at = content
            for key in place[:-1]:
                at = at.setdefault(key, {})
            at[place[-1]] = _merged(folder, name, torch.empty(sizes[name], dtype=dtypes[name]), state["chunks"], stored)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise BnfoldError(f"{folder / DCP}: is not as PyTorch writes it ({first_line(error)})") from error
    return content


def _read_metadata(path: Path, *, trust: bool) -> _Record:
    try:
        if path.stat().st_size > MOST_METADATA_BYTES:
            raise BnfoldError(f"{path}: has more than {MOST_METADATA_BYTES:,} bytes; expected metadata of tensors")
        with path.open("rb") as stream:
            if not trust:
                refuse_costly_metadata(path, stream)
            metadata = _Unpickler(stream, trust=trust).load()
    except BnfoldError:
        raise
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except _RefusedError as error:
        raise BnfoldError(
            f"{path}: names {short(str(error))}, which is none of PyTorch's metadata, and opening it could run code; "
            "pass --trust if you know who made it"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise BnfoldError(f"{path}: is no metadata of a distributed checkpoint ({first_line(error)})") from error
    if not isinstance(metadata, _Record):
        raise BnfoldError(f"{path}: holds a {type(metadata).__name__}, expected metadata of a distributed checkpoint")
    return metadata


def _dtype(state: Mapping[str, Any]) -> torch.dtype:
    properties = state["properties"]
    dtype = properties.args[0] if properties.args else properties.state["dtype"]
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{dtype!r} is no dtype")
    return dtype


def _merged(
    folder: Path, name: str, tensor: torch.Tensor, chunks: list[_Record], stored: Mapping[Any, Mapping[str, Any]]
) -> torch.Tensor:
    """`tensor` filled from its chunks."""
    covered = torch.zeros(tensor.shape, dtype=torch.bool) if len(chunks) > 1 else None
    for chunk in chunks:
        offsets, sizes = (tuple(int(one) for one in chunk.state[key]) for key in ("offsets", "sizes"))
        part = _read_chunk(folder, name, stored[name, offsets])
        where = tuple(slice(start, start + size) for start, size in zip(offsets, sizes, strict=True))
        if min(offsets, default=0) < 0 or part.shape != sizes or part.dtype != tensor.dtype:
            raise BnfoldError(f"{folder}: a chunk of {short(name)} is not as {DCP} says; save it again")
        if tensor[where].shape != part.shape:
            raise BnfoldError(f"{folder}: a chunk of {short(name)} lies outside of it; save it again")
        tensor[where] = part
        if covered is not None:
            covered[where] = True
    whole = bool(covered.all()) if covered is not None else bool(chunks) and tensor.shape == part.shape
    if not whole:
        raise BnfoldError(f"{folder}: chunks of {short(name)} are missing; the checkpoint is incomplete")
    return tensor


def _read_chunk(folder: Path, name: str, info: Mapping[str, Any]) -> torch.Tensor:
    if info.get("transform_descriptors"):
        raise BnfoldError(f"{folder}: {short(name)} was compressed by an extension; save it without")
    path = named_file(folder, str(info["relative_path"]), str(folder / DCP))
    offset, length = int(info["offset"]), int(info["length"])
    if offset < 0 or length < 0 or offset + length > path.stat().st_size:
        raise BnfoldError(f"{path}: ends before {short(name)}; the checkpoint is incomplete")
    try:
        with path.open("rb") as stream:
            stream.seek(offset)
            entry = io.BytesIO(stream.read(length))
        limits.refuse_inflated(path, entry)
        entry.seek(0)
        refuse_costly_keys(path, entry)
        with silenced():
            part = torch.load(entry, map_location="cpu", weights_only=True)
    except BnfoldError:
        raise
    except Exception as error:  # a damaged entry makes torch.load raise many types
        raise BnfoldError(f"{path}: {short(name)} cannot be read ({first_line(error)}); save it again") from error
    if not isinstance(part, torch.Tensor):
        raise BnfoldError(f"{path}: {short(name)} is a {type(part).__name__}, expected a tensor")
    limits.refuse_expanded(path, {name: part})
    return part

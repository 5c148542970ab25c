"""Reads weights by name from a checkpoint, and writes a checkpoint again with other numbers in the same places.

A state_dict is read with `weights_only=True` or from safetensors. Neither can run code.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fold.artifact import new_file
from fold.errors import BnfoldError, short
from fold.sources.checkpoint import limits, wrappers
from fold.sources.checkpoint.distributed import read_distributed
from fold.sources.checkpoint.index import SUFFIX, read_index
from fold.sources.checkpoint.torchfile import read_torch

METADATA = "bnfold"
"""Key of a checkpoint under which training may leave defaults: `arch_args`, `inputs`, `labels`, `preprocessing`."""


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and the file's metadata under `bnfold`.

    `content` is the whole content of the file, and `places` are the keys that lead to each tensor in it. `text` is the
    header of a safetensors file, None for a file of PyTorch. `module` is set if the file held a whole module. `notes`
    are decisions made while reading, a line each.
    """

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)
    content: Any = None
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    text: dict[str, str] | None = None
    module: nn.Module | None = None
    notes: tuple[str, ...] = ()


def load_checkpoint(path: Path, *, key: str | None = None, ema: bool = False, trust: bool = False) -> Checkpoint:
    """Read a state_dict (`.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`), also inside the usual wrappers.

    `path` may also be the index of a sharded checkpoint, or the directory of a distributed one (`directory.find`).
    `key` is the place of the weights in the file, keys joined by dots; `ema` selects averaged weights. With `trust` a
    whole module is unpickled and a TorchScript archive is opened; both can run code. Raises `BnfoldError` for a file
    without weights, and for one with several sets if neither `key` nor `ema` selects one.
    """
    if path.is_dir():
        content, text = read_distributed(path, trust=trust), None
    elif path.name.endswith(SUFFIX):
        content, text = _read_shards(path, trust=trust)
    else:
        content, text = _read_file(path, trust=trust)
    found = wrappers.find_weights(path, content, key=key, ema=ema)
    metadata = _metadata(content, text)
    limits.refuse_metadata(path, metadata)
    if not isinstance(metadata.get("labels") or [], list | tuple):
        raise BnfoldError(f"{path}: 'labels' under {METADATA!r} is no list; save a list of texts there")
    return Checkpoint(path, found.tensors, metadata, content, found.places, text, found.module, found.notes)


def write_checkpoint(checkpoint: Checkpoint, changed: Mapping[str, torch.Tensor], path: Path) -> None:
    """Write the file of `checkpoint` again with other numbers in place of the tensors in `changed`, by their names.

    Everything else is unchanged, and every tensor keeps its dtype. `checkpoint.metadata` is written under `bnfold`
    unless the file is a bare state_dict. The file is renamed into place when it is complete. Raises `BnfoldError` if it
    exists, for a checkpoint that holds a whole module, and if it cannot be written.
    """
    if (path.suffix == ".safetensors") != (checkpoint.text is not None):
        kind = "PyTorch's own" if checkpoint.text is None else "the .safetensors"
        raise BnfoldError(f"{path}: expected a name with the suffix {checkpoint.path.suffix}, for {kind} format")
    content = checkpoint.content
    for name, tensor in changed.items():
        if name not in checkpoint.places or not isinstance(content, Mapping):
            raise BnfoldError(f"{checkpoint.path}: has no place for {name}; save model.state_dict() instead")
        content = _replaced(content, checkpoint.places[name], tensor, checkpoint.tensors[name])
    _refuse_existing(path)
    with new_file(path) as partial:
        with partial.open("xb") as stream:
            _save(checkpoint, content, stream)
        _refuse_existing(path)


def _save(checkpoint: Checkpoint, content: Any, stream: Any) -> None:
    if checkpoint.text is None:
        bare = any(isinstance(value, torch.Tensor) for value in content.values())
        if checkpoint.metadata and not bare:  # load_state_dict() would not take an entry beside tensors
            content = copy.copy(content)
            content[METADATA] = checkpoint.metadata
        torch.save(content, stream)
        return
    from safetensors.torch import save  # noqa: PLC0415

    text = dict(checkpoint.text)
    if checkpoint.metadata:
        text[METADATA] = json.dumps(checkpoint.metadata)
    stream.write(save(content, text or None))


def _replaced(content: Any, place: tuple[str, ...], tensor: torch.Tensor, old: torch.Tensor) -> Any:
    """A copy of nested mappings with one tensor replaced. Entries off the path are shared with the original."""
    if not place:
        return tensor.detach().to(device="cpu", dtype=old.dtype).reshape(old.shape).clone()
    content = copy.copy(content)
    content[place[0]] = _replaced(content.get(place[0]), place[1:], tensor, old)
    return content


def _metadata(content: Any, text: Mapping[str, str] | None) -> dict[str, Any]:
    metadata: Any = content.get(METADATA) if isinstance(content, Mapping) else None
    if text is not None:
        try:
            metadata = json.loads(text.get(METADATA, "{}"))
        except ValueError:
            metadata = None
    return dict(metadata) if isinstance(metadata, Mapping) else {}


def _is_safetensors(path: Path) -> bool:
    """By the suffix or by the header (its length in eight bytes and a brace), because many are named `.bin`."""
    if path.suffix == ".safetensors":
        return True
    try:
        with path.open("rb") as stream:
            head = stream.read(9)
        return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size
    except OSError:
        return False  # reading it raises the error with the reason


def _read_file(path: Path, *, trust: bool) -> tuple[Any, dict[str, str] | None]:
    """The content of a file, and the texts in its header if it is of safetensors."""
    limits.refuse_inflated(path)
    return _read_safetensors(path) if _is_safetensors(path) else (read_torch(path, trust=trust), None)


def _read_shards(path: Path, *, trust: bool) -> tuple[dict[str, torch.Tensor], dict[str, str] | None]:
    """The tensors that an index names, from all of its files."""
    index = read_index(path)
    tensors: dict[str, torch.Tensor] = {}
    texts: dict[str, str] | None = None
    for file in sorted(set(index.values())):
        content, text = _read_file(file, trust=trust)
        texts = texts if text is None else {**(texts or {}), **text}
        own = [name for name, part in index.items() if part == file]
        missing = [name for name in own if not isinstance(content, Mapping) or name not in content]
        if missing:
            raise BnfoldError(f"{file}: lacks {short(missing[0])}, which {path.name} says is there; save it again")
        tensors |= {name: content[name] for name in own}
    return {name: tensors[name] for name in index}, texts


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open  # noqa: PLC0415

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        raise BnfoldError(f"{path}: is not a safetensors file: {error}") from error


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise BnfoldError(f"{path}: already exists; choose another name")

"""Reads the index of a sharded checkpoint (`model.safetensors.index.json`), and JSON beside weights in general."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fold.errors import BnfoldError, short

SUFFIX = ".index.json"
MOST_BYTES = 64 << 20
"""Of a JSON file beside weights. An index of a million tensors is about that large."""


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises `BnfoldError` for anything else."""
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise BnfoldError(f"{path}: is no file of at most {MOST_BYTES:,} bytes; expected JSON of a framework")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:
        raise BnfoldError(f"{path}: is no JSON ({error}); expected JSON of a framework") from error
    if not isinstance(content, dict):
        raise BnfoldError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def read_index(path: Path) -> dict[str, Path]:
    """The file of each tensor. Raises `BnfoldError` for an index that names a file elsewhere, or a missing one."""
    found = read_json(path).get("weight_map")
    if not isinstance(found, Mapping) or not found:
        raise BnfoldError(f"{path}: has no weight_map, expected the index of a sharded checkpoint")
    parts = {name: named_file(path.parent, name, str(path)) for name in {str(part) for part in found.values()}}
    return {name: parts[str(part)] for name, part in found.items()}


def named_file(folder: Path, name: str, told_by: str) -> Path:
    """The file `name` in `folder`, which another file names. A path that leads elsewhere is refused."""
    if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
        raise BnfoldError(f"{told_by}: names {short(name)!r}, expected the name of a file in the same directory")
    path = folder / name
    if not path.is_file():
        raise BnfoldError(f"{told_by}: names {short(name)!r}, which is missing; the checkpoint is incomplete")
    return path

"""Limits on what a checkpoint unpacks to: a few kilobytes can describe more than any memory holds."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from fold.errors import BnfoldError

SETTING = "BNFOLD_MAX_UNPACKED_BYTES"
"""Environment variable with the most bytes that a file may unpack to."""
LEAST, RATIO = 1 << 30, 20
"""Without the setting it is 1 GiB, or 20 times the file if that is more: torch.save does not compress, and weights that
several layers share are stored once."""
MOST_METADATA = 100_000
"""Values in what a checkpoint says of itself: labels of the largest data sets are some ten thousand."""


def refuse_inflated(path: Path, stream: IO[bytes] | None = None) -> None:
    """Raise `BnfoldError` for an archive whose entries unpack to more than the limit. Reads its directory alone.

    With `stream`, the archive is a part of the file.
    """
    try:
        with zipfile.ZipFile(stream or path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # zipfile raises many types for a damaged archive
        return  # its reader says what is wrong
    refuse_larger(path, size)


def refuse_expanded(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `BnfoldError` for tensors that have more values than the file holds, by a stride of 0."""
    refuse_larger(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


def refuse_metadata(path: Path, metadata: Any) -> None:
    """Raise `BnfoldError` for more values than the limit, where lists that are shared count each time."""
    waiting, count = [metadata], 0
    while waiting:
        value = waiting.pop()
        count += 1
        if count > MOST_METADATA:
            raise BnfoldError(f"{path}: has more than {MOST_METADATA:,} values under 'bnfold'; expected a few defaults")
        if isinstance(value, Mapping):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting += value


def refuse_larger(path: Path, size: int) -> None:
    """Raise `BnfoldError` if `size` bytes are more than the limit of a file, or of all files of a checkpoint."""
    limit = _limit(path)
    if size > limit:
        raise BnfoldError(
            f"{path}: unpacks to {size:,} bytes, more than the limit of {limit:,}; to read it, set {SETTING}={size}"
        )


def _limit(path: Path) -> int:
    written = os.environ.get(SETTING, "")
    if not written:
        return max(LEAST, RATIO * _stored(path))
    if not written.isdigit():
        raise BnfoldError(f"{SETTING}: is {written!r}, expected a number of bytes")
    return int(written)


def _stored(path: Path) -> int:
    """Bytes of a file. For the index of a sharded checkpoint, or a directory, those of all files beside it or in it."""
    if not path.is_dir() and path.suffix != ".json":
        return path.stat().st_size
    folder = path if path.is_dir() else path.parent
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())

"""Limits on what a checkpoint unpacks to: a few kilobytes can describe more than any memory holds."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fold.errors import BnfoldError

SETTING = "BNFOLD_MAX_UNPACKED_BYTES"
"""Environment variable with the most bytes that a file may unpack to."""
LEAST, RATIO = 1 << 30, 20
"""Without the setting it is 1 GiB, or 20 times the file if that is more: torch.save does not compress, and weights that
several layers share are stored once."""
MOST_METADATA = 100_000
"""Values in what a checkpoint says of itself: labels of the largest data sets are some ten thousand."""


def refuse_inflated(path: Path) -> None:
    """Raise `BnfoldError` for an archive whose entries unpack to more than the limit. Reads its directory alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except Exception:  # zipfile raises many types for a damaged archive
        return  # its reader says what is wrong
    _refuse_larger(path, size)


def refuse_expanded(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise `BnfoldError` for tensors that have more values than the file holds, by a stride of 0."""
    _refuse_larger(path, sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()))


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


def _refuse_larger(path: Path, size: int) -> None:
    limit = _limit(path)
    if size > limit:
        raise BnfoldError(
            f"{path}: unpacks to {size:,} bytes, more than the limit of {limit:,}; to read it, set {SETTING}={size}"
        )


def _limit(path: Path) -> int:
    written = os.environ.get(SETTING, "")
    if not written:
        return max(LEAST, RATIO * path.stat().st_size)
    if not written.isdigit():
        raise BnfoldError(f"{SETTING}: is {written!r}, expected a number of bytes")
    return int(written)

"""`torch.export` archives (`.pt2`), which are scanned before they are opened: what would be unpickled is refused."""

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from fold.errors import BnfoldError
from fold.export import quiet


def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """Open a `torch.export` archive. Without `trust`, one with an entry that would be unpickled is refused."""
    if not trust:
        _refuse_pickles(path)
    try:
        with quiet(), path.open("rb") as stream:
            return torch.export.load(stream)
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.export raises many types for a damaged archive
        raise BnfoldError(f"{path}: is no torch.export archive that this PyTorch reads: {error}") from error


def _refuse_pickles(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.file_size]  # empty ones are not loaded
            configs = [name for name in names if name.endswith("_config.json")]
            pickled = [name for name in configs if _uses_pickle(json.loads(archive.read(name)))]
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise BnfoldError(f"{path}: is no torch.export archive ({error}); write one with torch.export.save") from error
    # Sample inputs are pickled; so may be the serialized_*.pt of archives from before PyTorch 2.8, and custom objects.
    pickled += [name for name in names if name.endswith((".pt", ".pkl")) or "/custom_obj" in name]
    if pickled:
        raise BnfoldError(
            f"{path}: {pickled[0]} would be unpickled, which can run code; "
            "pass --trust if you know where the file comes from"
        )


def _uses_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("use_pickle") is True or any(_uses_pickle(inner) for inner in value.values())
    return isinstance(value, list) and any(_uses_pickle(inner) for inner in value)

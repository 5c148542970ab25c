"""Reads files of `torch.save`. A file that would run code is refused without `--trust`.

The content decides, not the suffix: a TorchScript archive is recognised under any name.
"""

import pickle
import re
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path, PosixPath
from typing import Any

import torch

from fold.errors import BnfoldError, first_line
from fold.sources.checkpoint import numpy_values
from fold.sources.checkpoint.hashing import refuse_costly_keys
from fold.sources.quiet import silenced


def plain_dict(factory: object = None) -> dict[Any, Any]:
    """Replaces a defaultdict, which the unpickler of weights creates but does not fill."""
    return {}


def type_of_values(*arguments: object) -> None:
    """In place of a type that files name and never call: str() of shared lists could fill any memory."""
    raise TypeError("a checkpoint names types of values and does not call them")


SAVE_WEIGHTS = "save only the weights: torch.save(model.state_dict(), FILE)"
TRUST = "or pass --trust if you know who made the file"
PLAIN_VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    Namespace,
    (plain_dict, "collections.defaultdict"),
    datetime,
    date,
    timedelta,
    (PosixPath, "pathlib.PosixPath"),
    (PosixPath, "pathlib._local.PosixPath"),  # as Python 3.13 writes it
    (frozenset, "builtins.frozenset"),
    *((type_of_values, f"builtins.{kind}") for kind in ("int", "float", "bool", "str", "list", "dict", "tuple")),
]
"""Types of values that checkpoints hold beside tensors. Creating one runs no code from the file."""


def read_torch(path: Path, *, trust: bool = False) -> Any:
    """The content of a file of `torch.save`, read with `weights_only=True`.

    With `trust`, a file that needs more is unpickled, and a TorchScript archive is returned as a module. Raises
    `BnfoldError` for a file that is neither, and without `trust` for one that would run code.
    """
    if _is_script(path):
        return _read_script(path, trust=trust)
    try:
        if not trust:
            with path.open("rb") as file:
                refuse_costly_keys(path, file)
        with torch.serialization.safe_globals([*PLAIN_VALUES, *numpy_values.STAND_INS]), silenced():
            return numpy_values.restored(torch.load(path, map_location="cpu", weights_only=True))
    except BnfoldError:
        raise
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except pickle.UnpicklingError as error:
        wanted = _wanted(error) if _begins_as_saved(path) else None
        if wanted is None:
            raise _foreign(path) from error
        if trust:
            return _unpickle(path)
        raise BnfoldError(f"{path}: {_refusal(wanted)}; {SAVE_WEIGHTS}; {TRUST}") from error
    except Exception as error:  # a foreign or truncated file makes torch.load raise many types
        raise _foreign(path) from error


def _begins_as_saved(path: Path) -> bool:
    """Whether a file begins as `torch.save` writes it, a zip archive or a pickle. Any text has opcodes of pickles."""
    with path.open("rb") as file:
        return file.read(2).startswith((b"PK", b"\x80"))


def _wanted(error: Exception) -> str | None:
    """What the pickle imports that is not allowed, as `module.name`; None if the file is not a pickle."""
    text = str(error)
    if "Weights only load failed" not in text:
        return None
    named = re.search(r"GLOBAL (\S+)", text)
    if named:
        return named.group(1)
    return "something else" if "Unsupported operand" in text or "Can only" in text else None


def _refusal(wanted: str) -> str:
    if wanted.startswith(("torch.nn.modules.", "torch.fx.", "__main__.")) or wanted.rpartition(".")[2][:1].isupper():
        return f"holds a whole object ({wanted}) and not only weights; opening it would run code"
    return f"is a pickle that would run code ({wanted}), and was not opened"


def _unpickle(path: Path) -> Any:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the class of a whole module is the user's
    try:
        with silenced():
            return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # unpickling may raise anything
        raise BnfoldError(
            f"{path}: unpickling it failed: {type(error).__name__}: {first_line(error)}; run bnfold where the model's "
            "classes can be imported"
        ) from error


def _is_script(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many types for a damaged archive; PyTorch's reader says what is wrong
        return False
    return any(name.endswith("/constants.pkl") for name in names)


def _read_script(path: Path, *, trust: bool) -> Any:
    if not trust:
        raise BnfoldError(
            f"{path}: is a TorchScript archive, which holds code; save only the weights: "
            f"torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE); {TRUST}"
        )
    try:
        with silenced():
            return torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # TorchScript raises many types for a damaged archive
        raise BnfoldError(
            f"{path}: is not a TorchScript archive that this PyTorch can read: {first_line(error)}"
        ) from error


def _foreign(path: Path) -> BnfoldError:
    return BnfoldError(
        f"{path}: is not a PyTorch checkpoint; expected a file of torch.save(model.state_dict(), FILE), or of another "
        "framework an .onnx"
    )

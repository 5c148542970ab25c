"""The canary: a few inputs with their exact outputs, published with a model. Each new session runs them first.

So a service knows before its first response that this device, this driver and these options compute the model that was
proven. It needs neither PyTorch nor the reference for that.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fold.arrays import Arrays, Run
from fold.artifact.files import open_file
from fold.errors import BnfoldError

CANARY_FILE = "canary.npz"
INPUT, EXACT, LIMIT = "input/", "exact/", "limit/"
MOST_BYTES = 1 << 30
"""Of the arrays that are read: compressed zeros are a thousand times smaller."""


def write_canary(folder: Path, inputs: Arrays, exact: Arrays, limits: Mapping[str, float]) -> None:
    """Write inputs, their exact outputs, and for each output the largest error that a session may have (C's limit).

    Texts must be equal. Where the model itself overflows, `exact` holds the infinity or NaN that a session must answer.
    """
    arrays = {f"{INPUT}{name}": array for name, array in inputs.items()}
    texts = {name: array.astype(str) for name, array in exact.items() if array.dtype.kind == "O"}  # never pickled
    arrays |= {f"{EXACT}{name}": array for name, array in (exact | texts).items()}
    arrays |= {f"{LIMIT}{name}": np.asarray(limit) for name, limit in limits.items()}
    np.savez_compressed(folder / CANARY_FILE, **arrays)  # type: ignore[arg-type]  # numpy's stub does not allow named arrays


def check_canary(folder: Path, run: Run) -> str | None:
    """Run the canary of a model directory: None if `run` computes what was proven, else what differs, as a text.

    None for a directory without a canary, too. Raises `BnfoldError` if the file cannot be read.
    """
    arrays = _read(folder)
    if arrays is None:
        return None
    compared = 0
    outputs, limits = run(_with_prefix(INPUT, arrays)), _with_prefix(LIMIT, arrays)
    for name, exact in _with_prefix(EXACT, arrays).items():
        output, limit = outputs.get(name), float(limits[name])
        if output is None or output.shape != exact.shape:
            return f"output {name!r} is missing or of another shape than was proven"
        if exact.dtype.kind == "U":
            if not np.array_equal(output.astype(str), exact):
                return f"output {name!r} is another text than was proven"
            compared += exact.size
            continue
        finite = np.isfinite(exact)
        if not np.array_equal(output[~finite], exact[~finite], equal_nan=not finite.all()):
            return f"output {name!r} has infinities or NaN at other places than was proven"
        distance = np.abs(output[finite].astype(np.float64) - exact[finite]).max(initial=0)
        if not distance <= limit:  # false for NaN, too
            return f"output {name!r} is {distance:.3g} from the exact one, and the proven limit is {limit:.3g}"
        compared += int(finite.sum())
    return None if compared else "its canary has no finite output, so nothing was compared; fold the model again"


def canary_inputs(folder: Path) -> Arrays | None:
    """The inputs of the canary; None for a directory without one. Raises `BnfoldError` if the file cannot be read."""
    arrays = _read(folder)
    return None if arrays is None else _with_prefix(INPUT, arrays)


def _read(folder: Path) -> Arrays | None:
    path = folder / CANARY_FILE
    try:
        with open_file(folder, CANARY_FILE) as stream, np.load(stream, allow_pickle=False) as file:
            size = sum(entry.file_size for entry in file.zip.infolist())
            if size > MOST_BYTES:
                raise ValueError(f"its arrays have {size} bytes, at most {MOST_BYTES} are read")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise BnfoldError(f"{path}: cannot be read ({error}); fold the model again") from error


def _with_prefix(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

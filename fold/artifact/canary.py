"""The canary: a few inputs with the truth for them, published with a model, on which every session is tried first.

So a service knows before it answers anybody that this device, this driver and these options compute the model that was
proven, and needs neither PyTorch nor the reference for it.
"""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fold.arrays import Arrays, Run
from fold.errors import BnfoldError

CANARY_FILE = "canary.npz"
INPUT, EXACT, LIMIT = "input/", "exact/", "limit/"


def write_canary(folder: Path, inputs: Arrays, exact: Arrays, limits: Mapping[str, float]) -> None:
    """Write a few inputs, their true outputs, and for each output how far a session may be from it (part C's limit)."""
    arrays = {f"{INPUT}{name}": array for name, array in inputs.items()}
    arrays |= {f"{EXACT}{name}": array for name, array in exact.items()}
    arrays |= {f"{LIMIT}{name}": np.asarray(limit) for name, limit in limits.items()}
    np.savez_compressed(folder / CANARY_FILE, **arrays)  # type: ignore[arg-type]  # a stub that knows no names of arrays


def check_canary(folder: Path, run: Run) -> str | None:
    """Try a session on the canary of a model directory: None if it computes what was proven, else what it does not.

    A directory without a canary has nothing to try. Raises `BnfoldError` if the file cannot be read.
    """
    path = folder / CANARY_FILE
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BnfoldError(f"{path}: cannot be read ({error}); fold the model again") from error
    computed = run(_under(INPUT, arrays))
    for name, truth in _under(EXACT, arrays).items():
        limit = float(arrays[f"{LIMIT}{name}"])
        found = computed.get(name)
        if found is None or found.shape != truth.shape:
            return f"output {name!r} is missing or of another shape than was proven"
        finite = np.isfinite(truth)
        distance = np.abs(found[finite].astype(np.float64) - truth[finite]).max(initial=0)
        if not distance <= limit:
            return f"output {name!r} is {distance:.3g} from the truth, and {limit:.3g} was proven to be enough"
    return None


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

"""Inputs that a user gives: read from files, and checked against the signature of the model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fold.arrays import Arrays, join_rows
from fold.artifact import DTYPES, Manifest, Preprocessing, TensorSpec
from fold.errors import BnfoldError, first_line
from fold.inputs.drawn import IMAGES
from fold.inputs.images import read_image

FLOATS = ("FP16", "FP32", "FP64", "BF16")


def read_inputs(path: Path, manifest: Manifest | None = None) -> Arrays:
    """Arrays by input name: from an `.npz`, or all rows of the `.npz` files and images in a folder, in order of names.

    Images need a manifest with preprocessing. Raises `BnfoldError` that names the file. Nothing is unpickled.
    """
    how = None if manifest is None else manifest.preprocessing
    specs = () if manifest is None else manifest.inputs
    datatype = next((spec.datatype for spec in specs if how is not None and spec.name == how.input), "FP32")
    parts = [read_file(file, how, datatype) for file in input_files(path)]
    try:
        return join_rows(parts)
    except (KeyError, ValueError) as error:
        raise BnfoldError(f"{path}: its files cannot be joined ({error}); give them one by one") from error


def input_files(path: Path, kinds: Sequence[str] = (".npz",)) -> list[Path]:
    """The file itself, or the images and files of `kinds` in a folder and its subfolders, sorted by name.

    Hidden files and folders are skipped. Raises `BnfoldError` for a folder without such files.
    """
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if (is_image(file) or file.suffix.lower() in kinds)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not files:
        raise BnfoldError(f"{path}: holds no inputs; expected {', '.join(kinds)} files or images ({', '.join(IMAGES)})")
    return files


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def read_file(path: Path, how: Preprocessing | None, datatype: str) -> Arrays:
    """The arrays of an `.npz` by name, or an image as one row of the input that `how` names."""
    if not is_image(path):
        return _read_arrays(path)
    if how is None:
        raise BnfoldError(f"{path}: the model declares no preprocessing, so it takes no images; give an .npz")
    return {how.input: read_image(path, how, datatype, str(path))}


def _read_arrays(path: Path) -> Arrays:
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.ndarray):
            with file:
                return {name: file[name] for name in file.files}
    except Exception as error:  # numpy, zipfile and zlib raise many types for a damaged file
        raise BnfoldError(
            f"{path}: is not an .npz of plain arrays ({first_line(error)}); write one with numpy.savez"
        ) from error
    raise BnfoldError(f"{path}: holds an array without a name; write an .npz: numpy.savez(FILE, NAME=array)")


def check_inputs(specs: Sequence[TensorSpec], inputs: Arrays) -> Arrays:
    """`inputs`, checked against `specs`. Raises `BnfoldError` for a missing or unknown name, a wrong shape or type."""
    names = [spec.name for spec in specs]
    for name in inputs:
        if name not in names:
            raise BnfoldError(f"input {name!r}: the model has no such input; it takes {', '.join(names)}")
    for spec in specs:
        if spec.name not in inputs:
            raise BnfoldError(f"input {spec.name!r}: missing; the model takes {', '.join(names)}")
        array = inputs[spec.name]
        fits = array.ndim == len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise BnfoldError(f"input {spec.name!r}: shape {list(array.shape)} does not fit {list(spec.shape)}")
        if array.dtype != DTYPES.get(spec.datatype):
            raise BnfoldError(f"input {spec.name!r}: type {array.dtype}, expected {spec.datatype}")
    if len({inputs[spec.name].shape[0] for spec in specs if spec.shape and spec.shape[0] == -1}) > 1:
        raise BnfoldError(f"inputs {', '.join(names)}: their batches differ; expected the same number of rows")
    return inputs


def as_datatype(name: str, array: np.ndarray, datatype: str) -> np.ndarray:
    """`array` in the datatype of the input `name`: numbers as floats, which may be rounded, and integers as integers.

    Raises `BnfoldError` for values of another kind, and for those that the datatype cannot hold.
    """
    dtype, kind = DTYPES[datatype], array.dtype.kind
    if array.dtype == dtype:
        return array
    floats, integers = datatype in FLOATS, dtype.kind in "iu"
    if kind not in ("iuf" if floats else "iu" if integers else "U" if datatype == "BYTES" else ""):
        raise BnfoldError(f"input {name!r}: type {array.dtype}, expected {datatype}")
    with np.errstate(over="ignore"):
        found: np.ndarray = array.astype(dtype)
    if (floats and (np.isfinite(found) != np.isfinite(array)).any()) or (integers and (found != array).any()):
        raise BnfoldError(f"input {name!r}: has values that are too large for {datatype}")
    return found


def by_name(specs: Sequence[TensorSpec], inputs: Any) -> Arrays:
    """Arrays by input name, from a mapping, from a list in the order of `specs`, or from one array."""
    if not isinstance(inputs, Mapping):
        listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(listed) != len(specs):
            raise BnfoldError(f"{len(listed)} inputs were given; the model takes {len(specs)}")
        inputs = {spec.name: array for spec, array in zip(specs, listed, strict=True)}
    return {name: np.asarray(array) for name, array in inputs.items()}

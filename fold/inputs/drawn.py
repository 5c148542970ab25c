"""Inputs of a model: drawn from a seed, or given and held against what the model takes."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fold.artifact.directory import DATATYPES, Manifest, Preprocessing, TensorSpec
from fold.errors import BnfoldError, first_line

Arrays = dict[str, np.ndarray]
FREE_SIZES = (32,)
"""Extents given to the free dimensions behind the batch, in order; the last one to all that follow. Networks that halve
theirs take multiples of a power of two, mostly of no more than this."""
Family = Literal["normal", "single", "offset", "sparse"]
OFFSET = 100.0
FLAT = 16
"""By how much bytes of little contrast are flatter than others."""
ZEROS = 0.9
IMAGES = (".png", ".jpg", ".jpeg")


def draw_inputs(
    specs: Sequence[TensorSpec],
    samples: int,
    seed: int,
    *,
    family: Family = "normal",
    free: Sequence[int] = FREE_SIZES,
) -> Arrays:
    """Inputs with `samples` rows: floats from N(0, 1), bytes from 0 to 255, other integers 0 or 1. The same for the
    same seed, on any machine.

    Of the family `offset` floats lie around 100, with a sign for each row, and bytes near 255 or near 0; of `sparse`
    nine of ten are 0.
    """
    generator = np.random.default_rng(seed)
    inputs: Arrays = {}
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise BnfoldError(f"input {spec.name!r}: no values of type {spec.datatype} can be drawn; give inputs")
        batched = bool(spec.shape) and spec.shape[0] < 0
        shape = list(spec.shape)
        for position, axis in enumerate(axis for axis, size in enumerate(shape) if size < 0 and axis >= batched):
            shape[axis] = free[min(position, len(free) - 1)]
        if batched:
            shape[0] = samples
        dtype = DATATYPES[spec.datatype]
        pixels = dtype == np.uint8
        if not np.issubdtype(dtype, np.floating) and not pixels:
            inputs[spec.name] = generator.integers(0, 2, shape).astype(dtype)
            continue
        array = generator.integers(0, 256, shape) if pixels else generator.standard_normal(shape)
        if family == "offset":
            odd = (np.arange(shape[0] if shape else 1) % 2).reshape(-1, *[1] * (len(shape) - 1))
            array = array // FLAT + (256 - 256 // FLAT) * (1 - odd) if pixels else array + OFFSET * (1 - 2 * odd)
        elif family == "sparse":
            array[generator.random(shape) < ZEROS] = 0
        inputs[spec.name] = array.astype(dtype)
    return inputs


def widened(inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Floats in float64, anything else as it is."""
    return {name: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for name, a in inputs.items()}


def first_rows(specs: Sequence[TensorSpec], inputs: Arrays, rows: int) -> Arrays:
    """At most so many rows of the batch; all, where the model takes a fixed batch or none."""
    free = all(spec.shape and spec.shape[0] < 0 for spec in specs)
    return {name: array[:rows] for name, array in inputs.items()} if free else inputs


def read_inputs(path: Path, manifest: Manifest) -> Arrays:
    """Arrays by input name: from an `.npz`, or all rows of the `.npz` files and images in a folder, by their names.

    Images need a manifest with preprocessing. Raises `BnfoldError` that names the file; nothing is ever unpickled.
    """
    how = manifest.preprocessing
    datatype = next((spec.datatype for spec in manifest.inputs if how is not None and spec.name == how.input), "FP32")
    parts = [read_file(file, how, datatype) for file in input_files(path)]
    try:
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts[1:] else parts[0]
    except (KeyError, ValueError) as error:
        raise BnfoldError(f"{path}: its files do not fit together ({error}); give them one by one") from error


def input_files(path: Path) -> list[Path]:
    """The file itself, or the `.npz` files and images in a folder and in folders within it, by their names.

    What is hidden is left out. Raises `BnfoldError` for a folder that holds none.
    """
    if not path.is_dir():
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if (is_image(file) or file.suffix.lower() == ".npz")
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
        and file.is_file()
    ]
    if not files:
        raise BnfoldError(f"{path}: holds no inputs; expected .npz files or images ({', '.join(IMAGES)})")
    return files


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES


def read_file(path: Path, how: Preprocessing | None, datatype: str) -> Arrays:
    """The arrays of an `.npz` by their names, or an image as one row of the input that `how` names."""
    if not is_image(path):
        return _read_arrays(path)
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  # most proofs see no image

    from fold.inputs.images import decode, tensor  # noqa: PLC0415

    if how is None:
        raise BnfoldError(f"{path}: the model declares no preprocessing, so it takes no images; give an .npz")
    try:
        with Image.open(path) as image:
            return {how.input: tensor(decode(image, how), how, datatype)}
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise BnfoldError(f"{path}: cannot be read as an image ({first_line(error)})") from error


def _read_arrays(path: Path) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise BnfoldError(f"{path}: is no .npz of plain arrays ({error}); write one with numpy.savez") from error


def check_inputs(specs: Sequence[TensorSpec], inputs: Arrays) -> Arrays:
    """The inputs that `specs` ask for. Raises `BnfoldError` that names what is missing, unknown or misshapen."""
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
        if array.dtype != DATATYPES.get(spec.datatype):
            raise BnfoldError(f"input {spec.name!r}: type {array.dtype}, expected {spec.datatype}")
    if len({inputs[spec.name].shape[0] for spec in specs if spec.shape and spec.shape[0] == -1}) > 1:
        raise BnfoldError(f"inputs {', '.join(names)}: their batches differ; expected the same number of rows")
    return inputs


def by_name(specs: Sequence[TensorSpec], inputs: Any) -> Arrays:
    if not isinstance(inputs, Mapping):
        listed = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
        if len(listed) != len(specs):
            raise BnfoldError(f"{len(listed)} inputs were given; the model takes {len(specs)}")
        inputs = {spec.name: array for spec, array in zip(specs, listed, strict=True)}
    return {name: np.asarray(array) for name, array in inputs.items()}

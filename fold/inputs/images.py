"""Converts an image to the tensor that a manifest's preprocessing describes."""

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from fold.artifact import DATATYPES, Preprocessing, TensorSpec
from fold.errors import BnfoldError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 2**26
"""Largest number of pixels of a resized image, before it is cropped."""


def read_preprocessing(file: Path | None, metadata: Mapping[str, Any], names: Sequence[str]) -> Preprocessing | None:
    """The preprocessing of images for one of the inputs `names`: from a JSON file, else from the checkpoint's metadata,
    else None. Raises `BnfoldError` if it is not valid, or names another input."""
    where = str(file or "the checkpoint's preprocessing")
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file else metadata.get("preprocessing")
        found = None if content is None else Preprocessing.model_validate(content)
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise BnfoldError(f"{where}: {reason}; see docs/formats.md") from error
    if found is not None and found.input not in names:
        raise BnfoldError(f"{where}: the model has no input {found.input!r}; it takes {', '.join(names)}")
    return found


def refuse_misfit(how: Preprocessing, spec: TensorSpec, where: str) -> None:
    """Raise `BnfoldError` if the tensor made from an image does not fit the input."""
    sizes = (how.height, how.width)
    made = (1, *sizes, how.channels) if how.layout == "nhwc" else (1, how.channels, *sizes)
    if len(spec.shape) != 4 or any(size not in (-1, own) for size, own in zip(spec.shape, made, strict=True)):
        raise BnfoldError(
            f"{where}: converts an image to {list(made)}, and input {spec.name!r} takes {list(spec.shape)}; change "
            "height, width, mode or layout"
        )
    as_they_are = (how.scale, {*how.mean}, {*how.std}) == (1, {0}, {1})
    if not as_they_are and not np.issubdtype(DATATYPES[spec.datatype], np.floating):
        raise BnfoldError(
            f"{where}: input {spec.name!r} takes {spec.datatype}, unscaled pixels; give scale 1, mean 0 and std 1"
        )


def read_image(image: "Path | bytes | Image", how: Preprocessing, datatype: str, where: str) -> np.ndarray:
    """An image, in a file, in memory or opened by Pillow, as one row of the input that `how` names.

    Raises `BnfoldError` that begins with `where` if it cannot be read.
    """
    from PIL import Image as Pillow  # noqa: PLC0415  # most proofs read no image

    try:
        if isinstance(image, Pillow.Image):
            pixels = decode_image(image, how)
        else:
            with Pillow.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
                pixels = decode_image(opened, how)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise BnfoldError(f"{where}: cannot be read as an image ({first_line(error)})") from error
    return image_tensor(pixels, how, datatype)


def decode_image(image: "Image", how: Preprocessing) -> np.ndarray:
    """Pixels, uint8 [H, W] or [H, W, C], in the size and mode of `how`.

    Raises `ValueError` for an image whose resized form is too large to be held in memory.
    """
    from PIL.Image import Resampling  # noqa: PLC0415  # a service without images need not import Pillow

    decoded, size = image.convert(how.mode), (how.width, how.height)
    resized = size if how.resize is None else _with_shorter_edge(decoded.size, how.resize)
    if decoded.size != resized:
        decoded = decoded.resize(resized, Resampling.BILINEAR)
    if resized != size:
        left, top = (round((whole - part) / 2) for whole, part in zip(resized, size, strict=True))
        decoded = decoded.crop((left, top, left + how.width, top + how.height))
    return np.asarray(decoded)


def _with_shorter_edge(size: tuple[int, int], edge: int) -> tuple[int, int]:
    """Width and height in the same proportion, rounded as torchvision's Resize rounds them."""
    shorter = min(size)
    width, height = (edge if side == shorter else int(edge * side / shorter) for side in size)
    if width * height > LARGEST:
        raise ValueError(f"{size[0]}x{size[1]} pixels would become {width}x{height}, more than {LARGEST}")
    return width, height


def image_tensor(pixels: np.ndarray, how: Preprocessing, datatype: str) -> np.ndarray:
    """One row: `(pixel * scale - mean) / std` for each channel, N, C, H, W or N, H, W, C."""
    channels_last = pixels.reshape(*pixels.shape[:2], how.channels).astype(np.float64)
    x = (channels_last * how.scale - np.asarray(how.mean)) / np.asarray(how.std)
    return np.ascontiguousarray((x if how.layout == "nhwc" else x.transpose(2, 0, 1))[None], DATATYPES[datatype])

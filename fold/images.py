"""An image as the tensor that a manifest's preprocessing describes. Pillow is imported by whoever opens the image."""

from typing import TYPE_CHECKING

import numpy as np

from fold.artifact import DATATYPES, Preprocessing

if TYPE_CHECKING:
    from PIL.Image import Image


def decode(image: "Image", how: Preprocessing) -> np.ndarray:
    """Pixels in float64, [H, W] or [H, W, C], of the size and mode that are asked for."""
    from PIL.Image import Resampling  # noqa: PLC0415  # a service without images never pays for Pillow

    decoded = image.convert(how.mode)
    if decoded.size != (how.width, how.height):
        decoded = decoded.resize((how.width, how.height), Resampling.BILINEAR)
    return np.asarray(decoded, dtype=np.float64)


def tensor(pixels: np.ndarray, how: Preprocessing, datatype: str) -> np.ndarray:
    """One row, N, C, H, W: `(pixel * scale - mean) / std` for each channel."""
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    mean, std = (np.asarray(values).reshape(-1, 1, 1) for values in (how.mean, how.std))
    return np.ascontiguousarray(((channels_first * how.scale - mean) / std)[None], DATATYPES[datatype])

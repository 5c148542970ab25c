"""A PNG, JPEG or WebP body as the tensor that the model's manifest describes. Pillow is imported with the first image.

The header says how many pixels an image has before any is decoded, so one that would fill the memory is refused early.
"""

from io import BytesIO

import numpy as np

from fold.artifact import Preprocessing
from fold.errors import first_line
from fold.inputs import decode_image, image_tensor
from service.errors import BadRequestError

FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


def tensor_of_image(body: bytes, content_type: str, how: Preprocessing, datatype: str, max_pixels: int) -> np.ndarray:
    """One row, N, C, H, W. Raises `BadRequestError` if `body` is not the image that it claims to be, or too large."""
    from PIL import Image  # noqa: PLC0415  # a service without images never pays for Pillow

    kind = FORMATS[content_type]
    try:
        with Image.open(BytesIO(body), formats=(kind,)) as image:
            width, height = image.size
            if width * height <= max_pixels:
                pixels = decode_image(image, how)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRequestError(f"the image has more than the {max_pixels} pixels that are taken") from error
    except Exception as error:  # Pillow's decoders raise whatever a broken file leads them into
        raise BadRequestError(f"the body cannot be read as {kind}: {first_line(error)}") from error
    if width * height > max_pixels:
        raise BadRequestError(f"the image has {width}x{height} pixels, at most {max_pixels} are taken")
    return image_tensor(pixels, how, datatype)

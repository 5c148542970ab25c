"""Decodes a PNG, JPEG or WebP body to the tensor that the model's manifest describes.

The image's header says how many pixels it has, so an image that would fill the memory is refused before it is decoded.
"""

from io import BytesIO

import numpy as np

from fold.artifact import Preprocessing
from fold.errors import first_line
from fold.inputs import decode_image, image_tensor
from service.budget import Body, Budget
from service.errors import BadRequestError, ServiceError

PIXEL_BYTES = 8
"""What a pixel takes while an image is decoded: four bytes as it is, and four converted to the model's colours."""
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}


def tensor_of_image(
    body: Body, content_type: str, how: Preprocessing, datatype: str, max_pixels: int, budget: Budget
) -> np.ndarray:
    """One image as N, C, H, W, with N = 1. Raises `BadRequestError` if `body` is not of `content_type`, or has more
    than `max_pixels`."""
    from PIL import Image  # noqa: PLC0415  # a service without images does not pay for Pillow

    kind = FORMATS[content_type]
    try:
        with Image.open(BytesIO(body), formats=(kind,)) as image:
            width, height = image.size
            if width * height <= max_pixels:
                with budget.held(PIXEL_BYTES * width * height):
                    pixels = decode_image(image, how)
    except (ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadRequestError(f"the image has more than the {max_pixels} pixels that are taken") from error
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise BadRequestError(f"the body cannot be read as {kind}: {first_line(error)}") from error
    if width * height > max_pixels:
        raise BadRequestError(f"the image has {width}x{height} pixels, at most {max_pixels} are taken")
    return image_tensor(pixels, how, datatype)

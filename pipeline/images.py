"""Decodes untrusted images, only if they have the expected size, and only in formats that contain only pixels.

Pillow also supports formats that start other programs (EPS) or need decoders that are not used here; only the formats
below are opened. The size is read from the header and compared before any pixel is decoded or memory is allocated.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP")
UNREADABLE = "image unreadable"
TOO_LARGE = "image too large"
OTHER_SHAPE = "image of another shape"


class BadImageError(ValueError):
    """An image that cannot be used.

    Attributes:
        reason: one of the constants above, so that equal failures can be counted.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@contextlib.contextmanager
def opened(file: bytes) -> Iterator[Image]:
    """Open an image and read only its header. Errors inside the block also become a ``BadImageError``.

    Raises:
        BadImageError: the file is not an image, is damaged, or is too large (limit of Pillow).
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            yield image
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(TOO_LARGE) from error
    except Exception as error:  # the type depends on the format and on where the file is damaged
        raise BadImageError(UNREADABLE) from error


def pixels_of(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Decode an image to ``(H, W, C)`` uint8.

    Args:
        file: the encoded image.
        shape: the required shape.

    Raises:
        BadImageError: the image has another shape or cannot be decoded.
    """
    with opened(file) as image:
        found = (image.height, image.width, len(image.getbands()))
        if found != shape:
            raise BadImageError(OTHER_SHAPE, f"{found}, expected {shape}")
        return np.asarray(image)

"""Images of strangers, decoded only where their size is right, and only in formats that hold nothing but pixels.

Pillow knows formats that start other programs (EPS) or decoders nobody needs here; those below are all that are opened.
The header tells the size; no pixel is decoded, and no memory taken for any, before that is compared.
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
        reason: one of the above, the same for every such image.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason = reason


@contextlib.contextmanager
def opened(file: bytes) -> Iterator[Image]:
    """An image of which only the header was read. What goes wrong while it is used is a ``BadImageError``, too.

    Raises:
        BadImageError: it is none, broken, or larger than any image here may be.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            yield image
    except (BadImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(TOO_LARGE) from error
    except Exception as error:  # which one a broken file raises depends on its format and where it breaks
        raise BadImageError(UNREADABLE) from error


def pixels_of(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """An image as ``(H, W, C)`` uint8.

    Args:
        file: the image.
        shape: that it must have.

    Raises:
        BadImageError: it has another one, or cannot be read.
    """
    with opened(file) as image:
        found = (image.height, image.width, len(image.getbands()))
        if found != shape:
            raise BadImageError(OTHER_SHAPE, f"{found}, expected {shape}")
        return np.asarray(image)

"""Load images of documents from a row or from the web, as JPEG or PNG files no larger than JAT's.

JAT scaled every image so that its longer side is 352 pixels, up as well as down, and dropped all metadata. Here an RGB
JPEG or PNG that is not larger and has neither EXIF data nor transparency is kept byte by byte; a larger one is scaled
down; none is scaled up, which would add bytes and no information.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collectors.downloads import Downloader, RejectedError
from pipeline.images import TOO_LARGE, BadImageError, opened

# JAT's value, for the longer side.
IMAGE_SIZE = 352
JPEG_QUALITY = 90
# Larger images are rejected before decoding: decoded they would take 200 MB.
MAX_PIXELS = 64 * 10**6
LARGE_PIXELS = 4 * 10**6
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class ImageOptions:
    """How images are downloaded and stored.

    Attributes:
        size: maximum length of the longer side in pixels.
        download_s: time limit in seconds for one image, from resolving its name to its last byte.
        allow_private: also download from this machine and its network.
    """

    size: int = IMAGE_SIZE
    download_s: float = 10.0
    allow_private: bool = False


class ImageLoader:
    """Loads the image of a row; each of several threads may load one at a time.

    Args:
        options: see ``ImageOptions``.
        connections: number of threads.
    """

    def __init__(self, options: ImageOptions, connections: int = 1) -> None:
        self._options = options
        self._downloader = Downloader(options.download_s, connections, options.allow_private)

    def load(self, value: Any) -> bytes:
        """The image of a column's value: the file in a struct with ``bytes``, or the download of an address.

        Raises:
            RejectedError: there is no image, or it cannot be downloaded or read.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if not value or not isinstance(value, str | bytes):
            raise RejectedError("no image")
        if isinstance(value, str):
            value = self._downloader.get(value)
        return stored_image(value, self._options.size)


def stored_image(file: bytes, size: int) -> bytes:
    """``file`` itself if it is an RGB JPEG or PNG with at most ``size`` pixels on its longer side, else a JPEG of it.

    Raises:
        RejectedError: it cannot be read completely, or is unreasonably large.
    """
    from PIL import ImageOps

    try:
        with opened(file) as image:
            num_pixels = image.width * image.height
            if num_pixels > MAX_PIXELS:
                raise BadImageError(TOO_LARGE)
            is_plain = (
                image.format in ("JPEG", "PNG")
                and image.mode == "RGB"
                and "transparency" not in image.info
                and max(image.size) <= size
                and not image.getexif()
            )
            # Each of many threads holds an image, but only one at a time a large one, to bound memory.
            with _ONE_AT_A_TIME if num_pixels > LARGE_PIXELS else contextlib.nullcontext():
                image.load()
                return file if is_plain else _scaled(ImageOps.exif_transpose(image), size)
    except BadImageError as error:
        raise RejectedError(error.reason) from error


def _scaled(image: Any, size: int) -> bytes:
    """A JPEG file of a ``PIL`` image whose longer side has at most ``size`` pixels."""
    from PIL import Image

    image = image.convert("RGB")
    if max(image.size) > size:
        scale = size / max(image.size)
        shape = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(shape, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

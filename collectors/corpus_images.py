"""Images of documents: from a row of a source or from the web, as JPEG or PNG files no larger than JAT's.

JAT scaled every image so that its longer side is 352 pixels, up as well as down, and dropped what else was in the
file. Here an image that is not larger, and plain already, stays byte for byte; a larger one is scaled down; none is
scaled up, which adds bytes and no information.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.heartbeat import PULSE

# JAT's, of the longer side.
IMAGE_SIZE = 352
JPEG_QUALITY = 90
# An image with more is refused unread: decoded it would take 200 MB.
MAX_PIXELS = 64 * 10**6
TOO_LARGE = "image too large"
MAX_DOWNLOAD_BYTES = 16 * 2**20
CHUNK_BYTES = 64 * 2**10
MAX_REDIRECTS = 5
USER_AGENT = "jat-pipeline/0.1 (dataset of image captions)"


class RejectedError(Exception):
    """A document that is not to be had; the message is the reason, alike for alike failures."""


@dataclass(frozen=True)
class ImageOptions:
    """How images are fetched and stored.

    Attributes:
        size: pixels of the longer side at most.
        download_s: seconds for one image, from connecting to its last byte.
    """

    size: int = IMAGE_SIZE
    download_s: float = 10.0


class ImageLoader:
    """Makes the image of a row; several threads may use one at a time.

    Args:
        options: see there.
        connections: how many threads will.
    """

    def __init__(self, options: ImageOptions, connections: int = 1) -> None:
        import urllib3

        self._options = options
        # No certificates are checked away and nothing but http and https is spoken: a row of a source is not trusted.
        self._pool = urllib3.PoolManager(
            num_pools=4 * connections, maxsize=connections, headers={"User-Agent": USER_AGENT, "Accept": "image/*"}
        )

    def load(self, value: Any) -> bytes:
        """The image of a column's value: the file in a struct with ``bytes``, or what an address leads to.

        Raises:
            RejectedError: there is none, it cannot be downloaded, or not be read.
        """
        if isinstance(value, Mapping):
            value = value.get("bytes")
        if not value:
            raise RejectedError("no image")
        if isinstance(value, str):
            value = self._download(value)
        return stored_image(value, self._options.size)

    def _download(self, address: str) -> bytes:
        import urllib3

        if not address.lower().startswith(("http://", "https://")):
            raise RejectedError("download failed: not an address")
        deadline = time.monotonic() + self._options.download_s
        try:
            response = self._pool.request(
                "GET",
                address,
                preload_content=False,
                redirect=True,
                retries=urllib3.Retry(MAX_REDIRECTS, connect=0, read=0, status=0, other=0, redirect=MAX_REDIRECTS),
                timeout=urllib3.Timeout(total=self._options.download_s),
            )
            try:
                if response.status != 200:
                    raise RejectedError(f"download failed: HTTP {response.status}")
                return _read_until(response, deadline)
            finally:
                # What is left unread of a body would be taken for the next answer of this connection.
                response.close()
        except urllib3.exceptions.TimeoutError as error:
            raise RejectedError("download failed: timed out") from error
        except urllib3.exceptions.MaxRetryError as error:
            raise RejectedError(f"download failed: {_reason(error.reason)}") from error
        except (urllib3.exceptions.LocationValueError, UnicodeError) as error:
            raise RejectedError("download failed: not an address") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise RejectedError("download failed: connection broken") from error


def _reason(error: Exception | None) -> str:
    """Why no answer came."""
    import urllib3

    if isinstance(error, urllib3.exceptions.ResponseError):
        return "too many redirects"
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # one of the others, as its class has it
        return "no connection"
    return "timed out" if isinstance(error, urllib3.exceptions.TimeoutError) else "no connection"


def _read_until(response: Any, deadline: float) -> bytes:
    """The body, unless it takes too long or is too large: a time limit of the socket alone lets it drip for ever."""
    chunks, num_bytes = [], 0
    while chunk := response.read1(CHUNK_BYTES):
        PULSE.beats += 1
        chunks.append(chunk)
        num_bytes += len(chunk)
        if num_bytes > MAX_DOWNLOAD_BYTES:
            raise RejectedError(f"download failed: more than {MAX_DOWNLOAD_BYTES // 2**20} MiB")
        if time.monotonic() > deadline:
            raise RejectedError("download failed: timed out")
    return b"".join(chunks)


def stored_image(file: bytes, size: int) -> bytes:
    """``file`` itself if it is an RGB JPEG or PNG whose longer side has ``size`` pixels at most, else a JPEG that is.

    Raises:
        RejectedError: it cannot be read as a whole, or is unreasonably large.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(file)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RejectedError(TOO_LARGE)
            is_plain = (
                image.format in ("JPEG", "PNG")
                and image.mode == "RGB"
                and "transparency" not in image.info
                and max(image.size) <= size
                and not image.getexif()
            )
            image.load()
            return file if is_plain else _scaled(ImageOps.exif_transpose(image), size)
    except (RejectedError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedError(TOO_LARGE) from error
    except Exception as error:  # which one a broken file raises depends on its format and where it breaks
        raise RejectedError("image unreadable") from error


def _scaled(image: Any, size: int) -> bytes:
    """A JPEG file of a ``PIL`` image, its longer side ``size`` pixels at most."""
    from PIL import Image

    image = image.convert("RGB")
    if max(image.size) > size:
        scale = size / max(image.size)
        shape = tuple(max(1, round(side * scale)) for side in image.size)
        image = image.resize(shape, Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()

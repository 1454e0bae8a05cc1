from __future__ import annotations

import io
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from collectors.documents.images import ImageLoader, ImageOptions, stored_image
from collectors.downloads import MAX_DOWNLOAD_BYTES, RejectedError
from tests.corpora_sources import picture
from tests.web import Pages, served


def opened(file: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(file))
    image.load()
    return image


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_plain_image_that_is_small_enough_stays_byte_for_byte(kind: str) -> None:
    file = picture(1, 352, 200, kind)
    assert stored_image(file, 352) is file


@pytest.mark.parametrize(
    ("shape", "expected"), [((704, 352), (352, 176)), ((300, 1000), (106, 352)), ((5000, 2), (352, 1))]
)
def test_a_larger_image_is_scaled_down_to_the_longer_side(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = opened(stored_image(picture(1, *shape), 352))
    assert (image.size, image.mode, image.format) == (expected, "RGB", "JPEG")


def test_a_small_image_is_not_scaled_up() -> None:
    assert opened(stored_image(picture(1, 30, 20, "PNG", "L"), 352)).size == (30, 20)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "L"), ("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGB")]
)
def test_other_colours_and_formats_become_rgb_jpegs(kind: str, mode: str) -> None:
    image = opened(stored_image(picture(1, 30, 20, kind, mode), 352))
    assert (image.size, image.mode, image.format) == ((30, 20), "RGB", "JPEG")


def test_what_a_camera_wrote_is_applied_and_dropped() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to view
    exif[0x010F] = "camera"
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((10, 30, 3), np.uint8)).save(buffer, "JPEG", exif=exif)
    image = opened(stored_image(buffer.getvalue(), 352))
    assert image.size == (10, 30)
    assert not image.getexif()


def test_the_same_image_gives_the_same_bytes() -> None:
    file = picture(3, 800, 500)
    assert stored_image(file, 352) == stored_image(file, 352)


@pytest.mark.parametrize(
    "file",
    [b"<html>gone</html>", picture(1)[:200], picture(1, kind="PNG")[:-40], b"\x89PNG\r\n\x1a\n" + b"\0" * 50],
    ids=["a page", "half a jpeg", "half a png", "a broken head"],
)
def test_a_broken_image_is_rejected(file: bytes) -> None:
    with pytest.raises(RejectedError, match=r"^image unreadable$"):
        stored_image(file, 352)


@pytest.mark.parametrize("side", [8_001, 10_000, 20_000])
def test_an_unreasonably_large_image_is_rejected_unread(side: int) -> None:
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, "PNG")
    with pytest.raises(RejectedError, match=r"^image too large$"):
        stored_image(buffer.getvalue(), 352)


class Web(Pages):
    """Good images and every way of not getting one."""

    def page(self) -> None:
        name = self.path.strip("/")
        if name.startswith("good"):
            return self.answer(200, picture(int(name.rpartition("-")[2] or 0)))
        if name == "moved":
            return self.answer(302, b"", Location="/good-7")
        if name == "circle":
            return self.answer(302, b"", Location="/circle")
        if name == "page":
            return self.answer(200, b"<html>We are sorry</html>")
        if name == "half":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(picture(1)[:100])
            return None
        if name == "huge":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(MAX_DOWNLOAD_BYTES // 2**20 + 20):
                    self.wfile.write(bytes(2**20))
            except ConnectionError:
                pass
            return None
        if name in ("silent", "drip"):
            if name == "drip":
                self.send_response(200)
                self.end_headers()
            try:
                for _ in range(100):
                    time.sleep(0.05)
                    if name == "drip":
                        self.wfile.write(b"x")
            except ConnectionError:
                pass
            return None
        status = int(name) if name.isdecimal() else 404
        return self.answer(status, b"no")


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with served(Web) as address:
        yield address


def load(address: Any, download_s: float = 10.0) -> bytes:
    return ImageLoader(ImageOptions(352, download_s, allow_private=True)).load(address)


@pytest.mark.parametrize("name", ["good-7", "moved"])
def test_an_image_comes_from_the_web(web: str, name: str) -> None:
    assert load(f"{web}/{name}") == picture(7)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("404", "download failed: HTTP 404"),
        ("500", "download failed: HTTP 500"),
        ("circle", "download failed: too many redirects"),
        ("page", "image unreadable"),
        ("huge", "download failed: more than 16 MiB"),
    ],
)
def test_what_cannot_be_had_is_rejected_with_its_reason(web: str, name: str, reason: str) -> None:
    with pytest.raises(RejectedError, match=rf"^{reason}$"):
        load(f"{web}/{name}")


def test_a_connection_that_breaks_is_told(web: str) -> None:
    with pytest.raises(RejectedError, match=r"^(download failed: connection broken|image unreadable)$"):
        load(f"{web}/half")


@pytest.mark.parametrize("name", ["silent", "drip"])
def test_a_server_that_takes_too_long_is_left(web: str, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(RejectedError, match=r"^download failed: timed out$"):
        load(f"{web}/{name}", download_s=0.3)
    assert time.monotonic() - started < 3


def test_nobody_at_an_address_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(RejectedError, match=r"^download failed: no connection$"):
        load(f"http://127.0.0.1:{port}/good")


@pytest.mark.parametrize("address", ["file:///etc/passwd", "nothing", "http://", "http://[::1/x", "ftp://127.0.0.1/x"])
def test_what_is_no_web_address_is_not_followed(address: str) -> None:
    with pytest.raises(RejectedError, match=r"^download failed: not an address$"):
        load(address)


@pytest.mark.parametrize("value", [None, "", {"bytes": None, "path": "x.jpg"}, {"bytes": b"", "path": None}])
def test_a_row_without_an_image_is_rejected(value: Any) -> None:
    with pytest.raises(RejectedError, match=r"^no image$"):
        load(value)

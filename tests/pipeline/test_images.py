from __future__ import annotations

import io
import tracemalloc
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.images import BadImageError, opened, pixels_of
from tests.jat_sources import claiming


def saved(shape: tuple[int, ...], kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros(shape, np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def test_an_image_of_the_shape_comes_back_as_its_pixels() -> None:
    assert pixels_of(saved((8, 6, 4)), (8, 6, 4)).shape == (8, 6, 4)


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (50_000, 50_000, "image too large"),
        (2**31 - 1, 2**31 - 1, "image too large"),
        (12_000, 12_000, "image too large"),  # Pillow's warning, an error here
        (9_000, 9_000, "image of another shape"),
        (84, 80, "image of another shape"),
        (0, 84, "image unreadable"),
    ],
)
def test_a_size_is_compared_before_a_pixel_is_decoded(width: int, height: int, reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(BadImageError) as caught:
        pixels_of(claiming(width, height), (84, 84, 4))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert caught.value.reason == reason
    assert most < 2**23  # 12,000 x 12,000 pixels would be 2**29


def test_a_large_image_of_one_colour_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved((3_000, 3_000, 4))  # 36 MB of pixels in 36 kB
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match=r"another shape \(\(3000, 3000, 4\), expected \(84, 84, 4\)\)"):
        pixels_of(file, (84, 84, 4))


def test_formats_that_run_other_programs_are_not_opened() -> None:
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 84 84\n%%EndComments\n(/tmp/x) (w) file\n%%EOF\n"
    with pytest.raises(BadImageError, match="unreadable"), opened(postscript):
        pass


@pytest.mark.parametrize("cut", range(0, 400, 13))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "GIF", "BMP"])
def test_a_broken_image_is_one_reason_whatever_its_format(kind: str, cut: int) -> None:
    rng = np.random.default_rng(cut)
    file = bytearray(saved((20, 20, 3), kind))
    for place in rng.integers(0, len(file), 8):
        file[place] = rng.integers(256)
    try:
        pixels_of(bytes(file[: len(file) - cut // 4]), (20, 20, 3))
    except BadImageError as error:
        assert error.reason in {"image unreadable", "image too large", "image of another shape"}
        assert "0x" not in str(error)

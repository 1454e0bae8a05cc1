from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.media.video import write_mp4


def test_frames_come_back_in_number_size_and_order(tmp_path: Path) -> None:
    path = tmp_path / "videos" / "episode.mp4"
    # Brighter from frame to frame; odd sizes lose their last row and column.
    frames = [np.full((61, 91, 3), 20 * index, np.uint8) for index in range(12)]
    write_mp4(path, frames, frames_per_s=15)
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 15
        found = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [frame.shape for frame in found] == [(60, 90, 3)] * 12
    brightness = np.array([frame.mean() for frame in found])
    np.testing.assert_allclose(brightness, 20 * np.arange(12), atol=6)
    assert list(path.parent.iterdir()) == [path]


def test_no_frames_are_an_error_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no frames for .*x\.mp4"):
        write_mp4(tmp_path / "x.mp4", [], frames_per_s=15)
    assert list(tmp_path.iterdir()) == []

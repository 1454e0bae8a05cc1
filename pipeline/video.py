"""Frames -> mp4."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.files import replacing


def write_mp4(path: Path, frames: Sequence[np.ndarray], frames_per_s: int) -> None:
    """Write ``(H, W, 3)`` uint8 frames as H.264, which every browser plays. Odd sizes lose their last row or column.

    Raises:
        ValueError: no frames.
    """
    import av

    if not frames:
        raise ValueError(f"no frames for {path}")
    height, width = (size // 2 * 2 for size in frames[0].shape[:2])  # H.264 with 4:2:0 colour needs even sizes
    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_s, options={"crf": "26", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())

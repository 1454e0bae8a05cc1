"""Write frames as mp4 videos, and read them back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import replacing


@contextlib.contextmanager
def mp4_writer(path: Path, frames_per_s: int, crf: int = 26) -> Iterator[Callable[[np.ndarray], None]]:
    """Give a function that appends a ``(H, W, 3)`` uint8 frame to an H.264 video, which every browser plays.

    No frame is kept in memory, so a video can have any length. All frames must have the same size; if the height or
    width is odd, the last row or column is cut. The file is created when the context exits without an exception.

    Args:
        path: output file.
        frames_per_s: frame rate in frames per second.
        crf: x264's constant rate factor: 18 is visually lossless, each 6 more halve the bytes, 51 is the worst quality.

    Raises:
        UserError: PyAV, or its H.264 encoder, is missing.
        ValueError: no frame was added.
    """
    try:
        import av
    except ImportError as error:
        raise UserError(f"writing a video needs the package av, which is missing ({error}); pip install av") from error

    with replacing(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        try:
            stream = container.add_stream("libx264", rate=frames_per_s, options={"crf": str(crf), "preset": "veryfast"})
        except ValueError as error:
            raise UserError(f"this build of av has no H.264 encoder ({error}); install av from PyPI") from error
        num_frames = 0

        def add(frame: np.ndarray) -> None:
            nonlocal num_frames
            height, width = (size // 2 * 2 for size in frame.shape[:2])  # 4:2:0 colour needs even sizes
            if num_frames == 0:
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            container.mux(stream.encode(picture))
            num_frames += 1

        yield add
        if num_frames == 0:
            raise ValueError(f"no frames for {path}")
        container.mux(stream.encode())


def write_mp4(path: Path, frames: Iterable[np.ndarray], frames_per_s: int, crf: int = 26) -> None:
    """Write ``(H, W, 3)`` uint8 frames as a video; see ``mp4_writer``."""
    with mp4_writer(path, frames_per_s, crf) as add:
        for frame in frames:
            add(frame)


def read_mp4(path: Path) -> Iterator[np.ndarray]:
    """Decode the frames of a video one by one, ``(H, W, 3)`` uint8.

    Raises:
        UserError: the file is damaged.
    """
    import av

    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_ndarray(format="rgb24")
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be played ({error}); delete it and run what made it again") from error

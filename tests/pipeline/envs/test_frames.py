from __future__ import annotations

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from pipeline.envs.frames import decode_stacks, encode_stacks, pack, read_stacks, stacked


def sliding(frames: np.ndarray) -> list[np.ndarray]:
    """Stacks of four of the frames ``(T + 3, H, W)``, channel last."""
    return [np.stack(frames[t : t + 4], axis=-1) for t in range(len(frames) - 3)]


def moving_square(num_frames: int) -> np.ndarray:
    frames = np.full((num_frames, 84, 84), 87, np.uint8)
    frames[:, 10:12] = 236
    for t in range(num_frames):
        frames[t, 20 + t % 50 : 24 + t % 50, 30:34] = 200
    return frames


def png(stack: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(stack).save(buffer, "PNG")
    return buffer.getvalue()


# Few values, so that there are runs of all lengths.
FRAMES = arrays(
    np.uint8, st.tuples(st.integers(4, 70), st.integers(1, 6), st.integers(1, 128)), elements=st.integers(0, 2)
)


@settings(deadline=None, max_examples=60)
@given(FRAMES)
def test_what_is_packed_is_what_pillow_unpacks(frames: np.ndarray) -> None:
    height, width = frames.shape[1:]
    for frame, data in zip(frames, pack(frames), strict=True):
        np.testing.assert_array_equal(Image.frombytes("L", (width, height), data, "packbits", "L"), frame)


def test_packed_bytes_are_those_of_the_standard() -> None:
    row = [7, 7, 7, 7, 1, 2, 2, 3, 9, 9, 9]
    assert [list(data) for data in pack(np.array([[row]], np.uint8))] == [[253, 7, 3, 1, 2, 2, 3, 254, 9]]


@settings(deadline=None, max_examples=40)
@given(FRAMES)
def test_stacks_are_read_as_they_were_written(frames: np.ndarray) -> None:
    stacks = stacked(sliding(frames))
    files = encode_stacks(stacks)
    np.testing.assert_array_equal(decode_stacks(files, stacks.shape[1:]), stacks)
    for file, stack in zip(files[::7], stacks[::7], strict=True):
        image = Image.open(io.BytesIO(file))
        assert image.mode == "RGBA"
        np.testing.assert_array_equal(image, stack)


def test_stacks_that_do_not_go_on_from_each_other_are_read_as_they_were_written() -> None:
    frames = moving_square(40)
    stacks = np.array(sliding(frames)[::5] + sliding(frames)[:3])
    np.testing.assert_array_equal(decode_stacks(encode_stacks(stacks), (84, 84, 4)), stacks)


def test_a_png_of_jat_s_is_read_among_others() -> None:
    stacks = stacked(sliding(moving_square(8)))
    files = encode_stacks(stacks)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(stacks[2]), "RGBA").save(buffer, format="png")
    files[2] = buffer.getvalue()
    np.testing.assert_array_equal(decode_stacks(files, (84, 84, 4)), stacks)
    with pytest.raises(ValueError, match=r"another shape \(\(84, 84, 4\), expected \(80, 84, 4\)\)"):
        decode_stacks(files[2:3], (80, 84, 4))


def test_a_stack_costs_one_frame_of_memory_per_step_where_it_goes_on() -> None:
    frames = moving_square(60)
    stacks = stacked(sliding(frames))
    np.testing.assert_array_equal(stacks, np.array(sliding(frames)))
    base: Any = stacks
    while base.base is not None:
        base = base.base
    assert base.nbytes == frames.nbytes
    apart = sliding(frames)[::2]
    np.testing.assert_array_equal(stacked(apart), np.array(apart))


def test_equal_frames_are_stored_once() -> None:
    """Noise cannot be compressed, so a file of T stacks of it holds T + 3 frames, not 4 T."""
    frames = np.random.default_rng(0).integers(0, 256, (103, 84, 84), dtype=np.uint8)
    files = encode_stacks(stacked(sliding(frames)))
    buffer = io.BytesIO()
    pq.write_table(pa.table({"bytes": files}), buffer, compression="zstd", use_dictionary=False)
    assert len(buffer.getvalue()) < 1.1 * frames.nbytes
    assert sum(map(len, files)) > 3.9 * 100 * 84 * 84


def test_frames_that_are_too_wide_are_refused() -> None:
    with pytest.raises(ValueError, match="129 pixels wide; at most 128"):
        encode_stacks(np.zeros((1, 2, 129, 4), np.uint8))


@pytest.mark.parametrize("num_stacks", [0, 1, 64, 65, 130])
def test_stacks_that_go_on_are_read_into_one_copy_of_each_frame(num_stacks: int) -> None:
    stacks = sliding(moving_square(num_stacks + 3))
    files = [png(stack) for stack in stacks]
    found = read_stacks(files, (84, 84, 4))
    assert found.shape == (num_stacks, 84, 84, 4)
    for stack, expected in zip(found, stacks, strict=True):
        np.testing.assert_array_equal(stack, expected)
    if num_stacks > 1:
        assert found.strides[0] == 84 * 84
        files[-1] = png(stacks[0])  # a jump, between two chunks or within one
        np.testing.assert_array_equal(read_stacks(files, (84, 84, 4)), [*stacks[:-1], stacks[0]])

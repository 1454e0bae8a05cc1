"""Stores stacks of greyscale frames without duplicate frames, in memory and in Parquet files.

A stack is an ``(H, W, 4)`` image whose channels are the frames of four consecutive steps, as in JAT's data.
Consecutive stacks share three frames. PNG hides this redundancy, so every frame is stored four times. Here a stack is
encoded as a TIFF file that any reader decodes to the same RGBA image, but its channels are stored as separate planes,
each compressed row by row (PackBits, a run-length code). Equal frames, and equal rows of successive frames, are then
equal bytes, which the zstd compression of the Parquet page deduplicates. ``tests/benchmarks/collect.py`` compares the
sizes with those of JAT's PNG.

TIFF 6.0 (Adobe, 1992): fields in section 2, PackBits in section 9.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import numpy as np

from pipeline.images import UNREADABLE, BadImageError, pixels_of

CHANNELS = 4
PACKBITS = 32773
CHUNK = 64  # frames packed per batch, so that intermediate arrays stay in the CPU cache
# A run token takes two bytes, so shorter runs are cheaper as part of the surrounding literal bytes.
MIN_RUN = 3
MAX_WIDTH = 128  # the most bytes that one PackBits token can encode

_FIELD = struct.Struct("<HHII")
_NUM_FIELDS = 11
_SHORT, _LONG = 3, 4
_BITS_AT = 8 + 2 + _NUM_FIELDS * _FIELD.size + 4
_TABLES = struct.Struct(f"<{CHANNELS}H{CHANNELS}I{CHANNELS}I")  # bits per sample, offsets and sizes of the strips
_OFFSETS_AT = _BITS_AT + 2 * CHANNELS
_SIZES_AT = _OFFSETS_AT + 4 * CHANNELS
_DATA_AT = _BITS_AT + _TABLES.size


def stacked(observations: Sequence[np.ndarray]) -> np.ndarray:
    """Combine T stacks into one ``(T, H, W, 4)`` view that holds every frame once, if consecutive stacks overlap.

    Stacks that do not overlap are copied unchanged.
    """
    if not observations:
        return np.empty(0, np.uint8)
    planes = [observation.transpose(2, 0, 1) for observation in observations]
    if not all(_is_same(old[1:], new[:-1]) for old, new in itertools.pairwise(planes)):
        return np.array(observations)
    frames = np.empty((len(planes) + CHANNELS - 1, *planes[0].shape[1:]), planes[0].dtype)
    frames[: CHANNELS - 1] = planes[0][:-1]
    for place, plane in enumerate(planes, CHANNELS - 1):
        frames[place] = plane[-1]
    return np.lib.stride_tricks.sliding_window_view(frames, CHANNELS, axis=0)


def _is_same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of the same shape are equal; values are not compared if both are the same memory."""
    if one.__array_interface__["data"] == other.__array_interface__["data"] and one.strides == other.strides:
        return True
    return bool((one == other).all())


def read_stacks(files: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Decode as ``decode_stacks``, but hold every frame once, as ``stacked`` does.

    A long game in JAT's PNG format then takes a quarter of the memory.

    Raises:
        BadImageError: as ``decode_stacks``.
    """
    frames: list[np.ndarray] = []
    last: np.ndarray | None = None
    for begin in range(0, len(files), CHUNK):
        planes = np.moveaxis(decode_stacks(files[begin : begin + CHUNK], shape), -1, 1)
        if last is not None:
            planes = np.concatenate([last[None], planes])
        if (planes[:-1, 1:] != planes[1:, :-1]).any():
            return decode_stacks(files, shape)
        frames.append(planes[0] if last is None else planes[0, :0])
        frames.append(planes[1:, -1])
        last = planes[-1].copy()
    if last is None:
        return np.empty((0, *shape), np.uint8)
    return np.lib.stride_tricks.sliding_window_view(np.concatenate(frames), CHANNELS, axis=0)


def encode_stacks(stacks: np.ndarray) -> list[bytes]:
    """Encode stacks ``(T, H, W, 4)`` uint8 as T TIFF files.

    Raises:
        ValueError: the frames are wider than ``MAX_WIDTH``.
    """
    num_stacks, height, width, _ = stacks.shape
    if width > MAX_WIDTH:
        raise ValueError(f"frames are {width} pixels wide; at most {MAX_WIDTH} can be packed")
    head = _head(height, width)
    files: list[bytes] = []
    strips: list[bytes] = []  # of the previous stack
    for begin in range(0, num_stacks, CHUNK):
        planes = np.moveaxis(stacks[begin : begin + CHUNK], -1, 1)
        goes_on = _which_go_on(stacks[max(begin - 1, 0) : begin + CHUNK])
        if begin == 0:
            goes_on.insert(0, False)
        fresh = [planes[i, -1:] if follows else planes[i] for i, follows in enumerate(goes_on)]
        packed = iter(pack(np.concatenate(fresh)))
        for follows in goes_on:
            strips = [*strips[1:], next(packed)] if follows else [next(packed) for _ in range(CHANNELS)]
            sizes = [len(strip) for strip in strips]
            offsets = [_DATA_AT + sum(sizes[:i]) for i in range(CHANNELS)]
            files.append(b"".join((head, _TABLES.pack(*[8] * CHANNELS, *offsets, *sizes), *strips)))
    return files


def _which_go_on(stacks: np.ndarray) -> list[bool]:
    """Return for each stack after the first whether it shares three frames with the previous one."""
    if stacks.strides[0] == stacks.strides[-1]:  # a view made by ``stacked``: the frames share memory
        return [True] * (len(stacks) - 1)
    return [bool((old[..., 1:] == new[..., :-1]).all()) for old, new in itertools.pairwise(stacks)]


def _head(height: int, width: int) -> bytes:
    """Make the TIFF header and fields, which are equal in all files of the same image size."""
    fields = (
        (256, _LONG, 1, width),
        (257, _LONG, 1, height),
        (258, _SHORT, CHANNELS, _BITS_AT),
        (259, _SHORT, 1, PACKBITS),
        (262, _SHORT, 1, 2),  # RGB
        (273, _LONG, CHANNELS, _OFFSETS_AT),
        (277, _SHORT, 1, CHANNELS),
        (278, _LONG, 1, height),  # rows per strip
        (279, _LONG, CHANNELS, _SIZES_AT),
        (284, _SHORT, 1, 2),  # planar: each channel is stored separately
        (338, _SHORT, 1, 2),  # the fourth channel is unassociated alpha
    )
    return b"".join(
        (b"II*\0", struct.pack("<IH", 8, _NUM_FIELDS), *(_FIELD.pack(*field) for field in fields), bytes(4))
    )


def pack(frames: np.ndarray) -> list[bytes]:
    """Compress frames ``(N, H, W)`` uint8, each row by row with PackBits.

    Rows that equal those of the previous frame, four of five in most games, are not compressed again.
    """
    num_frames, height, width = frames.shape
    frames = np.ascontiguousarray(frames)
    words = frames.view(np.uint32) if width % 4 == 0 else frames  # words compare faster than bytes
    changed = np.ones((num_frames, height), bool)
    changed[1:] = np.logical_or.reduce(words[1:] != words[:-1], axis=2)
    fresh = iter(_pack_rows(frames[changed]))
    places = (np.flatnonzero(changed) % height).tolist()
    rows = [b""] * height
    packed = []
    begin = 0
    for count in changed.sum(axis=1).tolist():
        for place in places[begin : begin + count]:
            rows[place] = next(fresh)
        packed.append(b"".join(rows))
        begin += count
    return packed


def _pack_rows(pixels: np.ndarray) -> list[bytes]:
    """Compress each row of ``(R, W)`` uint8 with PackBits, without a Python loop over pixels.

    A row is split into runs of equal bytes. Each run of at least ``MIN_RUN`` bytes becomes a token of two bytes; the
    bytes between two such runs become one token of literal bytes.
    """
    num_rows, width = pixels.shape
    begins_run = np.ones(pixels.shape, bool)
    begins_run[:, 1:] = pixels[:, 1:] != pixels[:, :-1]
    run_starts = np.flatnonzero(begins_run)
    run_lengths = np.diff(run_starts, append=pixels.size)
    is_long = run_lengths >= MIN_RUN
    # A token begins at each long run, and at each short run that follows a long one or begins a row.
    follows_long = np.concatenate(([True], is_long[:-1]))
    begins_token = is_long | follows_long | (run_starts % width == 0)
    token_starts = run_starts[begins_token]
    token_is_run = is_long[begins_token]
    token_lengths = np.diff(token_starts, append=pixels.size)
    token_sizes = np.where(token_is_run, 2, token_lengths + 1)
    token_places = np.cumsum(token_sizes) - token_sizes
    out = np.empty(int(token_sizes.sum()), np.uint8)
    # PackBits header byte: 257 - n for a run of n bytes, n - 1 for n literal bytes.
    out[token_places] = np.where(token_is_run, 257 - token_lengths, token_lengths - 1)
    source = pixels.ravel()
    out[token_places[token_is_run] + 1] = source[token_starts[token_is_run]]
    literal = ~token_is_run
    lengths = token_lengths[literal]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    out[np.repeat(token_places[literal] + 1, lengths) + within] = source[
        np.repeat(token_starts[literal], lengths) + within
    ]
    first_tokens = np.searchsorted(token_starts, np.arange(num_rows) * width)
    bounds = [*token_places[first_tokens].tolist(), len(out)]
    data = out.tobytes()
    return [data[begin:end] for begin, end in itertools.pairwise(bounds)]


def decode_stacks(files: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """Decode images to ``(T, *shape)`` uint8, channels-first in memory; read-only if every frame is held once.

    The files may come from ``encode_stacks`` or be other images, such as JAT's PNG.

    Raises:
        BadImageError: an image has another shape or cannot be decoded.
    """
    height, width, _ = shape
    head = _head(height, width)
    images: dict[int, np.ndarray] = {}  # files that are not from `encode_stacks`
    before: list[bytes] = []
    packed: list[bytes] = []  # frames that are not in the previous stack
    goes_on = np.zeros(len(files), bool)
    for index, file in enumerate(files):
        if not file.startswith(head):
            images[index] = pixels_of(file, shape)
            before = []
            continue
        if len(file) < _DATA_AT:
            raise BadImageError(UNREADABLE)
        tables = _TABLES.unpack_from(file, _BITS_AT)
        offsets, sizes = tables[CHANNELS : 2 * CHANNELS], tables[2 * CHANNELS :]
        strips = [file[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]
        goes_on[index] = bool(before) and strips[:-1] == before[1:]
        packed += strips[-1:] if goes_on[index] else strips
        before = strips
    frames = _unpack(packed, height, width) if packed else np.empty((0, height, width), np.uint8)
    if len(frames) == len(files) + CHANNELS - 1 and goes_on[1:].all():
        return np.lib.stride_tricks.sliding_window_view(frames, CHANNELS, axis=0)
    planes = np.empty((len(files), CHANNELS, height, width), np.uint8)
    place = 0
    for index in range(len(files)):
        if index in images:
            planes[index] = np.moveaxis(images[index], -1, 0)
        elif goes_on[index]:
            planes[index, :-1], planes[index, -1] = planes[index - 1, 1:], frames[place]
            place += 1
        else:
            planes[index] = frames[place : place + CHANNELS]
            place += CHANNELS
    return np.moveaxis(planes, 1, -1)


def _unpack(packed: Sequence[bytes], height: int, width: int) -> np.ndarray:
    """Decompress frames ``(N, H, W)`` as one tall image, because each call of the decoder has a fixed cost."""
    from PIL import Image

    try:
        tall = Image.frombytes("L", (width, height * len(packed)), b"".join(packed), "packbits", "L")
    except ValueError as error:
        raise BadImageError(UNREADABLE) from error
    return np.asarray(tall).reshape(len(packed), height, width)

"""Estimates the upload size of files in a store with chunk deduplication, such as that of the Hugging Face Hub.

The Hub splits files by content-defined chunking (https://huggingface.co/docs/xet/chunking) into chunks of about 64 KiB,
and only chunks that it does not have are uploaded. This module uses the same rule with the same sizes. Its table of
random numbers is different, so the boundaries are elsewhere but equally frequent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np

MIN_BYTES, MAX_BYTES = 8 * 2**10, 128 * 2**10
MASK = np.uint64(0xFFFF_0000_0000_0000)  # one boundary every 64 KiB on average
WINDOW = 64  # length of the rolling hash's window in bytes: each byte shifts the hash by one bit
BLOCK = 4 * 2**20  # bytes hashed at a time


def chunk_sizes(paths: Iterable[Path]) -> dict[bytes, int]:
    """Return the size in bytes of every distinct chunk of some files, by the chunk's hash."""
    return {hash_: size for path in paths for hash_, size in _chunks(path.read_bytes())}


def new_bytes(before: Iterable[Path], after: Iterable[Path]) -> int:
    """Return the bytes to transfer to store the files ``after`` where the files ``before`` are stored already."""
    known = chunk_sizes(before)
    return sum(size for hash_, size in chunk_sizes(after).items() if hash_ not in known)


def _chunks(content: bytes) -> Iterator[tuple[bytes, int]]:
    cuts = np.concatenate([*_possible_cuts(np.frombuffer(content, np.uint8)), [len(content)]])
    begin = 0
    while begin < len(content):
        index = np.searchsorted(cuts, begin + MIN_BYTES)
        end = min(int(cuts[index]) if index < len(cuts) else len(content), begin + MAX_BYTES)
        yield hashlib.blake2b(content[begin:end], digest_size=16).digest(), end - begin
        begin = end


def _possible_cuts(content: np.ndarray) -> Iterator[np.ndarray]:
    """Yield sorted arrays of offsets at which the rolling hash of the last ``WINDOW`` bytes allows a boundary.

    The hash is ``h = 2 * h + table[byte]`` modulo 2**64, that is, a sum over the last 64 bytes. The sums over 2, 4, ...
    64 bytes are computed by doubling: six array operations and no loop over bytes.
    """
    for begin in range(0, len(content), BLOCK):
        start = max(0, begin - WINDOW + 1)
        sums = _table()[content[start : begin + BLOCK]]
        width = 1
        while width < WINDOW:
            longer = sums.copy()
            longer[width:] += sums[:-width] << np.uint64(width)
            sums, width = longer, 2 * width
        yield np.flatnonzero((sums[begin - start :] & MASK) == 0) + begin + 1


@cache
def _table() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, 256, np.uint64)

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import chunks
from pipeline.chunks import MAX_BYTES, MIN_BYTES, chunk_sizes, new_bytes


def write(path: Path, *parts: bytes) -> Path:
    path.write_bytes(b"".join(parts))
    return path


def noise(num_bytes: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(num_bytes)


def plain_sizes(content: bytes) -> list[int]:
    """The Hub's rule, byte by byte."""
    table = [int(value) for value in chunks._table()]
    sizes, hash_, size = [], 0, 0
    for byte in content:
        hash_ = (2 * hash_ + table[byte]) % 2**64
        size += 1
        if size == MAX_BYTES or (size >= MIN_BYTES and hash_ & int(chunks.MASK) == 0):
            sizes.append(size)
            hash_, size = 0, 0
    return sizes + ([size] if size else [])


def test_the_cuts_are_those_of_the_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = noise(700_000) + bytes(300_000)
    monkeypatch.setattr(chunks, "BLOCK", 10_007)  # the hash goes on from block to block
    found = [size for _, size in chunks._chunks(content)]
    assert found == plain_sizes(content)
    assert len(found) > 8


def test_pieces_are_of_about_64_kib(tmp_path: Path) -> None:
    sizes = list(chunk_sizes([write(tmp_path / "a", noise(20_000_000))]).values())
    assert 50_000 < np.mean(sizes) < 75_000
    assert max(sizes) == MAX_BYTES
    assert sum(sizes) == 20_000_000


def test_equal_files_move_nothing_and_other_ones_everything(tmp_path: Path) -> None:
    a, copy, b = (write(tmp_path / name, noise(1_000_000, seed)) for name, seed in (("a", 0), ("copy", 0), ("b", 1)))
    assert new_bytes([a], [copy]) == 0
    assert new_bytes([a], [b]) == 1_000_000
    assert new_bytes([], [a, copy]) == 1_000_000
    assert new_bytes([a], [write(tmp_path / "empty")]) == 0


def test_what_is_put_between_moves_little_more_than_itself(tmp_path: Path) -> None:
    before, after = noise(5_000_000), noise(5_000_000, 1)
    old = write(tmp_path / "old", before, after)
    new = write(tmp_path / "new", before, b"something else" * 10, after)
    assert 0 < new_bytes([old], [new]) <= 3 * MAX_BYTES

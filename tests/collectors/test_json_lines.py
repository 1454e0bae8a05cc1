from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from collectors import json_lines
from collectors.json_lines import columns_of_lines, read_lines
from pipeline.errors import UserError

ROWS = [{"text": f"row {i}", "meta": {"i": i}} for i in range(5)]
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("end", [b"\n", b""])
def test_rows_come_back_however_they_are_compressed(suffix: str, end: bytes, tmp_path: Path) -> None:
    content = b"\n\n".join(json.dumps(row).encode() for row in ROWS) + end
    file = write(tmp_path / f"it.jsonl{suffix}", COMPRESSIONS[suffix](content))
    assert list(read_lines(file, ["text", "meta"])) == ROWS
    assert columns_of_lines(file) == ["text", "meta"]


def test_several_archives_in_one_file_are_all_read(tmp_path: Path) -> None:
    parts = [json.dumps(row).encode() + b"\n" for row in ROWS]
    for suffix in (".gz", ".zst"):
        file = write(tmp_path / f"it.jsonl{suffix}", b"".join(map(COMPRESSIONS[suffix], parts)))
        assert list(read_lines(file, ["text", "meta"])) == ROWS


def test_a_file_that_is_one_list_is_read_too(tmp_path: Path) -> None:
    file = write(tmp_path / "it.json", json.dumps(ROWS, indent=1).encode())
    assert list(read_lines(file, ["text"])) == [{"text": row["text"]} for row in ROWS]


def test_a_column_that_a_row_has_not_is_none(tmp_path: Path) -> None:
    file = write(tmp_path / "it.jsonl", b'{"text": "a"}\n{"other": 1}\n')
    assert list(read_lines(file, ["text"])) == [{"text": "a"}, {"text": None}]


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2"])
def test_a_line_without_end_takes_no_more_memory_than_a_row_may(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 2**20)
    file = write(tmp_path / f"it.jsonl{suffix}", COMPRESSIONS[suffix](b'{"text": "' + bytes(64 * 2**20)))
    assert Path(file).stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(UserError, match="a line has more than 1 MiB"):
        list(read_lines(file, ["text"]))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 16 * 2**20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "line 1: no JSON"),
        (b'{"text": "a"}\nno', "line 2: no JSON"),
        (b"3", "line 1: int where an object with columns is expected"),
        (b'["a"]', "line 1: str where an object"),
        (b"\xff\xfe", "line 1: no JSON"),
        (b'{"a":' * 100_000, "line 1: no JSON"),
    ],
)
def test_what_is_no_row_is_one_line_with_its_number(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        list(read_lines(write(tmp_path / "it.jsonl", content), ["text"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "is_cut"),
    [(".gz", True), (".bz2", True), (".xz", True), (".gz", False), (".bz2", False), (".xz", False), (".zst", False)],
)  # zstandard takes a file that was cut for one that ends
def test_a_broken_archive_is_one_line(suffix: str, is_cut: bool, tmp_path: Path) -> None:
    whole = COMPRESSIONS[suffix](b"".join(json.dumps(row).encode() + b"\n" for row in ROWS * 100))
    file = write(tmp_path / f"it.jsonl{suffix}", whole[: len(whole) // 2] if is_cut else b"no archive at all")
    with pytest.raises(UserError, match=r"it\.jsonl.*(cannot be read|no JSON)"):
        list(read_lines(file, ["text"]))

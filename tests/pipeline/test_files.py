from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.files import (
    digest_of,
    read_json,
    remove_leftovers,
    rename_unless_exists,
    replacing,
    sha256_of,
    temporary_beside,
    write_json,
)


@dataclass(frozen=True)
class Settings:
    name: str
    out: Path


def test_nothing_is_visible_before_the_end_and_everything_after(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name.startswith(".")
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half-way"), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half-way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_dataclass_is_written_as_json_with_its_paths_as_text(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    write_json(path, Settings("a", Path("runs/x")))
    assert path.read_text() == '{\n "name": "a",\n "out": "runs/x"\n}\n'
    assert read_json(path) == {"name": "a", "out": "runs/x"}


def test_a_checksum_is_the_standard_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_depends_on_the_value_and_not_on_the_order_of_keys() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1, "b": [2]}) != digest_of({"a": 1, "b": [3]})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert digest_of(Settings("a", Path("x"))) == digest_of({"name": "a", "out": "x"})
    assert len(digest_of(None)) == 16


def leave_behind(path: Path) -> Path:
    """What a process that was killed while writing ``path`` leaves."""
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    left = path.with_name(f".{path.name}.{socket.gethostname()}.{int(dead.stdout)}.tmp")
    left.mkdir() if path.suffix == "" else left.write_text("half")
    return left


def test_what_killed_processes_left_is_removed_and_what_running_ones_write_is_not(tmp_path: Path) -> None:
    file, folder = leave_behind(tmp_path / "file.txt"), leave_behind(tmp_path / "folder")
    other = tmp_path / f".file.txt.another-host.{os.getpid()}.tmp"
    other.write_text("half")
    with replacing(tmp_path / "new.txt") as temporary:  # the first file that this process writes here
        assert not file.exists() and not folder.exists()
        temporary.write_text("new")
        remove_leftovers(tmp_path)
        assert temporary.exists() and other.exists()
    again = leave_behind(tmp_path / "file.txt")
    remove_leftovers(tmp_path)
    assert not again.exists()
    remove_leftovers(tmp_path / "nowhere")


def test_of_two_who_make_the_same_folder_the_first_stays(tmp_path: Path) -> None:
    target = tmp_path / "made"
    for text in ("first", "second"):
        with temporary_beside(target) as temporary:
            temporary.mkdir()
            (temporary / "file").write_text(text)
            rename_unless_exists(temporary, target)
    assert (target / "file").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["made"]

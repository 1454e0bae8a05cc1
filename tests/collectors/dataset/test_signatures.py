from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.dataset import signatures


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    signatures._key.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    signatures._key.cache_clear()


@pytest.mark.parametrize("damage", ["unwritable", "short", "empty", "a folder", "a pipe", "readable by others"])
def test_without_a_safe_key_everything_is_checked_again(
    damage: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = signatures.sign({"a": 1})
    path = cache / "jat" / "key"
    assert signatures.is_ours(record) and path.stat().st_mode & 0o777 == 0o600
    if damage == "unwritable":
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    elif damage in ("short", "empty"):
        path.write_bytes(b"k" if damage == "short" else b"")
    elif damage == "readable by others":
        path.chmod(0o644)
    else:
        path.unlink()
        (Path.mkdir if damage == "a folder" else os.mkfifo)(path)  # type: ignore[operator]
    signatures._key.cache_clear()
    assert not signatures.is_ours(record)
    record = signatures.sign({"a": 1})
    assert signatures.is_ours(record)
    signatures._key.cache_clear()
    # A damaged key is replaced, so that the next run has a cache; where that cannot be, nothing is cached.
    assert signatures.is_ours(record) == (damage not in ("unwritable", "a folder"))


def test_a_key_of_another_user_is_not_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = signatures.sign({"a": 1})
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    signatures._key.cache_clear()
    assert not signatures.is_ours(record)


def test_no_key_is_read_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    signatures.sign({"a": 1})
    assert not (tmp_path / "cache").exists() and (tmp_path / "home" / ".cache" / "jat" / "key").is_file()

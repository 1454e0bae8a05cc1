from __future__ import annotations

from pathlib import Path

import pytest

from collectors.dataset import signatures


@pytest.mark.parametrize("damage", ["unwritable", "short", "readable by others"])
def test_without_a_safe_key_everything_is_checked_each_time(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    signatures._key.cache_clear()
    record = signatures.sign({"a": 1})
    path = tmp_path / "jat" / "key"
    assert signatures.is_ours(record) and path.stat().st_mode & 0o777 == 0o600
    if damage == "unwritable":
        monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    elif damage == "short":
        path.write_bytes(b"k")
    else:
        path.chmod(0o644)
    signatures._key.cache_clear()
    assert not signatures.is_ours(record)
    assert signatures.is_ours(signatures.sign({"a": 1}))
    monkeypatch.undo()
    signatures._key.cache_clear()

"""Signs the cache of checked files with this user's key, so that a cache that came with a stranger's files is ignored.

The key is in ``~/.cache/jat/key`` (``XDG_CACHE_HOME`` moves it), readable by its owner alone. On another machine, or
for another user, signatures do not match and every file is read once more. A key that others can read, or that is no
key, is replaced. Where there is no place for a key, each process has its own, so nothing is cached between runs.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import replacing

KEY_BYTES = 32


def sign(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record with its signature as ``signature``."""
    return {**record, "signature": _signature(record)}


def is_ours(record: Mapping[str, Any]) -> bool:
    """Whether the record has the signature that this user gave it, so that it is neither damaged nor forged."""
    rest = {name: value for name, value in record.items() if name != "signature"}
    with contextlib.suppress(RecursionError):
        return hmac.compare_digest(str(record.get("signature")).encode(), _signature(rest).encode())
    return False


def _signature(record: Mapping[str, Any]) -> str:
    return hmac.digest(_key(), json.dumps(record, sort_keys=True, default=str).encode(), "sha256").hex()


@functools.cache
def _key() -> bytes:
    fresh = secrets.token_bytes(KEY_BYTES)
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: this user has no home
        folder = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not folder.is_absolute():  # the standard says to ignore it; it could be in a stranger's folder
            folder = Path("~/.cache").expanduser()
        path = folder / "jat" / "key"
        path.parent.mkdir(parents=True, exist_ok=True)
        if _read_key(path) is None:
            with replacing(path) as temporary:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as handle:
                    handle.write(fresh)
        return _read_key(path) or fresh
    return fresh


def _read_key(path: Path) -> bytes | None:
    """The key in a file; None if there is none, it is no whole key, or others can read it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not be waited for
        with os.fdopen(descriptor, "rb") as handle:
            info = os.fstat(descriptor)
            is_own = stat.S_ISREG(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077
            found = handle.read(KEY_BYTES + 1) if is_own else b""
        return found if len(found) == KEY_BYTES else None
    return None

"""Signs the cache of checked files with this user's key, so that a cache that came with a stranger's files is ignored.

The key is in ``~/.cache/jat/key`` (``XDG_CACHE_HOME`` moves it), readable by its owner alone. On another machine, or
for another user, signatures do not match and every file is read once more. Where there is no place for a key, each
process has its own, so nothing is cached between runs.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "jat" / "key"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(fresh)
        found = path.read_bytes()
        if len(found) == KEY_BYTES and not path.stat().st_mode & 0o077:
            return found
    return fresh

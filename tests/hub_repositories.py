"""What ``tests.hub_server`` keeps on disk."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.hub_connection import RefusalError

LARGE = (".parquet", ".png", ".gif", ".mp4", ".safetensors")
ATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE).encode()


class Repositories:
    """All repositories and blobs, on disk. A tree maps a path to ``{oid, size, sha256}``; sha256 if it is large."""

    def __init__(self, folder: Path) -> None:
        self.blobs = folder / "blobs"
        self.blobs.mkdir(parents=True, exist_ok=True)
        self._state = folder / "state.json"
        self.all: dict[str, Any] = json.loads(self._state.read_text()) if self._state.exists() else {}

    def save(self) -> None:
        temporary = self._state.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.all))
        temporary.replace(self._state)

    def keep(self, content: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        (self.blobs / oid).write_bytes(content)
        return {"oid": oid, "size": len(content), "sha256": None}

    def commit(self, repo: dict[str, Any], branch: str, tree: dict[str, Any], title: str) -> str:
        parent = repo["branches"].get(branch)
        sha = hashlib.sha1(json.dumps([parent, tree, title, time.time_ns()]).encode()).hexdigest()
        repo["commits"][sha] = {"parent": parent, "title": title, "tree": dict(sorted(tree.items()))}
        repo["branches"][branch] = sha
        self.save()
        return sha

    def create(self, key: str, private: bool) -> None:
        if key in self.all:
            raise RefusalError(409, "You already created this dataset repo")
        self.all[key] = {"private": private, "branches": {}, "tags": {}, "commits": {}}
        self.commit(self.all[key], "main", {".gitattributes": self.keep(ATTRIBUTES)}, "initial commit")

    @staticmethod
    def resolve(repo: dict[str, Any], revision: str) -> str:
        name = unquote(revision)
        sha = repo["branches"].get(name) or repo["tags"].get(name) or (name if name in repo["commits"] else None)
        if sha is None:
            raise RefusalError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return sha

"""A Hugging Face Hub on loopback: the HTTP protocol that the real ``huggingface_hub`` and ``datasets`` clients speak.

    python -m tests.hub_server --folder DIR --token SECRET=owner:write

Prints the URL of the Hub, for ``HF_ENDPOINT``. As with the real one, large files are not sent to the Hub but to a
storage on another host (here another port), by signed URLs that need no token: a token that arrives there is noted as
leaked. Repositories and blobs are kept below DIR, so a server that was killed goes on where it was.

``POST /_faults`` takes a list of ``Fault``s; ``GET /_log`` gives every request since the last ``DELETE /_log``.

What is spoken of the real protocol: who the caller is, creating repositories, branches and tags, their refs and trees
(in pages), asking how files go up, LFS batches (one part or several, verified), commits on a parent, downloads with
redirects, entity tags and ranges. The client of this version sends large files by the Xet protocol whenever ``hf_xet``
is installed, whatever the server says; with ``HF_HUB_DISABLE_XET=1`` by LFS. With ``--xet`` the server hands out the
address of a store in a folder (``local://``), which ``hf_xet`` implements itself: its real chunks and deduplication,
without the network.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.hub_connection import Connection, Fault, RefusalError, route
from tests.hub_repositories import LARGE, Repositories


class Server(ThreadingHTTPServer):
    """One of two ports, the Hub's or the storage's, of what is shared between them."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, shared: Shared, is_storage: bool) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.shared, self.is_storage = shared, is_storage

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that are killed in the middle are the point of this server


class Shared:
    """What the two ports have in common."""

    def __init__(self, folder: Path, tokens: dict[str, tuple[str, str]], options: argparse.Namespace) -> None:
        self.repositories = Repositories(folder)
        self.tokens, self.options = tokens, options
        self.lock = threading.RLock()
        self.faults: list[Fault] = []
        self.log: list[dict[str, Any]] = []
        self.parts: dict[tuple[str, int], bytes] = {}
        self.hub, self.storage = Server(self, False), Server(self, True)

    def next_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.match, request):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


class Handler(Connection):
    """The pages of the Hub and of its storage."""

    server: Server

    def _caller(self) -> tuple[str, str]:
        """Name and role of who asks."""
        words = self.headers.get("Authorization", "").split()
        if not words:
            return "", "none"
        with contextlib.suppress(KeyError):
            return self._shared.tokens[words[-1]]
        raise RefusalError(401, "Invalid credentials in Authorization header")

    def _repo(self, kind: str, name: str, write: bool = False) -> dict[str, Any]:
        user, role = self._caller()
        repo = self._shared.repositories.all.get(f"{kind}s/{name}")
        is_owner = name.split("/")[0] == user
        if repo is None or (repo["private"] and not is_owner):
            raise RefusalError(404 if user else 401, "Repository not found", "RepoNotFound")
        if write and not (is_owner and role == "write"):
            raise RefusalError(403, f"You don't have the rights to write to {name}")
        return repo

    @route("GET /api/whoami-v2")
    def whoami(self) -> None:
        user, role = self._caller()
        if not user:
            raise RefusalError(401, "Invalid username or password.")
        token = {"displayName": "test", "role": role}
        self._answer({"type": "user", "name": user, "orgs": [], "auth": {"accessToken": token}})

    @route("POST /api/repos/create")
    def create(self) -> None:
        asked = self._json()
        user, role = self._caller()
        owner = asked.get("organization") or user
        if owner != user or role != "write":
            raise RefusalError(403, f"You don't have the rights to create a {asked['type']} under {owner!r}")
        name, kind = f"{owner}/{asked['name']}", asked.get("type", "model")
        with self._shared.lock:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self._shared.repositories.create(f"{kind}s/{name}", private)
        self._answer({"url": f"{self._shared.hub.url}/{'datasets/' if kind == 'dataset' else ''}{name}"})

    @route("POST /api/validate-yaml")
    def validate_yaml(self) -> None:
        self._json()
        self._answer({"errors": [], "warnings": []})

    @route(r"GET /api/REPO(/revision/(?P<revision>[^/]+))?")
    def info(self, kind: str, name: str, revision: str | None) -> None:
        repo = self._repo(kind, name)
        sha = Repositories.resolve(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo["commits"][sha]["tree"]]
        about = {"_id": name, "id": name, "sha": sha, "private": repo["private"], "gated": False, "disabled": False}
        self._answer({**about, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    @route(r"GET /api/REPO/refs")
    def refs(self, kind: str, name: str) -> None:
        repo = self._repo(kind, name)

        def listed(where: str, prefix: str) -> list[dict[str, str]]:
            return [{"name": n, "ref": f"refs/{prefix}/{n}", "targetCommit": sha} for n, sha in repo[where].items()]

        self._answer({"branches": listed("branches", "heads"), "tags": listed("tags", "tags"), "converts": []})

    @route(r"POST /api/REPO/branch/(?P<branch>[^/]+)")
    def branch(self, kind: str, name: str, branch: str) -> None:
        asked, repo = self._json(), self._repo(kind, name, write=True)
        with self._shared.lock:
            if unquote(branch) in repo["branches"]:
                raise RefusalError(409, "Reference already exists")
            repo["branches"][unquote(branch)] = Repositories.resolve(repo, asked.get("startingPoint", "main"))
            self._shared.repositories.save()
        self._answer({})

    @route(r"POST /api/REPO/tag/(?P<revision>[^/]+)")
    def tag(self, kind: str, name: str, revision: str) -> None:
        asked, repo = self._json(), self._repo(kind, name, write=True)
        with self._shared.lock:
            if asked["tag"] in repo["tags"]:
                raise RefusalError(409, "Tag reference exists already")
            repo["tags"][asked["tag"]] = Repositories.resolve(repo, revision)
            self._shared.repositories.save()
        self._answer({})

    def _entries(self, tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
        folders = {str(parent) for path in tree for parent in Path(path).parents if str(parent) != "."}
        for folder in sorted(folders):
            yield {"type": "directory", "path": folder, "oid": hashlib.sha1(folder.encode()).hexdigest(), "size": 0}
        for path, blob in tree.items():
            entry = {"type": "file", "path": path, "oid": blob["oid"], "size": blob["size"]}
            if blob["sha256"]:
                entry["lfs"] = {"oid": blob["sha256"], "size": blob["size"], "pointerSize": 130}
            yield entry

    @route(r"GET /api/REPO/tree/(?P<revision>[^/]+)(/(?P<under>.+))?")
    def tree(self, kind: str, name: str, revision: str, under: str | None) -> None:
        repo = self._repo(kind, name)
        tree = repo["commits"][Repositories.resolve(repo, revision)]["tree"]
        folder = unquote(under or "")
        prefix = f"{folder}/" if folder else ""
        entries = [entry for entry in self._entries(tree) if entry["path"].startswith(prefix)]
        if folder and not entries:
            raise RefusalError(404, f"{folder} does not exist", "EntryNotFound")
        if self._query.get("recursive", "").lower() != "true":
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        first, size = int(self._query.get("cursor", 0)), self._shared.options.page_size
        headers = {}
        if first + size < len(entries):
            query = "&".join(f"{k}={v}" for k, v in {**self._query, "cursor": first + size}.items())
            headers["Link"] = f'<{self._shared.hub.url}{self._path}?{query}>; rel="next"'
        self._answer(entries[first : first + size], headers=headers)

    @route(r"POST /api/REPO/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, kind: str, name: str, revision: str) -> None:
        body, repo = self._read_body(), self._repo(kind, name)
        if "json" in self.headers.get("Content-Type", ""):
            paths = json.loads(body)["paths"]
        else:
            paths = parse_qs(body.decode())["paths"]
        tree = repo["commits"][Repositories.resolve(repo, revision)]["tree"]
        self._answer([entry for entry in self._entries(tree) if entry["path"] in paths])

    @route(r"POST /api/REPO/preupload/(?P<revision>[^/]+)")
    def preupload(self, kind: str, name: str, revision: str) -> None:
        asked, repo = self._json(), self._repo(kind, name, write=True)
        tree = repo["commits"][Repositories.resolve(repo, revision)]["tree"]
        ignored = []
        if ".gitignore" in tree:
            ignored = (self._shared.repositories.blobs / tree[".gitignore"]["oid"]).read_text().split()
        files = []
        for file in asked["files"]:
            blob = tree.get(file["path"])
            is_large = file["path"].endswith(LARGE) or file["size"] > 10_000_000
            known = {"oid": blob["sha256"] or blob["oid"]} if blob else {}
            mode = "lfs" if is_large else "regular"
            is_ignored = any(fnmatch(file["path"], pattern) for pattern in ignored)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": is_ignored, **known})
        self._answer({"files": files})

    @route(r"POST /((?P<kind>dataset|model)s/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch")
    def batch(self, kind: str | None, name: str) -> None:
        asked = self._json()
        self._repo(kind or "model", name, write=True)
        self._answer({"transfer": "multipart", "objects": [self._object(o, kind, name) for o in asked["objects"]]})

    def _object(self, asked: dict[str, Any], kind: str | None, name: str) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        blob = self._shared.repositories.blobs / oid
        if blob.exists() and blob.stat().st_size == size:
            return {"oid": oid, "size": size}
        signed = f"{self._shared.storage.url}/_storage/{oid}?X-Amz-Signature=signature-of-{oid[:8]}"
        verify = {"href": f"{self._shared.hub.url}/{kind or 'model'}s/{name}.git/info/lfs/verify", "header": {}}
        part_size = self._shared.options.part_size
        if size <= part_size:
            return {"oid": oid, "size": size, "actions": {"upload": {"href": signed}, "verify": verify}}
        count = -(-size // part_size)
        header = {str(i).zfill(5): f"{signed}&partNumber={i}" for i in range(1, count + 1)}
        href = f"{self._shared.storage.url}/_complete/{oid}?X-Amz-Signature=signature-of-{oid[:8]}"
        upload = {"href": href.replace("/_complete/", "/_storage/complete/"), "header": {"chunk_size": str(part_size)}}
        upload["header"].update(header)
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    @route(r"POST /(?P<kind>dataset|model)s/(?P<name>[^/]+/[^/]+)\.git/info/lfs/verify")
    def verify(self, kind: str, name: str) -> None:
        asked = self._json()
        self._repo(kind, name, write=True)
        blob = self._shared.repositories.blobs / asked["oid"]
        if not blob.exists() or blob.stat().st_size != asked["size"]:
            raise RefusalError(404, f"object {asked['oid']} is not there")
        self._answer({})

    @route(r"PUT /_storage/(?P<oid>[0-9a-f]{64})")
    def put(self, oid: str) -> None:
        self._check_signature(oid)
        number = self._query.get("partNumber")
        with tempfile.NamedTemporaryFile(dir=self._shared.repositories.blobs, delete=False) as handle:
            temporary = Path(handle.name)
            try:
                for block in self._blocks():
                    handle.write(block)
                handle.flush()
                if number is None:
                    self._keep(oid, temporary)
                else:
                    self._shared.parts[oid, int(number)] = temporary.read_bytes()
            finally:
                temporary.unlink(missing_ok=True)
        self._answer({}, headers={"ETag": f'"{oid[:16]}-{number or 0}"'})

    def _keep(self, oid: str, temporary: Path) -> None:
        if hashlib.sha256(temporary.read_bytes()).hexdigest() != oid:
            raise RefusalError(400, f"the content does not match the checksum {oid}")
        temporary.rename(self._shared.repositories.blobs / oid)

    def _check_signature(self, oid: str) -> None:
        if self._query.get("X-Amz-Signature") != f"signature-of-{oid[:8]}":
            raise RefusalError(403, "the signature of the URL is wrong")

    @route(r"POST /_storage/complete/(?P<oid>[0-9a-f]{64})")
    def complete(self, oid: str) -> None:
        self._check_signature(oid)
        numbers = [part["partNumber"] for part in self._json()["parts"]]
        with tempfile.NamedTemporaryFile(dir=self._shared.repositories.blobs, delete=False) as handle:
            for number in numbers:
                handle.write(self._shared.parts.pop((oid, number)))
            handle.flush()
            self._keep(oid, Path(handle.name))
        self._answer({})

    @route(r"POST /api/REPO/commit/(?P<revision>[^/]+)")
    def commit(self, kind: str, name: str, revision: str) -> None:
        lines = [json.loads(line) for line in self._read_body().splitlines() if line]
        repo, branch = self._repo(kind, name, write=True), unquote(revision)
        with self._shared.lock:
            if branch not in repo["branches"]:
                raise RefusalError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
            header, head = lines[0]["value"], repo["branches"][branch]
            if header.get("parentCommit") not in (None, head):
                raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(repo["commits"][head]["tree"])
            for line in lines[1:]:
                self._apply(line["key"], line["value"], tree)
            sha = self._shared.repositories.commit(repo, branch, tree, header["summary"])
        self._answer({"success": True, "commitOid": sha, "commitUrl": f"{self._shared.hub.url}/{name}/commit/{sha}"})

    def _apply(self, key: str, value: dict[str, Any], tree: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            tree[path] = self._shared.repositories.keep(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            blob = self._shared.repositories.blobs / value["oid"]
            if not blob.exists() and not self._shared.options.xet:
                raise RefusalError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            pointer = hashlib.sha1(f"pointer {value['oid']}".encode()).hexdigest()
            tree[path] = {"oid": pointer, "size": value["size"], "sha256": value["oid"]}
        elif key == "deletedFile":
            if tree.pop(path, None) is None:
                raise RefusalError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        else:
            raise RefusalError(400, f"unknown operation {key}")

    @route(r"GET /api/REPO/xet-write-token/(?P<revision>[^/]+)")
    def xet_token(self, kind: str, name: str, revision: str) -> None:
        self._repo(kind, name, write=True)
        if not self._shared.options.xet:
            raise RefusalError(404, "this server does not speak Xet", "EntryNotFound")
        store = self._shared.repositories.blobs.parent / "xet"
        about = {"casUrl": f"local://{store}", "exp": int(time.time()) + 3600, "accessToken": "xet-token"}
        headers = {
            "X-Xet-Cas-Url": about["casUrl"],
            "X-Xet-Token-Expiration": str(about["exp"]),
            "X-Xet-Access-Token": about["accessToken"],
        }
        self._answer(about, headers=headers)

    @route(r"(GET|HEAD) /((?P<kind>dataset|model)s/)?(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def download(self, kind: str | None, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind or "model", name)
        sha = Repositories.resolve(repo, revision)
        blob = repo["commits"][sha]["tree"].get(unquote(path))
        if blob is None:
            raise RefusalError(404, f"{unquote(path)} does not exist", "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if blob["sha256"] is None:
            self._content(blob["oid"], {**headers, "ETag": f'"{blob["oid"]}"'})
            return
        linked = {"X-Linked-Etag": f'"{blob["sha256"]}"', "X-Linked-Size": str(blob["size"])}
        signed = f"{self._shared.storage.url}/_storage/{blob['sha256']}?X-Amz-Signature=signature-of-"
        self._answer(b"", 302, {**headers, **linked, "Location": signed + quote(blob["sha256"][:8])})

    @route(r"(GET|HEAD) /_storage/(?P<oid>[0-9a-f]{64})")
    def get(self, oid: str) -> None:
        self._check_signature(oid)
        self._content(oid, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})

    def _content(self, oid: str, headers: dict[str, str]) -> None:
        content = (self._shared.repositories.blobs / oid).read_bytes()
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        headers["Content-Type"] = "application/octet-stream"
        if asked is None:
            self._answer(content, headers=headers)
            return
        first = int(asked[1]) if asked[1] else max(0, len(content) - int(asked[2]))
        last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
        if first >= len(content):
            raise RefusalError(416, "the range is past the end")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(content[first : last + 1], 206, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--token", action="append", default=[], help="SECRET=name:role, role read or write")
    parser.add_argument("--part-size", type=int, default=5_000_000, help="larger blobs come in parts of so many bytes")
    parser.add_argument("--page-size", type=int, default=1000, help="entries of a tree per answer")
    parser.add_argument("--xet", action="store_true")
    options = parser.parse_args()
    tokens = {}
    for text in options.token:
        secret, _, who = text.partition("=")
        name, _, role = who.partition(":")
        tokens[secret] = (name, role)
    shared = Shared(options.folder, tokens, options)
    threading.Thread(target=shared.storage.serve_forever, daemon=True).start()
    print(shared.hub.url, flush=True)  # noqa: T201
    shared.hub.serve_forever()


if __name__ == "__main__":
    main()

"""A Hub on loopback for tests, and how to run commands as somebody who has a token for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TOKEN = "hf_sentinel_of_owner_4b1d0c9e"
READER = "hf_sentinel_of_reader_77aa01"
STRANGER = "hf_sentinel_of_stranger_5e5e5e"


SECRETS = (TOKEN, READER, STRANGER, "X-Amz-Signature=signature")
UPLOAD = """
import sys
from huggingface_hub import HfApi
name, folder, where, private = sys.argv[1:]
api = HfApi()
if not api.repo_exists(name, repo_type="dataset"):
    api.create_repo(name, repo_type="dataset", private=private == "private")
api.upload_folder(repo_id=name, repo_type="dataset", folder_path=folder, path_in_repo=where)
"""


def client_environment(url: str, home: Path, token: str | None = None) -> dict[str, str]:
    """The environment of a client that finds the Hub at ``url`` and nothing else of the machine's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGING")) and not name.lower().endswith("_proxy")
    }
    settings = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    found = {**kept, **settings, "HF_ENDPOINT": url, "HF_HOME": str(home)}
    return {**found, "HF_TOKEN": token} if token else found


class LoopbackHub:
    """A server process and the questions that tests have for it."""

    def __init__(self, process: subprocess.Popen[str], url: str, folder: Path) -> None:
        self.process, self.url, self.folder = process, url, folder

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a command needs to find this Hub and nothing else of the machine's."""
        return client_environment(self.url, home, token)

    def run(self, words: Sequence[str], home: Path, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        """Run Python to its end as somebody who finds this Hub; no secret may be in what it says."""
        ran = subprocess.run(
            [sys.executable, *words],
            env=self.environment(home, token),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        said = ran.stdout + ran.stderr
        assert not [secret for secret in SECRETS if secret in said], said
        return ran

    def run_script(self, script: str, *arguments: str, home: Path, token: str | None = None) -> str:
        """Run Python code, which must not fail, and return what it prints."""
        ran = self.run(["-c", script, *arguments], home, token)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout.strip()

    def upload(self, name: str, folder: Path, home: Path, where: str = "", private: bool = False) -> None:
        """Put a folder into a dataset, which is made if it is not there."""
        words = (name, str(folder), where, "private" if private else "public")
        self.run_script(UPLOAD, *words, home=home, token=TOKEN)

    def fail(self, *faults: dict[str, Any]) -> None:
        self._control("POST", json.dumps(list(faults)).encode())

    def forget(self) -> None:
        self._control("DELETE")

    @property
    def log(self) -> list[dict[str, Any]]:
        return self._control("GET")["log"]

    def sent(self) -> list[str]:
        """Checksums of the blobs that were sent whole since ``forget``."""
        return [
            e["request"].rpartition("/")[2] for e in self.log if e["request"].startswith("PUT") and e["status"] == 200
        ]

    def bytes_sent(self) -> int:
        return sum(entry["received"] for entry in self.log if entry["request"].startswith("PUT"))

    def repository(self, name: str = "owner/jat", kind: str = "dataset") -> dict[str, Any]:
        return json.loads((self.folder / "state.json").read_text())[f"{kind}s/{name}"]

    def tree(self, revision: str = "main", name: str = "owner/jat") -> dict[str, Any]:
        """Files of a branch, tag or commit; without what every repository has from the start."""
        found = self.repository(name)
        sha = found["branches"].get(revision) or found["tags"].get(revision) or revision
        return {path: blob for path, blob in found["commits"][sha]["tree"].items() if path != ".gitattributes"}

    def content(self, path: str, revision: str = "main") -> bytes:
        blob = self.tree(revision)[path]
        return (self.folder / "blobs" / (blob["sha256"] or blob["oid"])).read_bytes()

    def _control(self, method: str, body: bytes | None = None) -> Any:
        path = "_log" if method != "POST" else "_faults"
        request = urllib.request.Request(f"{self.url}/{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read())


@contextmanager
def serve_hub(folder: Path, *arguments: str) -> Iterator[LoopbackHub]:
    """A Hub that knows an owner, a reader who may not write, and somebody else."""
    tokens = [f"--token={TOKEN}=owner:write", f"--token={READER}=owner:read", f"--token={STRANGER}=stranger:write"]
    words = [sys.executable, "-m", "tests.hub_server", "--folder", str(folder), *tokens, *arguments]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield LoopbackHub(process, process.stdout.readline().strip(), folder)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)

"""Atomic writes to a disk or an object store, and file locks that are released when their process ends.

On a disk: write to a temporary name in the same folder, then rename. In an object store (any URL that fsspec supports,
such as ``s3://bucket/run``): write a local file, then upload it in one call, which readers see completely or not at
all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import UserError, first_line
from pipeline.foreign import MIB, check_file
from pipeline.secrets import raise_for_credentials, redacted

CREDENTIALS_FIX = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the store wants"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # errors of writing to a full or read-only disk


MAX_JSON = 256 * MIB  # manifests of the largest datasets have a tenth of this size


def location(text: str) -> Path:
    """Parse a local path or the URL of an fsspec file system.

    A URL becomes a ``upath.UPath``, which supports the methods of ``Path`` that are used here.

    Raises:
        UserError: the scheme is unknown, its fsspec package is not installed, or the URL contains credentials.
    """
    if "://" not in text:
        return Path(text)
    if redacted(text) != text:
        raise_for_credentials(text)
    from upath import UPath

    try:
        path: Any = UPath(text)
        path.fs  # noqa: B018  created lazily; a missing package must fail here
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be used ({error}); install the package that speaks it, or name a folder") from (
            error
        )
    return path


def store_errors() -> tuple[type[Exception], ...]:
    """Exceptions of file access that are not faults of the program: ``OSError`` and those of the S3 client."""
    module = sys.modules.get("botocore.exceptions")  # it is imported if it has raised
    return (OSError, module.BotoCoreError) if module is not None else (OSError,)


def explain_store_error(error: Exception) -> tuple[str, int] | None:
    """Return the message and exit code for one of ``store_errors``; code 1 if a retry of the command may succeed.

    None if the error does not name its cause, so that the traceback is needed to find it.
    """
    name = type(error).__name__
    if "Credential" in name:
        return f"the object store has no credentials of yours ({error}); {CREDENTIALS_FIX}", 2
    if not isinstance(error, OSError):
        return f"the object store cannot be reached ({first_line(error)}); correct AWS_ENDPOINT_URL, or try again", 1
    if error.errno in NO_SPACE:
        where = f" for {error.filename}" if error.filename else ""
        return f"cannot write{where}: {error.strerror}; what was made stays: make room, run the same command again", 1
    if isinstance(error, PermissionError) and error.filename is None:
        return f"the object store gives no access ({first_line(error)}); {CREDENTIALS_FIX}", 2
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}; choose another path, or make this one usable", 2
    return None


def check_output_root(out: Path) -> None:
    """Check before any work that the output root is writable.

    Raises:
        UserError: it is not; the message names the cause and the fix.
    """
    if is_local(out):
        there = next(path for path in (out.absolute(), *out.absolute().parents) if _exists(path))
        if not there.is_dir():
            raise UserError(f"the output root {out} cannot be a folder: {there} is a file; choose another")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UserError(
                f"the output root {out} cannot be written: {there} is not writable; choose another, or allow it"
            )
        return
    remote: Any = out
    if "s3" not in remote.protocol:
        return
    bucket = remote.path.split("/", 1)[0]
    try:
        remote.fs.ls(bucket, refresh=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no bucket {bucket!r} for the output root {out}; create it, or correct it") from error
    except store_errors() as error:
        raise UserError((explain_store_error(error) or (f"{out}: {first_line(error)}", 2))[0]) from error


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # its parent is not accessible: check the parent instead
        return False


def is_local(path: Path) -> bool:
    """Whether a path returned by ``location`` is on the local file system."""
    return isinstance(path, Path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary local file to write. Without an exception it replaces ``path``, else it is removed."""
    if not is_local(path):
        remote: Any = path
        with tempfile.TemporaryDirectory() as directory:
            local = Path(directory, path.name)
            yield local
            remote.fs.put_file(str(local), remote.path)
            remote.fs.invalidate_cache(remote.parent.path)
        return
    with temporary_beside(path) as temporary:
        yield temporary
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path for a local file or folder; the caller renames it to ``path`` when complete.

    If it still exists at the end, it is removed. Leftovers of killed processes are removed only when this process first
    writes to the folder, as the scan takes longer the more files there are.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _swept:
        _swept.add(path.parent)
        remove_leftovers(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    _remove(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a local file to a second name, or copy it if the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def rename_unless_exists(temporary: Path, folder: Path) -> None:
    """Rename a complete local folder to ``folder``, unless another process has created the same one meanwhile."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


_swept: set[Path] = set()


def remove_leftovers(directory: Path) -> None:
    """Remove temporary files of ``temporary_beside`` that killed processes of this machine left in a local folder."""
    if not is_local(directory) or not directory.is_dir():
        return
    leftover = re.compile(rf"\..+\.{re.escape(socket.gethostname())}\.(\d+)\.tmp")
    for entry in os.scandir(directory):
        match = leftover.fullmatch(entry.name)
        if match and not process_exists(int(match[1])):
            _remove(Path(entry.path))


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def process_exists(process: int) -> bool:
    """Whether a process with this ID exists on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it belongs to another user
    return True


@contextlib.contextmanager
def exclusive(path: Path, fix: str, wait_s: float = 0.0) -> Iterator[None]:
    """Acquire the exclusive lock file ``path``; wait up to ``wait_s`` seconds for another process to release it.

    On a disk the kernel releases the lock when the process ends, however it ends. Object stores have no locks, so none
    is acquired: writers must produce the same bytes, so that concurrent runs duplicate work but do no harm.

    Raises:
        UserError: another process holds the lock, and ``fix`` tells the user what to do; or the folder is read-only.
    """
    if not is_local(path):
        yield
        return
    with _open_lock(path) as handle:
        deadline = time.monotonic() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise UserError(f"another process works on {path.parent}; {fix}") from error
            time.sleep(0.2)
        yield


def _open_lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise UserError(
            f"{path.parent} cannot be written ({error.strerror}); choose another --out, or allow it"
        ) from error


def sync_folder(folder: Path) -> None:
    """Flush all files of a local folder to disk (fsync), so that a power failure after a rename loses nothing."""
    for path in (*sorted(folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a dataclass, dict or list as JSON, atomically. Paths become strings; ``indent=None`` writes one line."""
    _write_text(path, _as_json(value, indent))


def update_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON as ``write_json`` does, unless the file already has the same content."""
    text = _as_json(value, indent)
    if not path.exists() or path.read_bytes() != text.encode():
        _write_text(path, text)


def _as_json(value: Any, indent: int | None) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, indent=indent, default=str) + "\n"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file. ``pipeline/records.py`` reads dataclasses from JSON and checks their types.

    Raises:
        UserError: it is not valid JSON (for a file of ``write_json`` this means damage), too deeply nested, or too
            large.
    """
    if is_local(path):
        check_file(path, MAX_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no JSON ({error}); delete it and run what writes it again") from error


def list_sizes(directory: Path) -> dict[str, tuple[int, str]]:
    """Return, by file name, the size in bytes and a stamp that changes with the content, for all files of a folder.

    Makes one listing call, however many files there are; empty if the folder does not exist.
    """
    if is_local(directory):
        try:
            with os.scandir(directory) as entries:
                stats = {entry.name: entry.stat() for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}
        return {name: (stat.st_size, str(stat.st_mtime_ns)) for name, stat in stats.items()}
    remote: Any = directory
    remote.fs.invalidate_cache(remote.path)
    try:
        files = remote.fs.ls(remote.path, detail=True)
    except FileNotFoundError:
        return {}
    return {file["name"].rsplit("/", 1)[-1]: (file["size"], stamp_of(file)) for file in files if file["type"] == "file"}


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return a stamp that changes with a stored file's content (ETag or time), from its fsspec ``ls`` or ``info``."""
    stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
    return str(stamp.timestamp() if isinstance(stamp, datetime.datetime) else stamp)


def list_folders(directory: Path) -> list[Path]:
    """List the folders in a folder, without hidden ones; empty if the folder does not exist."""
    if not is_local(directory):
        remote: Any = directory
        remote.fs.invalidate_cache(remote.path)
    try:
        return sorted(path for path in directory.iterdir() if path.name[0] != "." and path.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def sha256_of(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def digest_of(value: Any) -> str:
    """Return a short digest of any JSON-serialisable value; equal values give equal digests."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

"""Writing that is never seen half-done, on a disk or in an object store, and locks that end with their process.

On a disk: a temporary name beside the target, then a rename. In an object store (any URL that fsspec knows, such as
``s3://bucket/run``): a local file, then one upload, which readers see whole or not at all.
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
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.foreign import MIB, check_file
from pipeline.secrets import raise_for_credentials, redacted

CREDENTIALS_FIX = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the store wants"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # what writing raises on a disk that takes no more


MAX_JSON = 256 * MIB  # manifests of the largest datasets have a tenth of it


def location(text: str) -> Path:
    """A path of this machine, or of what the scheme of a URL names.

    What a URL gives is a ``upath.UPath``: it does what is used of ``Path`` here, on any fsspec file system.

    Raises:
        UserError: the scheme is unknown, the package that speaks it is not installed, or the URL holds credentials.
    """
    if "://" not in text:
        return Path(text)
    if redacted(text) != text:
        raise_for_credentials(text)
    from upath import UPath

    try:
        path: Any = UPath(text)
        path.fs  # noqa: B018  made on first use; a missing package must show now
    except (ImportError, ValueError) as error:
        raise UserError(f"{text} cannot be used ({error}); install the package that speaks it, or name a folder") from (
            error
        )
    return path


def store_errors() -> tuple[type[Exception], ...]:
    """What reading and writing raises where nothing is wrong with the program: OSError, and what S3's client adds."""
    module = sys.modules.get("botocore.exceptions")  # loaded if it has raised something
    return (OSError, module.BotoCoreError) if module is not None else (OSError,)


def explain_store_error(error: Exception) -> tuple[str, int] | None:
    """What to tell a user of one of ``store_errors``, and the exit code: 1 where the same command may work later.

    None if the error says too little of its cause, so that whoever looks for it needs the traceback.
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
    """Refuse an output root that cannot be written, before any work.

    Raises:
        UserError: names what is in the way and the fix.
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
    except PermissionError:  # so is its parent's content: that is what cannot be used
        return False


def is_local(path: Path) -> bool:
    """Whether a path of ``location`` is on this machine's file system."""
    return isinstance(path, Path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary local file to write; on leaving without an exception it becomes ``path``, else it is removed."""
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
    """A hidden name for a new version of a local file or folder, which the caller moves to ``path`` when complete.

    What is left under that name is removed at the end. What killed processes left in the folder is removed when this
    process first writes there: looking for it takes longer the more files there are.
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
    """Give a local file a second name, without a second copy of its content where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def rename_unless_exists(temporary: Path, folder: Path) -> None:
    """Move a complete local folder to its name, unless another process has put the same there meanwhile."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


_swept: set[Path] = set()


def remove_leftovers(directory: Path) -> None:
    """Remove from a local folder what ``temporary_beside`` of killed processes of this machine left there."""
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
    """Whether there is a process of this number on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's
    return True


@contextlib.contextmanager
def exclusive(path: Path, fix: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file ``path``, one process at a time; wait so many seconds for another process to end.

    On a disk the kernel ends the lock with its process, however that ends. An object store knows no locks, so there
    is none: what writes there must write the same bytes whoever does it, which costs double work but no harm.

    Raises:
        UserError: another process holds it; ``fix`` says what to do.
    """
    if not is_local(path):
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
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


def sync_folder(folder: Path) -> None:
    """Wait until all files of a local folder are on the disk, so that a power cut after a rename loses nothing."""
    for path in (*sorted(folder.rglob("*")), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write a dataclass, dict or list as JSON, atomically. Paths become strings; no indent means one line."""
    _write_text(path, _as_json(value, indent))


def update_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """``write_json`` unless the file says the same already."""
    text = _as_json(value, indent)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        _write_text(path, text)


def _as_json(value: Any, indent: int | None) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, indent=indent, default=str) + "\n"


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """What a JSON file says. ``pipeline/records.py`` reads those that hold a dataclass, and checks their types.

    Raises:
        UserError: it is no JSON, which a file of ``write_json`` is only after damage, nested without end, or too large.
    """
    if is_local(path):
        check_file(path, MAX_JSON)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: no JSON ({error}); delete it and run what writes it again") from error


def list_sizes(directory: Path) -> dict[str, tuple[int, str]]:
    """Size in bytes and a stamp that changes with the content, for every file of a folder, by name.

    One listing, however many files there are; empty if there is no such folder.
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
    """What changes with the content of a store's file, of what fsspec says about it, in a list or of one file."""
    stamp = info.get("ETag") or info.get("etag") or info.get("mtime") or info.get("created")
    return str(stamp.timestamp() if isinstance(stamp, datetime.datetime) else stamp)


def list_folders(directory: Path) -> list[Path]:
    """The folders in a folder, hidden ones left out; empty if there is no such folder."""
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
    """A short digest of anything JSON can say; equal values give equal digests."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]

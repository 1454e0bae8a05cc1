"""Publish to a folder or to any store that fsspec supports.

There are no commits here, so the order of writes keeps readers consistent: data first, then the card, then the
manifest; then obsolete files are deleted, and the list of checksums is written as the completion marker. File names
contain the number of files, so a larger dataset has new names, and a reader of the old manifest finds the old files
until the new manifest is written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import JobsFailedError, UserError
from pipeline.files import NO_SPACE, digest_of, is_local, replacing, stamp_of, store_errors
from pipeline.publishing.inventory import (
    CHECKSUMS,
    UNKNOWN,
    Item,
    Journal,
    Plan,
    compare,
    format_checksums,
    parse_checksums,
    sum_bytes,
    write_checksums,
)
from pipeline.runtime.progress import Progress
from pipeline.secrets import redacted

log = logging.getLogger(__name__)


class Place:
    """A destination: a folder, or a prefix of an object store.

    Args:
        path: location from ``pipeline.files.location``.
        records: local folder for the journal of uploaded files, from which a killed run resumes.

    Raises:
        UserError: the destination cannot be reached, or there is no read permission.
    """

    def __init__(self, path: Path, records: Path) -> None:
        self._path = path
        self._records = records
        self._journal = Journal(records / f"{digest_of(str(path))}.jsonl")
        with readable_errors(path):
            self._there = self._list()
            is_listed = CHECKSUMS in self._there
            self._list_text = (path / CHECKSUMS).read_text(encoding="utf-8") if is_listed else ""
        self._checksums = parse_checksums(self._list_text)

    def plan(self, items: Sequence[Item]) -> Plan:
        """Plan that makes ``items`` exactly the files published by this project at the destination.

        Raises:
            UserError: a foreign file would be overwritten, or there is not enough space.
        """
        items = [*items, write_checksums(items, self._records)]
        plan = compare(items, self._has, self._checksums.keys() & self._there.keys())
        foreign = [item.name for item in plan.upload if item.name in self._there and not self._is_ours(item.name)]
        if foreign:
            raise UserError(
                f"{self._path} holds files that were not published from here ({', '.join(foreign[:3])}); "
                f"name an empty place, or remove them"
            )
        self._check_room(plan.upload)
        return plan

    def apply(self, plan: Plan) -> None:
        """Execute the plan. It may be killed at any time and executed again.

        Raises:
            UserError: no write permission, or not enough space.
            JobsFailedError: the store failed; uploaded files are kept and skipped the next time.
        """
        with readable_errors(self._path):
            progress = Progress("files uploaded", len(plan.upload))
            self._invalidate_checksums([item for item in plan.upload if item.name in self._checksums])
            checksums = [item for item in plan.upload if item.name == CHECKSUMS]
            for item in plan.upload:
                if item.name != CHECKSUMS:
                    self._put(item)
                    progress.advance()
            for name in plan.delete:
                self._delete(name)
            for item in checksums:
                self._put(item)
                progress.advance()
        log.info("published in %s", self._path)

    def _has(self, item: Item) -> bool:
        if item.name == CHECKSUMS:
            return self._list_text == item.path.read_text(encoding="utf-8")
        if item.name not in self._there or self._there[item.name][0] != item.num_bytes:
            return False
        arrived = self._journal.get(item.name)
        if arrived is not None and arrived[0] == item.sha256:
            return bool(arrived[1] == self._there[item.name][1])
        return self._checksums.get(item.name) == item.sha256

    def _is_ours(self, name: str) -> bool:
        is_our_list = name == CHECKSUMS and bool(self._checksums)
        return is_our_list or name in self._checksums or self._journal.get(name) is not None

    def _invalidate_checksums(self, items: Sequence[Item]) -> None:
        """Mark files as stale in the list of checksums before overwriting them: another machine may resume the run."""
        if all(self._checksums[item.name] == UNKNOWN for item in items):
            return
        self._checksums |= {item.name: UNKNOWN for item in items}
        self._records.mkdir(parents=True, exist_ok=True)
        with replacing(self._path / CHECKSUMS) as temporary:
            temporary.write_text(format_checksums(self._checksums), encoding="utf-8")

    def _put(self, item: Item) -> None:
        item.check_unchanged()
        # Record it before the upload, so that the file is known as ours if this process is killed during the upload.
        self._journal.put(item.name, [item.sha256, None])
        path = self._path / item.name
        if is_local(path):
            with replacing(path) as temporary:
                shutil.copyfile(item.path, temporary)
            stamp = str(path.stat().st_mtime_ns)
        else:
            remote: Any = path
            remote.fs.put_file(str(item.path), remote.path)
            remote.fs.invalidate_cache(remote.parent.path)
            stamp = stamp_of(remote.fs.info(remote.path))
        item.check_unchanged()
        self._journal.put(item.name, [item.sha256, stamp])

    def _delete(self, name: str) -> None:
        path = self._path / name
        path.unlink(missing_ok=True)
        if is_local(path):
            for parent in path.relative_to(self._path).parents[:-1]:
                with contextlib.suppress(OSError):  # not empty
                    (self._path / parent).rmdir()

    def _list(self) -> dict[str, tuple[int, str]]:
        """For each file name: size, and a stamp that changes with the file's content."""
        if not is_local(self._path):
            remote: Any = self._path
            remote.fs.invalidate_cache()
            prefix = remote.path.rstrip("/") + "/"
            files = remote.fs.find(remote.path, detail=True)
            found = {n: info for n, info in files.items() if n.startswith(prefix)}  # not the folder itself
            return {n.removeprefix(prefix): (info["size"], stamp_of(info)) for n, info in found.items()}
        if self._path.exists() and not self._path.is_dir():
            raise UserError(f"{self._path} is a file; name a folder")
        found = {}
        for folder, _, names in os.walk(self._path):
            for name in names:
                stat = Path(folder, name).stat()
                found[Path(folder, name).relative_to(self._path).as_posix()] = (stat.st_size, str(stat.st_mtime_ns))
        return found

    def _check_room(self, upload: Sequence[Item]) -> None:
        if not is_local(self._path):
            return
        there = next(folder for folder in (self._path.absolute(), *self._path.absolute().parents) if folder.exists())
        free, needed = shutil.disk_usage(there).free, sum_bytes(upload)
        if needed > free:
            raise UserError(f"{self._path} has {free / 1e6:,.0f} MB free, {needed / 1e6:,.0f} MB are needed; make room")


@contextlib.contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Convert errors of stores to a one-line error with the fix. The stores' own clients have already retried."""
    try:
        yield
    except (UserError, JobsFailedError):
        raise
    except PermissionError as error:
        raise UserError(redacted(f"no right to read or write {path} ({error}); check the credentials")) from error
    except FileNotFoundError as error:
        raise UserError(redacted(f"{path} cannot be written ({error}); create the bucket or folder first")) from error
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(redacted(f"no room left in {path}; make room and run the same command again")) from error
        raise JobsFailedError(
            redacted(f"{path} failed ({error}); what arrived stays, run the same command again to go on")
        ) from error
    except store_errors() as error:
        if "Credential" in type(error).__name__:
            raise UserError(
                f"no credentials for {path}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what the store wants"
            ) from error
        raise JobsFailedError(
            redacted(f"{path} cannot be reached ({error}); run the same command again to go on")
        ) from error

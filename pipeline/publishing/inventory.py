"""Inventory of a finished directory, checked against its manifest, and its difference to a destination.

Every file is hashed once: checksums are cached in a journal by device, inode, size and modification time. Resuming
after a kill, or publishing again after a build (whose files are hard links), does not read gigabytes again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import is_local, sha256_of
from pipeline.foreign import leads_out
from pipeline.names import is_relative
from pipeline.runtime.progress import Progress
from pipeline.storage.manifest import FileEntry
from pipeline.text import format_count

# List of the published files, in the format of `sha256sum -c`. Files in the list of an earlier publication are ours:
# they are deleted once they have left the directory. All other files at the destination are never touched. Other
# tools write lists of the same name; ours starts with the comment below.
CHECKSUMS = "SHA256SUMS"
_MARK = "# Files published by jat-pipeline; to check them: sha256sum -c SHA256SUMS\n"
# Checksum in a list for a file that is being replaced, whose earlier checksum is no longer valid.
UNKNOWN = "0" * 64
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Item:
    """A file to publish: its name relative to the directory, with slashes, and its local path."""

    name: str
    path: Path
    num_bytes: int
    mtime_ns: int
    sha256: str

    def check_unchanged(self) -> None:
        """Raise UserError if the file has changed since it was hashed."""
        try:
            stat = self.path.stat()
        except FileNotFoundError as error:
            raise UserError(f"{self.path} vanished while it was published; run the same command again") from error
        if (stat.st_size, stat.st_mtime_ns) != (self.num_bytes, self.mtime_ns):
            raise UserError(f"{self.path} changed while it was published; run the same command again")


@dataclass(frozen=True)
class Plan:
    """The actions of publishing, in order: upload, then delete."""

    upload: tuple[Item, ...]
    same: tuple[Item, ...]
    delete: tuple[str, ...]

    @property
    def is_empty(self) -> bool:
        return not self.upload and not self.delete

    def __str__(self) -> str:
        up, same = sum_bytes(self.upload) / 1e6, sum_bytes(self.same) / 1e6
        return (
            f"{format_count(len(self.upload), 'file')} to upload ({up:,.1f} MB), "
            f"{len(self.same)} already there ({same:,.1f} MB), {len(self.delete)} to delete"
        )


def compare(items: Sequence[Item], is_there: Callable[[Item], bool], ours: Set[str]) -> Plan:
    """Plan that makes a destination hold ``items`` and removes the rest of ``ours``, our earlier published files."""
    found = [(item, is_there(item)) for item in items]
    upload = tuple(item for item, is_same in found if not is_same)
    same = tuple(item for item, is_same in found if is_same)
    return Plan(upload, same, tuple(sorted(ours - {item.name for item in items})))


def sum_bytes(items: Iterable[Item]) -> int:
    return sum(item.num_bytes for item in items)


class Journal:
    """Persistent key-value store of JSON lines; a later line with the same key replaces an earlier one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values = dict(self._read())

    def _read(self) -> Iterator[tuple[str, Any]]:
        if not self._path.exists():
            return
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                key, value = json.loads(line)
                hash(key)
            except (ValueError, TypeError, RecursionError):  # the process was killed while it wrote this line
                continue
            yield key, value

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        self._values[key] = value
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Write the line break first: a killed process may have left an incomplete last line.
        with self._path.open("a", encoding="utf-8") as handle:
            handle.write("\n" + json.dumps([key, value]))


def take_inventory(directory: Path, entries: Sequence[FileEntry], last: str, records: Path) -> list[Item]:
    """Hash and check all files below a directory, and return them in the order in which to publish them.

    Hidden files are skipped: they are left over from a killed process, or belong to a file manager.

    Args:
        directory: a local folder.
        entries: file entries of its manifest. If the manifest has one file of a top-level folder, it must have all
            files of it, because readers load whole folders.
        last: completion marker: the file whose existence means that the directory is complete.
        records: folder for the journal of checksums.

    Raises:
        UserError: the directory does not exist, is incomplete or damaged, or has files that are not in its manifest.
    """
    if not is_local(directory):
        raise UserError(f"{directory} is not on this machine; only a local folder can be published")
    if not (directory / last).is_file():
        there = "is incomplete" if directory.is_dir() else "does not exist"
        raise UserError(f"{directory} {there}: it has no {last}; make it first, or name another OUT")
    found = _list_files(directory)
    _check_names(directory, found, entries)
    expected = {entry.name: entry for entry in entries}
    journal = Journal(records / "hashes.jsonl")
    progress = Progress("files verified", len(found))
    items = []
    for name in sorted(found, key=lambda name: ("/" not in name, name == "README.md", name == last, name)):
        items.append(_item(directory, name, found[name], expected.get(name), journal))
        progress.advance()
    return items


def _list_files(directory: Path) -> dict[str, os.stat_result]:
    found = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            if name.startswith(".") or relative == CHECKSUMS:
                continue
            if not path.is_file():
                raise UserError(f"{path} is neither a file nor a folder; remove it")
            if leads_out(path, directory):
                raise UserError(f"{path} is a link that leads out of {directory}, which is not published; remove it")
            found[relative] = path.stat()
    return found


def _check_names(directory: Path, found: Mapping[str, os.stat_result], entries: Sequence[FileEntry]) -> None:
    for entry in entries:
        if entry.name not in found:
            raise UserError(f"{directory} is incomplete: {entry.name} is missing; make the directory again")
        size = found[entry.name].st_size
        if size != entry.num_bytes:
            raise UserError(
                f"{directory / entry.name} is damaged: {size} bytes, the manifest says {entry.num_bytes}; "
                f"make the directory again"
            )
    known = {entry.name for entry in entries}
    folders = {name.split("/")[0] for name in known if "/" in name}
    foreign = sorted(name for name in found if name not in known and "/" in name and name.split("/")[0] in folders)
    if foreign:
        raise UserError(f"{directory / foreign[0]} is not in the manifest; remove it, or make the directory again")


def _item(directory: Path, name: str, stat: os.stat_result, entry: FileEntry | None, journal: Journal) -> Item:
    path = directory / name
    key = f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    checksum = journal.get(key)
    if not isinstance(checksum, str) or not _SHA256.fullmatch(checksum):
        try:
            checksum = sha256_of(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
        journal.put(key, checksum)
    if entry is not None and checksum != entry.sha256:
        raise UserError(f"{path} is damaged: its checksum is not the manifest's; make the directory again")
    return Item(name, path, stat.st_size, stat.st_mtime_ns, checksum)


def format_checksums(checksums: Mapping[str, str]) -> str:
    """Format checksums by name as the text of ``CHECKSUMS``."""
    return _MARK + "".join(f"{checksum}  {name}\n" for name, checksum in sorted(checksums.items()))


def parse_checksums(text: str) -> dict[str, str]:
    """Parse checksums by name; empty if the list was not written by this project.

    Malformed lines, and names outside the folder of the list, are skipped.
    """
    found: dict[str, str] = {}
    if not text.startswith(_MARK):
        return found
    for line in text.splitlines():
        checksum, separator, name = line.partition("  ")
        if separator and len(checksum) == 64 and name and is_relative(name):
            found[name] = checksum
    return found


def write_checksums(items: Sequence[Item], records: Path) -> Item:
    """Write the checksums of ``items`` to the folder ``records``, and return that list as another file to publish."""
    path = records / CHECKSUMS
    text = format_checksums({item.name: item.sha256 for item in items})
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
    stat = path.stat()
    return Item(CHECKSUMS, path, stat.st_size, stat.st_mtime_ns, hashlib.sha256(text.encode()).hexdigest())

"""Local mirror of folders in an object store, for stages that need a disk.

Inputs are downloaded before the run. Outputs are uploaded in modification order, so completion markers arrive last. A
list per folder is then written, which names the files of a complete upload: after a killed upload, the next download
takes only the files of the last list and ignores partially uploaded additions. Unchanged files are skipped: a local
journal records the last known state of both sides, and the list records the content of the store.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.files import read_json, sha256_of, stamp_of, temporary_beside, write_json
from pipeline.publishing.inventory import Journal
from pipeline.publishing.publish_files import readable_errors

LISTS = ".lists"
TRANSFERS = 16  # parallel downloads: a store is limited by latency, not by bandwidth


class Mirror:
    """Files below ``remote`` and below ``local``, under the same names.

    Args:
        remote: location in an object store, from ``pipeline.files.location``.
        local: a folder that no other process uses.
        passing: folders that are never uploaded (regenerable caches).
    """

    def __init__(self, remote: Path, local: Path, passing: Iterable[str] = ()) -> None:
        self._remote: Any = remote
        self._local = local
        self._passing = tuple(passing)
        self._journal = Journal(local / ".journal.jsonl")

    def fetch(self, places: Iterable[str]) -> int:
        """Make local files and folders equal to those in the store, and return the number of downloaded files.

        Raises:
            UserError: no read permission, or no such bucket.
            JobsFailedError: the store failed.
        """
        moved = 0
        with readable_errors(self._remote):
            for place in places:
                there = self._there(place)
                listed = self._list_of(place)
                if listed is not None:
                    there = {name: stamp for name, stamp in there.items() if name in listed}
                for name in set(self._here(place)) - set(there):
                    (self._local / name).unlink()
                wanted = [name for name, stamp in there.items() if self._stamp_of(name) != stamp]
                with ThreadPoolExecutor(TRANSFERS) as pool:
                    for name in pool.map(self._get, wanted):
                        self._journal.put(name, [*self._state(name), there[name]])
                moved += len(wanted)
        return moved

    def send(self, places: Iterable[str]) -> int:
        """Make folders in the store equal to the local ones, and return the number of uploaded files.

        Files that were deleted locally are deleted in the store: no other process may write to these folders.

        Raises:
            UserError: no write permission.
            JobsFailedError: the store failed; uploaded files are kept.
            FileNotFoundError: a local file was moved during the upload; the list in the store is not yet updated.
        """
        return sum(self._send_own(place) for place in places)

    def add(self, places: Iterable[str]) -> int:
        """Upload new and changed files of folders that other processes also write; the number of uploaded files.

        Raises:
            The same errors as ``send``.
        """
        names = [name for place in places for name in self._by_age(place) if self._stamp_of(name) is None]
        with readable_errors(self._remote):
            for name in names:
                self._put(name)
        return len(names)

    def _send_own(self, place: str) -> int:
        here = self._by_age(place)
        if not here:
            return 0  # the folder does not exist yet, or is being renamed
        moved = 0
        with readable_errors(self._remote):
            there, before = self._there(place), self._list_of(place) or {}
            after: dict[str, list[str]] = {}
            for name in here:
                stamp = self._stamp_of(name)
                if stamp is not None and name in before:
                    after[name] = before[name]
                    continue
                digest = sha256_of(self._local / name)
                if stamp is None and before.get(name) == [there.get(name), digest]:
                    self._journal.put(name, [*self._state(name), there[name]])  # rewritten with the same content
                elif stamp is None:
                    self._put(name)
                    moved += 1
                after[name] = [str(self._stamp_of(name)), digest]
            if after != before:
                write_json(self._list_path(place), after)
            for name in set(there) - set(here):
                self._remote.fs.rm_file((self._remote / name).path)
        return moved

    def _here(self, place: str) -> Iterator[str]:
        """Names of local files, without hidden files and locks, which belong to running processes."""
        root = self._local / place
        if not root.is_dir():
            yield from [place] if root.exists() else []
            return

        def refuse(error: OSError) -> None:
            raise error

        for folder, folders, names in os.walk(root, onerror=refuse):
            inside = Path(folder).relative_to(self._local)
            kept = [name for name in folders if name[0] != "."]
            folders[:] = [name for name in kept if (inside / name).as_posix() not in self._passing]
            yield from ((inside / name).as_posix() for name in names if name[0] != "." and name != "lock")

    def _by_age(self, place: str) -> list[str]:
        return sorted(self._here(place), key=lambda name: (self._local / name).stat().st_mtime_ns)

    def _there(self, place: str) -> dict[str, str]:
        """For each file name in the store: a stamp that changes with the file's content."""
        fs, root = self._remote.fs, self._remote.path.rstrip("/") + "/"
        fs.invalidate_cache()
        found = fs.find(root + place, detail=True)
        names = {path.removeprefix(root): stamp_of(info) for path, info in found.items()}
        return {
            name: stamp for name, stamp in names.items() if not any(part[:1] in ("", ".") for part in name.split("/"))
        }

    def _list_of(self, place: str) -> dict[str, list[str]] | None:
        """Stamp and SHA-256 by name of the files of the last complete upload; None if there is no list."""
        path = self._list_path(place)
        return read_json(path) if path.exists() else None

    def _list_path(self, place: str) -> Path:
        path: Path = self._remote / LISTS / f"{place}.json"
        return path

    def _state(self, name: str) -> list[int]:
        stat = (self._local / name).stat()
        return [stat.st_size, stat.st_mtime_ns]

    def _stamp_of(self, name: str) -> str | None:
        """Stamp of the file in the store if the local file is known to be the same, else None."""
        known = self._journal.get(name)
        if known is None or not (self._local / name).exists() or known[:2] != self._state(name):
            return None
        return str(known[2])

    def _get(self, name: str) -> str:
        path = self._local / name
        with temporary_beside(path) as temporary:
            self._remote.fs.get_file((self._remote / name).path, str(temporary))
            temporary.replace(path)
        return name

    def _put(self, name: str) -> None:
        before = self._state(name)
        fs, path = self._remote.fs, (self._remote / name).path
        fs.put_file(str(self._local / name), path)
        fs.invalidate_cache((self._remote / name).parent.path)
        self._journal.put(name, [*before, stamp_of(fs.info(path))])

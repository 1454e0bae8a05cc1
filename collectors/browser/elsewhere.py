"""A dataset on the Hub or in an object store: each of its files is downloaded when a page first needs it.

Files are kept in a temporary folder, under their own names, and have the size and the checksum that the manifest says.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from collectors.documents.sources import list_hub
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import is_local, sha256_of
from pipeline.foreign import MIB
from pipeline.publishing.hub import HUB
from pipeline.publishing.hub import readable_errors as readable_hub_errors
from pipeline.publishing.publish_files import readable_errors as readable_store_errors
from pipeline.run_layout import DATASET, EVALUATION, FILMS
from pipeline.storage.manifest import DatasetManifest, FileEntry

REPOSITORY = re.compile(r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?", re.ASCII)
MAX_MANIFEST = 256 * MIB
MAX_PLAYED = 64 * MIB  # of the file of a task in an evaluation


@dataclass(frozen=True)
class Elsewhere:
    """A dataset that is not on this disk.

    Attributes:
        place: its name, as it was given.
        files, root: the file system, and the address of the dataset in it.
        folder: where its files are kept.
    """

    place: Path
    files: Any
    root: str
    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fetch(self, entry: FileEntry) -> Path:
        """Return the local copy of a file; it is downloaded unless it is there.

        Raises:
            UserError: it cannot be downloaded, or is not the one of the manifest.
        """
        with self._lock:  # two pages may want the same file
            local = self.folder / entry.name
            if not local.exists():
                self._download(entry.name, entry.num_bytes)
                if local.stat().st_size != entry.num_bytes or sha256_of(local) != entry.sha256:
                    local.unlink()
                    raise UserError(
                        f"{entry.name} of {self.place} is not the file of its manifest: it is damaged, or the dataset "
                        "is being published; try again later"
                    )
            return local

    def fetch_manifest(self) -> None:
        self._download(DatasetManifest.FILE_NAME, MAX_MANIFEST)

    def fetch_evaluations(self, run: str) -> None:
        """Download what was measured in the evaluations of a run; ``run`` is its address."""
        with readable(self.place):
            there = self.files.glob(f"{run}/{EVALUATION}/*.json") + self.files.glob(f"{run}/{EVALUATION}/*/*.json")
        for path in there:
            name = path.removeprefix(f"{run.rstrip('/')}/")
            if f"/{FILMS}/" not in name and ".." not in name:
                self._get(path, self.folder.parent / name, MAX_PLAYED)

    def _download(self, name: str, most: int) -> None:
        self._get(f"{self.root}/{name}", self.folder / name, most)

    def _get(self, remote: str, local: Path, most: int) -> None:
        with readable(self.place):
            size = self.files.size(remote) if self.files.exists(remote) else 0
            if size is not None and size > most:
                raise UserError(f"{remote} has {size:,} bytes, expected at most {most:,}")
            local.parent.mkdir(parents=True, exist_ok=True)
            partial = local.with_name(f"{local.name}.partial")
            try:
                self.files.get_file(remote, str(partial))
            except FileNotFoundError as error:
                raise UserError(f"{remote} is gone; the dataset has changed since this command was started") from error
            partial.replace(local)


def find_elsewhere(place: Path, folder: Path) -> Elsewhere | None:
    """Find a dataset on the Hub or in a store, and download its manifest; None if the place is on this disk.

    Args:
        place: ``hub:owner/name`` of the Hub, ``@revision`` allowed; or a URL, of a dataset or of a run with one, whose
            evaluations are then downloaded as well.
        folder: an empty folder for what is downloaded.

    Raises:
        UserError: there is no dataset, or it cannot be read.
    """
    if not is_local(place):
        return _of_store(place, folder)
    match = REPOSITORY.fullmatch(str(place))
    if match is None:
        return None
    return _of_hub(place, match["repository"], match["revision"], folder)


def _of_hub(place: Path, repository: str, revision: str | None, folder: Path) -> Elsewhere:
    import fsspec

    commit, names = list_hub(repository, revision)
    if DatasetManifest.FILE_NAME not in names:
        raise UserError(
            f"{place} has no {DatasetManifest.FILE_NAME}: it was not published by `jat publish`; bring it here with "
            f"`jat dataset import --source {place}`"
        )
    files, root = fsspec.core.url_to_fs(f"hf://datasets/{repository}@{commit}")
    found = Elsewhere(place, files, root, folder / "published")
    found.fetch_manifest()
    return found


def _of_store(place: Any, folder: Path) -> Elsewhere:
    run: str = place.path.rstrip("/")
    with readable(place):
        for root in (run, f"{run}/{DATASET}"):
            if place.fs.exists(f"{root}/{DatasetManifest.FILE_NAME}"):
                break
        else:
            raise UserError(f"{place} is no dataset and has none: no {DatasetManifest.FILE_NAME} is in it")
    is_run = root != run
    found = Elsewhere(place, place.fs, root, folder / (DATASET if is_run else "published"))
    found.fetch_manifest()
    if is_run:
        found.fetch_evaluations(run)
    return found


@contextmanager
def readable(place: Path) -> Iterator[None]:
    """Convert errors of the Hub or of a store to a one-line error."""
    if is_local(place):
        repository = str(place).removeprefix(HUB)
        context = readable_hub_errors(repository, None, "download the dataset and give its folder")
    else:
        context = readable_store_errors(place)
    try:
        with context:
            yield
    except JobsFailedError as error:  # the page can be asked for again
        raise UserError(str(error)) from error

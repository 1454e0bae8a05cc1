"""Find and stream the rows of a corpus from a repository on the Hub or from local files, with ``datasets``.

    hub:owner/name                       every data file of a dataset repository, at its current commit
    hub:owner/name@revision/folder       one folder of it, at a branch, tag or commit
    hub:owner/name/folder/*.parquet      the files that match a glob
    folder, file or glob                 local files

Data files are Parquet or JSON lines; JSON lines may be compressed (.gz, .zst, .bz2, .xz). A file belongs to the test
split if a part of its name below the source indicates it, as in ``validation-00000-of-00001.parquet``.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from collectors.json_lines import columns_of_lines, read_lines
from pipeline.errors import UserError, first_line
from pipeline.files import digest_of
from pipeline.foreign import leads_out
from pipeline.publishing.hub import HUB, HUB_TIMEOUT_S, readable_errors
from pipeline.seeds import SPLITS
from pipeline.storage.parquet_limits import check_limits

PARQUET = ".parquet"
JSON = (".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst", ".bz2", ".xz")
SUFFIXES = (PARQUET, *(suffix + compression for suffix in JSON for compression in COMPRESSIONS))
# Rows decoded at a time; a row group of images may be large.
BATCH_ROWS = 256
# The revision covers this many bytes at the end of each local file: for Parquet the footer with sizes and statistics.
TAIL_BYTES = 64 * 2**10

_HUB_SOURCE = re.compile(
    r"hub:(?P<repository>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?:/(?P<path>[^@]+))?", re.ASCII
)
_TEST = re.compile(r"(?:^|[/._-])(?:test|validation|valid|val|dev)(?:\d|[/._-])", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class DocumentSource:
    """The files of a source.

    Attributes:
        text: the source as given by the user.
        revision: identifies the content: a commit, or a digest of local names, sizes and file ends.
        files: by split, addresses that ``datasets`` can open, in reading order. Without test files the training
            files serve both splits.
    """

    text: str
    revision: str
    files: dict[str, tuple[str, ...]]


def resolve_source(text: str, known_revision: str | None = None) -> DocumentSource:
    """Find the files of a source.

    Args:
        text: one of the forms in the module's docstring.
        known_revision: the commit of an earlier run, used if the source names no revision.

    Raises:
        UserError: the source cannot be reached, does not exist, or has no data files.
    """
    if text.startswith(HUB):
        return _resolve_hub(text, known_revision)
    return _resolve_local(text)


def _resolve_local(text: str) -> DocumentSource:
    path = Path(text).expanduser()
    if _GLOB.search(text) and not path.exists():
        parts = path.absolute().parts
        fixed = next(i for i, part in enumerate(parts) if _GLOB.search(part))
        base = Path(*parts[:fixed])
        found = sorted(base.glob(str(Path(*parts[fixed:]))))
    elif path.is_dir():
        base = path.absolute()
        found = sorted(base.rglob("*"))
    elif path.is_file():
        base, found = path.absolute().parent, [path.absolute()]
    else:
        raise UserError(f"there is no file or folder {text}; give one, or hub:owner/name of a dataset on the Hub")
    inside = [file for file in found if file.is_file() and (file == path.absolute() or not leads_out(file, base))]
    files = [str(file.relative_to(base)) for file in inside]
    names = _data_files(text, [name for name in files if not any(part.startswith(".") for part in Path(name).parts)])
    revision = digest_of([(name, (base / name).stat().st_size, tail_digest(base / name)) for name in names])
    return DocumentSource(text, revision, _by_split(names, lambda name: str(base / name)))


def tail_digest(path: Path) -> str:
    """A digest of the last ``TAIL_BYTES`` bytes of a local file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        return hashlib.sha256(file.read()).hexdigest()


def _resolve_hub(text: str, known_revision: str | None) -> DocumentSource:
    match = _HUB_SOURCE.fullmatch(text)
    if not match:
        raise UserError(f"{text!r} names no dataset; expected hub:owner/name, perhaps with @revision, then /folder")
    repository, path = match["repository"], (match["path"] or "").strip("/")
    commit, names = list_hub(repository, match["revision"] or known_revision)
    if _GLOB.search(path):
        names = [name for name in names if fnmatch.fnmatchcase(name, path)]
    elif path:
        names = [name for name in names if name == path or name.startswith(path + "/")]
    base = re.match(r"(?:[^*?\[/]+/)*", path + "/" if path and not _GLOB.search(path) else path)
    prefix = base[0] if base else ""
    shown = [name.removeprefix(prefix) for name in _data_files(text, names)]
    return DocumentSource(
        text, commit, _by_split(shown, lambda name: f"hf://datasets/{repository}@{commit}/{prefix}{name}")
    )


def list_hub(repository: str, revision: str | None) -> tuple[str, list[str]]:
    """Commit and file names of a dataset repository.

    Raises:
        UserError: it cannot be reached, or there is no such repository or revision.
    """
    from huggingface_hub import HfApi

    with readable_errors(repository, revision, "give local files with --source"):
        info = HfApi().dataset_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
    return str(info.sha), sorted(sibling.rfilename for sibling in info.siblings or ())


def _data_files(text: str, names: Sequence[str]) -> list[str]:
    files = sorted(name for name in names if name.endswith(SUFFIXES))
    if not files:
        raise UserError(
            f"{text} has no data files among {len(names)}; expected Parquet or JSON lines ({', '.join(SUFFIXES)})"
        )
    return files


def _by_split(names: Sequence[str], address: Callable[[str], str]) -> dict[str, tuple[str, ...]]:
    train, test = SPLITS
    tests = [name for name in names if _TEST.search(name)]
    # If every file is a test file, as in a benchmark, the files serve both splits.
    if len(tests) == len(names):
        tests = []
    rest = [name for name in names if name not in set(tests)]
    files = {train: tuple(map(address, rest)), test: tuple(map(address, tests))}
    return {split: found for split, found in files.items() if found}


def columns_of(file: str) -> list[str]:
    """Names of the columns of a data file.

    Raises:
        UserError: it cannot be read.
    """
    if not file.endswith(PARQUET):
        return columns_of_lines(file)
    try:
        features = _open(file, None).features
        if features is None:  # ``datasets`` infers them from the first rows
            features = _open(file, None)._resolve_features().features
    except Exception as error:  # the exceptions of `datasets` depend on the format
        raise UserError(f"{file} cannot be read ({str(error).partition(chr(10))[0]})") from error
    return list(features)


def _open(file: str, columns: Sequence[str] | None) -> Any:
    """A streaming dataset of one Parquet file within the size limits; images are not decoded."""
    from datasets import load_dataset

    _metadata_of(file)
    options = {"columns": list(columns) if columns else None, "batch_size": BATCH_ROWS}
    dataset = load_dataset("parquet", data_files=[file], split="train", streaming=True, **options)
    return dataset.decode(False)


class SourceReader:
    """Rows of a source from a given position; ``next_file`` and ``next_row`` are the position of the next row.

    Args:
        files: of one split of a ``DocumentSource``.
        columns: the needed columns; no others are read from Parquet.
        next_file: index of the first file to read.
        next_row: index of the first row to read in it. Earlier row groups of Parquet are skipped; earlier JSON lines
            of this file are read and dropped.
    """

    def __init__(self, files: Sequence[str], columns: Sequence[str], next_file: int = 0, next_row: int = 0) -> None:
        self.next_file, self.next_row = next_file, next_row
        self._files, self._columns = files, columns
        self._rows = self._read()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._rows

    def _read(self) -> Iterator[dict[str, Any]]:
        while self.next_file < len(self._files):
            for row in _read_file(self._files[self.next_file], self._columns, self.next_row):
                self.next_row += 1
                yield row
            self.next_file, self.next_row = self.next_file + 1, 0


def _read_file(file: str, columns: Sequence[str], skip: int) -> Iterator[dict[str, Any]]:
    if not file.endswith(PARQUET):
        yield from islice(read_lines(file, columns), skip, None)
        return
    dataset = _open(file, columns)
    if not skip:
        yield from dataset
        return
    first, num_groups, skip = _group_of_row(file, skip)
    groups = dataset.reshard()
    for number in range(first, num_groups):
        yield from islice(iter(groups.shard(num_groups, number)), skip, None)
        skip = 0


def _group_of_row(file: str, row: int) -> tuple[int, int, int]:
    """Index of the row group that holds ``row``, number of row groups, and number of rows before it in its group."""
    metadata = _metadata_of(file)
    for number in range(metadata.num_row_groups):
        num_rows = metadata.row_group(number).num_rows
        if row < num_rows:
            return number, metadata.num_row_groups, row
        row -= num_rows
    return metadata.num_row_groups, metadata.num_row_groups, 0


def _metadata_of(file: str) -> Any:
    """The footer of a Parquet file.

    Raises:
        UserError: it cannot be read, or exceeds the limits.
    """
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq
    from huggingface_hub.errors import HTTPError

    try:
        with fsspec.open(file, "rb") as handle:
            metadata = pq.read_metadata(handle)
        check_limits(metadata)
    except (OSError, pa.ArrowException, HTTPError) as error:
        raise UserError(f"{file} cannot be read ({first_line(error)})") from error
    return metadata

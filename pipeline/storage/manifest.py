"""Typed manifests: what a finished file or directory says about itself. A manifest is written last, so its
existence means "complete".

A manifest may be damaged or a stranger's. Types and names are checked where it is read: what it names lies in its own
folder, and no name in it can become a path, a table or a page that is not meant. What it counts is checked by
``pipeline/storage/validate.py``, which counts again.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.records import RecordError, record_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_NAME, MAX_TEXT = 200, 2000  # characters


@dataclass(frozen=True)
class FileEntry:
    """A file by its name (relative to its manifest), size in bytes and SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """Sidecar of one shard: which seeds it covers, who acted, with what, and what came of it.

    An imported shard has no seeds: ``first_seed`` and ``num_seeds`` number the rows of its source instead, from the
    first seed of the split on, so that both kinds are planned, named and resumed alike.

    Attributes:
        rejected: episodes by reason.
        noise: added to actions, as ``--noise`` spells it; shards older than this field have none.
        source: where an imported shard comes from, with its commit or digest after an @; None if it was collected.
        environment: id of the environment that an imported shard was played in; None if it was collected.
        num_flagged: episodes that the side table flags.
    """

    task: str
    split: str
    first_seed: int
    num_seeds: int
    expert: str
    expert_revision: str
    versions: dict[str, str]
    num_episodes: int
    num_steps: int
    rejected: dict[str, int]
    num_successes: int | None
    return_sum: float
    data: FileEntry
    episodes: FileEntry
    noise: str | None = None
    source: str | None = None
    environment: str | None = None
    num_flagged: int = 0

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return shard_stem(self.split, self.first_seed, self.num_seeds)

    @staticmethod
    def load(path: Path) -> ShardManifest:
        """Raises UserError if the file is not the manifest of a shard."""
        try:
            return ShardManifest.from_json(read_json(path), path.name)
        except RecordError as error:
            raise UserError(
                f"{path} is not the manifest of a shard ({error}); delete it and run `jat collect` again"
            ) from error

    @staticmethod
    def from_json(raw: Any, file_name: str) -> ShardManifest:
        """The manifest that a sidecar of that name holds.

        Raises:
            RecordError: it is none, or names other files than those beside it.
        """
        manifest = record_of(raw, ShardManifest)
        _check_beside(file_name, data=manifest.data, episodes=manifest.episodes)
        check_name("task", manifest.task)
        texts = (manifest.expert, manifest.expert_revision, manifest.noise, manifest.source, manifest.environment)
        _check_texts(texts, manifest.versions, manifest.versions.values())
        return manifest


@dataclass(frozen=True)
class DocumentShard:
    """Sidecar of one shard of a corpus: which rows of the source it covers, and what came of those of its split.

    Attributes:
        source: where the rows come from, as ``--source`` spells it.
        revision: of the source: a commit of the Hub, or a digest of local files.
        first_row: number of the first row of the source that was looked at.
        count: how many were wanted; the source ended if ``num_rows`` is less.
        num_rows: how many were read, those of the other split included.
        next_file: number of the source's file in which the next row stands, and
        next_row: its number there, from which the next shard goes on.
        options: what else decides what a document looks like.
    """

    corpus: str
    split: str
    source: str
    revision: str
    first_row: int
    count: int
    num_rows: int
    next_file: int
    next_row: int
    options: dict[str, str]
    versions: dict[str, str]
    num_documents: int
    num_characters: int
    num_images: int
    rejected: dict[str, int]  # documents by reason
    data: FileEntry
    documents: FileEntry

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return shard_stem(self.split, self.first_row, self.count)

    @staticmethod
    def load(path: Path) -> DocumentShard:
        """Raises UserError if the file is not the manifest of a shard of documents."""
        try:
            shard = record_of(read_json(path), DocumentShard)
            _check_beside(path.name, data=shard.data, documents=shard.documents)
            check_name("corpus", shard.corpus)
            for texts in (shard.options, shard.versions):
                _check_texts((shard.source, shard.revision), texts, texts.values())
            return shard
        except RecordError as error:
            raise UserError(
                f"{path} is not the manifest of a shard of documents ({error}); delete it and run `jat corpora` again"
            ) from error


def shard_stem(split: str, first_seed: int, num_seeds: int) -> str:
    """Name of a shard's files without suffix, e.g. ``train-0000000250-000250``; in the order of the seeds."""
    return f"{split}-{first_seed:010d}-{num_seeds:06d}"


@dataclass(frozen=True)
class SplitManifest:
    """Totals and files of one split of one task; paths are relative to the dataset directory."""

    num_episodes: int
    num_steps: int
    num_rejected: int
    num_successes: int | None
    mean_return: float
    data: tuple[FileEntry, ...]
    episodes: tuple[FileEntry, ...]


@dataclass(frozen=True)
class TaskManifest:
    """One task of a dataset.

    Attributes:
        expert, expert_revision, versions: of the episodes that were collected, if any were.
        imported: by source, the environments of the episodes that come from it and their number.
    """

    expert: str
    expert_revision: str
    versions: dict[str, str]
    splits: dict[str, SplitManifest]
    imported: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class CorpusSplit:
    """Totals and files of one split of one corpus; paths are relative to the dataset directory."""

    num_documents: int
    num_characters: int
    num_images: int
    rejected: dict[str, int]  # documents by reason
    data: tuple[FileEntry, ...]
    documents: tuple[FileEntry, ...]

    @property
    def num_rejected(self) -> int:
        return sum(self.rejected.values())


@dataclass(frozen=True)
class CorpusManifest:
    """One corpus of a dataset: where its documents come from, and its splits."""

    source: str
    revision: str
    options: dict[str, str]
    versions: dict[str, str]
    splits: dict[str, CorpusSplit]


@dataclass(frozen=True)
class DatasetManifest:
    """A dataset directory. ``digest`` covers the content of every shard, so equal digests mean equal data.

    ``descriptions`` are the files beside the data: statistics, and the pictures of the card. Not the card itself, which
    people may edit before they publish it. ``missing`` are the episodes that were planned and not collected when it was
    built, by task and split, those of tasks among them that the dataset has nothing of.
    """

    digest: str
    tasks: dict[str, TaskManifest]
    corpora: dict[str, CorpusManifest] = field(default_factory=dict)  # of datasets older than them: none
    descriptions: tuple[FileEntry, ...] = ()
    missing: dict[str, dict[str, int]] = field(default_factory=dict)

    FILE_NAME = "manifest.json"

    @staticmethod
    def find(dataset: Path) -> DatasetManifest | None:
        """The manifest in a dataset directory; None if there is no dataset. Raises as ``load``."""
        path = dataset / DatasetManifest.FILE_NAME
        return DatasetManifest.load(path) if path.exists() else None

    @staticmethod
    def load(path: Path) -> DatasetManifest:
        """Raises UserError if the file is not the manifest of a dataset."""
        try:
            manifest = record_of(read_json(path), DatasetManifest)
            manifest._check_names()
        except RecordError as error:
            raise UserError(f"{path} is not the manifest of a dataset ({error}); build the dataset again") from error
        return manifest

    def _check_names(self) -> None:
        for name, task in self.tasks.items():
            check_name("task", name)
            _check_texts((task.expert, task.expert_revision), task.versions, task.versions.values())
            _check_texts(task.imported, *task.imported.values())
        for name, corpus in self.corpora.items():
            check_name("corpus", name)
            for texts in (corpus.options, corpus.versions):
                _check_texts((corpus.source, corpus.revision), texts, texts.values())
        names_of_tasks = (name for task in self.tasks.values() for name in task.splits)
        names_of_corpora = (name for corpus in self.corpora.values() for name in corpus.splits)
        names_of_missing = (name for counts in self.missing.values() for name in counts)
        for split in itertools.chain(names_of_tasks, names_of_corpora, names_of_missing):
            check_name("split", split)
        for name in self.missing:
            check_name("task", name)
        for entry in self.files:
            check_relative("file", entry.name)

    @property
    def files(self) -> list[FileEntry]:
        """Every data file and side table of the dataset, and what describes them."""
        of_tasks = [split for task in self.tasks.values() for split in task.splits.values()]
        of_corpora = [split for corpus in self.corpora.values() for split in corpus.splits.values()]
        return [
            *(entry for split in of_tasks for entry in split.data + split.episodes),
            *(entry for split in of_corpora for entry in split.data + split.documents),
            *self.descriptions,
        ]


def collected_by(out: Path) -> dict[str, str]:
    """Revision of the expert, or mix of experts, of each task of a run's dataset; none if there is no dataset."""
    dataset = DatasetManifest.find(out / "dataset")
    return {name: task.expert_revision for name, task in dataset.tasks.items()} if dataset else {}


def check_name(what: str, name: str) -> None:
    """Refuse what is no plain name: letters, digits and ``._+-``.

    Raises:
        RecordError: names it.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise RecordError(f"{what} {name[:MAX_NAME]!r} is no name of letters, digits and ._+-")


def check_relative(what: str, name: str) -> None:
    """Refuse what is no path within a folder: absolute, upwards, or with characters that mean more than themselves.

    Raises:
        RecordError: names it.
    """
    if not is_relative(name):
        raise RecordError(f"{what} {name[:MAX_NAME]!r} is no path within its folder")


def is_relative(name: str) -> bool:
    """Whether a name is a path within a folder, and one on every system."""
    path = PurePosixPath(name)
    is_within = not path.is_absolute() and ".." not in path.parts and str(path) == name
    return is_within and "\\" not in name and name.isprintable() and len(name) <= MAX_TEXT


def _check_beside(file_name: str, **entries: FileEntry) -> None:
    """Refuse a sidecar that names other files than those beside it, which are named as it is."""
    stem = file_name.removesuffix(".json")
    for kind, entry in entries.items():
        expected = f"{stem}.parquet" if kind == "data" else f"{stem}.{kind}.parquet"
        if entry.name != expected:
            raise RecordError(f"{kind}.name is {entry.name[:MAX_NAME]!r}, expected {expected}")


def is_one_line(text: str) -> bool:
    """Whether a text is one line without control characters, and not too long to show."""
    is_control = (unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text)
    return len(text) <= MAX_TEXT and not any(is_control)


def _check_texts(*groups: Iterable[str | None]) -> None:
    """Refuse texts that are not one line."""
    for text in itertools.chain.from_iterable(groups):
        if text is not None and not is_one_line(text):
            raise RecordError(f"{text[:MAX_NAME]!r} is not one line of text")

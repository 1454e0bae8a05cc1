"""Typed manifests that describe finished shards and datasets.

A manifest is written last, so its existence means that the shard or dataset is complete. A manifest may be damaged or
untrusted. Types and names are therefore checked when it is read: every file it names is in its own folder, and no name
can inject a path, a table or markup. ``pipeline/storage/validate.py`` recomputes its counts.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.names import MAX_NAME, check_name, check_relative, check_texts
from pipeline.records import RecordError, record_of
from pipeline.run_layout import MANIFEST, RunLayout


@dataclass(frozen=True)
class FileEntry:
    """Name of a file (relative to its manifest), size in bytes and SHA-256."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """Sidecar of one shard of episodes: seeds, provenance, package versions and totals.

    An imported shard has no seeds: ``first_seed`` and ``num_seeds`` number the rows of its source instead, starting at
    the first seed of the split, so that both kinds are planned, named and resumed in the same way.

    Attributes:
        rejected: number of rejected episodes by reason.
        noise: noise added to the actions, in the syntax of ``--noise``; None in shards older than this field.
        source: source of an imported shard, followed by @ and its commit or digest; None if it was collected.
        environment: id of the environment of an imported shard; None if it was collected.
        num_flagged: number of episodes that the side table flags.
        labels: revision of the expert (or mix) that labelled every step; None for no labels.
        num_labelled: number of steps with a label.
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
    labels: str | None = None
    num_labelled: int = 0

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
        """Parse and check the content of the sidecar ``file_name``.

        Raises:
            RecordError: it is not a shard manifest, or its file names do not match ``file_name``.
        """
        manifest = record_of(raw, ShardManifest)
        _check_beside(file_name, data=manifest.data, episodes=manifest.episodes)
        check_name("task", manifest.task)
        texts = (manifest.expert, manifest.expert_revision, manifest.noise, manifest.source, manifest.environment)
        check_texts((*texts, manifest.labels), manifest.versions, manifest.versions.values())
        return manifest


@dataclass(frozen=True)
class DocumentShard:
    """Sidecar of one shard of a corpus: rows of the source, provenance and totals of the documents of its split.

    Attributes:
        source: source of the rows, in the syntax of ``--source``.
        revision: revision of the source: a commit on the Hub, or a digest of local files.
        first_row: index of the first row read from the source.
        count: number of rows requested; the source ended if ``num_rows`` is less.
        num_rows: number of rows read, including those of the other split.
        next_file: index of the source's file that contains the next row.
        next_row: index of the next row in that file; the next shard resumes there.
        options: other settings that determine the content of a document.
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
                check_texts((shard.source, shard.revision), texts, texts.values())
            return shard
        except RecordError as error:
            raise UserError(
                f"{path} is not the manifest of a shard of documents ({error}); delete it and run `jat corpora` again"
            ) from error


def shard_stem(split: str, first_seed: int, num_seeds: int) -> str:
    """File name of a shard without suffix, e.g. ``train-0000000250-000250``; sorted names are in the order of seeds."""
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
        expert, expert_revision, versions: provenance of the collected episodes, if there are any.
        imported: for each source, the number of imported episodes by environment.
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
    """One corpus of a dataset: source of its documents, and its splits."""

    source: str
    revision: str
    options: dict[str, str]
    versions: dict[str, str]
    splits: dict[str, CorpusSplit]


@dataclass(frozen=True)
class DatasetManifest:
    """Manifest of a dataset directory.

    ``digest`` covers the content of every shard, so equal digests mean equal data. ``descriptions`` lists the
    statistics and the images of the dataset card, but not the card itself, which users may edit before they publish it.
    ``missing`` is the number of episodes that were planned but not collected at build time, by task and split,
    including tasks of which the dataset has no episodes. ``edits`` says in one line a step how a dataset was made from
    others; empty if it was built from shards.
    """

    digest: str
    tasks: dict[str, TaskManifest]
    corpora: dict[str, CorpusManifest] = field(default_factory=dict)  # empty in datasets older than this field
    descriptions: tuple[FileEntry, ...] = ()
    missing: dict[str, dict[str, int]] = field(default_factory=dict)
    edits: tuple[str, ...] = ()

    FILE_NAME = MANIFEST

    @staticmethod
    def find(dataset: Path) -> DatasetManifest | None:
        """The manifest in a dataset directory; None if there is no dataset. Raises the same errors as ``load``."""
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
        check_texts(self.edits)
        for name, task in self.tasks.items():
            check_name("task", name)
            check_texts((task.expert, task.expert_revision), task.versions, task.versions.values())
            check_texts(task.imported, *task.imported.values())
        for name, corpus in self.corpora.items():
            check_name("corpus", name)
            for texts in (corpus.options, corpus.versions):
                check_texts((corpus.source, corpus.revision), texts, texts.values())
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
        """All data files, side tables and descriptions of the dataset."""
        of_tasks = [split for task in self.tasks.values() for split in task.splits.values()]
        of_corpora = [split for corpus in self.corpora.values() for split in corpus.splits.values()]
        return [
            *(entry for split in of_tasks for entry in split.data + split.episodes),
            *(entry for split in of_corpora for entry in split.data + split.documents),
            *self.descriptions,
        ]


def collected_by(out: Path) -> dict[str, str]:
    """Expert revision (of one expert or a mix) of each task of a run's dataset; empty if there is no dataset."""
    dataset = DatasetManifest.find(RunLayout(out).dataset)
    return {name: task.expert_revision for name, task in dataset.tasks.items()} if dataset else {}


def _check_beside(file_name: str, **entries: FileEntry) -> None:
    """Check that a sidecar names the files of its own shard, which have the same stem."""
    stem = file_name.removesuffix(".json")
    for kind, entry in entries.items():
        expected = f"{stem}.parquet" if kind == "data" else f"{stem}.{kind}.parquet"
        if entry.name != expected:
            raise RecordError(f"{kind}.name is {entry.name[:MAX_NAME]!r}, expected {expected}")

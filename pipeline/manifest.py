"""Typed manifests: what a finished file or directory says about itself. A manifest is written last, so its
existence means "complete"."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import UserError
from pipeline.files import read_json

SplitT = TypeVar("SplitT")


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
            return ShardManifest.from_json(read_json(path))
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not the manifest of a shard ({error}); delete it and run `make collect` again"
            ) from error

    @staticmethod
    def from_json(raw: dict[str, Any]) -> ShardManifest:
        entries = {name: FileEntry(**raw[name]) for name in ("data", "episodes")}
        return ShardManifest(**{**raw, **entries})


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
            raw = read_json(path)
            entries = {name: FileEntry(**raw[name]) for name in ("data", "documents")}
            return DocumentShard(**{**raw, **entries})
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not the manifest of a shard of documents ({error}); delete it and run `make corpora` again"
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
    people may edit before they publish it.
    """

    digest: str
    tasks: dict[str, TaskManifest]
    corpora: dict[str, CorpusManifest] = field(default_factory=dict)  # of datasets older than them: none
    descriptions: tuple[FileEntry, ...] = ()

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
            return DatasetManifest._from_json(read_json(path))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not the manifest of a dataset ({error}); build the dataset again") from error

    @staticmethod
    def _from_json(raw: dict[str, Any]) -> DatasetManifest:
        tasks = {
            name: TaskManifest(**{**task, "splits": _splits(SplitManifest, task["splits"], "data", "episodes")})
            for name, task in raw["tasks"].items()
        }
        corpora = {
            name: CorpusManifest(**{**corpus, "splits": _splits(CorpusSplit, corpus["splits"], "data", "documents")})
            for name, corpus in raw.get("corpora", {}).items()
        }
        descriptions = tuple(FileEntry(**entry) for entry in raw.get("descriptions", ()))
        return DatasetManifest(raw["digest"], tasks, corpora, descriptions)

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


def _splits(kind: type[SplitT], raw: dict[str, Any], *files: str) -> dict[str, SplitT]:
    """Splits by name; of each the fields ``files`` list files."""
    return {
        split: kind(**{**value, **{name: tuple(FileEntry(**entry) for entry in value[name]) for name in files}})
        for split, value in raw.items()
    }

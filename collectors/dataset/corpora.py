"""Select the document shards of a dataset's corpora, check them once, and place their files."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from collectors.dataset.checks import ToCheck, check_once
from collectors.dataset.sources import check_all_there, check_splits
from pipeline.envs.registry import all_tasks
from pipeline.envs.task import Task
from pipeline.files import digest_of, link_or_copy
from pipeline.run_layout import RunLayout
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import CORPORA, Corpus, corpora_named
from pipeline.storage.document_rules import scan_document_shard, scan_documents_together
from pipeline.storage.documents import finished_documents
from pipeline.storage.manifest import CorpusManifest, CorpusSplit, DocumentShard, FileEntry
from pipeline.storage.validate import refuse

RULES = 1  # increase it when the checks of a document change


def pattern_of_tasks(pattern: str, tasks: Sequence[Task] | None = None) -> str:
    """A comma list of tasks and corpora without the parts that match only corpora."""
    names = [name for task in (all_tasks() if tasks is None else tasks) for name in (task.name, task.domain)]
    parts = [part.strip() for part in pattern.split(",")]
    return ",".join(part for part in parts if not corpora_named(part) or fnmatch.filter(names, part))


def find_documents(out: Path, pattern: str, kept: Collection[str]) -> dict[Corpus, list[DocumentShard]]:
    """Finished shards of the selected corpora and of those already in the dataset.

    Args:
        out: root of a run, with its shards in ``shards/``.
        pattern: selects the tasks and corpora to add.
        kept: names of the corpora that are in the dataset and are kept.

    Raises:
        UserError: a corpus selected by name or one of the dataset has no shards, or a corpus has one split only.
    """
    chosen = {corpus.name for corpus in corpora_named(pattern)}
    table = [corpus for corpus in CORPORA if corpus.name in chosen | set(kept)]
    found = {corpus: shards for corpus in table if (shards := finished_documents(RunLayout(out).shards, corpus.name))}
    check_all_there(out, {corpus.name for corpus in found}, chosen, pattern, kept, "jat corpora")
    for corpus, shards in found.items():
        check_splits(corpus.name, [shard.split for shard in shards], "jat corpora")
    return found


def content_key(shard: DocumentShard) -> str:
    """Identifies the content of a shard: equal keys mean equal bytes."""
    return shard.data.sha256 + shard.documents.sha256


def check_documents(out: Path, corpora: Mapping[Corpus, Sequence[DocumentShard]]) -> None:
    """Check every shard that was not checked by these rules before, or has changed since.

    Raises:
        UserError: a shard breaks a rule, or two shards are incompatible.
    """
    if not corpora:
        return
    progress = Progress("shards of documents checked", sum(map(len, corpora.values())))
    for corpus, shards in corpora.items():
        directory = RunLayout(out).shards / corpus.name
        scan_documents_together(directory, list(shards), refuse)
        check_once(directory, [_to_check(corpus, directory, shard) for shard in shards], RULES, progress)


def _to_check(corpus: Corpus, directory: Path, shard: DocumentShard) -> ToCheck:
    def visit() -> dict[str, Any]:
        scan_document_shard(corpus, directory, shard, refuse)
        return {}

    return ToCheck(shard.stem, digest_of(shard), (shard.data, shard.documents), visit)


def add_corpus(
    corpus: Corpus,
    shards: Sequence[DocumentShard],
    root: Path,
    dataset: Path,
) -> CorpusManifest:
    """Place the files of a corpus in a dataset and return its entry for the manifest.

    Args:
        corpus: the corpus.
        shards: all of its shards.
        root: folder of the shards.
        dataset: the folder that is being built.
    """
    splits = {}
    for split in SPLITS:
        of_split = [shard for shard in shards if shard.split == split]
        files: dict[str, list[FileEntry]] = {"data": [], "documents": []}
        for index, shard in enumerate(of_split):
            for kind, entry in (("data", shard.data), ("documents", shard.documents)):
                target = dataset / kind / corpus.name / f"{split}-{index:05d}-of-{len(of_split):05d}.parquet"
                target.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(root / corpus.name / entry.name, target)
                files[kind].append(FileEntry(str(target.relative_to(dataset)), entry.num_bytes, entry.sha256))
        rejected: Counter[str] = Counter()
        for shard in of_split:
            rejected.update(shard.rejected)
        splits[split] = CorpusSplit(
            num_documents=sum(shard.num_documents for shard in of_split),
            num_characters=sum(shard.num_characters for shard in of_split),
            num_images=sum(shard.num_images for shard in of_split),
            rejected=dict(sorted(rejected.items())),
            data=tuple(files["data"]),
            documents=tuple(files["documents"]),
        )
    first = shards[0]
    return CorpusManifest(first.source, first.revision, first.options, first.versions, splits)

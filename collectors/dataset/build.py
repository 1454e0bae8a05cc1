"""Build a dataset directory from finished shards, collected and imported.

    jat dataset --out runs/default

Writes ``OUT/dataset``: ``data/<task>/<split>-00000-of-0000N.parquet``, side tables under ``episodes/``, the card
``README.md`` whose front matter configures ``datasets``, its pictures under ``card/``, ``statistics/<task>.json``, and
``manifest.json`` last. Files are hard links to the shards where the file system supports them, so the build uses no
extra space, and only shards not checked before are read. The directory is built under a temporary name and renamed, so
a reader never sees a partial dataset.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from collectors.dataset.card.card import write_card
from collectors.dataset.card.previews import FOLDER as PICTURES
from collectors.dataset.card.previews import write_previews
from collectors.dataset.checks import check_all
from collectors.dataset.corpora import add_corpus, check_documents, content_key, find_documents, pattern_of_tasks
from collectors.dataset.doctor.section import section_without_data
from collectors.dataset.layout import CARD
from collectors.dataset.sources import Shard, check_environments, check_root, find_shards, missing_of
from pipeline.cli import parse, run
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import NO_SPACE, digest_of, exclusive, link_or_copy, sha256_of, write_json
from pipeline.run_layout import CONFIG, STATISTICS, RunLayout
from pipeline.runtime.stage import reported
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import Corpus
from pipeline.storage.manifest import (
    DatasetManifest,
    DocumentShard,
    FileEntry,
    ShardManifest,
    SplitManifest,
    TaskManifest,
)
from pipeline.storage.parquet import COMPRESSION
from pipeline.storage.parquet_limits import read_small
from pipeline.storage.plan import describe_missing
from pipeline.storage.statistics import SplitStatistics, TaskStatistics, merge_all, statistics_path
from pipeline.text import format_count

log = logging.getLogger(__name__)

FORMAT = 4  # increase it when the same shards would give another dataset, so that `jat dataset` rebuilds it


@dataclass(frozen=True)
class DatasetConfig:
    """Build OUT/dataset from the shards in OUT/shards and OUT/imported."""

    task: str = "*"
    """Tasks and corpora to add or refresh: name, domain, glob, or comma list. Those already in the dataset are kept."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    mix: bool = False
    """Allow episodes of one task from different environments, such as v2 and v3 of Meta-World."""


def build_dataset(config: DatasetConfig, tasks: Sequence[Task] | None = None) -> None:
    """Build or refresh the dataset. The existing dataset stays complete until the new one replaces it.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: nothing is collected, a shard breaks a rule (the message names file, row and reason), shards are
            incompatible with each other, or the disk is full.
    """
    check_root(config.out)
    layout = RunLayout(config.out)
    if not (layout.shards.is_dir() or layout.imported.is_dir()):
        raise UserError(
            f"nothing is collected in {layout.shards} for {config.task!r}; run `jat collect` with the same OUT first"
        )
    with exclusive(layout.dataset_lock, "wait until it has built its dataset"):
        with _naming_a_full_disk(config.out):
            _build(config, tasks)


def _build(config: DatasetConfig, tasks: Sequence[Task] | None) -> None:
    dataset = RunLayout(config.out).dataset
    retired = RunLayout(config.out).retired_dataset
    if retired.exists() and not dataset.exists():
        retired.rename(dataset)  # a build was killed between its two renames
    before = DatasetManifest.find(dataset)
    if before is not None and before.edits:
        raise UserError(
            f"{dataset} was changed after it was built ({before.edits[-1]}), and building it would bring back what was "
            f"taken out; move it away to build another from the shards"
        )
    documents = find_documents(config.out, config.task, before.corpora if before else ())
    pattern = pattern_of_tasks(config.task, tasks)
    shards = find_shards(config.out, pattern, before.tasks if before else (), tasks, is_optional=bool(documents))
    if not config.mix:
        check_environments(shards)
    checked = check_all(shards)
    check_documents(config.out, documents)
    digest = digest_of(
        {"format": FORMAT}
        | {task.name: [shard.key for shard in s] for task, s in shards.items()}
        | {corpus.name: [content_key(shard) for shard in s] for corpus, s in documents.items()}
    )
    missing = missing_of(config.out, pattern, before.tasks if before else (), tasks)
    is_same = before is not None and (before.digest, before.missing) == (digest, missing)
    if before is not None and is_same and _is_whole(dataset, before):
        log.info("up to date: %s", dataset)
    else:
        _assemble(config, shards, checked, documents, digest, missing)
        log.info("%s and %d corpora in %s", format_count(len(shards), "task"), len(documents), dataset)
    if missing:
        log.warning(
            "planned and not collected: %s; run `jat collect` again to complete the dataset, or go on without",
            describe_missing(missing, {task.name for task in shards}),
        )


@contextmanager
def _naming_a_full_disk(out: Path) -> Iterator[None]:
    """Convert the error of a full disk to one that says what to do; partial output is removed."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        shutil.rmtree(RunLayout(out).building_dataset, ignore_errors=True)
        raise UserError(
            f"{out} takes no more data ({error.strerror}); the dataset there is as it was: free some space, or check "
            f"that shards and dataset are on one file system, where files are linked and take none"
        ) from error


def _is_whole(dataset: Path, manifest: DatasetManifest) -> bool:
    """Whether the card exists, and every file of the manifest with its recorded size."""
    paths = [(dataset / entry.name, entry.num_bytes) for entry in manifest.files]
    return (dataset / CARD).is_file() and all(
        path.is_file() and path.stat().st_size == num_bytes for path, num_bytes in paths
    )


def _assemble(
    config: DatasetConfig,
    shards: Mapping[Task, Sequence[Shard]],
    checked: Mapping[Task, Sequence[SplitStatistics]],
    documents: Mapping[Corpus, Sequence[DocumentShard]],
    digest: str,
    missing: dict[str, dict[str, int]],
) -> None:
    layout = RunLayout(config.out)
    dataset, building, retired = layout.dataset, layout.building_dataset, layout.retired_dataset
    shutil.rmtree(building, ignore_errors=True)
    manifest = DatasetManifest(
        digest,
        {task.name: _add_task(task, s, building) for task, s in shards.items()},
        {corpus.name: add_corpus(corpus, s, layout.shards, building) for corpus, s in documents.items()},
        missing=missing,
    )
    statistics = [_statistics(task, of_task, checked[task]) for task, of_task in shards.items()]
    descriptions = describe_dataset(building, manifest, list(shards), statistics, dataset)
    write_json(building / CONFIG, config)
    write_json(building / DatasetManifest.FILE_NAME, dataclasses.replace(manifest, descriptions=descriptions))
    shutil.rmtree(retired, ignore_errors=True)
    if dataset.exists():
        dataset.rename(retired)
    building.rename(dataset)
    shutil.rmtree(retired, ignore_errors=True)


def describe_dataset(
    dataset: Path,
    manifest: DatasetManifest,
    tasks: Sequence[Task],
    statistics: Sequence[TaskStatistics],
    earlier: Path,
) -> tuple[FileEntry, ...]:
    """Write statistics, card and pictures to the dataset; returns their entries without the card.

    Pictures of unchanged episodes are copied from the ``earlier`` dataset.
    """
    for found in statistics:
        write_json(statistics_path(dataset, found.task), found, indent=None)
    previews = write_previews(dataset, manifest, tasks, earlier)
    quality = section_without_data(dataset, manifest, tasks, {found.task: found for found in statistics})
    write_card(dataset, manifest, tasks, statistics, previews, quality)
    paths = sorted([*(dataset / PICTURES).glob("*"), *(dataset / STATISTICS).glob("*")])
    return tuple(file_entry(dataset, path) for path in paths)


def file_entry(dataset: Path, path: Path) -> FileEntry:
    """The manifest's entry of a file of a dataset."""
    return FileEntry(str(path.relative_to(dataset)), path.stat().st_size, sha256_of(path))


def add_task_column(task: Task, source: Path, target: Path) -> bool:
    """Write a side table that older versions made without the column ``task`` with it; False if it has the column."""
    if "task" in pq.read_schema(source).names:
        return False
    side = read_small(source)
    pq.write_table(side.append_column("task", pa.array([task.name] * len(side))), target, compression=COMPRESSION)
    return True


def _statistics(task: Task, shards: Sequence[Shard], checked: Sequence[SplitStatistics]) -> TaskStatistics:
    """Statistics of both splits, merged over their shards."""
    pairs = list(zip(shards, checked, strict=True))
    splits = {split: merge_all([found for shard, found in pairs if shard.manifest.split == split]) for split in SPLITS}
    return TaskStatistics(task.name, splits)


def _add_task(task: Task, shards: Sequence[Shard], dataset: Path) -> TaskManifest:
    splits = {
        split: _add_split(task, split, [shard for shard in shards if shard.manifest.split == split], dataset)
        for split in SPLITS
    }
    first = shards[0].manifest  # a collected one if there is any
    imported: dict[str, dict[str, int]] = {}
    for shard in shards:
        source, environment = shard.manifest.source, shard.manifest.environment
        if source is not None and environment is not None:
            counts = imported.setdefault(source, {})
            counts[environment] = counts.get(environment, 0) + shard.manifest.num_episodes
    return TaskManifest(first.expert, first.expert_revision, first.versions, splits, imported)


def _add_split(task: Task, split: str, shards: Sequence[Shard], dataset: Path) -> SplitManifest:
    data: list[FileEntry] = []
    episodes: list[FileEntry] = []
    for index, shard in enumerate(shards):
        name = f"{split}-{index:05d}-of-{len(shards):05d}.parquet"
        for kind, entry, entries in (
            ("data", shard.manifest.data, data),
            ("episodes", shard.manifest.episodes, episodes),
        ):
            target = dataset / kind / task.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if kind == "episodes" and add_task_column(task, shard.directory / entry.name, target):
                entries.append(file_entry(dataset, target))
                continue
            link_or_copy(shard.directory / entry.name, target)
            entries.append(FileEntry(str(target.relative_to(dataset)), entry.num_bytes, entry.sha256))
    manifests = [shard.manifest for shard in shards]
    num_episodes = sum(manifest.num_episodes for manifest in manifests)
    return SplitManifest(
        num_episodes=num_episodes,
        num_steps=sum(manifest.num_steps for manifest in manifests),
        num_rejected=sum(manifest.num_rejected for manifest in manifests),
        num_successes=_num_successes(manifests),
        mean_return=sum(manifest.return_sum for manifest in manifests) / max(1, num_episodes),
        data=tuple(data),
        episodes=tuple(episodes),
    )


def _num_successes(manifests: Sequence[ShardManifest]) -> int | None:
    """Successes of all shards; None if they are unknown for any shard."""
    total = 0
    for manifest in manifests:
        if manifest.num_successes is None:
            return None
        total += manifest.num_successes
    return total


def main() -> None:
    config = parse(DatasetConfig)
    with reported("dataset", config.out, config.task, needs_disk=True):
        build_dataset(config)


if __name__ == "__main__":
    run("collectors.dataset.build")

"""Build a dataset directory from finished shards.

    python -m collectors.dataset.build --out runs/default

Writes ``OUT/dataset``: ``data/<task>/<split>-00000-of-0000N.parquet``, side tables under ``episodes/``, the card
``README.md`` that tells ``datasets`` where everything is, and ``manifest.json`` last. Files are hard links to the
shards where the file system allows it, so building costs a checksum per file and no space. The directory is built
beside its final place and renamed, so a reader never sees half of one.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collectors.dataset.card import write_card
from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import digest_of, write_json
from pipeline.manifest import DatasetManifest, FileEntry, ShardManifest, SplitManifest, TaskManifest
from pipeline.progress import Progress
from pipeline.seeds import SPLITS
from pipeline.shards import finished_shards
from pipeline.tasks import Task, select_tasks
from pipeline.validate import check_bytes, check_shard

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetConfig:
    """Build OUT/dataset from the shards in OUT/shards."""

    task: str = "*"
    """Tasks to add or refresh: name, domain, glob, or comma list. Those already in the dataset stay."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


def build_dataset(config: DatasetConfig, tasks: Sequence[Task] | None = None) -> None:
    """Build or refresh the dataset.

    Args:
        config: what to build.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: nothing collected, or a shard that breaks a rule (the message names file, row and reason).
    """
    root, dataset = config.out / "shards", config.out / "dataset"
    retired = _retired(dataset)
    if retired.exists() and not dataset.exists():
        retired.rename(dataset)  # a build was killed between its two renames
    before = _manifest_or_none(dataset)
    shards = _collected(config, before, tasks)
    digest = digest_of(
        {task.name: [shard.data.sha256 + shard.episodes.sha256 for shard in s] for task, s in shards.items()}
    )
    if before is not None and before.digest == digest:
        log.info("up to date: %s", dataset)
        return
    known = _known_checksums(before)
    progress = Progress("shards checked", sum(map(len, shards.values())))
    for task, found in shards.items():
        for shard in found:
            if (shard.data.sha256, shard.episodes.sha256) in known:
                check_bytes(root / task.name, shard)
            else:
                check_shard(task, root / task.name, shard)
            progress.advance()
    _assemble(config, shards, digest, root, dataset)
    log.info("%d tasks in %s", len(shards), dataset)


def _collected(
    config: DatasetConfig, before: DatasetManifest | None, tasks: Sequence[Task] | None
) -> dict[Task, list[ShardManifest]]:
    """Finished shards of the tasks chosen and of those the dataset already has."""
    root = config.out / "shards"
    chosen = {task.name for task in select_tasks(config.task, tasks)}
    kept = set(before.tasks) if before else set()
    table = [task for task in select_tasks("*", tasks) if task.name in chosen | kept]
    shards = {task: found for task in table if (found := finished_shards(root, task.name))}
    collected = {task.name for task in shards}
    asked_by_name = {part.strip() for part in config.task.split(",")} & chosen
    for name in sorted(asked_by_name - collected):
        raise UserError(f"{name} is not collected in {root}; run `make collect TASK={name}` with the same OUT first")
    for name in sorted(kept - collected):
        raise UserError(
            f"{name} is in {config.out / 'dataset'} but its shards are gone from {root / name}; collect them again, "
            f"bring them back, or remove that dataset to build one without it"
        )
    if not shards:
        raise UserError(
            f"nothing is collected in {root} for {config.task!r}; run `make collect` with the same OUT first"
        )
    for task, found in shards.items():
        absent = set(SPLITS) - {shard.split for shard in found}
        if absent:
            raise UserError(
                f"{task.name} has no finished {' or '.join(sorted(absent))} shard; run `make collect` again"
            )
    return shards


def _retired(dataset: Path) -> Path:
    """Where the dataset is while its successor takes its place."""
    return dataset.with_name(".dataset.retired")


def _manifest_or_none(dataset: Path) -> DatasetManifest | None:
    path = dataset / DatasetManifest.FILE_NAME
    return DatasetManifest.load(path) if path.exists() else None


def _known_checksums(manifest: DatasetManifest | None) -> set[tuple[str, str]]:
    """Checksums of the data file and side table of every shard an earlier build has checked."""
    if manifest is None:
        return set()
    splits = [split for task in manifest.tasks.values() for split in task.splits.values()]
    return {(d.sha256, e.sha256) for split in splits for d, e in zip(split.data, split.episodes, strict=True)}


def _assemble(
    config: DatasetConfig, shards: dict[Task, list[ShardManifest]], digest: str, root: Path, dataset: Path
) -> None:
    building = dataset.with_name(".dataset.building")
    shutil.rmtree(building, ignore_errors=True)
    tasks = {}
    for task, found in shards.items():
        splits = {
            split: _link_split(task, split, [s for s in found if s.split == split], root, building) for split in SPLITS
        }
        tasks[task.name] = TaskManifest(found[0].expert, found[0].expert_revision, found[0].versions, splits)
    manifest = DatasetManifest(digest, tasks)
    write_card(building / "README.md", manifest, list(shards))
    write_json(building / "config.json", config)
    write_json(building / DatasetManifest.FILE_NAME, manifest)
    retired = _retired(dataset)
    shutil.rmtree(retired, ignore_errors=True)
    if dataset.exists():
        dataset.rename(retired)
    building.rename(dataset)
    shutil.rmtree(retired, ignore_errors=True)


def _link_split(task: Task, split: str, shards: Sequence[ShardManifest], root: Path, dataset: Path) -> SplitManifest:
    data: list[FileEntry] = []
    episodes: list[FileEntry] = []
    for index, shard in enumerate(shards):
        name = f"{split}-{index:05d}-of-{len(shards):05d}.parquet"
        for kind, entry, entries in (("data", shard.data, data), ("episodes", shard.episodes, episodes)):
            target = dataset / kind / task.name / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(root / task.name / entry.name, target)
            entries.append(FileEntry(str(target.relative_to(dataset)), entry.num_bytes, entry.sha256))
    num_episodes = sum(shard.num_episodes for shard in shards)
    return SplitManifest(
        num_episodes=num_episodes,
        num_steps=sum(shard.num_steps for shard in shards),
        num_rejected=sum(shard.num_rejected for shard in shards),
        num_successes=None if task.success is None else sum(shard.num_successes or 0 for shard in shards),
        mean_return=sum(shard.return_sum for shard in shards) / max(1, num_episodes),
        data=tuple(data),
        episodes=tuple(episodes),
    )


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def main() -> None:
    build_dataset(parse(DatasetConfig))


if __name__ == "__main__":
    run("collectors.dataset.build")

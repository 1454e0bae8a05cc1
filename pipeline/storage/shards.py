"""The only writer of episodes: it writes a data file, its side table, then the sidecar that completes the shard.

    <root>/<task>/train-0000000000-000250.parquet            episodes in JAT's columns
    <root>/<task>/train-0000000000-000250.episodes.parquet   one row per seed: provenance and outcome
    <root>/<task>/train-0000000000-000250.json               ShardManifest, written last
    <root>/<task>/index.json                                 cache: copies of all manifests in one file

Memory is bounded by two row groups: one is written while the next is played.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError, first_line
from pipeline.files import digest_of, list_sizes, read_json, replacing, sha256_of, update_json, write_json
from pipeline.records import RecordError
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.parquet import COMPRESSION, ROW_GROUP_BYTES, ends_row_group, parquet_options
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import data_table, episode_features, features
from pipeline.versions import format_versions, versions_of

log = logging.getLogger(__name__)

INDEX = "index.json"
SIDECAR = re.compile(r"[a-z]+-\d{10}-\d{6}\.json")
IMPORTED = "imported"  # expert kind of imported episodes
MAX_REASON = 100  # reasons are counted by their first characters; the side table has the full reason


@dataclass(frozen=True)
class Provenance:
    """Provenance of an episode: kind and revision of the expert, the noise in its actions or None, and the revision of
    the expert that labelled it or None."""

    expert: str
    revision: str
    noise: str | None = None
    label_expert: str | None = None


@dataclass(frozen=True)
class Origin:
    """Origin of an imported shard: source and environment, as in ``ShardManifest``."""

    source: str
    environment: str

    @property
    def revision(self) -> str:
        """Revision used instead of an expert's: ``imported-`` and a digest."""
        return f"{IMPORTED}-{digest_of([self.source, self.environment])[:8]}"


@dataclass
class _Totals:
    num_episodes: int = 0
    num_steps: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    num_successes: int | None = 0
    num_flagged: int = 0
    num_labelled: int = 0
    return_sum: float = 0.0
    side_rows: list[dict[str, Any]] = field(default_factory=list)


def write_shard(
    root: Path,
    job: ShardJob,
    expert_revision: str,
    episodes: Iterable[Episode],
    actor: Callable[[int], Provenance] | None = None,
    origin: Origin | None = None,
    folder: str | None = None,
) -> ShardManifest:
    """Write the shard of ``job`` from its episodes, given in the order of its seeds, and return its manifest.

    Labels are written if the job names who gives them; all its episodes must then have labels.

    Args:
        root: folder of the shards, with one folder per task.
        job: seeds of the shard; its expert may be a mix.
        expert_revision: revision of the job's expert.
        episodes: one per seed.
        actor: maps a seed to its provenance, for the side table; None: the job's expert and noise for every episode.
        origin: origin of imported episodes; the side table then has neither seeds nor versions.
        folder: folder below ``root``; None: the name of the task.
    """
    directory = root / (folder or job.task.name)
    versions = {} if origin else versions_of(job.task.packages)
    data_path = directory / f"{job.stem}.parquet"
    side_path = directory / f"{job.stem}.episodes.parquet"
    totals = _Totals()
    with replacing(data_path) as temporary:
        _write_data(temporary, job, episodes, totals)
        data = _entry(data_path.name, temporary)
    made_with = format_versions(versions)
    for row in totals.side_rows:
        who = actor(row["seed"]) if actor else Provenance(job.expert, expert_revision, job.noise, job.labels)
        row.update(expert=who.expert, expert_revision=who.revision, noise=who.noise, versions=made_with)
        row.update(label_expert=None if row["row"] is None else who.label_expert)
        if origin:
            row.update(seed=None, versions=None)
    schema = episode_features(job.labels is not None).arrow_schema
    with replacing(side_path) as temporary:
        pq.write_table(pa.Table.from_pylist(totals.side_rows, schema), temporary, compression=COMPRESSION)
        side = _entry(side_path.name, temporary)
    manifest = ShardManifest(
        task=job.task.name,
        split=job.split,
        first_seed=job.first_seed,
        num_seeds=job.num_seeds,
        expert=job.expert,
        expert_revision=expert_revision,
        versions=versions,
        num_episodes=totals.num_episodes,
        num_steps=totals.num_steps,
        rejected=dict(sorted(totals.rejected.items())),
        num_successes=None if job.task.success is None else totals.num_successes,
        return_sum=totals.return_sum,
        data=data,
        episodes=side,
        noise=job.noise,
        source=origin.source if origin else None,
        environment=origin.environment if origin else None,
        num_flagged=totals.num_flagged,
        labels=job.labels,
        num_labelled=totals.num_labelled,
    )
    write_json(directory / f"{job.stem}.json", manifest)
    return manifest


def _write_data(path: Path, job: ShardJob, episodes: Iterable[Episode], totals: _Totals) -> None:
    task = job.task
    buffer: list[Episode] = []
    buffered_bytes = 0
    group_bytes = ROW_GROUP_BYTES[task.observation]

    labels = job.labels is not None

    def write(episodes: Sequence[Episode]) -> None:
        writer.write_table(data_table(task, episodes, labels))

    # A thread writes while the next episodes are played; compression releases the GIL. On exit the executor waits for
    # the thread before the file is closed.
    with (
        pq.ParquetWriter(path, features(task, labels).arrow_schema, **parquet_options(task)) as writer,
        ThreadPoolExecutor(1) as thread,
    ):
        written: Future[None] | None = None
        for episode in episodes:
            totals.side_rows.append(_side_row(task, episode, None if episode.rejected else totals.num_episodes))
            if episode.rejected:
                totals.rejected[episode.rejected[:MAX_REASON]] += 1
                continue
            totals.num_episodes += 1
            totals.num_steps += len(episode)
            if episode.success is None:
                totals.num_successes = None
            elif totals.num_successes is not None:
                totals.num_successes += episode.success
            totals.num_flagged += episode.flagged is not None
            totals.return_sum += episode.total_reward
            if labels:
                if episode.num_labelled is None:
                    raise ValueError(f"{task.name}, seed {episode.seed}: an episode of a labelled shard has no labels")
                totals.num_labelled += episode.num_labelled
            buffer.append(episode)
            buffered_bytes += episode.observations.nbytes
            if ends_row_group(episode.seed, episode.observations.nbytes, buffered_bytes, group_bytes):
                if written:
                    written.result()  # at most one row group is pending; its error is raised here
                written = thread.submit(write, buffer)
                buffer, buffered_bytes = [], 0
        if written:
            written.result()
        if buffer:  # a file without episodes has no row group: `datasets` cannot read an empty one
            write(buffer)


def _side_row(task: Task, episode: Episode, row: int | None) -> dict[str, Any]:
    final = episode.final_observation
    return {
        "seed": episode.seed,
        "row": row,
        "return": episode.total_reward,
        "length": len(episode),
        "success": episode.success,
        "ended": episode.ended,
        "rejected": episode.rejected,
        "flagged": episode.flagged,
        "task": task.name,
        "final_observation": None if final is None else final.astype(np.float32).ravel(),
        "num_labelled": None if row is None else episode.num_labelled,
    }


def _entry(name: str, path: Path) -> FileEntry:
    return FileEntry(name, path.stat().st_size, sha256_of(path))


def finished_shards(root: Path, task_name: str) -> list[ShardManifest]:
    """Manifests of a task's complete shards, sorted by split and first seed.

    A shard is complete if its sidecar exists and both files have the size that it states; checksums are verified by
    the dataset build, which reads every byte anyway. The cost is one listing and one file, the index, independent of
    the number of shards, plus one file per shard that is missing in the index.
    """
    return [manifest for manifest, _ in _finished(root / task_name).values()]


def are_there(entries: Iterable[FileEntry], sizes: Mapping[str, tuple[int, str]]) -> bool:
    """Whether the files of a shard exist with their expected sizes, given the result of ``list_sizes``."""
    return all(sizes.get(entry.name, (-1, ""))[0] == entry.num_bytes for entry in entries)


def index_shards(root: Path, task_name: str) -> None:
    """Update a task's index. It is only a cache: sidecars that are not in it, or have changed, are read."""
    found = _finished(root / task_name)
    if found:
        index = {
            name: {"stamp": stamp, "digest": digest_of(manifest), "manifest": dataclasses.asdict(manifest)}
            for name, (manifest, stamp) in found.items()
        }
        update_json(root / task_name / INDEX, index, indent=None)


def _finished(directory: Path) -> dict[str, tuple[ShardManifest, str]]:
    """For each sidecar name: the manifest, and the stamp of the sidecar it was read from."""
    sizes = list_sizes(directory)
    index = read_cache(directory / INDEX) if INDEX in sizes else {}
    found = {}
    for name in sorted(filter(SIDECAR.fullmatch, sizes)):
        stamp = f"{sizes[name][0]} {sizes[name][1]}"
        manifest = _indexed(name, index.get(name), stamp) or ShardManifest.load(directory / name)
        if are_there((manifest.data, manifest.episodes), sizes):
            found[name] = (manifest, stamp)
    return found


def _indexed(name: str, entry: Any, stamp: str) -> ShardManifest | None:
    """Cached manifest of an unchanged sidecar; None if it is not cached, has changed, or the entry is damaged."""
    if not isinstance(entry, dict) or entry.get("stamp") != stamp:
        return None
    try:
        is_whole = entry.get("digest") == digest_of(entry.get("manifest"))
        return ShardManifest.from_json(entry["manifest"], name) if is_whole else None
    except (RecordError, RecursionError):
        return None


def read_cache(path: Path) -> dict[str, Any]:
    """Read a cache file; a damaged file gives an empty cache, so it is rebuilt."""
    try:
        found = read_json(path)
    except UserError as error:
        log.warning("%s", f"{path} is made again: {first_line(error)}")
        return {}
    return found if isinstance(found, dict) else {}

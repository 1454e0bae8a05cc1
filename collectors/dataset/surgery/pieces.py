"""The files of datasets as pieces, and a new dataset written from chosen rows of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collectors.dataset.build import describe_dataset, file_entry
from collectors.dataset.surgery.source import Piece, Source, refuse_damage
from pipeline.envs.task import IMAGE, Task
from pipeline.files import digest_of, link_or_copy, write_json
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS
from pipeline.storage.episode_rules import scan_episodes
from pipeline.storage.manifest import CorpusManifest, DatasetManifest, FileEntry, SplitManifest, TaskManifest
from pipeline.storage.outcomes import Outcomes, Rewards, count_outcomes, merge_outcomes, scan_outcomes
from pipeline.storage.parquet import COMPRESSION, ROW_GROUP_BYTES, parquet_options
from pipeline.storage.parquet_limits import open_parquet
from pipeline.storage.shards import IMPORTED, Origin
from pipeline.storage.statistics import SplitStatistics, StepStatistics, TaskStatistics, merge_all, split_statistics
from pipeline.storage.validate import flagged_rows, scan_file, scan_rows

MAX_EDIT = 1000  # characters of the description of an edit


Pieces = Mapping[Task, Mapping[str, Sequence[Piece]]]


def write_dataset(
    target: Path,
    sources: Sequence[Source],
    pieces: Pieces,
    corpora: Mapping[str, tuple[Path, CorpusManifest]],
    edit: str,
) -> DatasetManifest:
    """Write a dataset of the kept rows; files of which every row is kept are links.

    Every file is read and checked, statistics, card and totals are made anew, the manifest last.

    Args:
        target: its folder, not there yet.
        sources: the datasets that the pieces are of.
        pieces: by task and split. A task of which no row is kept is left out.
        corpora: folder and manifest entry of each corpus to link.
        edit: what was done, for card and manifest.

    Raises:
        UserError: a file is damaged.
    """
    kept = {task: of_task for task, of_task in pieces.items() if num_kept(of_task)}
    progress = Progress("files written", sum(len(p) for of_task in kept.values() for p in of_task.values()))
    infos: dict[str, TaskManifest] = {}
    statistics: list[TaskStatistics] = []
    for task, of_task in kept.items():
        splits, found = {}, {}
        for split in SPLITS:
            splits[split], found[split] = _write_split(target, task, split, of_task, progress)
        infos[task.name] = _describe_task(task, sources, of_task, splits)
        statistics.append(TaskStatistics(task.name, found))
    for folder, corpus in corpora.values():
        for entry in (entry for split in corpus.splits.values() for entry in split.data + split.documents):
            _link(folder, entry, target / entry.name)
    lines = [line for source in sources for line in source.manifest.edits]
    edits = tuple(dict.fromkeys([*lines, " ".join(edit.split())[:MAX_EDIT]]))
    manifest = DatasetManifest("", infos, {name: corpus for name, (_, corpus) in corpora.items()}, edits=edits)
    digest = digest_of([edits, [entry.sha256 for entry in manifest.files]])
    manifest = replace(manifest, digest=digest)
    descriptions = describe_dataset(target, manifest, list(kept), statistics, sources[0].folder)
    manifest = replace(manifest, descriptions=descriptions)
    write_json(target / DatasetManifest.FILE_NAME, manifest)
    return manifest


def num_kept(pieces: Mapping[str, Sequence[Piece]]) -> int:
    """Number of accepted episodes that are kept."""
    sides = [piece.side.filter(pa.array(piece.keep)) for of_split in pieces.values() for piece in of_split]
    return sum(len(side) - side["row"].null_count for side in sides)


def _link(folder: Path, entry: FileEntry, target: Path) -> None:
    scan_file(folder, entry, refuse_damage)
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(folder / entry.name, target)


def _write_split(
    target: Path, task: Task, split: str, of_task: Mapping[str, Sequence[Piece]], progress: Progress
) -> tuple[SplitManifest, SplitStatistics]:
    """Write the files of a split; without any row it is one file without rows, as ``datasets`` wants every split."""
    chosen = [piece for piece in of_task.get(split, ()) if piece.keep.any()]
    if not chosen:
        piece = next(piece for of_split in of_task.values() for piece in of_split)
        chosen = [replace(piece, keep=np.zeros(len(piece.side), bool))]
    data, episodes = list[FileEntry](), list[FileEntry]()
    outcomes, statistics = list[Outcomes](), list[SplitStatistics]()
    for index, piece in enumerate(chosen):
        name = f"{split}-{index:05d}-of-{len(chosen):05d}.parquet"
        paths = [target / kind / task.name / name for kind in ("data", "episodes")]
        side = _write_piece(task, piece, paths[0], paths[1])
        data.append(file_entry(target, paths[0]))
        episodes.append(file_entry(target, paths[1]))
        outcomes.append(count_outcomes(task, side))
        statistics.append(_examine(task, paths[0], paths[1], side))
        progress.advance()
    total, found = merge_outcomes(outcomes), merge_all(statistics)
    info = SplitManifest(
        num_episodes=total.num_episodes,
        num_steps=found.num_steps,
        num_rejected=total.num_rejected,
        num_successes=total.num_successes,
        mean_return=total.mean_return,
        data=tuple(data),
        episodes=tuple(episodes),
    )
    return info, found


def _write_piece(task: Task, piece: Piece, data: Path, episodes: Path) -> pa.Table:
    """Write the kept rows of a piece; returns the side table that was written."""
    scan_file(piece.folder, piece.data, refuse_damage)
    for path in (data, episodes):
        path.parent.mkdir(parents=True, exist_ok=True)
    if piece.is_whole:
        link_or_copy(piece.folder / piece.data.name, data)
        link_or_copy(piece.folder / piece.episodes.name, episodes)
        return piece.side
    is_accepted = piece.side["row"].is_valid().to_numpy()
    copy_rows(task, piece.folder / piece.data.name, data, piece.keep[is_accepted])
    side = piece.side.filter(pa.array(piece.keep))
    is_accepted = side["row"].is_valid().to_numpy()
    rows = pa.array(np.cumsum(is_accepted) - 1, pa.int32(), mask=~is_accepted)
    side = side.set_column(side.column_names.index("row"), side.schema.field("row"), rows)
    if "task" not in side.column_names:
        side = side.append_column("task", pa.array([task.name] * len(side), pa.string()))
    pq.write_table(side, episodes, compression=COMPRESSION)
    return side


def copy_rows(task: Task, source: Path, target: Path, keep: np.ndarray) -> None:
    """Copy the rows of a data file where ``keep``, ``(E,)`` bool, is true; images are copied as they are stored."""
    smallest = 0 if task.observation == IMAGE else ROW_GROUP_BYTES[task.observation] // 4
    with open_parquet(source) as file:
        schema = file.schema_arrow
        with pq.ParquetWriter(target, schema, **parquet_options(task)) as writer:
            held, first = list[pa.Table](), 0
            for group in range(file.num_row_groups):
                chosen = keep[first : first + file.metadata.row_group(group).num_rows]
                first += len(chosen)
                if not chosen.any():
                    continue
                table = file.read_row_group(group)
                held.append(table if chosen.all() else table.filter(pa.array(chosen)))
                if sum(part.nbytes for part in held) >= smallest:
                    writer.write_table(pa.concat_tables(held))
                    held = []
            if held:  # a file without rows has no row group: `datasets` cannot read an empty one
                writer.write_table(pa.concat_tables(held))


def _examine(task: Task, data: Path, episodes: Path, side: pa.Table) -> SplitStatistics:
    """Check a written file against its side table; returns its statistics."""
    steps = StepStatistics(task)
    rewards = Rewards(steps.add)
    lengths = scan_episodes(task, data, refuse_damage, flagged_rows(side), rewards.take)
    scan_rows(episodes, side, len(side) - side["row"].null_count, data, lengths, refuse_damage)
    scan_outcomes(task, episodes, side, lengths, rewards, refuse_damage)
    return split_statistics(task, side, steps, data.stat().st_size)


def _describe_task(
    task: Task, sources: Sequence[Source], of_task: Mapping[str, Sequence[Piece]], splits: dict[str, SplitManifest]
) -> TaskManifest:
    """Provenance of a task, of what is kept of it."""
    infos = [source.manifest.tasks[task.name] for source in sources if task.name in source.manifest.tasks]
    sides = [piece.side.filter(pa.array(piece.keep)) for of_split in of_task.values() for piece in of_split]
    accepted = [side.filter(pc.is_valid(side["row"])) for side in sides]
    revisions = Counter(revision for side in accepted for revision in side["expert_revision"].to_pylist())
    imported: dict[str, dict[str, int]] = {}
    for origin in dict.fromkeys((s, e) for info in infos for s, of_source in info.imported.items() for e in of_source):
        count = revisions.get(Origin(*origin).revision, 0)
        if count:
            imported.setdefault(origin[0], {})[origin[1]] = count
    versions = next((info.versions for info in infos if info.versions), {})
    played = {
        pair
        for side in accepted
        for pair in zip(side["expert"].to_pylist(), side["expert_revision"].to_pylist(), strict=True)
        if pair[0] != IMPORTED
    }
    if len(played) == 1:
        ((expert, revision),) = played
    else:
        expert = "+".join(dict.fromkeys(info.expert for info in infos))
        revision = "+".join(dict.fromkeys(info.expert_revision for info in infos))
    return TaskManifest(expert, revision, versions, splits, imported)

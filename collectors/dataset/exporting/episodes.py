"""Read a dataset for an export: its accepted episodes with their rows of the side tables, some at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collectors.dataset.surgery.source import Source, refuse_damage
from pipeline.envs.task import Task
from pipeline.seeds import SPLITS
from pipeline.storage.parquet_limits import open_parquet
from pipeline.storage.schema import EpisodeBlock, block_of, label_column
from pipeline.storage.validate import scan_file


@dataclass(frozen=True)
class Batch:
    """Some consecutive episodes of a split.

    Attributes:
        rows: of the side table, one per episode.
        table: of the data file, one row per episode.
        steps: the same, decoded.
    """

    task: Task
    split: str
    rows: list[dict[str, Any]]
    table: pa.Table
    steps: EpisodeBlock


def count_episodes(source: Source, tasks: Sequence[Task]) -> int:
    """Number of episodes of some tasks of a dataset."""
    infos = [source.manifest.tasks[task.name] for task in tasks]
    return sum(split.num_episodes for info in infos for split in info.splits.values())


def labelled_tasks(source: Source, tasks: Sequence[Task]) -> list[str]:
    """Names of those of the tasks that have episodes with labels."""
    infos = {task: source.manifest.tasks[task.name] for task in tasks}
    files = {task: [e.name for split in info.splits.values() for e in split.data] for task, info in infos.items()}
    return [
        task.name
        for task, names in files.items()
        if any(label_column(task) in pq.read_schema(source.folder / name).names for name in names)
    ]


def read_batches(source: Source, tasks: Sequence[Task]) -> Iterator[Batch]:
    """The episodes of all tasks, training ones first.

    Raises:
        UserError: a file is damaged.
    """
    for split in SPLITS:
        for task in tasks:
            for piece in source.pieces(task, split):
                scan_file(source.folder, piece.data, refuse_damage)
                rows = piece.side.filter(pc.is_valid(piece.side["row"])).to_pylist()
                with open_parquet(source.folder / piece.data.name) as file:
                    first = 0
                    for group in range(file.num_row_groups):
                        table = file.read_row_group(group)
                        if len(table):
                            chosen = rows[first : first + len(table)]
                            yield Batch(task, split, chosen, table, block_of(task, table))
                        first += len(table)

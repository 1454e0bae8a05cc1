"""Measure how many bytes publishing a collection again moves after some episodes were collected again.

    jat bench republish --out runs/full

Data files are written as a collection would, with the existing episodes and with some of them replaced. They are
compared as the Hub compares them: by chunks of about 64 KiB (``pipeline/chunks.py``).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from collectors.dataset.bench_parquet import ParquetLayout, replace_rows, write
from pipeline.chunks import new_bytes
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.runtime.progress import Progress
from pipeline.seeds import SPLITS
from pipeline.storage.parquet import ROW_GROUP_BYTES
from pipeline.storage.shards import finished_shards
from pipeline.tables import Column, Table, print_table


@dataclass(frozen=True)
class RepublishConfig:
    """Measure how many bytes publishing again moves after some episodes were collected again."""

    out: Path = Path("runs/default")
    """Root of a run with shards."""
    task: str = "*"
    """Tasks to measure: name, domain, glob, or comma list; tasks without shards are skipped."""
    changed: float = 0.01
    """Share of the training episodes of each task that is collected again; at least one episode."""

    def __post_init__(self) -> None:
        if not 0 < self.changed <= 1:
            raise UserError(f"--changed is {self.changed}; a share is above 0 and at most 1")


@dataclass
class Moved:
    """Bytes of data files, and how many of them publishing again moves.

    Attributes:
        episodes, changed: number of training episodes, and of those collected again.
        total: bytes of all training files.
        side_by_side: bytes moved if the changed episodes have contiguous seeds.
        scattered: bytes moved if the changed episodes are scattered.
        whole_files: bytes moved if files are compared as a whole and the changed episodes have contiguous seeds.
        shards: episodes and bytes of every shard.
    """

    episodes: int = 0
    changed: int = 0
    total: int = 0
    side_by_side: int = 0
    scattered: int = 0
    whole_files: int = 0
    shards: list[tuple[int, int]] = field(default_factory=list)

    def add(self, other: Moved) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def measure_task(task: Task, shards: Sequence[pa.Table], others: pa.Table, share: float) -> Moved:
    """Measure what publishing one task again moves.

    Args:
        task: the task.
        shards: the training episodes, one table per shard.
        others: episodes of other seeds, which replace the changed ones.
        share: share of the episodes that change.
    """
    num = sum(map(len, shards))
    count = max(1, round(num * share))
    moved = Moved(episodes=num, changed=count)
    rng = np.random.default_rng(0)
    neighbours = int(rng.integers(num - count + 1)) + np.arange(count)
    anywhere = rng.choice(num, count, replace=False)
    layout = ParquetLayout("ours", ROW_GROUP_BYTES[task.observation])
    first = 0
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder, "before.parquet"), Path(folder, "after.parquet")
        for shard in shards:
            write(task, layout, shard, before)
            moved.total += before.stat().st_size
            moved.shards.append((len(shard), before.stat().st_size))
            for name, rows in (("side_by_side", neighbours), ("scattered", anywhere)):
                here = rows[(rows >= first) & (rows < first + len(shard))] - first
                if len(here):
                    write(task, layout, replace_rows(shard, here, others), after)
                    setattr(moved, name, getattr(moved, name) + new_bytes([before], [after]))
                    moved.whole_files += after.stat().st_size if name == "side_by_side" else 0
            first += len(shard)
    return moved


def measure_collection(config: RepublishConfig) -> dict[str, Moved]:
    """Measure what publishing a collection again moves, by domain.

    Raises:
        UserError: nothing is collected, or only one split of a task.
    """
    root = config.out / "shards"
    found = {task: shards for task in select_tasks(config.task) if (shards := finished_shards(root, task.name))}
    if not found:
        raise UserError(
            f"nothing is collected in {root} for {config.task!r}; run `jat collect` with the same --out first"
        )
    moved: dict[str, Moved] = {}
    progress = Progress("tasks measured", len(found))
    for task, shards in found.items():
        tables: dict[str, list[pa.Table]] = defaultdict(list)
        for shard in shards:
            tables[shard.split].append(pq.read_table(root / task.name / shard.data.name))
        if set(tables) != set(SPLITS):
            raise UserError(f"{task.name} lacks training or test episodes in {root}; run `jat collect` again")
        others = pa.concat_tables(tables["test"])
        moved.setdefault(task.domain, Moved()).add(measure_task(task, tables["train"], others, config.changed))
        progress.advance()
    return moved


def share_of_shards(shards: Sequence[tuple[int, int]], share: float) -> float:
    """Share of the bytes in randomly drawn shards that together have a share of the episodes.

    This is moved if whole shards are collected again, for instance with another expert.
    """
    order = np.random.default_rng(0).permutation(len(shards))
    wanted, episodes, num_bytes = share * sum(count for count, _ in shards), 0, 0
    for index in order:
        if episodes >= wanted:
            break
        episodes += shards[index][0]
        num_bytes += shards[index][1]
    return num_bytes / sum(size for _, size in shards)


def main() -> None:
    config = parse(RepublishConfig, prints_tables=True)
    moved = measure_collection(config)
    everything = Moved()
    table = Table(
        "domain",
        "episodes",
        "made again",
        Column("MB", ",.1f"),
        *(
            Column(heading, ".1%")
            for heading in ("side by side", "scattered", "side by side, files whole", "whole shards")
        ),
    )
    for of_domain in moved.values():
        everything.add(of_domain)
    for name, m in (moved | {"all": everything}).items():
        shares = [value / m.total for value in (m.side_by_side, m.scattered, m.whole_files)]
        shares.append(share_of_shards(m.shards, config.changed))
        table.add_row(name, m.episodes, m.changed, m.total / 1e6, *shares, is_total=name == "all")
    print_table(table)


if __name__ == "__main__":
    run("collectors.dataset.republish")

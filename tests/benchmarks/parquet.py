"""Measure what each choice in the Parquet files costs and gains: size, write speed and read speed.

    python -m tests.benchmarks.parquet --out runs/full --task mujoco-hopper,mujoco-humanoid,babyai-boss-level

Collected episodes are written in many layouts, each one choice away from the project's, and also with the defaults of
``datasets`` and with a row group per episode. Times are CPU time of one thread, so that other programs do not matter.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, DISCRETE, IMAGE, Task
from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from pipeline.storage.parquet import ROW_GROUP_BYTES, ends_row_group, parquet_options
from pipeline.storage.schema import features, lengths_of
from pipeline.storage.shards import finished_shards
from pipeline.tables import Column, Table, print_tables

KIB = 2**10
NUMBER_BYTES = {CONTINUOUS: 4, DISCRETE: 8, IMAGE: 1}
WINDOW_STEPS = 256
DATASETS_OWN = "Dataset.to_parquet"


@dataclass(frozen=True)
class ParquetBenchConfig:
    """Write collected episodes in many layouts and measure size, writing and reading of each."""

    out: Path = Path("runs/default")
    """Root of a run with shards of the tasks."""
    task: str = "mujoco-hopper,mujoco-humanoid,babyai-boss-level,atari-pong"
    """Tasks, one per kind of column: name, domain, glob, or comma list."""
    steps: int = 50_000
    """Approximate number of steps of each task to write."""
    seconds: float = 0.5
    """CPU seconds spent on each measurement of reading."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "steps")


@dataclass(frozen=True)
class ParquetLayout:
    """One way to write a file: bytes of observations per row group (0: one episode each), and the writer's options."""

    name: str
    group_bytes: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class LayoutResult:
    """The result of one layout for one task.

    Attributes:
        bytes_per_step: of the file.
        write: steps written per second.
        scan: steps read per second, from the first row group to the last.
        episodes: episodes read per second, each at a random row.
        windows: windows of 256 steps read per second, each at a random position.
    """

    bytes_per_step: float
    write: float
    scan: float
    episodes: float
    windows: float


def layouts_of(task: Task) -> list[ParquetLayout]:
    """The project's layout, and all layouts that differ from it in one choice."""
    ours = parquet_options(task)
    size = ROW_GROUP_BYTES[task.observation]

    def by_content(least: int) -> dict[str, Any]:
        return {"use_content_defined_chunking": {"min_chunk_size": least, "max_chunk_size": 4 * least}}

    varied: list[tuple[str, dict[str, Any]]] = [
        ("snappy", {"compression": "snappy", "compression_level": None}),
        ("zstd level 1", {"compression_level": 1}),
        ("zstd level 3", {"compression_level": 3}),
        ("zstd level 9", {"compression_level": 9}),
        ("dictionaries", {"use_dictionary": True}),
        ("no dictionaries", {"use_dictionary": False}),
        ("no byte stream split", {"use_byte_stream_split": False}),
        ("with statistics", {"write_statistics": True}),
        ("pages of 64 KiB", {"data_page_size": 2**16}),
        ("pages by content, 16 KiB up", by_content(2**14)),
        ("pages by content, 256 KiB up", by_content(2**18)),
    ]
    sizes = [count * KIB for count in (64, 128, 256, 1024, 4096, 8192, 32768)]
    return [
        ParquetLayout("ours", size),
        ParquetLayout(DATASETS_OWN, 0),
        ParquetLayout("a row group per episode", 0),
        *(ParquetLayout(f"row groups of {other // KIB:,} KiB", other) for other in sizes if other != size),
        *(
            ParquetLayout(name, size, changes)
            for name, changes in varied
            if any(ours.get(key) != value for key, value in changes.items())
        ),
    ]


def load_episodes(root: Path, task: Task, split: str, num_steps: int) -> pa.Table:
    """Episodes of a split with about ``num_steps`` steps in total.

    Raises:
        UserError: there are no episodes.
    """
    tables: list[pa.Table] = []
    steps = 0
    for shard in finished_shards(root, task.name):
        if shard.split == split and steps < num_steps:
            table = pq.read_table(root / task.name / shard.data.name)
            fits = int(np.searchsorted(np.cumsum(lengths_of(table)), num_steps - steps)) + 1
            tables.append(table.slice(0, fits))
            steps += int(lengths_of(tables[-1]).sum())
    if not tables:
        raise UserError(f"{task.name} has no {split} episodes in {root}; run `jat collect --task {task.name}` first")
    return pa.concat_tables(tables).combine_chunks()


def write(task: Task, layout: ParquetLayout, table: pa.Table, path: Path) -> None:
    """Write episodes in one layout, as a collection would."""
    if layout.name == DATASETS_OWN:
        from datasets import Dataset
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()
        Dataset(table).to_parquet(path)
        return
    bounds = group_bounds(task, lengths_of(table), layout.group_bytes)
    options = parquet_options(task) | layout.options
    with pq.ParquetWriter(path, features(task).arrow_schema, **options) as writer:
        for begin, end in itertools.pairwise(bounds):
            writer.write_table(table.slice(begin, end - begin))


def group_bounds(task: Task, lengths: np.ndarray, group_bytes: int) -> list[int]:
    """The first row of each row group, and the end. Rows replace seeds, which a data file does not contain."""
    step_bytes = int(np.prod(task.observation_shape)) * NUMBER_BYTES[task.observation]
    bounds, held = [0], 0
    for row, length in enumerate(lengths.tolist()):
        held += length * step_bytes
        if ends_row_group(row, length * step_bytes, held, group_bytes):
            bounds.append(row + 1)
            held = 0
    return bounds if bounds[-1] == len(lengths) else [*bounds, len(lengths)]


class Reader:
    """Reads random episodes from a file that is opened once."""

    def __init__(self, path: Path) -> None:
        self._file = pq.ParquetFile(path)
        metadata = self._file.metadata
        counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *counts])

    def scan(self) -> int:
        """Read everything and return the number of steps."""
        groups = range(self._file.num_row_groups)
        return sum(int(lengths_of(self._file.read_row_group(group, use_threads=False)).sum()) for group in groups)

    def episode(self, row: int) -> pa.Table:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        table = self._file.read_row_group(group, use_threads=False)
        return table.slice(row - self._starts[group], 1)

    def episodes(self, rng: np.random.Generator) -> Iterator[pa.Table]:
        while True:
            yield self.episode(int(rng.integers(self._starts[-1]))).combine_chunks()

    def windows(self, rng: np.random.Generator) -> Iterator[list[pa.Array]]:
        while True:
            episode = self.episode(int(rng.integers(self._starts[-1])))
            start = int(rng.integers(max(1, int(lengths_of(episode)[0]) - WINDOW_STEPS + 1)))
            yield [pa.concat_arrays([c.chunk(0).flatten().slice(start, WINDOW_STEPS)]) for c in episode.columns]


def measure(config: ParquetBenchConfig, task: Task, layout: ParquetLayout, table: pa.Table) -> LayoutResult:
    """Write and read a task's episodes in one layout."""
    num_steps = int(lengths_of(table).sum())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.parquet")
        seconds = cpu_seconds(lambda: write(task, layout, table, path))
        reader = Reader(path)
        return LayoutResult(
            path.stat().st_size / num_steps,
            num_steps / seconds,
            num_steps * rate(config.seconds, iter(reader.scan, None)),
            rate(config.seconds, reader.episodes(np.random.default_rng(0))),
            rate(config.seconds, reader.windows(np.random.default_rng(0))),
        )


def cpu_seconds(work: Callable[[], None]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def rate(seconds: float, work: Iterator[Any]) -> float:
    """Values per CPU second that an endless iterator yields."""
    next(work)
    count, started = 0, time.process_time()
    while time.process_time() - started < seconds or count == 0:
        next(work)
        count += 1
    return count / (time.process_time() - started)


def bench_task(config: ParquetBenchConfig, task: Task) -> dict[str, LayoutResult]:
    """The result of every layout for one task, by name."""
    root = RunLayout(config.out).shards
    table = load_episodes(root, task, "train", config.steps)
    features(task)  # warm up imports, so that the first write is not charged for them
    return {layout.name: measure(config, task, layout, table) for layout in layouts_of(task)}


def result_table(task: Task, results: dict[str, LayoutResult]) -> Table:
    """One row per layout."""
    speeds = (Column(heading, ",.0f") for heading in ("write", "scan", "episodes/s", "windows/s"))
    table = Table(Column(task.name, key="layout"), Column("bytes/step", ",.2f"), *speeds)
    for layout, r in results.items():
        table.add_row(layout, r.bytes_per_step, r.write, r.scan, r.episodes, r.windows)
    return table


def main() -> None:
    config = parse(ParquetBenchConfig, prints_tables=True)
    print_tables({task.name: result_table(task, bench_task(config, task)) for task in select_tasks(config.task)})


if __name__ == "__main__":
    run("tests.benchmarks.parquet")

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.parquet import ROW_GROUP_BYTES
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import finished_shards, write_shard
from tests.benchmarks.parquet import (
    ParquetBenchConfig,
    ParquetLayout,
    Reader,
    bench_task,
    group_bounds,
    layouts_of,
    load_episodes,
    result_table,
    write,
)
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode

TASKS = pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)


def collect(out: Path, task: Task) -> None:
    for split, first, count in (("train", 0, 20), ("train", 20, 10), ("test", 1_000_000_000, 3)):
        episodes = (expected_episode(task, seed) for seed in range(first, first + count))
        write_shard(out / "shards", ShardJob(task, split, first, count, "random"), "1", episodes)


@TASKS
def test_every_layout_is_measured_and_holds_the_same_episodes(task: Task, tmp_path: Path) -> None:
    collect(tmp_path, task)
    results = bench_task(ParquetBenchConfig(tmp_path, steps=60, seconds=0.001), task)
    assert list(results)[:3] == ["ours", "Dataset.to_parquet", "a row group per episode"]
    assert len(results) > 10
    for measured in results.values():
        assert min(measured.bytes_per_step, measured.write, measured.scan, measured.episodes, measured.windows) > 0
    assert len(result_table(task, results).rows) == len(results)
    table = load_episodes(tmp_path / "shards", task, "train", 60)
    for layout in layouts_of(task):
        write(task, layout, table, tmp_path / "file.parquet")
        assert pq.read_table(tmp_path / "file.parquet").equals(table), layout.name


@TASKS
def test_ours_is_what_the_collection_writes(task: Task, tmp_path: Path) -> None:
    collect(tmp_path, task)
    _, shard, _ = finished_shards(tmp_path / "shards", task.name)  # of seeds 0 to 19
    path = tmp_path / "shards" / task.name / shard.data.name
    write(
        task, ParquetLayout("ours", ROW_GROUP_BYTES[task.observation]), pq.read_table(path), tmp_path / "again.parquet"
    )
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


def test_row_groups_end_with_the_episode_that_fills_them() -> None:
    # Steps of 16 bytes.
    assert group_bounds(FAKE_COUNT, np.array([1, 1, 5, 2, 1]), 16) == [0, 1, 2, 3, 4, 5]
    assert group_bounds(FAKE_COUNT, np.array([1, 1, 5]), 0) == [0, 1, 2, 3]
    assert group_bounds(FAKE_COUNT, np.array([1, 1, 5]), 10**6) == [0, 3]


def test_episodes_and_windows_are_read_where_they_are(tmp_path: Path) -> None:
    rewards = [[float(100 * row + t) for t in range(300)] for row in range(6)]
    table = pa.table({"rewards": pa.array(rewards, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    reader = Reader(tmp_path / "a.parquet")
    assert [reader.episode(row)["rewards"].to_pylist() for row in range(6)] == [[row] for row in rewards]
    assert reader.scan() == 6 * 300
    windows = reader.windows(np.random.default_rng(0))
    for _ in range(20):
        (window,) = next(windows)
        first = window[0].as_py()
        assert window.to_pylist() == [first + t for t in range(256)]


def test_only_as_many_episodes_as_asked_for_are_taken(tmp_path: Path) -> None:
    collect(tmp_path, FAKE_COUNT)
    # Lengths 1, 2, 3, 4, 6 and so on: the first four have ten steps.
    assert len(load_episodes(tmp_path / "shards", FAKE_COUNT, "train", 10)) == 4
    assert len(load_episodes(tmp_path / "shards", FAKE_COUNT, "train", 10**6)) == 30
    with pytest.raises(UserError, match="toy-grid has no train episodes"):
        load_episodes(tmp_path / "shards", FAKE_GRID, "train", 10)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(UserError, match="--steps"):
        ParquetBenchConfig(steps=0)

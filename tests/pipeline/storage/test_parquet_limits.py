from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage import parquet_limits
from pipeline.storage.episode_rules import Problem, scan_episodes
from pipeline.storage.parquet_limits import MAX_TEXT_BYTES, check_step_texts, check_steps, open_parquet, read_small
from pipeline.storage.schema import data_table
from tests.fakes import FAKE_GRID, expected_episode


def long_rewards(path: Path, num_steps: int) -> Path:
    """One episode of so many equal rewards, which take a few kilobytes."""
    rewards = pa.ListArray.from_arrays([0, num_steps], pa.array(np.zeros(num_steps, np.float32)))
    pq.write_table(pa.table({"rewards": rewards}), path, compression="zstd")
    return path


def test_an_episode_of_millions_of_steps_is_refused_by_its_footer(tmp_path: Path) -> None:
    path = long_rewards(tmp_path / "it.parquet", 2**20 + 1)
    assert path.stat().st_size < 10_000
    with pytest.raises(pa.ArrowInvalid, match=r"has 1,048,577 steps in 1 episodes; at most 1,048,576 per episode"):
        check_steps(pq.read_metadata(path), "rewards")
    problems: list[Problem] = []
    scan_episodes(FAKE_GRID, path, problems.append)
    assert [problem.kind for problem in problems] == ["unreadable file"]


def test_a_group_that_takes_gigabytes_is_refused_by_its_footer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = long_rewards(tmp_path / "it.parquet", 300_000)
    with open_parquet(path) as file:
        assert (file.metadata.num_rows, file.schema_arrow.names) == (1, ["rewards"])
    monkeypatch.setattr(parquet_limits, "MAX_GROUP_BYTES", 2**20)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **options: pytest.fail("read"))
    with pytest.raises(pa.ArrowInvalid, match=r"row group 0 takes .* smaller row groups"), open_parquet(path):
        pass


def test_rows_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"a": pa.nulls(2_000, pa.int8())}), tmp_path / "it.parquet")
    monkeypatch.setattr(parquet_limits, "MAX_ROWS", 1_999)
    with pytest.raises(pa.ArrowInvalid, match="it says 2,000 rows"), open_parquet(tmp_path / "it.parquet"):
        pass


def test_steps_whose_long_text_is_stored_once_are_refused_before_each_has_a_copy(tmp_path: Path) -> None:
    table = data_table(FAKE_GRID, [expected_episode(FAKE_GRID, seed) for seed in range(3)])
    check_step_texts(*stored(tmp_path / "good.parquet", table), 0)
    texts = pa.array([["x" * (MAX_TEXT_BYTES + 1)] * 1_000])
    source, metadata = stored(tmp_path / "bad.parquet", pa.table({"text_observations": texts}))
    assert source.stat().st_size < 100_000
    with pytest.raises(pa.ArrowInvalid, match="a text has 65,537 bytes"):
        check_step_texts(source, metadata, 0)


def stored(path: Path, table: pa.Table) -> tuple[Path, pq.FileMetaData]:
    pq.write_table(table, path, compression="zstd")
    return path, pq.read_metadata(path)


def test_a_long_text_that_stands_a_million_times_is_never_written_out(tmp_path: Path) -> None:
    text = "x" * (MAX_TEXT_BYTES + 1)
    indices = pa.array(np.zeros(1_000_000, np.int32))
    column = pa.DictionaryArray.from_arrays(indices, pa.array([text]))  # 61 GiB, written out
    path = tmp_path / "it.parquet"
    pq.write_table(pa.table({"rejected": column}), path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    with pytest.raises(pa.ArrowInvalid, match="a text has 65,537 bytes, more than 65,536"):
        read_small(path)


def test_a_side_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = pa.table({"seed": [1, 2], "rejected": pa.array(["a", None]), "noise": pa.nulls(2, pa.string())})
    pq.write_table(table, tmp_path / "it.parquet")
    assert read_small(tmp_path / "it.parquet") == table
    assert read_small(tmp_path / "it.parquet", ["rejected"]) == table.select(["rejected"])

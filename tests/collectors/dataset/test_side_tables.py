"""Columns of the side table that older shards lack, and rows that are not of the task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.dataset.validate import ValidateConfig, validate
from pipeline.errors import UserError
from pipeline.files import sha256_of
from tests.collectors.dataset.test_build import TABLE, build, load, write_task
from tests.fakes import FAKE_COUNT, FAKE_GRID

FLOATS = pa.list_(pa.float32())


def test_side_tables_of_older_shards_get_the_task_so_that_all_open_as_one(tmp_path: Path) -> None:
    for task in (FAKE_COUNT, FAKE_GRID):
        write_task(tmp_path, task)
    for sidecar in (tmp_path / "shards" / "toy-grid").glob("*0.json"):
        path = sidecar.with_suffix(".episodes.parquet")
        table = pq.read_table(path).drop_columns(["task", "final_observation"])
        pq.write_table(table, path)
        record = json.loads(sidecar.read_text())
        record["episodes"] |= {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)}
        sidecar.write_text(json.dumps(record))
    dataset = build(tmp_path)
    assert {row["task"] for row in load(dataset, "toy-grid-episodes")["train"]} == {"toy-grid"}
    assert {row["task"] for row in load(dataset, "episodes")["train"]} == {"fake-count", "toy-grid"}
    assert validate(ValidateConfig(dataset), TABLE).kinds == {}


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("task", pa.array(["fake-other"] * 3), "task 'fake-other', expected fake-count"),
        ("final_observation", pa.array([[1.0]] * 3, FLOATS), "1 numbers in final_observation, expected 4"),
        ("final_observation", pa.array([[np.nan] * 4] * 3, FLOATS), "final_observation not finite"),
    ],
)
def test_a_side_table_of_another_task_or_of_no_observations_is_refused(
    column: str, value: pa.Array, reason: str, tmp_path: Path
) -> None:
    write_task(tmp_path, FAKE_COUNT)
    sidecar = next((tmp_path / "shards" / "fake-count").glob("train-*0000-*.json"))
    path = sidecar.with_suffix(".episodes.parquet")
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(column), column, value), path)
    record = json.loads(sidecar.read_text())
    record["episodes"] |= {"num_bytes": path.stat().st_size, "sha256": sha256_of(path)}
    sidecar.write_text(json.dumps(record))
    with pytest.raises(UserError, match=reason):
        build(tmp_path)

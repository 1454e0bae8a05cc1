from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, List, Value

from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.schema import data_table, episode_features, features, read_blocks, read_episode
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode

REWARDS = List(Value("float32"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "metaworld-assembly",
            {
                "continuous_observations": List(List(Value("float32"), length=39)),
                "continuous_actions": List(List(Value("float32"), length=4)),
                "rewards": REWARDS,
            },
        ),
        (
            "mujoco-humanoid",
            {
                "continuous_observations": List(List(Value("float32"), length=376)),
                "continuous_actions": List(List(Value("float32"), length=17)),
                "rewards": REWARDS,
            },
        ),
        (
            "babyai-go-to",
            {
                "text_observations": List(Value("string")),
                "discrete_observations": List(List(Value("int64"), length=148)),
                "discrete_actions": List(Value("int64")),
                "rewards": REWARDS,
            },
        ),
        (
            "atari-pong",
            {
                "image_observations": List(Image()),
                "discrete_actions": List(Value("int64")),
                "rewards": REWARDS,
            },
        ),
    ],
)
def test_the_columns_of_a_task_are_those_of_jat(name: str, expected: dict[str, object]) -> None:
    (task,) = select_tasks(name)
    found = features(task)
    assert found == Features(expected)
    assert list(found) == list(expected)


def test_the_side_table_has_these_columns() -> None:
    assert episode_features() == Features(
        {
            "seed": Value("int64"),
            "row": Value("int32"),
            "expert": Value("string"),
            "expert_revision": Value("string"),
            "return": Value("float64"),
            "length": Value("int32"),
            "success": Value("bool"),
            "ended": Value("string"),
            "rejected": Value("string"),
            "noise": Value("string"),
            "versions": Value("string"),
            "flagged": Value("string"),
            "task": Value("string"),
            "final_observation": List(Value("float32")),
        }
    )


def test_a_table_holds_one_row_per_episode_of_literal_lists() -> None:
    table = data_table(FAKE_GRID, [expected_episode(FAKE_GRID, 1), expected_episode(FAKE_GRID, 0)])
    assert table.to_pydict() == {
        "text_observations": [["seed 1 step 0", "seed 1 step 1"], ["seed 0 step 0"]],
        "discrete_observations": [[[0, 0, 1, 0], [0, 0, 1, 1]], [[0, 0, 0, 0]]],
        "discrete_actions": [[1, 3], [0]],
        "rewards": [[0.125, -1.0], [1.0]],
    }


def test_an_image_is_one_of_four_channels() -> None:
    table = data_table(FAKE_PIXELS, [expected_episode(FAKE_PIXELS, 1)])
    ((first, second),) = table["image_observations"].to_pylist()
    assert first["path"] is None
    decoded = [np.asarray(Image().decode_example(step)) for step in (first, second)]
    assert [image.shape for image in decoded] == [(84, 84, 4)] * 2
    assert decoded[1][0, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_no_episodes_make_an_empty_table_that_can_be_read(task: Task, tmp_path: Path) -> None:
    table = data_table(task, [])
    assert (table.num_rows, table.column_names) == (0, list(features(task)))
    pq.write_table(table, tmp_path / "empty.parquet")
    for block in read_blocks(task, tmp_path / "empty.parquet"):
        assert (len(block.lengths), len(block.rewards), len(block.actions)) == (0, 0, 0)
        assert block.observations.shape == (0, *task.observation_shape)


def test_lists_of_variable_length_as_in_jat_s_own_files_are_read_too(tmp_path: Path) -> None:
    table = data_table(FAKE_COUNT, [expected_episode(FAKE_COUNT, 1), expected_episode(FAKE_COUNT, 0)])
    variable = pa.table(
        {
            name: pa.array(column.to_pylist(), pa.list_(pa.list_(pa.float32())))
            if name != "rewards"
            else column.combine_chunks()
            for name, column in zip(table.column_names, table.columns, strict=True)
        }
    )
    pq.write_table(variable, tmp_path / "jat.parquet")
    (block,) = read_blocks(FAKE_COUNT, tmp_path / "jat.parquet")
    assert block.lengths.tolist() == [2, 1]
    assert block.observations.tolist() == [[0, 0, 1, 0], [0, 0, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(block.actions, np.array([[0.05, 0.0], [0.05, 0.05], [0.0, 0.0]], np.float32))


def test_one_episode_is_read_without_the_other_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "data.parquet"
    pq.write_table(
        data_table(FAKE_GRID, [expected_episode(FAKE_GRID, seed) for seed in range(5)]), path, row_group_size=2
    )
    metadata = pq.read_metadata(path)
    other = metadata.row_group(0).column(1)
    damaged = bytearray(path.read_bytes())
    damaged[other.data_page_offset : other.data_page_offset + other.total_compressed_size // 2] = b"\xff" * (
        other.total_compressed_size // 2
    )
    path.write_bytes(damaged)
    block = read_episode(FAKE_GRID, path, 3)
    expected = expected_episode(FAKE_GRID, 3)
    assert block.lengths.tolist() == [4]
    np.testing.assert_array_equal(block.observations, expected.observations)
    np.testing.assert_array_equal(block.actions, expected.actions)
    np.testing.assert_array_equal(block.rewards, expected.rewards)
    assert block.texts is not None and tuple(block.texts.to_pylist()) == expected.texts
    with pytest.raises((OSError, pa.ArrowException), match=r"\w"):
        read_episode(FAKE_GRID, path, 0)
    with pytest.raises(UserError, match="has 5 rows, so there is no row 5"):
        read_episode(FAKE_GRID, path, 5)

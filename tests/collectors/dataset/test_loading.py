"""A dataset as its users open it, with ``datasets`` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Features, Image, List, Value, load_dataset

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.jobs import CollectJob, collect_shard
from pipeline.storage.plan import ShardJob
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, num_steps, observation_at, random_mix

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_GRID, FAKE_PIXELS)
COUNT = Features(
    {
        "continuous_observations": List(List(Value("float32"), length=4)),
        "continuous_actions": List(List(Value("float32"), length=2)),
        "rewards": List(Value("float32")),
    }
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks: seeds 0 to 4 in two shards to train, two to test."""
    out = tmp_path_factory.mktemp("run")
    for task in TABLE:
        for split, first, count in (("train", 0, 3), ("train", 3, 2), ("test", TEST, 2)):
            mix = random_mix(out / "elsewhere", task)
            collect_shard(CollectJob(ShardJob(task, split, first, count, mix.kind), mix, out / "shards", 4))
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


def opened(dataset: Path, *name: str, **options: Any) -> Any:
    return load_dataset(str(dataset), *name, cache_dir=str(dataset.parent / "cache"), **options)


def test_without_a_name_it_is_said_which_there_are(dataset: Path) -> None:
    with pytest.raises(ValueError, match="Config name is missing") as caught:
        opened(dataset)
    for task in TABLE:
        assert f"'{task.name}'" in str(caught.value) and f"'{task.name}-episodes'" in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_name_gives_splits_and_jat_s_columns(streaming: bool, dataset: Path) -> None:
    rows = opened(dataset, "fake-count", streaming=streaming)
    assert {split: len(list(of_split)) for split, of_split in rows.items()} == {"train": 5, "test": 2}
    assert rows["train"].features == COUNT


@pytest.mark.parametrize("streaming", [False, True])
def test_the_side_tables_of_all_tasks_open_as_one_that_tells_the_task(streaming: bool, dataset: Path) -> None:
    rows = opened(dataset, "episodes", split="train", streaming=streaming)
    assert [(row["task"], row["seed"]) for row in rows] == [(task.name, seed) for task in TABLE for seed in range(5)]


def test_successful_episodes_are_one_line_away(dataset: Path) -> None:
    episodes = opened(dataset, "toy-grid", split="train")
    side = opened(dataset, "toy-grid-episodes", split="train")
    accepted = side.filter(lambda row: row["rejected"] is None)
    successful = episodes.select([i for i, row in enumerate(accepted) if row["success"]])
    assert [len(row["rewards"]) for row in successful] == [num_steps(seed) for seed in (0, 3)]


def test_the_side_table_has_the_observation_after_the_last_action(dataset: Path) -> None:
    for task in TABLE:
        for row in opened(dataset, f"{task.name}-episodes", split="train"):
            expected = observation_at(task, row["seed"], num_steps(row["seed"]))
            assert row["final_observation"] == expected.ravel().tolist()


def test_a_task_streams_its_episodes_in_order_with_lengths_fixed_where_they_are(dataset: Path) -> None:
    rows = opened(dataset, "fake-count", streaming=True)
    assert set(rows) == {"train", "test"}
    assert rows["train"].features == COUNT
    found = [row["continuous_observations"] for row in rows["train"]]
    assert found == [[observation_at(FAKE_COUNT, s, t).tolist() for t in range(num_steps(s))] for s in range(5)]


def test_a_split_streams_alone(dataset: Path) -> None:
    rows = opened(dataset, "toy-grid", split="test", streaming=True)
    assert [len(row["rewards"]) for row in rows] == [num_steps(TEST), num_steps(TEST + 1)]
    assert rows.features["discrete_observations"] == List(List(Value("int64"), length=4))
    assert rows.features["discrete_actions"] == List(Value("int64"))


@pytest.mark.parametrize("streaming", [False, True])
def test_images_are_pictures_to_whoever_opens_them(streaming: bool, dataset: Path) -> None:
    rows = opened(dataset, "pixel-count", split="train", streaming=streaming)
    assert rows.features["image_observations"] == List(Image())
    (*_, last) = iter(rows)
    assert len(last["image_observations"]) == num_steps(4)
    for t, picture in enumerate(last["image_observations"]):
        np.testing.assert_array_equal(np.asarray(picture), observation_at(FAKE_PIXELS, 4, t))


@pytest.mark.parametrize("streaming", [False, True])
def test_the_side_table_of_a_task_is_a_configuration_of_its_own(streaming: bool, dataset: Path) -> None:
    side = opened(dataset, "toy-grid-episodes", split="train", streaming=streaming)
    assert [(row["seed"], row["length"]) for row in side] == [(seed, num_steps(seed)) for seed in range(5)]
    assert side.features["seed"] == Value("int64")


def test_shards_are_what_workers_share_out(dataset: Path) -> None:
    rows = opened(dataset, "fake-count", split="train", streaming=True)
    assert rows.num_shards == 2
    lengths = [[len(row["rewards"]) for row in rows.shard(2, index)] for index in range(2)]
    assert lengths == [[num_steps(s) for s in (0, 1, 2)], [num_steps(s) for s in (3, 4)]]

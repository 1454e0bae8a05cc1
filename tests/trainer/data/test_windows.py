"""Windows for models of one's own: fixed shapes in every domain, with exactly the steps that were collected."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.jobs import CollectJob, collect_shard
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import UserError
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import ShardJob
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_PIXELS,
    num_steps,
    observation_at,
    random_mix,
    reward_at,
    text_at,
)
from trainer.data import Windows

TABLE = (FAKE_COUNT, FAKE_GRID, FAKE_PIXELS)
LENGTH = 3
SEEDS = range(10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    for task in TABLE:
        for split, first, count in (("train", 0, len(SEEDS)), ("test", 1_000_000_000, 2)):
            mix = random_mix(out / "elsewhere", task)
            collect_shard(CollectJob(ShardJob(task, split, first, count, mix.kind), mix, out / "shards", 4))
    build_dataset(DatasetConfig(out=out), TABLE)
    return out / "dataset"


@pytest.mark.parametrize("task", TABLE, ids=lambda task: task.name)
def test_the_default_loader_batches_the_collected_steps_of_every_domain(task: Task, dataset: Path) -> None:
    windows = Windows(dataset, task, length=LENGTH)
    seen = set()
    for batch in DataLoader(windows, batch_size=4, shuffle=True):
        for row in range(len(batch["mask"])):
            seed, first = int(batch["episode"][row]), int(batch["first"][row])
            for place in range(LENGTH):
                t = first + place
                assert bool(batch["mask"][row, place]) == (t < num_steps(seed))
                t = min(t, num_steps(seed) - 1)
                seen.add((seed, t))
                expected = observation_at(task, seed, t)
                if task.observation == IMAGE:
                    expected = np.moveaxis(expected, -1, 0)
                found = batch["observations"][row, place].numpy()
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)
                assert float(batch["rewards"][row, place]) == reward_at(task, seed, t)
                if task.has_text:
                    assert windows.texts[int(batch["texts"][row, place])] == text_at(seed, t)
    assert seen == {(seed, t) for seed in SEEDS for t in range(num_steps(seed))}


def test_the_windows_of_chosen_episodes_are_cut_alone(dataset: Path) -> None:
    windows = Windows(dataset, FAKE_COUNT, length=LENGTH, episodes=[9, 2])
    assert [(int(w["episode"]), int(w["first"])) for w in (windows[i] for i in range(len(windows)))] == [
        (2, 0),
        (9, 0),
        (9, 3),
    ]
    assert windows[-1]["actions"].dtype == torch.float32
    with pytest.raises(IndexError):
        windows[3]


def test_what_is_not_there_is_told_in_one_line(dataset: Path) -> None:
    for expected, arguments in (
        ("is no dataset: it has no manifest.json", (dataset / "data", FAKE_COUNT)),
        ("split is 'valid'; it must be one of train, test", (dataset, FAKE_COUNT, "valid")),
        ("length is 0; it must be at least 1", (dataset, FAKE_COUNT, "train", 0)),
        ("episodes has 10; the rows of fake-count, train, are 0 to 9", (dataset, FAKE_COUNT, "train", 3, [10])),
        ("episodes has -1; the rows of fake-count", (dataset, FAKE_COUNT, "train", 3, [3, -1])),
        ("episodes has 1.5; the rows of fake-count", (dataset, FAKE_COUNT, "train", 3, [1.5])),
        ("episodes has True; .* of a mask, give np.flat", (dataset, FAKE_COUNT, "train", 3, np.arange(10) < 5)),
        ("episodes has False; .* of a mask", (dataset, FAKE_COUNT, "train", 3, torch.arange(10) > 5)),
        ("no episode of fake-count, train, is left", (dataset, FAKE_COUNT, "train", 3, [])),
        ("mujoco-ant is not in .*; it has: fake-count, toy-grid, pixel-count", (dataset, "mujoco-ant")),
        ("'mujoco' matches 11 tasks; name one", (dataset, "mujoco")),
    ):
        with pytest.raises(UserError, match=expected) as caught:
            Windows(*arguments)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", TABLE, ids=lambda task: task.name)
def test_next_observations_end_with_the_final_one_and_terminations_are_no_step_limits(
    task: Task, dataset: Path
) -> None:
    windows = Windows(dataset, task, length=LENGTH, next_observations=True)
    ends = 0
    for item in (windows[index] for index in range(len(windows))):
        seed, first = int(item["episode"]), int(item["first"])
        for place in range(LENGTH):
            t = min(first + place, num_steps(seed) - 1)
            expected = observation_at(task, seed, t + 1)
            if task.observation == IMAGE:
                expected = np.moveaxis(expected, -1, 0)
            found = item["next_observations"][place].numpy()
            assert found.dtype == expected.dtype == item["observations"].numpy().dtype
            np.testing.assert_array_equal(found, expected)
            is_end = t == num_steps(seed) - 1 and seed % 5 not in (2, 4)  # others are truncated
            assert bool(item["terminations"][place]) == is_end
            ends += is_end
    assert ends


def test_an_episode_without_a_final_observation_is_named(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "dataset")
    manifest = DatasetManifest.load(tmp_path / "dataset" / DatasetManifest.FILE_NAME)
    (side,) = (tmp_path / "dataset").glob(f"{manifest.tasks['fake-count'].splits['train'].episodes[0].name}")
    table = pq.read_table(side)
    finals = table["final_observation"].to_pylist()
    finals[7] = None
    kept = table.set_column(
        table.column_names.index("final_observation"),
        "final_observation",
        pa.array([finals], pa.list_(table.schema.field("final_observation").type)).flatten(),
    )
    side.unlink()
    pq.write_table(kept, side)
    with pytest.raises(UserError, match=r"^1 episode of fake-count, train, such as row 7, without a final .*episodes="):
        Windows(tmp_path / "dataset", FAKE_COUNT, next_observations=True)
    assert len(Windows(tmp_path / "dataset", FAKE_COUNT, episodes=[1, 9], next_observations=True)) == 2

"""A Dict of vectors and integers as one column for each part: the same episodes as with one vector, in other files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.exporting.export import ExportConfig, export
from collectors.dataset.importing.imports import ImportConfig, import_jobs, import_shard
from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.episode import Episode
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.episode_rules import Problem, scan_episodes
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import write_shard
from pipeline.storage.statistics import load_statistics
from trainer.data import Windows

ID = "DictOfParts-v0"
SEEDS = {"train": range(6), "test": range(1_000_000_000, 1_000_000_002)}


class Keys(gym.Env[Any, Any]):
    """Shows what its seed draws; ends after three steps."""

    observation_space = gym.spaces.Dict(
        position=gym.spaces.Box(-1, 1, (2, 2), np.float32),
        door=gym.spaces.Discrete(3, start=5),
        keys=gym.spaces.MultiDiscrete([2, 4]),
        words=gym.spaces.Text(6),
    )
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self) -> dict[str, Any]:
        drawn = self.np_random
        return {
            "position": drawn.uniform(-1, 1, (2, 2)).astype(np.float32), "door": 5 + drawn.integers(3),
            "keys": drawn.integers([2, 4]), "words": str(drawn.choice(["left", "right"])),
        }  # fmt: skip

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.look(), float(self.steps), self.steps == 3, False, {}


@pytest.fixture(scope="module", autouse=True)
def _registered() -> Iterator[None]:
    gym.register(ID, Keys, max_episode_steps=5)
    yield
    del gym.registry[ID]


@pytest.fixture(scope="module")
def task() -> Task:
    (found,) = select_tasks(f"gym:{ID}@columns")
    return found


def played(task: Task, seeds: range) -> list[Episode]:
    return list(rollout(task, RandomPolicy(task), seeds, 2))


@pytest.fixture(scope="module")
def out(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    for split, seeds in SEEDS.items():
        job = ShardJob(task, split, seeds[0], len(seeds), "random")
        write_shard(out / "shards", job, "1", played(task, seeds))
    build_dataset(DatasetConfig(out=out), [task])
    return out


def test_both_forms_select_it_and_what_has_no_parts_is_refused(task: Task) -> None:
    assert task.name == f"gym-{ID}+++columns" and select_tasks(task.name) == (task,)
    assert select_tasks("gym", among=[task.name]) == (task,)
    assert [(part.name, part.size, part.values) for part in task.parts] == [
        ("door", 3, (3,)), ("keys", 6, (2, 4)), ("position", 4, ()),
    ]  # fmt: skip
    assert not select_tasks(f"gym:{ID}")[0].parts
    with pytest.raises(UserError, match=r"gym:CartPole-v1@columns has no Dict of several .* name gym:CartPole-v1$"):
        select_tasks("gym:CartPole-v1@columns")


def test_files_have_a_column_for_each_part_and_are_read_as_the_vector(task: Task, out: Path) -> None:
    rows = load_dataset(str(out / "dataset"), task.name, split="train")
    names = {"observations.door", "observations.keys", "observations.position", "text_observations"}
    assert set(rows.column_names) == names | {"discrete_actions", "rewards"}
    env = Keys()
    first, _ = env.reset(seed=0)
    row = rows[0]
    assert row["observations.door"][0] == [first["door"] - 5] and row["observations.keys"][0] == first["keys"].tolist()
    assert row["observations.position"][0] == first["position"].ravel().tolist()
    assert row["text_observations"][0] == first["words"]
    (whole,) = select_tasks(f"gym:{ID}")
    expected = np.concatenate([episode.observations for episode in played(whole, SEEDS["train"])])
    (file,) = (out / "dataset").rglob("data/*/train-*.parquet")
    found = np.concatenate([block.observations for block in read_blocks(task, file)])
    assert found.dtype == expected.dtype and found.tobytes() == expected.tobytes()
    moments = load_statistics(out / "dataset", task).splits["train"].observations
    np.testing.assert_allclose(moments.mean, expected.mean(axis=0, dtype=np.float64), atol=1e-12)
    np.testing.assert_allclose(moments.std, expected.std(axis=0, dtype=np.float64), atol=1e-12)
    item = Windows(out / "dataset", task, length=3, next_observations=True)[0]
    np.testing.assert_array_equal(item["observations"].numpy(), expected[:3])


def test_an_integer_that_is_none_of_its_values_is_a_problem(task: Task, out: Path, tmp_path: Path) -> None:
    (file,) = (out / "dataset").rglob("data/*/train-*.parquet")
    table = pq.read_table(file)
    place, kind = table.column_names.index("observations.keys"), table.schema.field("observations.keys").type
    keys = table["observations.keys"].to_pylist()
    keys[4][1] = [1, 4]
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(keys, kind)), tmp_path / "bad.parquet")
    problems: list[Problem] = []
    scan_episodes(task, tmp_path / "bad.parquet", problems.append)
    (problem,) = problems
    assert problem.row == 4 and problem.reason == "an integer of observations.keys is not below (2, 4)"


def test_a_lerobot_export_has_the_vector_and_imports_bit_for_bit(task: Task, out: Path, tmp_path: Path) -> None:
    export(ExportConfig("lerobot", str(tmp_path / "to"), out / "dataset", task.name))
    for source in (tmp_path / "to", out / "dataset"):
        root = tmp_path / source.name
        for job in import_jobs(ImportConfig(str(source), task.name, root), [task], root / "imported"):
            manifest = import_shard(job)
            (block,) = read_blocks(task, job.root / job.name / manifest.data.name)
            expected = np.concatenate([episode.observations for episode in played(task, SEEDS[job.shard.split])])
            assert block.observations.tobytes() == expected.tobytes()

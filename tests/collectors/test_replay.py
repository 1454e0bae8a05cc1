from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.jobs import CollectJob, collect_shard
from collectors.replay import ReplayConfig, replay
from experts.choice import Mix
from experts.registry import rule_record
from experts.store import StoredExpert, ensure_in_store
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.storage.plan import ShardJob
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_NAN_REWARD,
    FAKE_PIXELS,
    CountingEnv,
    is_success,
    num_steps,
    random_mix,
    reward_at,
    store_network,
)

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, FAKE_NAN_REWARD)
pytestmark = pytest.mark.usefixtures("nothing_embedded")


def write(out: Path, task: Task, mix: Mix | None = None, noise: str | None = None, num_seeds: int = 8) -> None:
    mix = mix or random_mix(out, task)
    for split, first in (("train", 0), ("test", TEST)):
        job = ShardJob(task, split, first, num_seeds, mix.kind, noise)
        collect_shard(CollectJob(job, mix, out / "shards", 3))


def build(out: Path) -> Path:
    build_dataset(DatasetConfig("*", out), TABLE)
    return out / "dataset"


def config(out: Path, task: Task, seed: int, **changes: Any) -> ReplayConfig:
    return ReplayConfig(task.name, seed, out, **changes)


def change(dataset: Path, task: Task, column: str, edit: Callable[[list[Any]], None]) -> None:
    """Edit the rows of a column of the training data, as a list per episode."""
    (path,) = (dataset / "data" / task.name).glob("train-*.parquet")
    table = pq.read_table(path)
    values = table[column].to_pylist()
    edit(values)
    index = table.column_names.index(column)
    path.unlink()  # not the shard's own file, which it is a link to
    pq.write_table(table.set_column(index, column, pa.array(values, table.schema.field(column).type)), path)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
@pytest.mark.parametrize("actions", [False, True])
def test_the_same_comes_out_again(tmp_path: Path, task: Task, actions: bool, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, task)
    with caplog.at_level(logging.INFO, "collectors"):
        for seed in (0, 6, TEST + 4):
            replay(config(tmp_path, task, seed, actions=actions), TABLE)
    said = [record.getMessage() for record in caplog.records if "equal in all columns" in record.getMessage()]
    who = "the stored actions" if actions else "random-1"
    assert [line.split(", return")[0] for line in said] == [
        f"{task.name}, seed {seed}, played again with {who}: equal in all columns, {num_steps(seed)} steps"
        for seed in (0, 6, TEST + 4)
    ]


@pytest.mark.parametrize(("task", "noise"), [(FAKE_COUNT, "gaussian=0.1"), (FAKE_GRID, "0.5*epsilon=0.5")])
def test_the_expert_of_the_seed_acts_with_the_noise_of_the_seed(tmp_path: Path, task: Task, noise: str) -> None:
    random = random_mix(tmp_path, task).experts[0]
    experts = (random, store_network(tmp_path, task)) if task is FAKE_COUNT else (random,)
    write(tmp_path, task, Mix(experts, (0.5, 0.5)[: len(experts)]), noise)
    for seed in range(8):
        replay(config(tmp_path, task, seed), TABLE)


def test_a_real_task_comes_out_again_with_its_bot(tmp_path: Path) -> None:
    (task,) = select_tasks("babyai-open-door")
    bot = ensure_in_store(tmp_path, StoredExpert(rule_record("bot", task), tmp_path / "nowhere"))
    write(tmp_path, task, Mix((bot,), (1.0,)), num_seeds=2)
    replay(config(tmp_path, task, 1))
    replay(config(tmp_path, task, 1, actions=True))


def test_the_first_step_and_column_that_differ_are_named(tmp_path: Path) -> None:
    write(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)

    def later_reward(values: list[Any]) -> None:
        values[3][2] += 0.5

    change(dataset, FAKE_COUNT, "rewards", later_reward)
    expected = (
        r"fake-count, seed 3, played again with random-1, is different: step 2, rewards: 4.25 stored, 3.75 "
        r"played, 0.5 apart"
    )
    with pytest.raises(JobsFailedError, match=expected):
        replay(config(tmp_path, FAKE_COUNT, 3), TABLE)

    def earlier_observation(values: list[Any]) -> None:
        values[3][1][2] = 7.0
        values[3][1][3] = 4.0

    change(dataset, FAKE_COUNT, "continuous_observations", earlier_observation)
    expected = r"step 1, continuous_observations\[2\]: 7.0 stored, 3.0 played, 4 apart \(2 of 4 numbers .* at most 4\)"
    with pytest.raises(JobsFailedError, match=expected):
        replay(config(tmp_path, FAKE_COUNT, 3, dataset=dataset), TABLE)
    replay(config(tmp_path, FAKE_COUNT, 2), TABLE)


def test_texts_are_compared(tmp_path: Path) -> None:
    write(tmp_path, FAKE_GRID)

    def edit(values: list[Any]) -> None:
        values[6][0] = "another mission"

    change(build(tmp_path), FAKE_GRID, "text_observations", edit)
    with pytest.raises(JobsFailedError, match="text_observations: another mission stored, seed 6 step 0 played"):
        replay(config(tmp_path, FAKE_GRID, 6), TABLE)


class LongerEnv(CountingEnv):
    """Never ends by itself."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        reward = reward_at(FAKE_COUNT, self.seed, self.t)
        self.t += 1
        return self._observe(), reward, False, False, {"success": is_success(self.seed)}


class DullEnv(CountingEnv):
    """Has no successes."""

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = super().step(action)
        return observation, reward, terminated, truncated, {"success": False}


def test_an_environment_that_ends_otherwise_is_told(tmp_path: Path) -> None:
    write(tmp_path, FAKE_COUNT)
    longer = replace(FAKE_COUNT, factory=LongerEnv)
    with pytest.raises(JobsFailedError, match="terminated after 2 steps, the one played is not over then"):
        replay(config(tmp_path, FAKE_COUNT, 1, actions=True), [longer])
    with pytest.raises(JobsFailedError, match="2 steps stored, 6 played, the first 2 of them equal"):
        replay(config(tmp_path, FAKE_COUNT, 1), [longer])
    with pytest.raises(JobsFailedError, match="success is True in the side table, False when played"):
        replay(config(tmp_path, FAKE_COUNT, 3), [replace(FAKE_COUNT, factory=DullEnv)])


def test_without_its_expert_the_stored_actions_are_played(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = store_network(tmp_path / "elsewhere")
    write(tmp_path, FAKE_COUNT, Mix((network,), (1.0,)))
    with caplog.at_level(logging.INFO, "collectors"):
        replay(config(tmp_path, FAKE_COUNT, 1), TABLE)
    assert f"expert {network.record.revision} is neither in {tmp_path}/experts/fake-count nor embedded" in caplog.text
    assert "played again with the stored actions: equal" in caplog.text


def test_packages_of_another_version_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, FAKE_COUNT)
    monkeypatch.setattr("collectors.replay.versions_of", lambda packages: dict.fromkeys(packages, "0.1"))
    replay(config(tmp_path, FAKE_COUNT, 1), TABLE)
    assert f"made with other package versions: numpy {np.__version__} then, 0.1 now" in caplog.text
    with pytest.raises(JobsFailedError, match=r"package versions differ: numpy .* then, 0\.1 now"):
        replay(config(tmp_path, FAKE_COUNT, 3), [replace(FAKE_COUNT, factory=DullEnv)])


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    write(tmp_path, FAKE_NAN_REWARD)
    dataset = build(tmp_path)
    expected = (
        r"seed 9 of fake-nan-reward is not in .*\. There are seeds 0, 2 to 3, 5 to 6, 1000000000 to 1000000002"
        r", 1000000004 to 1000000005 and 1 more ranges"
    )
    with pytest.raises(UserError, match=expected):
        replay(config(tmp_path, FAKE_NAN_REWARD, 9), TABLE)
    with pytest.raises(UserError, match="its episode was rejected, so there are no steps: reward not finite"):
        replay(config(tmp_path, FAKE_NAN_REWARD, 1), TABLE)
    with pytest.raises(UserError, match=r"has no fake-count; it has: fake-nan-reward"):
        replay(config(tmp_path, FAKE_COUNT, 1, dataset=dataset), TABLE)
    with pytest.raises(UserError, match=r"has no episodes of fake-count, .* `jat collect --task fake-count`"):
        replay(config(tmp_path, FAKE_COUNT, 1), TABLE)
    with pytest.raises(UserError, match=r"is no dataset: it has no manifest\.json"):
        replay(config(tmp_path, FAKE_COUNT, 1, dataset=tmp_path), TABLE)
    with pytest.raises(UserError, match="matches 2 tasks; name one, such as fake-count"):
        replay(ReplayConfig("fake", 1, tmp_path), TABLE)

"""Labels of an expert beside what was executed: written, read and checked; nothing changes where there are none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.envs.episode import NO_LABEL, Episode, is_labelled, label_array
from pipeline.envs.policy import GiveUp
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.outcomes import Rewards
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import features, label_column, read_blocks, read_episode
from pipeline.storage.shards import Provenance, finished_shards, write_shard
from pipeline.storage.statistics import StepStatistics, split_statistics
from pipeline.storage.validate import check_shard, read_side, refuse
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode

TASKS = (FAKE_COUNT, FAKE_GRID, FAKE_PIXELS)


def labelled(task: Task, seed: int) -> Episode:
    """Labels that differ from the actions; the expert is silent at the first step of every third seed."""
    episode = expected_episode(task, seed)
    discrete = task.action.kind == "discrete"
    labels: list[Any] = list((episode.actions + 1) % task.action.size if discrete else -episode.actions)
    if seed % 3 == 0:
        labels[0] = GiveUp("lost")
    return replace(episode, labels=label_array(task, labels))


def write(root: Path, task: Task, seeds: range, labels: str | None = "bot-1") -> ShardManifest:
    job = ShardJob(task, "train", seeds.start, len(seeds), "agent", labels=labels)
    return write_shard(root, job, "agent-1", [labelled(task, seed) for seed in seeds])


def test_a_step_without_a_label_is_marked() -> None:
    assert label_array(FAKE_GRID, [2, None, GiveUp("lost"), 7, -3]).tolist() == [2, NO_LABEL, NO_LABEL, NO_LABEL, -1]
    found = label_array(FAKE_COUNT, [np.zeros(2), None, GiveUp("lost")])
    assert (found.dtype, found.shape) == (np.float32, (3, 2))
    assert is_labelled(found).tolist() == [True, False, False] and np.isnan(found[1:]).all()
    assert label_array(FAKE_COUNT, []).shape == (0, 2)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_labels_are_one_more_column_and_are_read_as_they_were_written(task: Task, tmp_path: Path) -> None:
    manifest = write(tmp_path, task, range(8))
    path = tmp_path / task.name / manifest.data.name
    assert pq.read_schema(path).names == [*features(task), f"expert_{task.action.kind}_actions"]
    found = np.concatenate([block.labels for block in read_blocks(task, path) if block.labels is not None])
    expected = [labelled(task, seed).labels for seed in range(8)]
    assert found.tobytes() == np.concatenate([labels for labels in expected if labels is not None]).tobytes()
    third = read_episode(task, path, 3).labels
    assert third is not None and expected[3] is not None and third.tobytes() == expected[3].tobytes()
    num_labelled = [labelled(task, seed).num_labelled for seed in range(8)]
    side = pq.read_table(tmp_path / task.name / manifest.episodes.name).to_pylist()
    assert [row["num_labelled"] for row in side] == num_labelled
    assert {row["label_expert"] for row in side} == {"bot-1"} == {manifest.labels}
    assert manifest.num_labelled == sum(count or 0 for count in num_labelled) == manifest.num_steps - 3
    check_shard(task, tmp_path / task.name, manifest)
    assert finished_shards(tmp_path, task.name) == [manifest]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_shard_without_labels_is_the_same_to_the_bit_whatever_its_episodes_know(task: Task, tmp_path: Path) -> None:
    unlabelled = [expected_episode(task, seed) for seed in range(8)]
    plain = write_shard(tmp_path / "plain", ShardJob(task, "train", 0, 8, "agent"), "agent-1", unlabelled)
    ignored = write(tmp_path / "ignored", task, range(8), labels=None)
    assert plain == ignored
    path = tmp_path / "plain" / task.name / plain.data.name
    assert pq.read_schema(path).names == list(features(task))
    assert not {"label_expert", "num_labelled"} & set(pq.read_schema(path.with_suffix(".episodes.parquet")).names)
    assert all(block.labels is None for block in read_blocks(task, path))


def test_a_rejected_episode_has_no_labels_and_an_accepted_one_must(tmp_path: Path) -> None:
    job = ShardJob(FAKE_COUNT, "train", 0, 2, "agent", labels="bot-1")
    gone = replace(labelled(FAKE_COUNT, 0), ended="rejected", rejected="lost")
    manifest = write_shard(tmp_path, job, "agent-1", [gone, labelled(FAKE_COUNT, 1)])
    rows = pq.read_table(tmp_path / FAKE_COUNT.name / manifest.episodes.name).to_pylist()
    assert [(row["label_expert"], row["num_labelled"]) for row in rows] == [(None, None), ("bot-1", 2)]
    check_shard(FAKE_COUNT, tmp_path / FAKE_COUNT.name, manifest)
    with pytest.raises(ValueError, match="fake-count, seed 1: an episode of a labelled shard has no labels"):
        write_shard(tmp_path / "b", job, "agent-1", [gone, expected_episode(FAKE_COUNT, 1)])


def test_the_side_table_says_of_each_episode_who_labelled_it(tmp_path: Path) -> None:
    job = ShardJob(FAKE_COUNT, "train", 0, 4, "agent", labels="0.5*a-1+0.5*b-1")
    episodes = [labelled(FAKE_COUNT, seed) for seed in range(4)]
    who = {seed: Provenance("agent", "agent-1", None, "a-1" if seed % 2 else "b-1") for seed in range(4)}
    manifest = write_shard(tmp_path, job, "agent-1", episodes, who.__getitem__)
    side = tmp_path / FAKE_COUNT.name / manifest.episodes.name
    assert pq.read_table(side)["label_expert"].to_pylist() == ["b-1", "a-1", "b-1", "a-1"]


def damaged(tmp_path: Path, task: Task, change: Callable[[list[Any]], list[Any]]) -> UserError:
    """What a check says of a shard whose second row's labels were changed."""
    manifest = write(tmp_path, task, range(4))
    path = tmp_path / task.name / manifest.data.name
    table = pq.read_table(path)
    name = label_column(task)
    rows = table[name].to_pylist()
    rows[1] = change(rows[1])
    field = table.schema.field(name)
    table = table.set_column(table.column_names.index(name), field, pa.array(rows, field.type))
    pq.write_table(table, path)
    manifest = replace(manifest, data=FileEntry(path.name, path.stat().st_size, sha256_of(path)))
    with pytest.raises(UserError) as refused:
        check_shard(task, tmp_path / task.name, manifest)
    return refused.value


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        (FAKE_COUNT, lambda row: row[:-1], "row 1: 1 values in expert_continuous_actions for 2 rewards"),
        (FAKE_COUNT, lambda row: [[0.5, 1.5], row[1]], "row 1: expert_continuous_actions: neither an action nor"),
        (FAKE_COUNT, lambda row: [[np.nan, 0.5], row[1]], "row 1: expert_continuous_actions: neither an action nor"),
        (FAKE_COUNT, lambda row: None, "row 1: expert_continuous_actions is null"),
        (FAKE_COUNT, lambda row: [[np.nan, np.nan], row[1]], "num_labelled 2, the data has 1"),
        (FAKE_GRID, lambda row: [5, row[1]], "row 1: expert_discrete_actions: neither an action nor the mark"),
        (FAKE_GRID, lambda row: [-2, row[1]], "row 1: expert_discrete_actions: neither an action nor the mark"),
        (FAKE_GRID, lambda row: [*row, 1], "row 1: 3 values in expert_discrete_actions for 2 rewards"),
    ],
)
def test_wrong_labels_are_found_with_their_row(
    task: Task, change: Callable[[list[Any]], list[Any]], message: str, tmp_path: Path
) -> None:
    assert message in str(damaged(tmp_path, task, change))


def test_a_manifest_that_miscounts_labels_is_found(tmp_path: Path) -> None:
    manifest = replace(write(tmp_path, FAKE_COUNT, range(4)), num_labelled=7)
    with pytest.raises(UserError, match="7 labelled steps, the side table has 8"):
        check_shard(FAKE_COUNT, tmp_path / FAKE_COUNT.name, manifest)


def test_statistics_count_labels_and_who_gave_them(tmp_path: Path) -> None:
    def statistics(labels: str | None) -> Any:
        root = tmp_path / str(labels)
        manifest = write(root, FAKE_GRID, range(4), labels)
        steps = StepStatistics(FAKE_GRID)
        check_shard(FAKE_GRID, root / FAKE_GRID.name, manifest, Rewards(steps.add).take)
        side = read_side(root / FAKE_GRID.name / manifest.episodes.name, refuse)
        return split_statistics(FAKE_GRID, side, steps, 0)

    found = statistics("bot-1").merge(statistics("sac-1"))
    assert found.label_experts == {"bot-1": 4, "sac-1": 4}
    assert (found.num_labelled, found.num_unlabelled) == (16, 4)
    plain = statistics(None)
    assert (plain.label_experts, plain.num_labelled, plain.num_unlabelled) == ({}, 0, 0)

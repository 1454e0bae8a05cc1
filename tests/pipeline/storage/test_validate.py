from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from pipeline.storage.validate import check_shard
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode

# Lengths 1, 2, 3 and 4.
SEEDS = range(4)
DATA, SIDE = "train-0000000000-000004.parquet", "train-0000000000-000004.episodes.parquet"


def write(root: Path, task: Task, change: dict[int, Callable[[Episode], Episode]] | None = None) -> ShardManifest:
    """A shard of four episodes; the writer does not judge, so the changed ones are stored as they are."""
    change = change or {}
    episodes = [change.get(seed, lambda episode: episode)(expected_episode(task, seed)) for seed in SEEDS]
    return write_shard(root, ShardJob(task, "train", 0, len(SEEDS), "random"), "7", episodes)


def check(root: Path, task: Task, manifest: ShardManifest) -> None:
    check_shard(task, root / task.name, manifest)


def edit(root: Path, manifest: ShardManifest, kind: str, change: Callable[[pa.Table], pa.Table]) -> ShardManifest:
    """Change the table of a file and sign it anew, as a faulty writer would."""
    path = root / manifest.task / getattr(manifest, kind).name
    table = pq.read_table(path)
    pq.write_table(change(table), path)
    return replace(manifest, **{kind: FileEntry(path.name, path.stat().st_size, sha256_of(path))})


def with_column(name: str, values: list[Any]) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        field = table.schema.field(name)
        return table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))

    return change


def refused(root: Path, task: Task, manifest: ShardManifest, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(root, task, manifest)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_what_the_writer_writes_is_valid(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reject = {2: lambda episode: replace(episode, ended="rejected", rejected="lost")}
    check(tmp_path, task, write(tmp_path, task, reject))
    check(tmp_path, task, write(tmp_path, task, dict.fromkeys(SEEDS, reject[2])))
    monkeypatch.setattr("pipeline.storage.shards.ROW_GROUP_BYTES", defaultdict(lambda: 1))
    check(tmp_path, task, write(tmp_path, task))


@pytest.mark.parametrize("name", [DATA, SIDE])
def test_one_changed_bit_is_a_checksum_error_that_names_the_file(name: str, tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    path = tmp_path / "fake-count" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(
        tmp_path,
        FAKE_COUNT,
        manifest,
        rf"{re.escape(str(path))}: the file is damaged: SHA-256 [0-9a-f]{{12}}\.\.\., expect",
    )


@pytest.mark.parametrize("name", [DATA, SIDE])
def test_a_missing_file_is_named(name: str, tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    (tmp_path / "fake-count" / name).unlink()
    refused(
        tmp_path,
        FAKE_COUNT,
        manifest,
        rf"{re.escape(name)}: the file is missing; run `jat collect` again",
    )


def test_a_renamed_column_is_refused(tmp_path: Path) -> None:
    manifest = edit(
        tmp_path,
        write(tmp_path, FAKE_COUNT),
        "data",
        lambda table: table.rename_columns(["continuous_observations", "continuous_actions", "reward"]),
    )
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}: there is no column rewards; there are .*, reward$")


def test_a_column_of_another_type_is_refused(tmp_path: Path) -> None:
    def as_double(table: pa.Table) -> pa.Table:
        return table.set_column(2, "rewards", table["rewards"].cast(pa.list_(pa.float64())))

    manifest = edit(tmp_path, write(tmp_path, FAKE_COUNT), "data", as_double)
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}: rewards is list<.*double>, expected list<.*float>")


def test_the_columns_of_another_task_are_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    with pytest.raises(UserError, match=r"continuous_observations is .*\[4\]>, expected .*\[5\]>"):
        check_shard(replace(FAKE_COUNT, observation_shape=(5,)), tmp_path / "fake-count", manifest)


def test_a_length_that_the_side_table_does_not_know_is_refused(tmp_path: Path) -> None:
    manifest = edit(tmp_path, write(tmp_path, FAKE_COUNT), "episodes", with_column("length", [1, 2, 4, 4]))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}, row 2: 3 steps, the side table says 4")


def test_an_episode_without_steps_is_refused(tmp_path: Path) -> None:
    def empty(episode: Episode) -> Episode:
        return replace(
            episode, observations=episode.observations[:0], actions=episode.actions[:0], rewards=episode.rewards[:0]
        )

    manifest = write(tmp_path, FAKE_COUNT, {1: empty})
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}, row 1: 0 steps")


@pytest.mark.parametrize("column", ["discrete_actions", "discrete_observations", "text_observations"])
def test_a_column_with_fewer_steps_than_rewards_is_refused(column: str, tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_GRID)

    def shorten(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[3] = values[3][:-1]
        return with_column(column, values)(table)

    manifest = edit(tmp_path, manifest, "data", shorten)
    refused(tmp_path, FAKE_GRID, manifest, rf"{re.escape(DATA)}, row 3: 3 values in {column} for 4 rewards")


def test_a_step_that_slipped_into_the_next_row_is_refused(tmp_path: Path) -> None:
    def slip(table: pa.Table) -> pa.Table:
        values = table["discrete_actions"].to_pylist()
        values[3].insert(0, values[2].pop())
        return with_column("discrete_actions", values)(table)

    manifest = edit(tmp_path, write(tmp_path, FAKE_GRID), "data", slip)
    refused(tmp_path, FAKE_GRID, manifest, rf"{re.escape(DATA)}, row 2")


@pytest.mark.parametrize("group_bytes", [1, 2**20])
@pytest.mark.parametrize("value", [1.5, -1.0001, np.nan])
def test_a_continuous_action_out_of_range_is_refused_with_its_row(
    value: float, group_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(episode: Episode) -> Episode:
        actions = episode.actions.copy()
        actions[0, 1] = value
        return replace(episode, actions=actions)

    # The row counts from the start of the file, whatever row group it is in.
    monkeypatch.setattr("pipeline.storage.shards.ROW_GROUP_BYTES", defaultdict(lambda: group_bytes))
    manifest = write(tmp_path, FAKE_COUNT, {2: change})
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}, row 2: action outside \[-1.0, 1.0\]$")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_flag_excuses_no_action_that_is_not_a_number(value: float, tmp_path: Path) -> None:
    def change(episode: Episode, number: float) -> Episode:
        actions = episode.actions.copy()
        actions[0, 1] = number
        return replace(episode, actions=actions, flagged="actions out of range")

    sound = write(tmp_path / "sound", FAKE_COUNT, {2: lambda episode: change(episode, 9.0)})
    check(tmp_path / "sound", FAKE_COUNT, sound)
    manifest = write(tmp_path, FAKE_COUNT, {2: lambda episode: change(episode, value)})
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}, row 2: action outside \[-1.0, 1.0\]$")


def test_a_flag_excuses_no_discrete_action_that_there_is_not(tmp_path: Path) -> None:
    def change(episode: Episode) -> Episode:
        actions = episode.actions.copy()
        actions[-1] = 5
        return replace(episode, actions=actions, flagged="actions out of range")

    manifest = write(tmp_path, FAKE_GRID, {3: change})
    refused(tmp_path, FAKE_GRID, manifest, rf"{re.escape(DATA)}, row 3: action outside \[0, 4\]$")


@pytest.mark.parametrize("value", [-1, 5])
def test_a_discrete_action_out_of_range_is_refused_with_its_row(value: int, tmp_path: Path) -> None:
    def change(episode: Episode) -> Episode:
        actions = episode.actions.copy()
        actions[-1] = value
        return replace(episode, actions=actions)

    manifest = write(tmp_path, FAKE_GRID, {3: change})
    refused(tmp_path, FAKE_GRID, manifest, rf"{re.escape(DATA)}, row 3: action outside \[0, 4\]$")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["reward", "observation"])
def test_a_value_that_is_not_finite_is_refused_with_its_row(name: str, value: float, tmp_path: Path) -> None:
    def change(episode: Episode) -> Episode:
        array = getattr(episode, name + "s").copy()
        array.flat[-1] = value
        return replace(episode, **{name + "s": array})

    manifest = write(tmp_path, FAKE_COUNT, {1: change})
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}, row 1: {name} not finite$")


@pytest.mark.parametrize("seeds", [[0, 1, 2, 2], [1, 2, 3, 4], [0, 2, 1, 3]])
def test_other_seeds_than_the_manifest_s_are_refused(seeds: list[int], tmp_path: Path) -> None:
    manifest = edit(tmp_path, write(tmp_path, FAKE_COUNT), "episodes", with_column("seed", seeds))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(SIDE)}: seeds are not 0 to 3, each once")


@pytest.mark.parametrize("rows", [[0, 2, 1, 3], [0, 1, 1, 3], [1, 2, 3, 4], [0, None, 1, 2]])
def test_a_side_table_that_does_not_count_the_rows_is_refused(rows: list[int | None], tmp_path: Path) -> None:
    manifest = edit(tmp_path, write(tmp_path, FAKE_COUNT), "episodes", with_column("row", rows))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(SIDE)}: accepted rows are not 0 to 3 in order")


def test_a_row_too_few_is_refused(tmp_path: Path) -> None:
    manifest = edit(tmp_path, write(tmp_path, FAKE_COUNT), "data", lambda table: table.slice(0, 3))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}: 3 episodes, expected 4")


@pytest.mark.parametrize("group_rows", [2, 8])
def test_a_row_too_many_is_refused(group_rows: int, tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    path = tmp_path / "fake-count" / DATA
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path, row_group_size=group_rows)
    manifest = replace(manifest, data=FileEntry(path.name, path.stat().st_size, sha256_of(path)))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(DATA)}: 5 episodes, expected 4")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"return_sum": 1e9}, r"000004.json: return_sum 1e\+09, the side table has "),
        ({"return_sum": float("nan")}, r"return_sum nan, the side table has "),
        ({"return_sum": float("inf")}, r"return_sum inf, the side table has "),
        ({"num_successes": 99}, r"99 successes, the side table has 2"),
        ({"num_successes": None}, r"None successes, the side table has 2"),
        ({"rejected": {"another reason": 1}}, r"the reasons for rejections are not those of the side table"),
        ({"rejected": {"lost": 2}}, r"2 rejected, the side table has 1"),
        ({"num_flagged": 1}, r"1 flagged, the side table has 0"),
        ({"num_episodes": 10**15}, r"accepted rows are not 0 to 9+ in order"),
    ],
)
def test_what_a_manifest_counts_is_counted_again(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    reject = {2: lambda episode: replace(episode, ended="rejected", rejected="lost")}
    manifest = replace(write(tmp_path, FAKE_GRID, reject), **fields)
    refused(tmp_path, FAKE_GRID, manifest, message)


@pytest.mark.parametrize("value", [1e9, float("nan"), float("-inf")])
def test_a_return_that_is_not_the_sum_of_the_rewards_is_refused(value: float, tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    returns = pq.read_table(tmp_path / "fake-count" / SIDE)["return"].to_pylist()
    manifest = edit(tmp_path, manifest, "episodes", with_column("return", [*returns[:2], value, *returns[3:]]))
    refused(tmp_path, FAKE_COUNT, manifest, rf"{re.escape(SIDE)}, row 2: return .*, the rewards sum up to ")


def test_a_success_that_the_last_reward_does_not_tell_is_refused(tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_GRID)
    successes = pq.read_table(tmp_path / FAKE_GRID.name / SIDE)["success"].to_pylist()
    assert successes == [True, False, False, True]
    manifest = edit(tmp_path, manifest, "episodes", with_column("success", [True, True, False, True]))
    refused(tmp_path, FAKE_GRID, manifest, rf"{re.escape(SIDE)}, row 1: success True, the last reward says False")


def test_sums_in_another_order_are_the_same(tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_COUNT)
    check(tmp_path, FAKE_COUNT, replace(manifest, return_sum=manifest.return_sum * (1 + 1e-12)))

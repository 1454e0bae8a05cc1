from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.importing import rows as import_rows
from collectors.dataset.importing import sources as import_sources
from collectors.dataset.importing.imports import ImportConfig, folder_of, import_dataset
from collectors.dataset.validate import ValidateConfig, validate
from collectors.jobs import CollectJob, collect_shard
from collectors.replay import ReplayConfig, replay
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.storage.manifest import DatasetManifest, ShardManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import finished_shards
from pipeline.storage.validate import check_shard
from tests.fakes import random_mix
from tests.jat_sources import (
    Row,
    claiming,
    continuous_row,
    grid_row,
    image_row,
    png,
    stacks,
    write_jat,
    write_minari,
)
from trainer.data.arrays import load_arrays

pytestmark = [pytest.mark.usefixtures("one_worker"), pytest.mark.usefixtures("nothing_embedded")]
HOPPER, REACH, GRID, PONG, PUSHER, ANT = (
    select_tasks(name)[0]
    for name in ("mujoco-hopper", "metaworld-reach", "babyai-open-door", "atari-pong", "mujoco-pusher", "mujoco-ant")
)


def hopper_rows(count: int, first: int = 0) -> list[Row]:
    return [continuous_row(number, 1 + number % 4, 11, 3) for number in range(first, first + count)]


def run(source: Path | str, task: str, out: Path, **changes: Any) -> None:
    import_dataset(ImportConfig(str(source), task, out, **{"workers": 1, **changes}))


def shards_of(out: Path, task: Task, source: Path | str) -> list[ShardManifest]:
    return finished_shards(out / "imported" / task.name, folder_of(str(source)))


def side_rows(out: Path, task: Task, split: str = "train") -> list[dict[str, Any]]:
    paths = sorted((out / "imported" / task.name).glob(f"*/{split}-*.episodes.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def data_rows(out: Path, task: Task, split: str = "train") -> list[Row]:
    paths = sorted((out / "imported" / task.name).glob(f"*/{split}-*.parquet"))
    return [row for path in paths if ".episodes." not in path.name for row in pq.read_table(path).to_pylist()]


def states(out: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_ino, p.stat().st_mtime_ns) for p in out.rglob("train-*") if p.is_file()}


def collect(out: Path, task: Task) -> None:
    for split, first in (("train", 0), ("test", 1_000_000_000)):
        mix = random_mix(out, task)
        collect_shard(CollectJob(ShardJob(task, split, first, 2, mix.kind), mix, out / "shards", 2))


def test_jat_s_columns_become_shards_of_the_same_values(tmp_path: Path) -> None:
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": hopper_rows(9), "test": hopper_rows(3, 20)}})
    run(source, HOPPER.name, tmp_path)
    assert data_rows(tmp_path, HOPPER) == hopper_rows(9)
    assert data_rows(tmp_path, HOPPER, "test") == hopper_rows(3, 20)
    rows = side_rows(tmp_path, HOPPER)
    shards = shards_of(tmp_path, HOPPER, source)
    assert [(s.split, s.first_seed, s.num_seeds) for s in shards] == [("test", 1_000_000_000, 3), ("train", 0, 9)]
    assert rows[6] == {
        "seed": None,
        "row": 6,
        "expert": "imported",
        "expert_revision": shards[0].expert_revision,
        "return": 6 + 6.25 + 6.5,
        "length": 3,
        "success": None,
        "ended": "unknown",
        "rejected": None,
        "noise": None,
        "versions": None,
        "flagged": None,
        "task": HOPPER.name,
        "final_observation": None,
    }
    for shard in shards:
        check_shard(HOPPER, tmp_path / "imported" / HOPPER.name / folder_of(str(source)), shard)
        assert shard.source is not None and shard.source.startswith(f"{source.resolve()}@")
        assert (shard.environment, shard.versions, shard.num_successes) == ("Hopper-v4", {}, None)


def test_a_grid_s_success_is_its_last_reward(tmp_path: Path) -> None:
    rows = [grid_row(0, 3, 0.5), grid_row(1, 2, 0.0), grid_row(2, 1)]
    source = write_jat(tmp_path / "jat", {GRID.name: {"train": rows, "test": rows[:2]}})
    run(source, GRID.name, tmp_path)
    assert data_rows(tmp_path, GRID) == rows
    assert [row["success"] for row in side_rows(tmp_path, GRID)] == [True, False, True]
    assert {shard.split: shard.num_successes for shard in shards_of(tmp_path, GRID, source)} == {"train": 2, "test": 1}


def test_jat_s_png_stacks_are_kept_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.envs.frames.CHUNK", 4)
    jump = image_row(2, 3)
    jump["image_observations"][1] = {"bytes": png(stacks(5, 1)[0]), "path": None}
    rows = [image_row(0, 11), image_row(1, 1), jump]
    source = write_jat(tmp_path / "jat", {PONG.name: {"train": rows, "test": rows[:1]}}, num_files=1)
    run(source, PONG.name, tmp_path)
    (block,) = read_blocks(PONG, next((tmp_path / "imported" / PONG.name).glob("*/train-0000000000-000003.parquet")))
    expected = [stacks(0, 11), stacks(1, 1), stacks(2, 3)]
    expected[2] = expected[2].copy()
    expected[2][1] = stacks(5, 1)[0]
    np.testing.assert_array_equal(block.observations, np.concatenate(expected))
    assert block.actions.tolist() == [a for row in rows for a in row["discrete_actions"]]
    file = str(source / PONG.name / "train-00000-of-00001.parquet")
    episode = next(import_rows.ParquetRows((file,), (3,), 0, 3).read(PONG, 0, 1))
    assert episode.observations.strides[0] == 84 * 84  # every frame is in memory once, not four times


def test_what_is_no_data_is_rejected_with_its_reason(tmp_path: Path) -> None:
    rows = hopper_rows(12)
    rows[1] = continuous_row(1, 0, 11, 3)
    rows[2]["rewards"].append(1.0)
    rows[3]["rewards"][1] = float("nan")
    rows[4]["continuous_observations"][0][2] = float("inf")
    rows[5] = continuous_row(5, 2, 12, 3)
    rows[6] = continuous_row(6, 2, 11, 2)
    rows[7]["continuous_actions"] = None
    rows[8]["continuous_actions"][0] = None
    rows[9]["continuous_observations"][1][3] = None
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": rows, "test": rows[-2:]}})
    run(source, HOPPER.name, tmp_path)
    assert [row["rejected"] for row in side_rows(tmp_path, HOPPER)] == [
        None,
        "empty episode",
        "not as many observations and actions as rewards",
        "reward not finite",
        "observation not finite",
        "12 numbers in a step of continuous_observations, expected 11",
        "2 numbers in a step of continuous_actions, expected 3",
        "continuous_actions is null",
        "a step of continuous_actions is null",
        "a number in continuous_observations is null",
        None,
        None,
    ]
    assert data_rows(tmp_path, HOPPER) == [rows[0], rows[10], rows[11]]
    (shard,) = (s for s in shards_of(tmp_path, HOPPER, source) if s.split == "train")
    assert (shard.num_episodes, shard.num_rejected) == (3, 9)


def test_actions_that_do_not_exist_and_broken_images_are_rejected(tmp_path: Path) -> None:
    wrong, broken, small = image_row(0, 2), image_row(1, 2), image_row(2, 1)
    wrong["discrete_actions"][1] = 6
    broken["image_observations"][1]["bytes"] = b"no image"
    small["image_observations"][0]["bytes"] = png(np.zeros((84, 80, 4), np.uint8))
    source = write_jat(
        tmp_path / "jat", {PONG.name: {"train": [wrong, broken, small, image_row(3, 1)], "test": [image_row(0, 1)]}}
    )
    run(source, PONG.name, tmp_path)
    reasons = [row["rejected"] for row in side_rows(tmp_path, PONG)]
    assert reasons == ["an action is none of the 6 there are", "image unreadable", "image of another shape", None]


def test_actions_out_of_range_are_kept_flagged_and_no_problem(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = hopper_rows(6)
    rows[4] = continuous_row(4, 2, 11, 3, action=-9.04)
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": rows, "test": hopper_rows(1, 20)}})
    with caplog.at_level(logging.INFO, "collectors"):
        run(source, HOPPER.name, tmp_path)
    assert "1 flagged for actions out of range" in caplog.text
    flags = [row["flagged"] for row in side_rows(tmp_path, HOPPER)]
    assert flags == [None] * 4 + ["actions outside [-1, 1], up to 9.04", None]
    build_dataset(DatasetConfig(HOPPER.name, tmp_path))
    dataset = tmp_path / "dataset"
    findings = validate(ValidateConfig(dataset))
    assert (findings.kinds, findings.num_flagged) == ({}, 1)
    loaded = load_dataset(str(dataset), HOPPER.name, cache_dir=str(tmp_path / "cache"))
    np.testing.assert_array_equal(np.array(loaded["train"][4]["continuous_actions"], np.float32), np.float32(-9.04))
    manifest = DatasetManifest.load(dataset / "manifest.json")
    trained_on = load_arrays(dataset, manifest, HOPPER, "train", tmp_path / "arrays").actions
    assert float(np.abs(trained_on).max()) == np.float32(9.04)
    # A flag that is lost is noticed.
    (side,) = (dataset / "episodes" / HOPPER.name).glob("train-*")
    table = pq.read_table(side)
    index = table.column_names.index("flagged")
    side.unlink()
    pq.write_table(table.set_column(index, "flagged", pa.nulls(6, pa.string())), side)
    assert "action outside its range" in validate(ValidateConfig(dataset)).kinds


def test_more_episodes_add_shards_and_a_repeated_import_writes_nothing(tmp_path: Path) -> None:
    source = write_jat(
        tmp_path / "jat", {HOPPER.name: {"train": hopper_rows(10), "test": hopper_rows(5, 20)}}, 3, group_rows=2
    )
    run(source, HOPPER.name, tmp_path, episodes=5, shard_episodes=3, test_share=0.2)
    before = states(tmp_path / "imported")
    assert [(s.split, s.num_seeds) for s in shards_of(tmp_path, HOPPER, source)] == [
        ("test", 1), ("train", 3), ("train", 2),
    ]  # fmt: skip
    run(source, HOPPER.name, tmp_path, episodes=5, shard_episodes=3, test_share=0.2)
    assert states(tmp_path / "imported") == before
    run(source, HOPPER.name, tmp_path, shard_episodes=3)
    after = states(tmp_path / "imported")
    assert {name: after[name] for name in before} == before
    assert data_rows(tmp_path, HOPPER) == hopper_rows(10)
    assert data_rows(tmp_path, HOPPER, "test") == hopper_rows(5, 20)


def test_a_killed_import_goes_on_without_reading_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The file is small enough to be looked at whole, and shall pass for the same whatever is done to it here.
    monkeypatch.setattr("collectors.dataset.importing.sources.tail_digest", lambda path: "same")
    source = write_jat(
        tmp_path / "jat", {HOPPER.name: {"train": hopper_rows(8), "test": hopper_rows(2)}}, 1, group_rows=2
    )
    (path,) = (source / HOPPER.name).glob("train-*")
    whole = path.read_bytes()
    group = pq.read_metadata(path).row_group(2).column(0)
    damaged = bytearray(whole)
    damaged[group.data_page_offset : group.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(damaged)
    with pytest.raises(JobsFailedError, match=r"cannot be read .* run the same command again to go on"):
        run(source, HOPPER.name, tmp_path, shard_episodes=2)
    finished = states(tmp_path / "imported")
    names = {name.rsplit("/", 1)[-1] for name in finished}
    assert {"train-0000000000-000002.json", "train-0000000002-000002.json", "train-0000000006-000002.json"} <= names
    assert not any("0000000004" in name for name in names)
    # The same file, sound again, but what is done cannot be read any more: only the missing rows are.
    first = pq.read_metadata(path).row_group(0).column(0)
    sound = bytearray(whole)
    sound[first.data_page_offset : first.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(sound)
    run(source, HOPPER.name, tmp_path, shard_episodes=2)
    assert data_rows(tmp_path, HOPPER) == hopper_rows(8)
    assert {name: state for name, state in states(tmp_path / "imported").items() if name in finished} == finished


def test_the_last_rows_of_a_source_without_a_test_split_are_it(tmp_path: Path) -> None:
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": hopper_rows(11)}}, 3)
    run(source, HOPPER.name, tmp_path, episodes=4)
    assert data_rows(tmp_path, HOPPER) == hopper_rows(4)
    assert data_rows(tmp_path, HOPPER, "test") == hopper_rows(1, 10)
    run(source, HOPPER.name, tmp_path)
    assert data_rows(tmp_path, HOPPER) == hopper_rows(10)


def test_imported_and_collected_episodes_are_in_one_configuration(tmp_path: Path) -> None:
    collect(tmp_path, GRID)
    rows = [grid_row(number, 2) for number in range(3)]
    source = write_jat(tmp_path / "jat", {GRID.name: {"train": rows, "test": [grid_row(5, 2)]}})
    run(source, GRID.name, tmp_path)
    build_dataset(DatasetConfig("*", tmp_path))
    dataset = tmp_path / "dataset"
    loaded = load_dataset(str(dataset), GRID.name, cache_dir=str(tmp_path / "cache"))
    assert (len(loaded["train"]), len(loaded["test"])) == (5, 3)
    assert list(loaded["train"])[2:] == rows
    side = load_dataset(str(dataset), f"{GRID.name}-episodes", cache_dir=str(tmp_path / "cache"))["train"]
    assert side["seed"][:] == [0, 1, None, None, None]
    assert side["expert"][:] == ["random"] * 2 + ["imported"] * 3
    assert validate(ValidateConfig(dataset)).kinds == {}
    info = DatasetManifest.load(dataset / "manifest.json").tasks[GRID.name]
    (name,) = info.imported
    assert (info.expert, info.imported) == ("random", {name: {"BabyAI-OpenDoor-v0": 4}})
    card = (dataset / "README.md").read_text()
    assert (
        f"| babyai-open-door | BabyAI-OpenDoor-v0 | the same | 4 | `{side['expert_revision'][2]}` | `{name}` |" in card
    )
    replay(ReplayConfig(GRID.name, 1, tmp_path))
    with pytest.raises(UserError, match=r"There are seeds 0 to 1, 1000000000 to 1000000001\. 4 imported episodes have"):
        replay(ReplayConfig(GRID.name, 2, tmp_path))


def test_several_sources_of_a_task_stand_side_by_side(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 30)):
        rows = {"train": hopper_rows(3, first), "test": hopper_rows(1, first + 20)}
        source = write_jat(tmp_path / name, {HOPPER.name: rows})
        run(source, HOPPER.name, tmp_path)
    build_dataset(DatasetConfig(HOPPER.name, tmp_path))
    info = DatasetManifest.load(tmp_path / "dataset" / "manifest.json").tasks[HOPPER.name]
    assert (info.splits["train"].num_episodes, len(info.imported)) == (6, 2)
    assert validate(ValidateConfig(tmp_path / "dataset")).kinds == {}


def test_other_environments_are_mixed_on_purpose_only(tmp_path: Path) -> None:
    collect(tmp_path, REACH)
    rows = [continuous_row(number, 2, 39, 4) for number in range(2)]
    source = write_jat(tmp_path / "jat", {REACH.name: {"train": rows, "test": rows}})
    run(source, REACH.name, tmp_path)
    expected = r"metaworld-reach has episodes of several environments: reach-v3 in .*; reach-v2 in .*/imported/.*--mix"
    with pytest.raises(UserError, match=expected):
        build_dataset(DatasetConfig("*", tmp_path))
    assert not (tmp_path / "dataset").exists()
    build_dataset(DatasetConfig("*", tmp_path, mix=True))
    assert "| metaworld-reach | reach-v2 | reach-v3 | 4 |" in (tmp_path / "dataset" / "README.md").read_text()
    # Told that they are of the same environment, they go together.
    other = tmp_path / "other"
    collect(other, REACH)
    run(source, REACH.name, other, environment="reach-v3")
    build_dataset(DatasetConfig("*", other))


def test_a_glob_takes_the_tasks_that_are_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pusher = [continuous_row(number, 2, 23, 7) for number in range(2)]
    source = write_jat(
        tmp_path / "jat",
        {
            HOPPER.name: {"train": hopper_rows(2), "test": hopper_rows(1)},
            PUSHER.name: {"train": pusher, "test": pusher},
        },
    )
    with caplog.at_level(logging.INFO, "collectors"):
        run(source, "mujoco-hopper,mujoco-pu*,mujoco-s*", tmp_path)
    assert f"not in {source}: mujoco-standup, mujoco-swimmer" in caplog.text
    assert (len(data_rows(tmp_path, HOPPER)), len(data_rows(tmp_path, PUSHER))) == (2, 2)
    assert shards_of(tmp_path, PUSHER, source)[0].environment == "Pusher-v4"


def without_rewards(task: str, dataset: Dataset) -> Dataset:
    return dataset.remove_columns("rewards")


def with_flat_actions(task: str, dataset: Dataset) -> Dataset:
    return dataset.map(lambda row: {"continuous_actions": [a[0] for a in row["continuous_actions"]]})


def test_bad_sources_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    rows = {HOPPER.name: {"train": hopper_rows(3), "test": hopper_rows(2)}}
    jat = write_jat(tmp_path / "jat", rows)
    wide = {ANT.name: {"train": [continuous_row(0, 2, 105, 8)], "test": [continuous_row(1, 2, 105, 8)]}}
    empty, arrow, unnamed = tmp_path / "empty", tmp_path / "arrow", tmp_path / "unnamed"
    empty.mkdir()
    Dataset.from_dict({"a": [1]}).save_to_disk(arrow)
    unnamed.mkdir()
    Dataset.from_dict({"a": [1]}).to_parquet(unnamed / "x.parquet")
    one = write_jat(tmp_path / "one", {HOPPER.name: {"train": hopper_rows(1)}}, 1)
    cases: Sequence[tuple[Path | str, str, str]] = [
        (jat, ANT.name, r"has nothing of mujoco-ant; it has mujoco-hopper"),
        (tmp_path / "nowhere", HOPPER.name, r"is neither a folder that is there, nor owner/name .*, nor minari:NAME"),
        (empty, HOPPER.name, "is no dataset: no Parquet file is in it"),
        (arrow, HOPPER.name, r"holds Arrow files, .* write them as Parquet first: load_from_disk"),
        (unnamed, HOPPER.name, r"neither a card nor their names say .* name them as in mujoco-hopper/train-00000"),
        (write_jat(tmp_path / "short", rows, edit=without_rewards), HOPPER.name, "has no column rewards, which"),
        (write_jat(tmp_path / "flat", rows, edit=with_flat_actions), HOPPER.name, "continuous_actions is list<"),
        (write_jat(tmp_path / "wide", wide), ANT.name, r"none of the first 1 episode of .* fits: 105 numbers in a step "
         r"of continuous_observations, expected 27\. They are of Ant-v4, the task is Ant-v4"),
        (one, HOPPER.name, "has 1 episode; it takes at least one for training and one for testing"),
    ]  # fmt: skip
    for source, task, message in cases:
        with pytest.raises(UserError, match=message):
            run(source, task, tmp_path)
    assert not list((tmp_path / "imported").rglob("*.parquet"))
    for changes, message in (({"episodes": 0}, "--episodes is 0"), ({"test_share": 0.0}, "--test-share is 0")):
        with pytest.raises(UserError, match=message):
            run(jat, HOPPER.name, tmp_path, **changes)


def test_a_source_that_changed_is_not_mixed_with_what_it_was(tmp_path: Path) -> None:
    jat = tmp_path / "jat"
    write_jat(jat, {HOPPER.name: {"train": hopper_rows(4), "test": hopper_rows(1)}})
    run(jat, HOPPER.name, tmp_path, episodes=2)
    with pytest.raises(
        UserError, match=r"\(Hopper-v4\); now the source is .* \(Hopper-v5\)\. Give what was given then"
    ):
        run(jat, HOPPER.name, tmp_path, environment="Hopper-v5")
    write_jat(jat, {HOPPER.name: {"train": hopper_rows(4, 1), "test": hopper_rows(1)}})
    with pytest.raises(UserError, match="remove that folder to import anew"):
        run(jat, HOPPER.name, tmp_path)


@pytest.fixture
def minari_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.usefixtures("minari_root")
def test_minari_s_datasets_are_imported_by_name_or_folder(tmp_path: Path) -> None:
    folder = write_minari(gym.make("Hopper-v5"), "mujoco/hopper/test-v0", [5, 200, 3, 4])
    run("minari:mujoco/hopper/test-v0", HOPPER.name, tmp_path)
    run(folder, HOPPER.name, tmp_path / "other")
    assert data_rows(tmp_path, HOPPER) == data_rows(tmp_path / "other", HOPPER)
    rows, side = data_rows(tmp_path, HOPPER), side_rows(tmp_path, HOPPER)
    assert [row["ended"] for row in side] == ["unknown", "terminated", "unknown"]
    assert [row["length"] for row in side] == [len(row["rewards"]) for row in rows]
    assert [row["seed"] for row in side] == [None] * 3
    assert len(data_rows(tmp_path, HOPPER, "test")) == 1
    # The first episode, played again: the observation after the last action is not there.
    env = gym.make("Hopper-v5")
    env.action_space.seed(0)
    observations, rewards = [env.reset(seed=0)[0]], []
    for _ in range(5):
        observation, reward, *_ = env.step(env.action_space.sample())
        observations.append(observation)
        rewards.append(reward)
    np.testing.assert_array_equal(rows[0]["continuous_observations"], np.array(observations[:-1], np.float32))
    np.testing.assert_array_equal(rows[0]["rewards"], np.array(rewards, np.float32))
    # Hopper-v5 has the sizes of Hopper-v4, but is not the same.
    assert shards_of(tmp_path, HOPPER, "minari:mujoco/hopper/test-v0")[0].environment == "Hopper-v5"
    build_dataset(DatasetConfig(HOPPER.name, tmp_path))
    assert validate(ValidateConfig(tmp_path / "dataset")).kinds == {}


@pytest.mark.usefixtures("minari_root")
def test_minari_s_grid_worlds_become_flat_views(tmp_path: Path) -> None:
    import minigrid  # noqa: F401  registers the levels

    env = gym.make("BabyAI-OpenDoor-v0")
    assert isinstance(env.observation_space, gym.spaces.Dict)
    space = gym.spaces.Dict({**env.observation_space.spaces, "mission": gym.spaces.Text(200)})
    write_minari(env, "minigrid/open-door/test-v0", [6, 4, 3], observation_space=space)
    run("minari:minigrid/open-door/test-v0", GRID.name, tmp_path)
    ours = GRID.make_env()
    observation, _ = ours.reset(seed=0)
    (first, second) = data_rows(tmp_path, GRID)
    assert first["text_observations"] == [observation["text_observation"]] * 6
    for t, action in enumerate(first["discrete_actions"]):
        assert first["discrete_observations"][t] == observation["discrete_observation"].tolist()
        observation, *_ = ours.step(action)
    assert len(second["rewards"]) == 4


@pytest.mark.usefixtures("minari_root")
def test_minari_s_datasets_of_other_environments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_minari(gym.make("Ant-v5"), "mujoco/ant/test-v0", [2, 2])
    write_minari(gym.make("Hopper-v5"), "mujoco/hopper/no-v0", [2, 2], with_env=False)
    with pytest.raises(
        UserError,
        match=r"\(Ant-v5\) has observations Box.*105.* mujoco-ant \(Ant-v4\) has observations of shape \(27,\)",
    ):
        run("minari:mujoco/ant/test-v0", ANT.name, tmp_path)
    with pytest.raises(UserError, match=r"is of the environment Ant-v5; mujoco-hopper is Hopper-v4"):
        run("minari:mujoco/ant/test-v0", HOPPER.name, tmp_path)
    with pytest.raises(UserError, match="does not say in which environment it was played; tell it with --environment"):
        run("minari:mujoco/hopper/no-v0", HOPPER.name, tmp_path)
    run("minari:mujoco/hopper/no-v0", HOPPER.name, tmp_path, environment="Hopper-v5")
    expected = r"minari:mujoco/hopper/none-v0 is not in .* \(there: mujoco/ant/test-v0.*and cannot be downloaded"
    with pytest.raises(UserError, match=expected):
        run("minari:mujoco/hopper/none-v0", HOPPER.name, tmp_path)


def test_without_network_the_hub_s_datasets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"jat-project/jat-dataset cannot be downloaded .* check the network"):
        run("jat-project/jat-dataset", HOPPER.name, tmp_path)


def test_one_fault_is_one_reason_and_the_same_import_gives_the_same_bytes(tmp_path: Path) -> None:
    rows = [image_row(seed, 2) for seed in range(6)]
    for seed, file in enumerate((b"no image", b"\x89PNG\r\n\x1a\nno", b"")):
        rows[seed]["image_observations"][1]["bytes"] = file
    source = write_jat(tmp_path / "jat", {PONG.name: {"train": rows, "test": [image_row(0, 1)]}})
    found = []
    for out in (tmp_path / "a", tmp_path / "b"):
        run(source, PONG.name, out)
        (shard,) = (s for s in shards_of(out, PONG, source) if s.split == "train")
        found.append(shard)
    assert found[0] == found[1]
    assert found[0].rejected == {"image unreadable": 3}


@pytest.mark.parametrize(("side", "reason"), [(50_000, "image too large"), (9_000, "image of another shape")])
def test_an_image_that_claims_to_be_huge_is_a_rejection(side: int, reason: str, tmp_path: Path) -> None:
    huge = image_row(1, 2)
    huge["image_observations"][0]["bytes"] = claiming(side, side)
    rows = [image_row(0, 2), huge]
    source = write_jat(tmp_path / "jat", {PONG.name: {"train": rows, "test": [image_row(0, 1)]}})
    run(source, PONG.name, tmp_path)
    assert [row["rejected"] for row in side_rows(tmp_path, PONG)] == [None, reason]


def test_an_observation_too_many_is_called_that_and_no_other_version(tmp_path: Path) -> None:
    rows = hopper_rows(4)
    for row in rows:
        row["continuous_observations"].append(row["continuous_observations"][0])
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": rows, "test": rows}})
    with pytest.raises(UserError, match="fits: one more of observations than of rewards: leave out the obs") as caught:
        run(source, HOPPER.name, tmp_path)
    assert "version" not in str(caught.value)


def test_a_copy_of_an_episode_is_rejected_and_one_in_both_splits_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = hopper_rows(4)
    rows = [rows[0], rows[1], rows[0], rows[2], rows[1], rows[1], rows[3]]
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": rows, "test": [rows[3], *hopper_rows(1, 20)]}}, 3)
    run(source, HOPPER.name, tmp_path)
    train, test = shards_of(tmp_path, HOPPER, source)[::-1]
    assert (train.num_episodes, train.rejected) == (4, {"repeats an earlier episode": 3})
    assert (test.num_episodes, test.rejected) == (2, {})
    assert "mujoco-hopper: 1 times: test episode that is a training episode, too, such as" in caplog.text
    build_dataset(DatasetConfig(HOPPER.name, tmp_path))
    found = validate(ValidateConfig(tmp_path / "dataset")).kinds
    assert {name: kind.count for name, kind in found.items()} == {"test episode that is a training episode, too": 1}


def test_equal_episodes_of_a_small_world_are_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [grid_row(number, 3) for number in (0, 1, 0, 0)]
    source = write_jat(tmp_path / "jat", {GRID.name: {"train": rows, "test": [grid_row(5, 3)]}})
    with caplog.at_level(logging.INFO, "collectors"):
        run(source, GRID.name, tmp_path)
    assert data_rows(tmp_path, GRID) == rows
    assert "babyai-open-door: 2 episodes equal another one" in caplog.text
    build_dataset(DatasetConfig(GRID.name, tmp_path))
    findings = validate(ValidateConfig(tmp_path / "dataset"))
    assert (findings.kinds, findings.num_equal) == ({}, 2)


@pytest.fixture
def minari_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A dataset of Minari's, and its file of episodes."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    folder = write_minari(gym.make("Hopper-v4"), "mujoco/hopper/test-v0", [3, 4, 5])
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (path,) = copy.rglob("*.hdf5")
    return copy, path


@pytest.mark.parametrize("kind", ["external link", "soft link", "external file", "huge", "symlink"])
def test_minari_s_files_are_not_followed_out_of_their_folder(
    kind: str, minari_file: tuple[Path, Path], tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(1000))
    folder, path = minari_file
    with h5py.File(path, "a") as file:
        del file["episode_1/rewards"]
        if kind == "external link":
            file["episode_1/rewards"] = h5py.ExternalLink(str(secret), "/x")
        elif kind == "soft link":
            file["episode_1/rewards"] = h5py.SoftLink("/episode_0/rewards")
        elif kind == "external file":
            file.create_dataset("episode_1/rewards", (10,), "f4", external=[(str(secret), 0, 40)])
        else:
            file.create_dataset("episode_1/rewards", (2**40,) if kind == "huge" else (4,), "f4", chunks=(4,))
    if kind == "symlink":
        path.rename(tmp_path / "elsewhere.hdf5")
        path.symlink_to(tmp_path / "elsewhere.hdf5")
    with pytest.raises(
        UserError, match=r"which is not followed|other files, which are not read|GiB, at most|leads out"
    ):
        run(folder, HOPPER.name, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_minari_s_arrays_of_other_shapes_are_rejections(minari_file: tuple[Path, Path], tmp_path: Path) -> None:
    folder, path = minari_file
    with h5py.File(path, "a") as file:
        del file["episode_0/actions"]
        file["episode_0/actions"] = np.zeros((3, 2), np.float32)
    run(folder, HOPPER.name, tmp_path / "out")
    assert [row["rejected"] for row in side_rows(tmp_path / "out", HOPPER)] == ["arrays of other types or shapes", None]


def test_a_link_out_of_a_source_is_not_read(tmp_path: Path) -> None:
    hidden = write_jat(tmp_path / "private", {HOPPER.name: {"train": hopper_rows(3), "test": hopper_rows(1, 9)}}, 1)
    source = tmp_path / "jat"
    shutil.copytree(hidden, source)
    (train,) = (source / HOPPER.name).glob("train-*")
    train.unlink()
    train.symlink_to(next((hidden / HOPPER.name).glob("train-*")))
    with pytest.raises(UserError, match="is a link that leads out of the folder; put the file itself there"):
        run(source, HOPPER.name, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_source_that_is_a_file_is_called_one(tmp_path: Path) -> None:
    source = write_jat(tmp_path / "jat", {HOPPER.name: {"train": hopper_rows(2), "test": hopper_rows(1)}}, 1)
    (file,) = (source / HOPPER.name).glob("train-*")
    with pytest.raises(UserError, match="is a file; give the folder of the dataset that it is of"):
        run(file, HOPPER.name, tmp_path)


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest/train.parquet",
        "/etc/passwd",
        "hf://datasets/somebody/private@main/train.parquet",
        "hf://datasets/owner/jat@0123/../../private@main/train.parquet",
    ],
)
def test_a_card_on_the_hub_cannot_lead_to_other_places(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        class config:  # noqa: N801
            data_files = {"train": ["hf://datasets/owner/jat@0123/train.parquet", address]}  # noqa: RUF012

    monkeypatch.setattr("datasets.get_dataset_config_names", lambda *args, **options: [HOPPER.name])
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *args, **options: Builder)
    monkeypatch.setattr(import_sources, "list_hub", lambda repository, revision: ("0123", []))
    with pytest.raises(UserError, match=r"the card of owner/jat names .*, which is not in the repository"):
        import_sources.resolve_source("owner/jat", HOPPER, None, 0.1)


def test_a_lerobot_folder_is_called_one_and_not_told_to_rename_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "aloha"
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text('{"codebase_version": "v2.1"}')
    (folder / "data" / "chunk-000").mkdir(parents=True)
    steps = pa.table({"observation.state": [[0.0] * 11], "action": [[0.0] * 3], "episode_index": [0]})
    pq.write_table(steps, folder / "data" / "chunk-000" / "episode_000000.parquet")
    with pytest.raises(UserError, match=r"is a LeRobot dataset of version 'v2.1'; v3 is read: convert it") as caught:
        run(folder, HOPPER.name, tmp_path / "out")
    assert "name them" not in str(caught.value)

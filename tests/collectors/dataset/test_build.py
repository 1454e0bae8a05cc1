from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import DatasetDict, Features, Image, List, Value, load_dataset

from collectors.dataset import signatures
from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.checks import visit
from collectors.dataset.sources import Shard
from collectors.jobs import CollectJob, collect_shard
from pipeline.envs.frames import decode_stacks
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import digest_of, exclusive, location, read_json, sha256_of, write_json
from pipeline.storage.episode_rules import Take, scan_episodes
from pipeline.storage.manifest import DatasetManifest, ShardManifest
from pipeline.storage.plan import ShardJob, TaskPlan, extend_plan
from pipeline.storage.schema import EpisodeBlock, read_blocks
from pipeline.storage.shards import index_shards
from pipeline.storage.statistics import load_statistics
from pipeline.storage.validate import check_shard
from tests.fakes import (
    FAKE_COUNT,
    FAKE_GRID,
    FAKE_NAN_REWARD,
    FAKE_PIXELS,
    expected_episode,
    num_steps,
    observation_at,
    random_mix,
)

TEST = 1_000_000_000
TABLE = (FAKE_COUNT, FAKE_NAN_REWARD, FAKE_GRID, FAKE_PIXELS)


def write(out: Path, task: Task, split: str, first_seed: int, num_seeds: int) -> ShardManifest:
    mix = random_mix(out.parent / "elsewhere", task)
    return collect_shard(CollectJob(ShardJob(task, split, first_seed, num_seeds, mix.kind), mix, out / "shards", 4))


def write_task(out: Path, task: Task) -> None:
    """Five training episodes in two shards, two test episodes in one."""
    write(out, task, "train", 0, 3)
    write(out, task, "train", 3, 2)
    write(out, task, "test", TEST, 2)


def build(out: Path, pattern: str = "*", tasks: Sequence[Task] = TABLE) -> Path:
    build_dataset(DatasetConfig(pattern, out), tasks)
    return out / "dataset"


def load(dataset: Path, name: str) -> DatasetDict:
    return load_dataset(str(dataset), name, cache_dir=str(dataset.parent / "cache"))


def states(directory: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(directory)): (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_dataset_opens_with_its_splits_and_jat_s_columns(tmp_path: Path) -> None:
    (reach,) = select_tasks("metaworld-reach")
    write_task(tmp_path, reach)
    opened = load(build(tmp_path, "metaworld", None), "metaworld-reach")  # type: ignore[arg-type]
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 5, "test": 2}
    for rows in opened.values():
        assert rows.features == Features(
            {
                "continuous_observations": List(List(Value("float32"), length=39)),
                "continuous_actions": List(List(Value("float32"), length=4)),
                "rewards": List(Value("float32")),
            }
        )
    row = opened["train"][0]
    assert np.shape(row["continuous_observations"]) == (100, 39)
    assert np.shape(row["continuous_actions"]) == (100, 4)
    assert np.shape(row["rewards"]) == (100,)


def test_the_rows_are_the_episodes_of_the_seeds_in_order(tmp_path: Path) -> None:
    for task in (FAKE_COUNT, FAKE_GRID):
        write_task(tmp_path, task)
    dataset = build(tmp_path)
    for task, column in ((FAKE_COUNT, "continuous_observations"), (FAKE_GRID, "discrete_observations")):
        opened = load(dataset, task.name)
        for split, seeds in (("train", range(5)), ("test", range(TEST, TEST + 2))):
            expected = [[observation_at(task, seed, t).tolist() for t in range(num_steps(seed))] for seed in seeds]
            assert opened[split][column] == expected
    texts = load(dataset, "toy-grid")["train"]["text_observations"]
    assert texts[:2] == [["seed 0 step 0"], ["seed 1 step 0", "seed 1 step 1"]]


def test_images_open_as_pictures_of_four_channels(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_PIXELS)
    rows = load(build(tmp_path), "pixel-count")["train"]
    assert rows.features["image_observations"] == List(Image())
    picture = rows[1]["image_observations"][1]
    np.testing.assert_array_equal(np.asarray(picture), observation_at(FAKE_PIXELS, 1, 1))


def test_the_side_table_points_at_the_rows_of_the_data(tmp_path: Path) -> None:
    # Seeds 1 and 4 are rejected, so a row is not simply the number of its seed.
    write(tmp_path, FAKE_NAN_REWARD, "train", 0, 6)
    write(tmp_path, FAKE_NAN_REWARD, "test", TEST, 2)
    dataset = build(tmp_path)
    data = load(dataset, "fake-nan-reward")["train"]
    side = load(dataset, "fake-nan-reward-episodes")["train"]
    assert list(side.features) == [
        "seed", "row", "expert", "expert_revision", "return", "length", "success", "ended", "rejected", "noise",
        "versions", "flagged", "task", "final_observation",
    ]  # fmt: skip
    assert side["seed"][:] == [0, 1, 2, 3, 4, 5]
    assert side["row"][:] == [0, None, 1, 2, None, 3]
    assert side["rejected"][:] == [None, "reward not finite", None, None, "reward not finite", None]
    for episode in side:
        if episode["row"] is not None:
            rewards = data[episode["row"]]["rewards"]
            assert episode["return"] == sum(rewards)
            assert episode["length"] == len(rewards)
            assert rewards == expected_episode(FAKE_NAN_REWARD, episode["seed"]).rewards.tolist()


def test_side_tables_from_before_there_was_noise_stand_beside_later_ones(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    folder = tmp_path / "shards" / "fake-count"
    side = folder / "train-0000000000-000003.episodes.parquet"
    pq.write_table(pq.read_table(side).drop_columns(["noise"]), side)
    manifest = read_json(folder / "train-0000000000-000003.json")
    del manifest["noise"]
    manifest["episodes"] |= {"num_bytes": side.stat().st_size, "sha256": sha256_of(side)}
    write_json(folder / "train-0000000000-000003.json", manifest)
    opened = load(build(tmp_path), "fake-count-episodes")["train"]
    assert opened["seed"][:] == [0, 1, 2, 3, 4]
    assert opened["noise"][:] == [None] * 5


def test_no_seed_is_in_both_splits(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    side = load(build(tmp_path), "fake-count-episodes")
    assert side["train"]["seed"][:] == [0, 1, 2, 3, 4]
    assert side["test"]["seed"][:] == [TEST, TEST + 1]


def test_the_manifest_says_what_is_in_each_split(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    manifest = DatasetManifest.load(dataset / "manifest.json")
    task = manifest.tasks["fake-count"]
    train = task.splits["train"]
    assert (task.expert, task.expert_revision, task.versions) == ("random", "random-1", {"numpy": np.__version__})
    assert (train.num_episodes, train.num_steps, train.num_rejected, train.num_successes) == (5, 16, 0, 2)
    # 1 + 3.5 + 7.5 + 13 + 21, over five episodes.
    assert train.mean_return == pytest.approx(46.0 / 5)
    assert [entry.name for entry in train.data] == [
        "data/fake-count/train-00000-of-00002.parquet",
        "data/fake-count/train-00001-of-00002.parquet",
    ]
    assert [entry.name for entry in task.splits["test"].episodes] == ["episodes/fake-count/test-00000-of-00001.parquet"]
    for split in task.splits.values():
        for entry in split.data + split.episodes:
            assert (entry.num_bytes, entry.sha256) == (
                (dataset / entry.name).stat().st_size,
                sha256_of(dataset / entry.name),
            )
    assert sorted(path.name for path in dataset.iterdir()) == [
        "README.md", "card", "config.json", "data", "episodes", "manifest.json", "statistics",
    ]  # fmt: skip


def test_building_again_changes_nothing(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    before = states(dataset)
    build(tmp_path)
    build(tmp_path, "fake-count")
    assert states(dataset) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_equal_shards_give_equal_digests_and_other_shards_another(tmp_path: Path) -> None:
    digests = []
    for name in ("a", "b"):
        write_task(tmp_path / name, FAKE_COUNT)
        digests.append(DatasetManifest.load(build(tmp_path / name) / "manifest.json").digest)
    write(tmp_path / "b", FAKE_COUNT, "train", 5, 1)
    digests.append(DatasetManifest.load(build(tmp_path / "b") / "manifest.json").digest)
    assert digests[0] == digests[1] != digests[2]


def test_more_episodes_are_added_on_the_next_build(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    write(tmp_path, FAKE_COUNT, "train", 5, 1)
    opened = load(build(tmp_path), "fake-count")
    assert {split: len(rows) for split, rows in opened.items()} == {"train": 6, "test": 2}
    assert opened["train"][5]["continuous_observations"] == [[0, 0, 5, 0]]
    names = sorted(path.name for path in (tmp_path / "dataset" / "data" / "fake-count").glob("train-*"))
    assert names == [f"train-0000{index}-of-00003.parquet" for index in range(3)]


def test_adding_a_task_keeps_the_earlier_one(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path, "fake-count")
    before = DatasetManifest.load(dataset / "manifest.json").tasks["fake-count"]
    write_task(tmp_path, FAKE_GRID)
    build(tmp_path, "toy-grid")
    after = DatasetManifest.load(dataset / "manifest.json").tasks
    assert set(after) == {"fake-count", "toy-grid"}
    assert after["fake-count"] == before
    assert len(load(dataset, "fake-count")["train"]) == len(load(dataset, "toy-grid")["train"]) == 5


def test_only_the_chosen_tasks_are_taken(tmp_path: Path) -> None:
    for task in (FAKE_COUNT, FAKE_GRID):
        write_task(tmp_path, task)
    dataset = build(tmp_path, "toy")
    assert set(DatasetManifest.load(dataset / "manifest.json").tasks) == {"toy-grid"}


def damage(path: Path) -> None:
    """Change one bit of a file, in a new file: the dataset's hard link keeps the old content."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["data", "episodes"])
def test_a_damaged_shard_is_refused_by_name_and_the_old_dataset_stays(kind: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    before = states(dataset)
    name = getattr(write(tmp_path, FAKE_COUNT, "train", 5, 2), kind).name
    damage(tmp_path / "shards" / "fake-count" / name)
    with pytest.raises(UserError, match=f"{name}: the file is damaged"):
        build(tmp_path)
    assert states(dataset) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_a_shard_damaged_after_an_earlier_build_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    name = "train-0000000000-000003.parquet"
    damage(tmp_path / "shards" / "fake-count" / name)
    write_task(tmp_path, FAKE_GRID)
    with pytest.raises(UserError, match=f"{name}: the file is damaged"):
        build(tmp_path)


def test_a_damaged_side_table_of_a_shard_without_episodes_is_refused(tmp_path: Path) -> None:
    for first, count in ((1, 1), (3, 1)):
        write(tmp_path, FAKE_NAN_REWARD, "train", first, count)
    write(tmp_path, FAKE_NAN_REWARD, "test", TEST, 1)
    build(tmp_path)
    name = write(tmp_path, FAKE_NAN_REWARD, "train", 4, 1).episodes.name
    damage(tmp_path / "shards" / "fake-nan-reward" / name)
    with pytest.raises(UserError, match=f"{name}: the file is damaged"):
        build(tmp_path)


def test_a_build_that_was_killed_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    before = states(dataset)
    write(tmp_path, FAKE_COUNT, "train", 5, 1)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("collectors.dataset.build.write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    assert states(dataset) == before
    build(tmp_path)
    assert DatasetManifest.load(dataset / "manifest.json").tasks["fake-count"].splits["train"].num_episodes == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_a_build_killed_between_its_two_renames_loses_no_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path, "fake-count")
    write_task(tmp_path, FAKE_GRID)
    rename = Path.rename

    def killed(source: Path, target: Path) -> Path:
        if target == dataset:
            raise KeyboardInterrupt
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, "toy-grid")
    build(tmp_path, "toy-grid")
    assert set(DatasetManifest.load(dataset / "manifest.json").tasks) == {"fake-count", "toy-grid"}


def test_nothing_collected_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing is collected in .*shards for 'toy'; run `jat collect`"):
        build(tmp_path, "toy")
    assert list(tmp_path.iterdir()) == []


def test_a_task_asked_for_by_name_must_be_collected(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    with pytest.raises(UserError, match="toy-grid"):
        build(tmp_path, "toy-grid")


def test_a_task_whose_shards_are_gone_does_not_vanish_from_the_dataset_unsaid(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    (tmp_path / "shards" / "fake-count").rename(tmp_path / "moved-away")
    write_task(tmp_path, FAKE_GRID)
    try:
        build(tmp_path, "toy-grid")
    except UserError as error:
        assert "fake-count" in str(error)
    assert "fake-count" in DatasetManifest.load(dataset / "manifest.json").tasks


@pytest.mark.parametrize(("split", "first", "absent"), [("train", 0, "test"), ("test", TEST, "train")])
def test_a_task_with_one_split_only_is_refused(split: str, first: int, absent: str, tmp_path: Path) -> None:
    write(tmp_path, FAKE_COUNT, split, first, 2)
    with pytest.raises(UserError, match=f"fake-count has no finished {absent} shard"):
        build(tmp_path)


def test_files_are_copied_where_they_cannot_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_file_system(*_: Any) -> None:
        raise OSError("cross-device link")

    write_task(tmp_path, FAKE_COUNT)
    monkeypatch.setattr("os.link", other_file_system)
    manifest = DatasetManifest.load(build(tmp_path) / "manifest.json")
    for entry in manifest.tasks["fake-count"].splits["train"].data:
        assert sha256_of(tmp_path / "dataset" / entry.name) == entry.sha256


def test_the_settings_are_saved_beside_the_data(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path, "fake-count")
    assert read_json(dataset / "config.json") == {"task": "fake-count", "out": str(tmp_path), "mix": False}
    assert len(digest_of({})) == len(DatasetManifest.load(dataset / "manifest.json").digest)


def visits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that the builds from here on look into."""
    seen: list[str] = []

    def watched(task: Task, directory: Path, shard: ShardManifest, take: Take) -> None:
        seen.append(f"{task.name}/{shard.stem}")
        check_shard(task, directory, shard, take)

    monkeypatch.setattr("collectors.dataset.checks.check_shard", watched)
    return seen


def test_only_new_and_changed_shards_are_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (FAKE_COUNT, FAKE_GRID):
        write_task(tmp_path, task)
    build(tmp_path)
    seen = visits(monkeypatch)
    build(tmp_path)
    assert seen == []
    new = write(tmp_path, FAKE_COUNT, "train", 5, 1)
    build(tmp_path)
    assert seen == [f"fake-count/{new.stem}"]
    path = tmp_path / "shards" / "toy-grid" / "train-0000000003-000002.parquet"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # the same bytes, but who knows that without reading them
    build(tmp_path)
    assert seen[1:] == ["toy-grid/train-0000000003-000002"]


def test_what_was_checked_before_a_kill_is_not_checked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)

    def killed(task: Task, directory: Path, shard: ShardManifest, take: Take) -> None:
        if shard.first_seed == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("collectors.dataset.checks.check_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path)
    seen = visits(monkeypatch)
    build(tmp_path)
    assert seen == ["fake-count/train-0000000003-000002"]


def test_new_rules_look_into_every_shard_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    seen = visits(monkeypatch)
    monkeypatch.setattr("collectors.dataset.checks.RULES", 1_000)
    build(tmp_path)
    assert len(seen) == 3


def test_a_dataset_that_lost_a_file_is_built_anew(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    lost = dataset / "data" / "fake-count" / "train-00001-of-00002.parquet"
    lost.unlink()
    build(tmp_path)
    assert lost.exists()


def test_two_shards_with_the_same_seed_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    write(tmp_path, FAKE_COUNT, "train", 2, 4)
    with pytest.raises(UserError, match=r"train-0000000002-000004.json: seeds 2 to 2 are in .*train-0000000000-000003"):
        build(tmp_path)
    assert not (tmp_path / "dataset").exists()


def resign(path: Path, **changes: Any) -> None:
    """Change what a sidecar says."""
    write_json(path, read_json(path) | changes)


def test_shards_of_different_package_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    before = states(dataset)
    monkeypatch.setattr("pipeline.storage.shards.versions_of", lambda _: {"numpy": "1.0.0"})
    write(tmp_path, FAKE_COUNT, "train", 5, 1)
    with pytest.raises(
        UserError, match=r"train-0000000005-000001.json: made with numpy 1.0.0, but train-0000000000-0000"
    ):
        build(tmp_path)
    assert states(dataset) == before


def test_a_side_table_of_other_versions_than_its_manifest_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    for path in (tmp_path / "shards" / "fake-count").glob("*-??????.json"):
        resign(path, versions={"numpy": "1.0.0"})
    with pytest.raises(UserError, match=r"episodes.parquet: made with numpy 2.*, the manifest says numpy 1.0.0"):
        build(tmp_path)


def test_a_shard_of_another_task_is_refused(tmp_path: Path) -> None:
    # The columns of both tasks are the same, so only the manifest tells.
    write_task(tmp_path, FAKE_COUNT)
    write(tmp_path, FAKE_NAN_REWARD, "train", 3, 1)
    write(tmp_path, FAKE_NAN_REWARD, "train", 5, 1)
    strange = tmp_path / "shards" / "fake-nan-reward"
    for path in strange.glob("train-0000000005*"):
        path.rename(tmp_path / "shards" / "fake-count" / path.name)
    shutil.rmtree(strange)
    with pytest.raises(
        UserError, match=r"000005-000001.json: is a shard of fake-nan-reward, in the folder of fake-count"
    ):
        build(tmp_path)


def test_training_seeds_in_the_test_split_are_refused(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    write(tmp_path, FAKE_COUNT, "test", 10, 2)
    with pytest.raises(UserError, match=r"seeds 10 to 11 are not of test, which has 1000000000 to 1499999999"):
        build(tmp_path)


@pytest.mark.parametrize("kind", ["data", "episodes"])
def test_a_file_that_is_no_parquet_is_refused_although_its_checksum_is_right(kind: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    sidecar = tmp_path / "shards" / "fake-count" / "train-0000000000-000003.json"
    path = sidecar.parent / read_json(sidecar)[kind]["name"]
    path.write_bytes(path.read_bytes()[:-100])
    resign(sidecar, **{kind: {"name": path.name, "num_bytes": path.stat().st_size, "sha256": sha256_of(path)}})
    with pytest.raises(UserError, match=rf"{path.name}: cannot be read"):
        build(tmp_path)


@pytest.mark.parametrize("content", ['{"task": "fake-count"}', '{"task', "[]"])
def test_a_damaged_sidecar_is_named(content: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    sidecar = tmp_path / "shards" / "fake-count" / "train-0000000000-000003.json"
    sidecar.write_text(content)
    with pytest.raises(UserError, match=rf"{sidecar.name} is .*; delete it and run"):
        build(tmp_path)


def test_a_damaged_dataset_manifest_is_named(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    (dataset / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest.json is not the manifest of a dataset"):
        build(tmp_path)


@pytest.mark.parametrize("inside", ["shards", "dataset"])
def test_a_folder_inside_a_run_is_not_a_run(inside: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    write_json(tmp_path / "shards" / "plan.json", {})
    with pytest.raises(UserError, match=f"not the root of a run; try --out {tmp_path}$"):
        build(tmp_path / inside)


def test_an_object_store_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="memory://run: a dataset is built on a disk"):
        build(location("memory://run"))


def test_a_full_disk_leaves_the_dataset_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    dataset = build(tmp_path)
    before = states(dataset)
    write(tmp_path, FAKE_COUNT, "train", 5, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.link", full)
    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(
        UserError, match=r"takes no more data \(No space left on device\); the dataset there is as it was"
    ):
        build(tmp_path)
    assert states(dataset) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset", "shards"]


def test_two_builds_at_once_do_not_meet(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    with exclusive(tmp_path / "shards" / ".dataset.lock", ""):
        with pytest.raises(UserError, match=r"another process works on .*shards; wait until it has built its dataset"):
            build(tmp_path)


def all_blocks(dataset: Path, task: Task, split: str) -> EpisodeBlock:
    """Everything stored of a split, in one block."""
    paths = sorted((dataset / "data" / task.name).glob(f"{split}-*"))
    blocks = [block for path in paths for block in read_blocks(task, path)]
    joined = {
        name: np.concatenate([getattr(block, name) for block in blocks])
        for name in ("lengths", "observations", "actions", "rewards")
    }
    return EpisodeBlock(texts=None, **joined)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID], ids=lambda task: task.name)
def test_the_statistics_are_those_of_all_that_is_stored(task: Task, tmp_path: Path) -> None:
    write_task(tmp_path, task)
    dataset = build(tmp_path)
    found = load_statistics(dataset, task)
    for split, seeds in (("train", range(5)), ("test", range(TEST, TEST + 2))):
        statistics, stored = found.splits[split], all_blocks(dataset, task, split)
        assert (statistics.num_episodes, statistics.num_steps) == (len(seeds), sum(map(num_steps, seeds)))
        assert statistics.experts == {"random-1": len(seeds)}
        for moments, values in ((statistics.observations, stored.observations), (statistics.rewards, stored.rewards)):
            assert moments.count == len(values)
            np.testing.assert_allclose(moments.mean, np.atleast_1d(values.mean(axis=0, dtype=np.float64)), rtol=1e-12)
            np.testing.assert_allclose(moments.std, np.atleast_1d(values.std(axis=0, dtype=np.float64)), rtol=1e-9)
        names = (dataset / "data" / task.name).glob(f"{split}-*")
        assert statistics.num_bytes == sum(path.stat().st_size for path in names)


def test_statistics_and_card_do_not_tell_how_often_the_dataset_was_built(tmp_path: Path) -> None:
    for name in ("at-once", "in-two"):
        write(tmp_path / name, FAKE_COUNT, "train", 0, 3)
        write(tmp_path / name, FAKE_COUNT, "test", TEST, 2)
        write_task(tmp_path / name, FAKE_PIXELS)
        if name == "in-two":
            build(tmp_path / name)
        write(tmp_path / name, FAKE_COUNT, "train", 3, 2)
        build(tmp_path / name)
    one, two = (DatasetManifest.load(tmp_path / name / "dataset" / "manifest.json") for name in ("at-once", "in-two"))
    assert [entry.name for entry in one.descriptions if entry.name.endswith(".webp")] != []
    assert one == two
    cards = [(tmp_path / name / "dataset" / "README.md").read_bytes() for name in ("at-once", "in-two")]
    assert cards[0] == cards[1]


def test_a_shard_that_is_known_is_not_counted_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    write(tmp_path, FAKE_COUNT, "train", 5, 1)
    read: list[str] = []

    def counting(task: Task, path: Path, *args: Any) -> np.ndarray:
        read.append(path.name)
        return scan_episodes(task, path, *args)

    monkeypatch.setattr("pipeline.storage.validate.scan_episodes", counting)
    assert load_statistics(build(tmp_path), FAKE_COUNT).splits["train"].num_episodes == 6
    assert read == ["train-0000000005-000001.parquet"]


def test_an_image_of_a_new_shard_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(tmp_path, FAKE_PIXELS, "train", 0, 3)
    decoded: list[int] = []

    def counting(files: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
        decoded.append(len(files))
        return decode_stacks(files, shape)

    for user in ("episode_rules", "observations"):
        monkeypatch.setattr(f"pipeline.storage.{user}.decode_stacks", counting)
    found = visit(FAKE_PIXELS, Shard(tmp_path / "shards" / FAKE_PIXELS.name, shard))
    assert found.observations.count == shard.num_steps * np.prod(FAKE_PIXELS.observation_shape[:-1])
    assert sum(decoded) == shard.num_steps


def test_the_manifest_covers_what_describes_the_data(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_PIXELS)
    dataset = build(tmp_path)
    entries = DatasetManifest.load(dataset / "manifest.json").descriptions
    described = sorted(
        str(path.relative_to(dataset))
        for path in dataset.rglob("*")
        if path.is_file() and path.relative_to(dataset).parts[0] in ("card", "statistics")
    )
    assert [entry.name for entry in entries] == described
    assert {"card/pixel.png", "statistics/pixel-count.json"} < set(described)
    for entry in entries:
        assert (entry.num_bytes, entry.sha256) == (
            (dataset / entry.name).stat().st_size,
            sha256_of(dataset / entry.name),
        )
    for name in ("README.md", "card/pixel.png"):
        (dataset / name).unlink()
        build(tmp_path)
        assert (dataset / name).exists()


def test_without_a_name_the_names_are_listed_even_of_one_task(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    with pytest.raises(ValueError, match=r"\['fake-count', 'fake-count-episodes', 'episodes'\]"):
        load_dataset(str(build(tmp_path)), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("is_built", [False, True], ids=["first build", "after a build"])
@pytest.mark.parametrize(
    "fields",
    [
        {"return_sum": 1e9},
        {"return_sum": float("nan")},
        {"num_successes": 99},
        {"num_episodes": 99},
        {"num_steps": 99},
        {"rejected": {"bored": 9}},
    ],
    ids=str,
)
def test_what_a_sidecar_counts_is_never_believed(fields: dict[str, Any], is_built: bool, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_GRID)
    if is_built:
        build(tmp_path)
    resign(tmp_path / "shards" / FAKE_GRID.name / "train-0000000003-000002.json", **fields)
    with pytest.raises(UserError, match=r"train-0000000003-000002"):
        build(tmp_path)


STEM = "train-0000000000-000003"
DAMAGES = ["", "{", "[]", "3", "null", "[" * 100_000, f'{{"{STEM}": 1}}', f'{{"{STEM}": []}}', f'{{"{STEM}.json": 1}}']


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("cache", ["checked.json", "index.json"])
def test_a_damaged_cache_is_made_again(cache: str, damage: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    index_shards(tmp_path / "shards", FAKE_COUNT.name)
    dataset = build(tmp_path)
    path = tmp_path / "shards" / FAKE_COUNT.name / cache
    before, manifest = read_json(path), read_json(dataset / "manifest.json")
    path.write_text(damage)
    shutil.rmtree(dataset)
    build(tmp_path)
    index_shards(tmp_path / "shards", FAKE_COUNT.name)
    assert read_json(dataset / "manifest.json") == manifest
    assert before.items() <= read_json(path).items()


def change_numbers(value: Any) -> Any:
    """The same with every fraction and count another; times and names stay."""
    if isinstance(value, dict):
        return {key: value[key] if key in ("stamp", "stamps", "rules") else change_numbers(value[key]) for key in value}
    if isinstance(value, list):
        return list(map(change_numbers, value))
    return value + 1 if type(value) in (int, float) else value


@pytest.mark.parametrize("cache", ["checked.json", "index.json"])
def test_a_cache_with_other_numbers_is_not_believed(cache: str, tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    index_shards(tmp_path / "shards", FAKE_COUNT.name)
    dataset = build(tmp_path)
    before = {p.name: p.read_text() for p in (dataset / "manifest.json", dataset / "statistics" / "fake-count.json")}
    path = tmp_path / "shards" / FAKE_COUNT.name / cache
    path.write_text(json.dumps(change_numbers(read_json(path))))
    shutil.rmtree(dataset)
    build(tmp_path)
    assert before == {p.name: p.read_text() for p in (dataset / "manifest.json", next(dataset.glob("statistics/*")))}


@pytest.mark.parametrize("forgery", ["digest", "key of somebody else"])
def test_a_forged_entry_makes_no_wrong_dataset_pass(
    forgery: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry fits the forged manifest and the files in everything that a stranger can know."""
    write_task(tmp_path, FAKE_COUNT)
    build(tmp_path)
    folder = tmp_path / "shards" / FAKE_COUNT.name
    stem = "train-0000000003-000002"
    resign(folder / f"{stem}.json", return_sum=1e9)
    known = read_json(folder / "checked.json")
    record = {name: value for name, value in known[stem].items() if name != "signature"}
    record["key"] = digest_of(ShardManifest.load(folder / f"{stem}.json"))
    if forgery == "digest":
        forged = {**record, "digest": digest_of(record), "signature": digest_of(record)}
    else:
        monkeypatch.setattr(signatures, "_key", lambda: b"k" * 32)
        forged = signatures.sign(record)
        assert signatures.is_ours(forged)
        monkeypatch.undo()
    (folder / "checked.json").write_text(json.dumps({**known, stem: forged}))
    with pytest.raises(UserError, match=stem):
        build(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": {"name": "../../secret.parquet", "num_bytes": 1, "sha256": ""}}, r"data.name is '\.\./\.\./secret"),
        ({"episodes": {"name": "/etc/passwd", "num_bytes": 1, "sha256": ""}}, r"episodes.name is '/etc/passwd'"),
        ({"data": "x"}, r"data is 'x', expected an object"),
        ({"task": "../fake-count"}, r"task '\.\./fake-count' is no name"),
        ({"num_seeds": "3"}, r"num_seeds is '3', expected a whole number"),
        ({"versions": {"numpy": 2}}, r"versions.numpy is 2, expected a string"),
        ({"expert": "a\n| b"}, r"is not one line of text"),
    ],
)
def test_a_sidecar_of_other_types_or_names_is_refused_in_one_line(
    fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_task(tmp_path, FAKE_COUNT)
    resign(tmp_path / "shards" / "fake-count" / "train-0000000000-000003.json", **fields)
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_sidecar_whose_seeds_are_not_its_name_s_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    resign(tmp_path / "shards" / "fake-count" / "train-0000000003-000002.json", num_seeds=10**6)
    with pytest.raises(UserError, match=r"parquet is named for other seeds than train-0000000003-1000000"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": {"../../x": {}}}, r"tasks\.\.\./\.\./x\.expert is missing"),
        ({"tasks": []}, r"tasks is a list"),
        ({"digest": 3}, r"digest is 3"),
        ({"descriptions": [{"name": "../x", "num_bytes": 1, "sha256": ""}]}, r"file '\.\./x' is no path within"),
        ({"descriptions": [{"name": "/x", "num_bytes": 1, "sha256": ""}]}, r"file '/x' is no path within"),
    ],
)
def test_a_dataset_manifest_that_names_what_is_not_its_own_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write_task(tmp_path, FAKE_COUNT)
    manifest = build(tmp_path) / "manifest.json"
    write_json(manifest, read_json(manifest) | change)
    with pytest.raises(UserError, match=message):
        build(tmp_path)


def plan(out: Path, task: Task, train: int, test: int) -> None:
    extend_plan(out / "shards", {task.name: TaskPlan("random", "1", {}, 5, {"train": train, "test": test})})


def test_what_was_planned_and_is_missing_is_told_by_the_build_and_the_card(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path, FAKE_COUNT)
    plan(tmp_path, FAKE_COUNT, 8, 2)
    plan(tmp_path, FAKE_GRID, 20, 2)  # of which the collection made nothing
    dataset = build(tmp_path)
    told = "fake-count (3 train episodes), toy-grid (all of it)"
    assert f"planned and not collected: {told}; run `jat collect` again" in caplog.text
    assert told in (dataset / "README.md").read_text()
    assert DatasetManifest.load(dataset / "manifest.json").missing == {
        "fake-count": {"train": 3},
        "toy-grid": {"train": 20, "test": 2},
    }
    caplog.clear()
    build(tmp_path)  # nothing to do is no reason to be silent
    assert told in caplog.text
    caplog.clear()
    build(tmp_path, "fake-count")
    assert "fake-count (3 train episodes); run" in caplog.text


def test_a_dataset_that_is_completed_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_task(tmp_path, FAKE_COUNT)
    plan(tmp_path, FAKE_COUNT, 6, 2)
    digest = DatasetManifest.load(build(tmp_path) / "manifest.json").digest
    write(tmp_path, FAKE_COUNT, "train", 5, 1)
    caplog.clear()
    manifest = DatasetManifest.load(build(tmp_path) / "manifest.json")
    assert manifest.missing == {} and manifest.digest != digest
    assert "planned" not in caplog.text + (tmp_path / "dataset" / "README.md").read_text()


def test_a_plan_that_grew_changes_what_is_missing_and_not_the_data(tmp_path: Path) -> None:
    write_task(tmp_path, FAKE_COUNT)
    before = DatasetManifest.load(build(tmp_path) / "manifest.json")
    plan(tmp_path, FAKE_COUNT, 9, 2)
    after = DatasetManifest.load(build(tmp_path) / "manifest.json")
    assert (after.digest, after.missing) == (before.digest, {"fake-count": {"train": 4}})

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.envs.episode import Episode
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.files import sha256_of
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import read_blocks
from pipeline.storage.shards import finished_shards, write_shard
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode

# Not square, so that a swapped axis shows.
SMALL_PIXELS = replace(FAKE_PIXELS, observation_shape=(3, 5, 4))


def job_of(task: Task, num_seeds: int, first_seed: int = 0, split: str = "train") -> ShardJob:
    return ShardJob(task, split, first_seed, num_seeds, "random")


def rejected(task: Task, seed: int) -> Episode:
    return replace(expected_episode(task, seed), ended="rejected", rejected=f"reason {seed}")


def write(root: Path, task: Task, episodes: list[Episode]) -> ShardManifest:
    return write_shard(root, job_of(task, len(episodes)), "7", episodes)


def side_table(root: Path, manifest: ShardManifest) -> list[dict[str, Any]]:
    return pq.read_table(root / manifest.task / manifest.episodes.name).to_pylist()


@st.composite
def episode_lists(draw: st.DrawFn, task: Task) -> list[Episode]:
    """0 to 5 episodes of any length and any values the columns can hold."""
    episodes = []
    for seed, length in enumerate(draw(st.lists(st.integers(1, 7), max_size=5))):
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        shape = (length, *task.observation_shape)
        if task.observation == CONTINUOUS:
            numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
            observations = generator.normal(size=shape).astype(np.float32)
            observations.flat[: task.observation_shape[0]] = draw(
                st.lists(numbers, min_size=task.observation_shape[0], max_size=task.observation_shape[0])
            )
        elif task.has_text:
            observations = generator.integers(-(2**63), 2**63 - 1, shape)
        else:
            observations = generator.integers(0, 256, shape, np.uint8)
        discrete = task.action.kind == "discrete"
        actions = (
            generator.integers(task.action.size, size=length)
            if discrete
            else generator.uniform(-1, 1, (length, task.action.size)).astype(np.float32)
        )
        texts = draw(st.lists(st.text(max_size=8), min_size=length, max_size=length)) if task.has_text else None
        episodes.append(
            Episode(
                seed=seed,
                observations=observations,
                texts=None if texts is None else tuple(texts),
                actions=actions,
                rewards=generator.normal(size=length).astype(np.float32),
                ended="terminated",
                success=None,
                rejected="lost" if draw(st.integers(0, 3)) == 0 else None,
            )
        )
    return episodes


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, SMALL_PIXELS], ids=lambda task: task.name)
@given(data=st.data())
def test_what_is_read_is_exactly_what_was_written(
    task: Task, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("shards")
    episodes = data.draw(episode_lists(task))
    manifest = write(root, task, episodes)
    accepted = [episode for episode in episodes if episode.rejected is None]
    blocks = list(read_blocks(task, root / task.name / manifest.data.name))
    assert np.concatenate([block.lengths for block in blocks]).tolist() == [len(episode) for episode in accepted]
    for name in ("observations", "actions", "rewards"):
        found = np.concatenate([getattr(block, name) for block in blocks])
        if accepted:
            expected = np.concatenate([getattr(episode, name) for episode in accepted])
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert found.tobytes() == expected.tobytes()
        else:
            assert len(found) == 0
    if task.has_text:
        texts = [text for block in blocks if block.texts is not None for text in block.texts.to_pylist()]
        assert texts == [text for episode in accepted for text in episode.texts or ()]


def test_the_files_of_a_shard_are_named_by_split_first_seed_and_count(tmp_path: Path) -> None:
    episodes = [expected_episode(FAKE_COUNT, 250), expected_episode(FAKE_COUNT, 251)]
    write_shard(tmp_path, job_of(FAKE_COUNT, 2, first_seed=250), "7", episodes)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "fake-count/train-0000000250-000002.episodes.parquet",
        "fake-count/train-0000000250-000002.json",
        "fake-count/train-0000000250-000002.parquet",
    ]


def test_the_manifest_says_what_came_of_each_seed(tmp_path: Path) -> None:
    episodes = [expected_episode(FAKE_COUNT, 0), rejected(FAKE_COUNT, 1), *map(two_or_three, (2, 3))]
    manifest = write(tmp_path, FAKE_COUNT, episodes)
    assert manifest == ShardManifest(
        task="fake-count",
        split="train",
        first_seed=0,
        num_seeds=4,
        expert="random",
        expert_revision="7",
        versions={"numpy": np.__version__},
        num_episodes=3,
        num_steps=1 + 3 + 4,
        rejected={"reason 1": 1},
        num_successes=2,
        return_sum=1.0 + (1.5 + 2.5 + 3.5) + (1.75 + 2.75 + 3.75 + 4.75),
        data=manifest.data,
        episodes=manifest.episodes,
    )
    for entry in (manifest.data, manifest.episodes):
        path = tmp_path / "fake-count" / entry.name
        assert entry == FileEntry(path.name, len(path.read_bytes()), sha256_of(path))
    assert ShardManifest.load(tmp_path / "fake-count" / "train-0000000000-000004.json") == manifest


def two_or_three(seed: int) -> Episode:
    return expected_episode(FAKE_COUNT, seed)


def test_a_task_without_success_counts_none(tmp_path: Path) -> None:
    manifest = write(tmp_path, FAKE_PIXELS, [expected_episode(FAKE_PIXELS, 0)])
    assert manifest.num_successes is None
    (row,) = side_table(tmp_path, manifest)
    assert row["success"] is None


def test_rejected_episodes_are_in_the_side_table_only(tmp_path: Path) -> None:
    episodes = [rejected(FAKE_GRID, 0), expected_episode(FAKE_GRID, 1), rejected(FAKE_GRID, 2)]
    episodes.append(expected_episode(FAKE_GRID, 3))
    manifest = write(tmp_path, FAKE_GRID, episodes)
    told = {
        "expert": "random",
        "expert_revision": "7",
        "noise": None,
        "flagged": None,
        "versions": f"numpy {np.__version__}",
        "task": "toy-grid",
        "final_observation": None,
    }
    assert side_table(tmp_path, manifest) == [
        {"seed": 0, "row": None, "return": 1.0, "length": 1, "success": True, "ended": "rejected"}
        | {"rejected": "reason 0", **told},
        {"seed": 1, "row": 0, "return": -0.875, "length": 2, "success": False, "ended": "terminated"}
        | {"rejected": None, **told},
        {"seed": 2, "row": None, "return": -0.625, "length": 3, "success": False, "ended": "rejected"}
        | {"rejected": "reason 2", **told},
        {"seed": 3, "row": 1, "return": 1.75, "length": 4, "success": True, "ended": "terminated"}
        | {"rejected": None, **told},
    ]
    data = pq.read_table(tmp_path / "toy-grid" / manifest.data.name)
    assert data["rewards"].to_pylist() == [[0.125, -1.0], [0.125, 0.25, 0.375, 1.0]]


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_a_shard_of_rejected_episodes_only_is_complete_and_empty(task: Task, tmp_path: Path) -> None:
    manifest = write(tmp_path, task, [rejected(task, 0), rejected(task, 1)])
    assert (manifest.num_episodes, manifest.num_rejected, manifest.num_steps) == (0, 2, 0)
    assert pq.read_table(tmp_path / task.name / manifest.data.name).num_rows == 0
    assert finished_shards(tmp_path, task.name) == [manifest]


def test_memory_is_bounded_by_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two steps of four float32 numbers.
    monkeypatch.setattr(
        "pipeline.storage.shards.ends_row_group", lambda seed, num_bytes, held_bytes, group_bytes: held_bytes >= 32
    )
    episodes = [expected_episode(FAKE_COUNT, seed) for seed in (0, 1, 2, 5, 10)]
    episodes[1:1] = [rejected(FAKE_COUNT, 4)]
    manifest = write(tmp_path, FAKE_COUNT, episodes)
    path = tmp_path / "fake-count" / manifest.data.name
    # Lengths 1, 2 | 3 | 1, 1
    assert [block.lengths.tolist() for block in read_blocks(FAKE_COUNT, path)] == [[1, 2], [3], [1, 1]]
    assert [block.observations[-1].tolist() for block in read_blocks(FAKE_COUNT, path)] == [
        [0, 0, 1, 1],
        [0, 0, 2, 2],
        [0, 0, 10, 0],
    ]


def test_the_last_full_row_group_is_not_followed_by_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.shards.ROW_GROUP_BYTES", defaultdict(lambda: 1))
    manifest = write(tmp_path, FAKE_COUNT, [expected_episode(FAKE_COUNT, seed) for seed in (0, 1)])
    assert pq.ParquetFile(tmp_path / "fake-count" / manifest.data.name).num_row_groups == 2


def test_the_same_episodes_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for task in (FAKE_COUNT, FAKE_GRID, FAKE_PIXELS):
            write(tmp_path / name, task, [expected_episode(task, seed) for seed in range(5)])
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 9
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_exception_while_episodes_come_leaves_no_file(tmp_path: Path) -> None:
    def episodes() -> Iterator[Episode]:
        yield expected_episode(FAKE_COUNT, 0)
        raise RuntimeError("the simulator died")

    with pytest.raises(RuntimeError, match="the simulator died"):
        write_shard(tmp_path, job_of(FAKE_COUNT, 2), "7", episodes())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_shard_exists_only_from_its_sidecar_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.shards.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, FAKE_COUNT, [expected_episode(FAKE_COUNT, 0)])
    assert finished_shards(tmp_path, "fake-count") == []
    manifest = write(tmp_path, FAKE_COUNT, [expected_episode(FAKE_COUNT, 0)])
    assert finished_shards(tmp_path, "fake-count") == [manifest]


def three_shards(root: Path) -> list[ShardManifest]:
    places = [(10, "train"), (2, "train"), (1_000_000_000, "test")]
    return [
        write_shard(root, job_of(FAKE_COUNT, 1, first, split), "7", [expected_episode(FAKE_COUNT, first)])
        for first, split in places
    ]


def test_finished_shards_come_by_split_and_first_seed(tmp_path: Path) -> None:
    three_shards(tmp_path)
    found = [(shard.split, shard.first_seed) for shard in finished_shards(tmp_path, "fake-count")]
    assert found == [("test", 1_000_000_000), ("train", 2), ("train", 10)]
    assert finished_shards(tmp_path, "toy-grid") == []


@pytest.mark.parametrize("kind", ["data", "episodes"])
@pytest.mark.parametrize("damage", ["longer", "shorter", "gone"])
def test_a_shard_with_a_file_of_another_size_is_not_finished(tmp_path: Path, kind: str, damage: str) -> None:
    first, second, third = three_shards(tmp_path)
    path = tmp_path / "fake-count" / getattr(second, kind).name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content + b"x" if damage == "longer" else content[:-1])
    assert finished_shards(tmp_path, "fake-count") == [third, first]


def test_a_shard_without_a_sidecar_is_not_finished(tmp_path: Path) -> None:
    first, second, third = three_shards(tmp_path)
    (tmp_path / "fake-count" / second.data.name).with_suffix(".json").unlink()
    assert finished_shards(tmp_path, "fake-count") == [third, first]


def test_a_half_written_sidecar_is_not_seen(tmp_path: Path) -> None:
    first, second, third = three_shards(tmp_path)
    (tmp_path / "fake-count" / ".train-0000000000-000001.json.77.tmp").write_text("{")
    assert finished_shards(tmp_path, "fake-count") == [third, second, first]


def test_a_sidecar_is_readable_json_with_the_versions(tmp_path: Path) -> None:
    write(tmp_path, FAKE_COUNT, [expected_episode(FAKE_COUNT, 0)])
    raw = json.loads((tmp_path / "fake-count" / "train-0000000000-000001.json").read_text())
    assert raw["versions"] == {"numpy": np.__version__}
    assert raw["data"]["name"] == "train-0000000000-000001.parquet"

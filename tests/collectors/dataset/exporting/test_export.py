"""Exports open with the other tools' own loaders, and an import of them gives every array back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import minari
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.exporting.export import ExportConfig, export
from collectors.dataset.importing.imports import ImportConfig, import_jobs, import_shard
from pipeline.envs.episode import Episode
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, IMAGE, Task
from pipeline.errors import UserError
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.schema import EpisodeBlock, read_blocks
from pipeline.storage.shards import Provenance, write_shard

TEST = 1_000_000_000
SPLITS = {"train": range(5), "test": range(TEST, TEST + 2)}
HOPPER, REACH, GRID, PONG = (
    select_tasks(name)[0] for name in ("mujoco-hopper", "metaworld-reach", "babyai-open-door", "atari-pong")
)
TABLE = (HOPPER, REACH, GRID, PONG)
LEROBOT = Path(__file__).parents[4] / ".venv" / "lerobot"


def made(task: Task, seed: int) -> Episode:
    """Any numbers that the task's columns can hold, every bit of them used, and a mission."""
    random = np.random.default_rng((seed, TABLE.index(task)))
    length = 2 + seed % 4
    if task.observation == IMAGE:
        observations: np.ndarray = random.integers(0, 256, (length + 1, *task.observation_shape), np.uint8)
    elif task.observation == CONTINUOUS:
        observations = random.normal(size=(length + 1, *task.observation_shape)).astype(np.float32)
    else:
        observations = random.integers(0, 4, (length + 1, *task.observation_shape), np.int64)
    is_discrete = task.action.kind == "discrete"
    size = task.action.size
    actions = random.integers(0, size, length) if is_discrete else random.uniform(-1, 1, (length, size))
    return Episode(
        seed,
        observations[:-1],
        tuple(f"open door {seed} é" for _ in range(length)) if task.has_text else None,
        actions.astype(np.int64 if is_discrete else np.float32),
        random.normal(size=length).astype(np.float32) if task.success != "reward" else np.full(length, 0.5, np.float32),
        ("terminated", "truncated")[seed % 2],  # type: ignore[arg-type]
        {"info": seed % 3 == 0, "reward": True}.get(task.success or ""),
        final_observation=observations[-1],
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    for task in TABLE:
        for split, seeds in SPLITS.items():
            job = ShardJob(task, split, seeds[0], len(seeds), "bot", "epsilon=0.1")
            episodes: Iterator[Episode] = (made(task, seed) for seed in seeds)
            write_shard(out / "shards", job, "bot-1", episodes, lambda seed: Provenance("bot", "bot-1", "epsilon=0.1"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)
        patch.setattr("collectors.dataset.build.write_previews", lambda *_: [])
        build_dataset(DatasetConfig(out=out))
    return out / "dataset"


def assert_same_blocks(found: list[EpisodeBlock], expected: list[Episode]) -> None:
    assert [int(n) for block in found for n in block.lengths] == [len(episode) for episode in expected]
    for name in ("observations", "actions", "rewards"):
        here = np.concatenate([getattr(block, name) for block in found])
        there = np.concatenate([getattr(episode, name) for episode in expected])
        assert (here.dtype, here.shape) == (there.dtype, there.shape)
        assert here.tobytes() == there.tobytes()
    if expected[0].texts is not None:
        texts = [text for block in found if block.texts is not None for text in block.texts.to_pylist()]
        assert texts == [text for episode in expected for text in episode.texts or ()]


def assert_imported(source: Path, task: Task, out: Path, expected: dict[str, list[Episode]]) -> None:
    """Import the source; the steps and outcomes must be those of the episodes."""
    jobs = import_jobs(ImportConfig(str(source), task.name, out), [task], out / "imported")
    assert {job.shard.split for job in jobs} == {split for split, episodes in expected.items() if episodes}
    assert {job.origin.environment for job in jobs} == {task.env_id}
    for split, episodes in expected.items():
        of_split = [job for job in jobs if job.shard.split == split]
        blocks, rows = list[EpisodeBlock](), list[dict[str, Any]]()
        for job in of_split:
            manifest = import_shard(job)
            assert manifest.rejected == {}
            blocks += read_blocks(task, job.root / job.name / manifest.data.name)
            rows += pq.read_table(job.root / job.name / manifest.episodes.name).to_pylist()
        assert_same_blocks(blocks, episodes)
        for row, episode in zip(rows, episodes, strict=True):
            assert (row["length"], row["ended"], row["success"]) == (len(episode), episode.ended, episode.success)
            assert episode.final_observation is not None
            assert row["final_observation"] == episode.final_observation.astype(np.float32).ravel().tolist()


def episodes_of(task: Task) -> dict[str, list[Episode]]:
    return {split: [made(task, seed) for seed in seeds] for split, seeds in SPLITS.items()}


@pytest.mark.parametrize("task", TABLE, ids=lambda task: task.name)
def test_a_lerobot_export_imports_bit_for_bit(task: Task, dataset: Path, tmp_path: Path) -> None:
    export(ExportConfig("lerobot", str(tmp_path / "to"), dataset, task.name))
    assert_imported(tmp_path / "to", task, tmp_path, episodes_of(task))
    rows = pq.read_table(tmp_path / "to" / "meta" / "episodes").to_pylist()
    assert [(r["jat/seed"], r["jat/split"], r["jat/expert"], r["jat/noise"]) for r in rows] == [
        (seed, split, "bot", "epsilon=0.1") for split, seeds in SPLITS.items() for seed in seeds
    ]
    expected = [episode for of_split in episodes_of(task).values() for episode in of_split]
    assert [(row["jat/return"], row["jat/success"]) for row in rows] == [(e.total_reward, e.success) for e in expected]


@pytest.mark.slow
@pytest.mark.parametrize("task", [HOPPER, GRID, PONG], ids=lambda task: task.name)
def test_lerobot_s_own_loader_opens_the_export(task: Task, dataset: Path, tmp_path: Path) -> None:
    if not (LEROBOT / "lerobot").is_dir():
        pytest.skip("LeRobot is not installed; `make setup-dev` puts it into .venv/lerobot")
    export(ExportConfig("lerobot", str(tmp_path / "to"), dataset, task.name))
    path = os.pathsep.join([str(LEROBOT), os.environ.get("PYTHONPATH", "")])
    environ = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(tmp_path / "home")}
    loader = [sys.executable, "-W", "ignore", str(Path(__file__).with_name("lerobot_loader.py")), str(tmp_path / "to")]
    result = subprocess.run(loader, check=False, capture_output=True, text=True, env=environ)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout)
    episodes = [episode for of_split in episodes_of(task).values() for episode in of_split]
    steps = np.concatenate([episode.observations for episode in episodes])
    assert (found["episodes"], found["frames"]) == (7, len(steps))
    state = np.array(found["state"])
    if task.observation == IMAGE:
        np.testing.assert_array_equal(np.round(state * 255), np.moveaxis(steps, -1, 1))
        pixels = steps.reshape(-1, steps.shape[-1]) / 255
        np.testing.assert_allclose(np.array(found["mean"]).ravel(), pixels.mean(axis=0))
    else:
        np.testing.assert_array_equal(state.astype(steps.dtype), steps)
        np.testing.assert_allclose(found["mean"], steps.astype(np.float64).mean(axis=0), atol=1e-12)
        np.testing.assert_allclose(found["std"], steps.astype(np.float64).std(axis=0), atol=1e-12)
    actions = np.concatenate([episode.actions for episode in episodes])
    np.testing.assert_array_equal(np.array(found["action"]).astype(actions.dtype), actions)
    np.testing.assert_array_equal(
        np.array(found["reward"], np.float32), np.concatenate([episode.rewards for episode in episodes])
    )
    ends = np.cumsum([len(episode) for episode in episodes])
    assert [index for index, done in enumerate(found["done"]) if done] == (ends - 1).tolist()
    texts = [text for e in episodes for text in (e.texts or (task.name,) * len(e))]
    assert found["task"] == texts
    assert found["window"][0] == 2
    assert found["second"] == list(range(ends[0], ends[1]))


@pytest.mark.parametrize("task", [HOPPER, GRID, PONG], ids=lambda task: task.name)
def test_minari_opens_the_export_and_an_import_gives_it_back(
    task: Task, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(ExportConfig("minari", str(tmp_path / "to"), dataset, task.name))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "to"))
    for split, episodes in episodes_of(task).items():
        name = f"jat/{task.name}/{split}-v0"
        opened = minari.load_dataset(name)
        assert opened.total_episodes == len(episodes)
        for found, episode in zip(opened.iterate_episodes(), episodes, strict=True):
            seen = found.observations
            if isinstance(seen, dict):
                assert list(seen["mission"]) == [*(episode.texts or ()), (episode.texts or ("",))[-1]]
                view = seen["image"].reshape(len(seen["image"]), -1)
                seen = np.concatenate([seen["direction"].reshape(-1, 1), view], axis=1)
            expected = np.concatenate([episode.observations, [episode.final_observation]])
            np.testing.assert_array_equal(seen, expected)
            assert len(seen) == len(found.actions) + 1
            np.testing.assert_array_equal(found.actions, episode.actions)
            np.testing.assert_array_equal(found.rewards, episode.rewards)
            assert found.terminations[-1] == (episode.ended == "terminated")
            assert not found.terminations[:-1].any() and not found.truncations[:-1].any()
        said = list(opened.storage.get_episode_metadata(range(len(episodes))))
        assert [(m["seed"], m["expert"], m["return"], m.get("success")) for m in said] == [
            (e.seed, "bot", e.total_reward, e.success) for e in episodes
        ]
        out = tmp_path / split
        halves = {"train": episodes[:-1], "test": episodes[-1:]}  # a Minari dataset has no splits
        assert_imported(tmp_path / "to" / name, task, out, halves)


def test_tasks_of_one_layout_are_one_lerobot_dataset(dataset: Path, tmp_path: Path) -> None:
    twin = dataclasses.replace(HOPPER, name="mujoco-twin")
    source = tmp_path / "run"
    table = (HOPPER, twin)
    for task in table:
        for split, seeds in SPLITS.items():
            episodes = (made(HOPPER, seed + 100 * table.index(task)) for seed in seeds)
            named = (dataclasses.replace(e, seed=s) for e, s in zip(episodes, seeds, strict=True))
            write_shard(source / "shards", ShardJob(task, split, seeds[0], len(seeds), "bot"), "bot-1", named)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)
        patch.setattr("collectors.dataset.build.write_previews", lambda *_: [])
        build_dataset(DatasetConfig(out=source), table)
    export(ExportConfig("lerobot", str(tmp_path / "to"), source / "dataset"), table)
    shifted = {split: [made(HOPPER, seed + 100) for seed in seeds] for split, seeds in SPLITS.items()}
    assert_imported(tmp_path / "to", twin, tmp_path / "back", shifted)
    assert_imported(tmp_path / "to", HOPPER, tmp_path / "back", episodes_of(HOPPER))


def test_bad_input_is_one_line_before_any_work(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    to = str(tmp_path / "to")
    for config, reason in (
        (ExportConfig("lerobot", to, dataset), r"4 kinds; export each kind on its own, with --task: .*mujoco-hopper"),
        (ExportConfig("lerobot", str(tmp_path / "full"), dataset, "mujoco"), "full is there and not empty"),
        (ExportConfig("lerobot", to, dataset, "mujoco-ant"), "has no episodes of mujoco-ant; it has"),
        (ExportConfig("minari", to, tmp_path), "is no dataset: it has no manifest.json"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            export(config)
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_minari_is_told_before_the_work_where_the_last_observation_is_missing(dataset: Path, tmp_path: Path) -> None:
    old = tmp_path / "run"
    job = ShardJob(HOPPER, "train", 0, 2, "bot")
    for split, seeds in (("train", range(2)), ("test", range(TEST, TEST + 2))):
        job = ShardJob(HOPPER, split, seeds[0], 2, "bot")
        without = (dataclasses.replace(made(HOPPER, seed), final_observation=None) for seed in seeds)
        write_shard(old / "shards", job, "bot-1", without)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("collectors.dataset.card.card._plot", lambda path, domain: False)
        patch.setattr("collectors.dataset.build.write_previews", lambda *_: [])
        build_dataset(DatasetConfig(out=old))
    with pytest.raises(UserError, match="4 of 4 episodes of mujoco-hopper have no observation after the last action"):
        export(ExportConfig("minari", str(tmp_path / "to"), old / "dataset"))
    export(ExportConfig("lerobot", str(tmp_path / "to"), old / "dataset"))


def test_strange_lerobot_datasets_are_refused_in_one_line(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "to"
    export(ExportConfig("lerobot", str(folder), dataset, "mujoco-hopper"))
    info = json.loads((folder / "meta" / "info.json").read_text())

    def refused(reason: str) -> None:
        with pytest.raises(UserError, match=reason) as caught:
            jobs = import_jobs(ImportConfig(str(folder), "mujoco-hopper", tmp_path), [HOPPER], tmp_path / "imported")
            [import_shard(job) for job in jobs]
        assert "\n" not in str(caught.value)

    def write_info(**changes: Any) -> None:
        (folder / "meta" / "info.json").write_text(json.dumps(info | changes))

    write_info(codebase_version="v2.1")
    refused(r"is a LeRobot dataset of version 'v2.1'; v3 is read: convert it")
    write_info(features={n: f for n, f in info["features"].items() if n != "next.reward"})
    refused("has no column for rewards of mujoco-hopper")
    (folder / "meta" / "info.json").write_text("{")
    refused("meta/info.json cannot be understood")
    write_info(features={"action": [1]})
    refused("its features have no dtype and shape")
    write_info()
    path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(path)
    lengths = pa.array([value + 1 for value in table["length"].to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("length"), "length", lengths), path)
    refused(r"episode \d has \d steps, \d by meta/episodes")
    away = pa.array([-1] * len(table))
    pq.write_table(table.set_column(table.column_names.index("data/file_index"), "data/file_index", away), path)
    refused("an episode has no valid place")


def test_an_export_leaves_the_dataset_alone(dataset: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*")}
    export(ExportConfig("lerobot", str(tmp_path / "to"), dataset, "babyai"))
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*")} == before
    assert DatasetManifest.load(dataset / "manifest.json").tasks

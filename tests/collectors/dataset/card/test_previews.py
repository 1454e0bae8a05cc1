from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from collectors.dataset.card.previews import MAX_FRAMES, WIDTH, Preview, write_previews
from collectors.jobs import CollectJob, collect_shard
from pipeline.envs.episode import Episode
from pipeline.envs.registry import select_tasks
from pipeline.envs.render import render_frame
from pipeline.envs.task import Task
from pipeline.storage.manifest import DatasetManifest, ShardManifest, SplitManifest, TaskManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, random_mix

(GO_TO,) = select_tasks("babyai-go-to-obj")
NUM_EPISODES = 4


def make(folder: Path, task: Task, num_episodes: int = NUM_EPISODES) -> TaskManifest:
    """Random episodes of a task in one file, as the manifest of a dataset in ``folder`` names it."""
    mix = random_mix(folder.parent / "experts", task)
    job = CollectJob(ShardJob(task, "train", 0, num_episodes, mix.kind), mix, folder, 2)
    return manifest_of(collect_shard(job))


def manifest_of(shard: ShardManifest) -> TaskManifest:
    data, side = (replace(entry, name=f"{shard.task}/{entry.name}") for entry in (shard.data, shard.episodes))
    split = SplitManifest(shard.num_episodes, shard.num_steps, 0, None, 0.0, (data,), (side,))
    return TaskManifest("random", "random-1", shard.versions, {"train": split})


def previews_of(folder: Path, *tasks: Task, earlier: Path | None = None) -> list[Preview]:
    manifest = DatasetManifest("", {task.name: make(folder, task) for task in tasks})
    return write_previews(folder, manifest, tasks, earlier)


def frames_of(path: Path) -> list[np.ndarray]:
    frames = []
    with Image.open(path) as picture:
        for index in range(picture.n_frames):  # type: ignore[attr-defined]
            picture.seek(index)
            frames.append(np.asarray(picture.convert("RGB")))
    return frames


def test_the_picture_shows_the_episode_of_its_seed(tmp_path: Path) -> None:
    (preview,) = previews_of(tmp_path, GO_TO)
    frames = frames_of(tmp_path / preview.name)
    assert 1 < len(frames) <= MAX_FRAMES + 1
    env = GO_TO.make_env(drawable=True)
    env.reset(seed=preview.seed)
    first = Image.fromarray(render_frame(env)).resize(frames[0].shape[1::-1])
    env.close()
    assert frames[0].shape[1] == WIDTH
    difference = np.abs(np.asarray(first, np.float64) - frames[0]).mean()
    assert difference < 6  # of 255: the picture is small and lossy
    assert any((frame != frames[0]).any() for frame in frames[1:])


def test_the_episode_is_that_of_the_median_return_among_the_successful(tmp_path: Path) -> None:
    info = make(tmp_path, FAKE_PIXELS, 6)
    side_path = tmp_path / info.splits["train"].episodes[0].name
    rows = pq.read_table(side_path).to_pylist()
    for returned, success, row in zip((9, 1, 2, 3, 4, 5), (False, True, True, True, False, None), rows, strict=True):
        row.update({"return": float(returned), "success": success})
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(side_path)), side_path)
    (preview,) = write_previews(tmp_path, DatasetManifest("", {FAKE_PIXELS.name: info}), [FAKE_PIXELS])
    assert preview.seed == 2


def test_stored_images_are_shown_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A bright square that moves to the right; the newest of four frames is the last channel.
    frames = np.zeros((9, 84, 84), np.uint8)
    for step, frame in enumerate(frames):
        frame[30:50, 8 * step : 8 * step + 16] = 200
    stacks = np.moveaxis(np.stack([frames[step : step + 4] for step in range(6)]), 1, -1)
    episode = Episode(0, stacks, None, np.zeros(6, np.int64), np.ones(6, np.float32), "terminated", None)
    shard = write_shard(tmp_path, ShardJob(FAKE_PIXELS, "train", 0, 1, "random"), "random-1", [episode])
    monkeypatch.setattr("collectors.dataset.card.previews.rollout", pytest.fail)
    (preview,) = write_previews(tmp_path, DatasetManifest("", {FAKE_PIXELS.name: manifest_of(shard)}), [FAKE_PIXELS])
    shown = frames_of(tmp_path / preview.name)
    assert len(shown) == 6
    for frame, newest in zip(shown, stacks[..., -1], strict=True):
        expected = np.asarray(Image.fromarray(newest).resize((WIDTH, WIDTH), Image.Resampling.NEAREST), np.float64)
        assert np.abs(frame.mean(axis=-1) - expected).mean() < 4


def test_the_same_episode_gives_the_same_bytes_and_a_small_file(tmp_path: Path) -> None:
    names = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        (preview,) = previews_of(folder, GO_TO)
        names.append(preview.name)
        assert (folder / preview.name).stat().st_size < 60_000
    assert names[0] == names[1]
    assert (tmp_path / "a" / names[0]).read_bytes() == (tmp_path / "b" / names[1]).read_bytes()


def test_a_picture_of_the_same_episode_is_taken_over_not_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (preview,) = previews_of(tmp_path / "a", GO_TO)
    (tmp_path / "a" / preview.name).write_bytes(b"drawn before")
    monkeypatch.setattr("collectors.dataset.card.previews.render_frame", pytest.fail)
    (again,) = previews_of(tmp_path / "b", GO_TO, earlier=tmp_path / "a")
    assert again == preview
    assert (tmp_path / "b" / preview.name).read_bytes() == b"drawn before"


def test_an_episode_that_comes_out_differently_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = make(tmp_path, GO_TO)
    path = tmp_path / info.splits["train"].data[0].name
    table = pq.read_table(path)
    rewards = [[reward + 0.5 for reward in row] for row in table["rewards"].to_pylist()]
    index = table.schema.get_field_index("rewards")
    pq.write_table(table.set_column(index, table.schema.field(index), pa.array(rewards, table["rewards"].type)), path)
    assert write_previews(tmp_path, DatasetManifest("", {GO_TO.name: info}), [GO_TO]) == []
    assert "did not come out again (its rewards are others)" in caplog.text


def test_what_cannot_be_drawn_here_is_left_out_and_the_log_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert previews_of(tmp_path / "a", FAKE_COUNT) == []  # it has no way to draw itself
    assert "no preview of fake-count: it cannot be drawn here (NotImplementedError" in caplog.text

    def missing(_: object) -> None:
        raise ModuleNotFoundError("No module named 'minigrid'")

    info = make(tmp_path / "b", GO_TO)
    broken = replace(GO_TO, factory=missing)
    assert write_previews(tmp_path / "b", DatasetManifest("", {GO_TO.name: info}), [broken]) == []
    assert "no preview of babyai-go-to-obj: it cannot be drawn here (ModuleNotFoundError" in caplog.text


def test_episodes_without_a_seed_are_not_played_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    info = make(tmp_path, GO_TO)
    path = tmp_path / info.splits["train"].episodes[0].name
    side = pq.read_table(path)
    seeds = pa.nulls(len(side), pa.int64())
    pq.write_table(side.set_column(side.schema.get_field_index("seed"), "seed", seeds), path)
    assert write_previews(tmp_path, DatasetManifest("", {GO_TO.name: info}), [GO_TO]) == []
    assert "the seed of its episodes is not known" in caplog.text


def test_of_each_domain_a_few_tasks_are_shown_from_the_first_to_the_last(tmp_path: Path) -> None:
    many = [replace(FAKE_PIXELS, name=f"pixel-{index}") for index in range(10)]
    found = previews_of(tmp_path, *many)
    assert [preview.task.name for preview in found] == ["pixel-0", "pixel-3", "pixel-6", "pixel-9"]

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from collectors.jobs import CollectJob, collect_shard
from collectors.video import VideoConfig, make_video
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.plan import ShardJob
from tests.fakes import FAKE_COUNT, random_mix

pytestmark = pytest.mark.usefixtures("nothing_embedded")


def write(out: Path, name: str, max_steps: int = 12) -> Task:
    """Two short episodes of the random policy."""
    task = replace(select_tasks(name)[0], max_steps=max_steps) if name != FAKE_COUNT.name else FAKE_COUNT
    mix = random_mix(out, task)
    collect_shard(CollectJob(ShardJob(task, "train", 0, 2, mix.kind), mix, out / "shards", 2))
    return task


def frames_of(path: Path) -> tuple[list[np.ndarray], Any]:
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)], stream.average_rate


@pytest.mark.parametrize(
    ("name", "size", "fps"),
    [
        ("atari-pong", (210, 160), 15),
        ("babyai-go-to-obj", (208, 192), 5),
        ("metaworld-reach", (240, 240), 40),  # every other of 80 steps per second
        ("mujoco-reacher", (240, 240), 50),
    ],
)
def test_a_stored_episode_becomes_a_video_of_its_steps(
    tmp_path: Path, name: str, size: tuple[int, int], fps: int, caplog: pytest.LogCaptureFixture
) -> None:
    task = write(tmp_path, name)
    with caplog.at_level(logging.INFO, "collectors"):
        path = make_video(VideoConfig(name, 1, tmp_path), [task])
    assert path == tmp_path / "videos" / name / "1.mp4"
    frames, rate = frames_of(path)
    assert rate == fps
    assert len(frames) == (7 if name == "metaworld-reach" else 13)
    assert {frame.shape for frame in frames} == {(*size, 3)}
    assert (frames[0] != frames[-1]).any()
    assert "not what is stored" not in caplog.text
    assert str(path) in caplog.text


def test_rate_and_place_can_be_chosen(tmp_path: Path) -> None:
    task = write(tmp_path, "metaworld-reach", 5)
    to = tmp_path / "elsewhere" / "reach.mp4"
    assert make_video(VideoConfig(task.name, 0, tmp_path, fps=10, to=to), [task]) == to
    frames, rate = frames_of(to)
    assert (len(frames), rate) == (6, 10)
    with pytest.raises(UserError, match="--fps is 0; it must be at least 1"):
        VideoConfig(task.name, 0, fps=0)


def test_what_is_missing_to_draw_is_named_and_no_video_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FAKE_COUNT.name)
    with pytest.raises(UserError, match="fake-count cannot be drawn: its environment Count-v0 has no way to render"):
        make_video(VideoConfig(FAKE_COUNT.name, 0, tmp_path, fps=5), [FAKE_COUNT])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match="writing a video needs the package av"):
        make_video(VideoConfig(FAKE_COUNT.name, 0, tmp_path, fps=5), [FAKE_COUNT])
    monkeypatch.undo()
    task = write(tmp_path, "babyai-go-to-obj")
    monkeypatch.setitem(sys.modules, "minigrid", None)
    with pytest.raises(
        UserError, match=r"babyai-go-to-obj cannot be played here: .*minigrid.*; install jat-pipeline\[all\]"
    ):
        make_video(VideoConfig(task.name, 0, tmp_path), [task])
    assert not list(tmp_path.rglob("*.mp4*"))

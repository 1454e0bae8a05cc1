"""Render a few episodes of a dataset as small animations for its card.

An episode is replayed from its seed with the stored actions and rendered; stored images, such as Atari's, are shown
unchanged. So each animation also proves that its episode is reproducible: an episode whose replay differs is skipped
and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.compute

from collectors.replay import StoredActions
from pipeline.envs.render import render_frame
from pipeline.envs.rollout import rollout
from pipeline.envs.task import DISCRETE, IMAGE, Task
from pipeline.files import digest_of, link_or_copy, replacing
from pipeline.storage.manifest import DatasetManifest, FileEntry, TaskManifest
from pipeline.storage.parquet_limits import read_small
from pipeline.storage.schema import read_episode

log = logging.getLogger(__name__)

FOLDER = "card"
FORMAT = 1  # increase it when the same episode would be rendered differently
PER_DOMAIN = 4
MAX_FRAMES = 48
MAX_STRIDE = 3  # maximum number of steps per frame; longer episodes are shown in part
WIDTH = 200  # pixels
FRAME_MS, GRID_FRAME_MS, LAST_FRAME_MS = 90, 220, 1500  # milliseconds; a step in a grid world is a large movement
QUALITY = 65  # of lossy WebP, 0 to 100


@dataclass(frozen=True)
class Preview:
    """An animation of the episode of ``seed``, None if unknown; ``name`` is its path in the dataset."""

    task: Task
    seed: int | None
    name: str


@dataclass(frozen=True)
class _Choice:
    """An episode to show: row ``row`` of the data file ``data``."""

    task: Task
    seed: int | None
    row: int
    data: FileEntry

    @property
    def name(self) -> str:
        digest = digest_of([FORMAT, self.task.name, self.data.sha256, self.row])
        return f"{FOLDER}/{self.task.name}-{digest[:8]}.webp"


def write_previews(
    dataset: Path, manifest: DatasetManifest, tasks: Sequence[Task], earlier: Path | None = None
) -> list[Preview]:
    """Write animations of some tasks of each domain, in the order of ``tasks``.

    Args:
        dataset: folder of the data; animations are written to its ``card/``.
        manifest: of the dataset.
        tasks: those of the dataset.
        earlier: the previous dataset; its animations of the same episodes are reused.
    """
    previews = []
    if tasks:
        log.info("moving pictures for the card")
    for task in _some_of_each_domain(tasks):
        choice = _choose(task, dataset, manifest.tasks[task.name])
        if choice is None:
            continue
        path = dataset / choice.name
        path.parent.mkdir(exist_ok=True)
        if earlier is not None and (earlier / choice.name).is_file():
            link_or_copy(earlier / choice.name, path)
        else:
            frames = _frames(choice, dataset)
            if not frames:
                continue
            _write_webp(path, frames, GRID_FRAME_MS if task.observation == DISCRETE else FRAME_MS)
        previews.append(Preview(task, choice.seed, choice.name))
    return previews


def _some_of_each_domain(tasks: Sequence[Task]) -> list[Task]:
    """The first and the last task of each domain, and tasks evenly spaced between them."""
    chosen = []
    for domain in dict.fromkeys(task.domain for task in tasks):
        of_domain = [task for task in tasks if task.domain == domain]
        places = np.linspace(0, len(of_domain) - 1, min(PER_DOMAIN, len(of_domain))).round().astype(int)
        chosen += [of_domain[place] for place in places]
    return chosen


def _choose(task: Task, dataset: Path, info: TaskManifest) -> _Choice | None:
    """The episode with the median return in the first training file, among successful ones if there are any.

    Later files do not matter, so a task's animation stays the same when episodes are added.
    """
    train = info.splits["train"]
    side = read_small(dataset / train.episodes[0].name, ["seed", "row", "return", "success"])
    side = side.filter(pa.compute.is_valid(side["row"]))
    successful = side.filter(pa.compute.fill_null(side["success"], False))
    rows = (successful or side).sort_by([("return", "ascending"), ("row", "ascending")]).to_pylist()
    if not rows:
        return None
    median = rows[(len(rows) - 1) // 2]
    return _Choice(task, median["seed"], median["row"], train.data[0])


def _frames(choice: _Choice, dataset: Path) -> list[np.ndarray]:
    """Images ``(H, W, 3)`` of the episode; none if it cannot be rendered here or its replay differs."""
    task = choice.task
    stored = read_episode(task, dataset / choice.data.name, choice.row)
    length = len(stored.rewards)
    stride = min(MAX_STRIDE, -(-length // MAX_FRAMES))
    if task.observation == IMAGE:
        newest = stored.observations[: MAX_FRAMES * stride : stride, ..., -1]
        return [np.repeat(frame[..., None], 3, axis=-1) for frame in newest]
    if choice.seed is None:
        log.info("no preview of %s: the seed of its episodes is not known", task.name)
        return []
    frames: list[np.ndarray] = []
    step = -1

    def draw(_: int, env: gym.Env[Any, Any]) -> None:
        nonlocal step
        step += 1
        is_due = step % stride == 0 and len(frames) < MAX_FRAMES
        if is_due or (step == length <= stride * MAX_FRAMES):  # always show the last state, which is the result
            frames.append(render_frame(env))

    try:
        (episode,) = rollout(task, StoredActions(stored.actions), [choice.seed], 1, draw)
    except (ImportError, NotImplementedError, gym.error.Error) as error:
        log.warning("no preview of %s: it cannot be drawn here (%s: %s)", task.name, type(error).__name__, error)
        return []
    if len(episode) != length or not np.allclose(episode.rewards, stored.rewards, rtol=1e-5, atol=1e-6):
        why = episode.rejected or "its rewards are others"
        log.warning("no preview of %s: the episode of seed %d did not come out again (%s)", task.name, choice.seed, why)
        return []
    return frames


def _write_webp(path: Path, frames: Sequence[np.ndarray], frame_ms: int) -> None:
    from PIL import Image

    height, width, _ = frames[0].shape
    size = (WIDTH, round(height * WIDTH / width))
    method = Image.Resampling.LANCZOS if width > WIDTH else Image.Resampling.NEAREST
    images = [Image.fromarray(frame).resize(size, method) for frame in frames]
    durations = [frame_ms] * (len(images) - 1) + [LAST_FRAME_MS]
    with replacing(path) as temporary:
        images[0].save(
            temporary, "webp", save_all=True, append_images=images[1:], duration=durations, loop=0, quality=QUALITY,
            method=4,
        )  # fmt: skip

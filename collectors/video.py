"""Render a stored episode to mp4.

    jat dataset video --task metaworld-reach --seed 17 --out runs/default

The stored actions are replayed from the seed in an environment that can render, with one frame per step. No display
is needed. Frames are encoded one at a time, so memory does not grow with the length of the episode.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym

from collectors.replay import StoredActions, first_difference, warn_of_versions
from collectors.stored import StoredEpisode, find_episode, naming_missing_packages, one_task
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.episode import Episode
from pipeline.envs.registry import domain_of
from pipeline.envs.render import render_frame
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.video import mp4_writer
from pipeline.run_layout import RunLayout

log = logging.getLogger(__name__)

MAX_FRAMES_PER_S = 50  # of a video in real time; steps in between are skipped


@dataclass(frozen=True)
class VideoConfig:
    """Render a stored episode to mp4."""

    task: str
    """Name of the task."""
    seed: int
    """Seed of the episode."""
    out: Path = Path("runs/default")
    """Root of the run that holds the dataset and shards."""
    dataset: Path | None = None
    """Dataset with the episode; if not given, OUT/dataset, or else OUT/shards."""
    fps: int | None = None
    """Frames per second, one frame per step. If not given: real time with at most 50 frames per second, and 5 steps per
    second in a grid world."""
    to: Path | None = None
    """Path of the mp4 file; OUT/videos/TASK/SEED.mp4 if not given."""

    def __post_init__(self) -> None:
        check_at_least_one(self, *(["fps"] if self.fps is not None else []))


def make_video(config: VideoConfig, tasks: Sequence[Task] | None = None) -> Path:
    """Render an episode and return the path of its video.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: there is no such episode, or a package needed to render it is missing.
    """
    task = one_task(config.task, tasks)
    stored = find_episode(task, config.seed, config.out, config.dataset)
    path = config.to or RunLayout(config.out).video(task.name, config.seed)
    with naming_missing_packages(task):
        difference = film_stored(stored, path, *video_pace(task, config.fps))
    if difference:
        log.warning("what is shown is not what is stored: %s", difference)
    log.info("%d steps of %s: %s", stored.length, stored.place, path)
    return path


def film_stored(stored: StoredEpisode, path: Path, frames_per_s: int, stride: int) -> str:
    """Replay the stored actions and film them; return how what is shown differs from what is stored, or nothing.

    Args:
        stored: the episode.
        path: output file.
        frames_per_s, stride: see ``video_pace``.

    Raises:
        UserError: the task cannot be rendered.
        ImportError: a package of the task is missing.
    """
    warn_of_versions(stored)
    return first_difference(stored, _film(stored, path, frames_per_s, stride))


def _film(stored: StoredEpisode, path: Path, frames_per_s: int, stride: int) -> Episode:
    task = stored.task
    step = 0

    with mp4_writer(path, frames_per_s) as add_frame:

        def film(seed: int, env: gym.Env[Any, Any]) -> None:
            nonlocal step
            # Always show the last state, which is the result, whatever the stride.
            if step % stride == 0 or step == stored.length:
                add_frame(_frame(task, env))
            step += 1

        (replayed,) = rollout(task, StoredActions(stored.steps.actions), [stored.playable_seed], 1, film)
    return replayed


def video_pace(task: Task, fps: int | None = None) -> tuple[int, int]:
    """Frames per second, and steps per frame; ``fps`` frames of one step each if it is given."""
    if fps is not None:
        return fps, 1
    pace = steps_per_s(task)
    stride = math.ceil(pace / MAX_FRAMES_PER_S)
    return max(1, round(pace / stride)), stride


def steps_per_s(task: Task) -> int:
    """Real time of a task in steps per second."""
    pace = domain_of(task).steps_per_s
    if pace is None:
        env = task.make_env(drawable=True)
        pace = int(env.metadata.get("render_fps") or MAX_FRAMES_PER_S)
        env.close()
    return pace


def _frame(task: Task, env: gym.Env[Any, Any]) -> Any:
    try:
        frame = render_frame(env)
    except NotImplementedError as error:
        raise UserError(f"{task.name} cannot be drawn: its environment {task.env_id} has no way to render") from error
    return frame


def main() -> None:
    make_video(parse(VideoConfig))


if __name__ == "__main__":
    run("collectors.video")

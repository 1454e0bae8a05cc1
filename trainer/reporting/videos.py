"""The videos of the report: the agent next to the expert, and many tasks of a domain at once.

Both are composed from the videos that the evaluation and ``experts.film`` recorded. They are small, because the page
embeds all of them. Videos already made from the same recordings within the same size limit are kept.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import digest_of, sha256_of, update_json
from pipeline.media.film import Filmed, films_in, missing_failure, pace
from pipeline.media.video import read_mp4, write_mp4
from pipeline.records import read_record
from pipeline.run_layout import RunLayout
from pipeline.runtime.progress import Progress

log = logging.getLogger(__name__)

MAX_FILMS = 60  # of all tasks together: few tasks show several episodes each, many tasks one each
MAX_EPISODES = 3  # of one task, plus a failed one
HEADING_HEIGHT = 22  # pixels
GAP = 4  # pixels between the two images, and between tiles
GRID_WIDTH = 720  # approximate, in pixels
GRID_ASPECT = 4 / 3
DIMMED = 0.35  # brightness of a finished episode while the other one continues
# Decreasing quality: keep every n-th frame, factor by which the image is scaled down, and x264's rate factor (CRF).
LADDER = ((1, 1, 27), (1, 1, 33), (1, 1, 38), (2, 1, 38), (2, 2, 36), (4, 2, 42))
VERSION = 1  # version of these videos' appearance; increase it when that changes


@dataclass(frozen=True)
class Pair:
    """One seed, played by the agent and, if a video of it exists, by the expert."""

    agent: Filmed
    agent_path: Path
    expert: Filmed | None
    expert_path: Path | None

    @property
    def paths(self) -> list[Path]:
        return [path for path in (self.agent_path, self.expert_path) if path]


@dataclass(frozen=True)
class MadeVideo:
    """The note beside a video of the report: a digest of what it was made of, and whether it was small enough."""

    made_of: str
    fits: bool


@dataclass(frozen=True)
class TaskVideo:
    """The video of a task and the episodes in it. ``path`` is None if the video cannot be made small enough."""

    path: Path | None
    pairs: tuple[Pair, ...]


def find_pairs(
    out: Path, task_name: str, agent_revision: str, expert_revisions: Sequence[str], name: str = ""
) -> list[Pair]:
    """Return the seeds for which the agent has videos, with the same checkpoint and settings as its scores.

    Args:
        out: root of the run.
        task_name: name of the task.
        agent_revision: revision of the agent's measurement.
        expert_revisions: in order of preference; the first one with videos is shown.
        name: name of the evaluation, if it is not the run's own.
    """
    directory = RunLayout(out).agent_films(task_name, name)
    films = [film for film in films_in(directory).values() if film.revision == agent_revision]
    experts: dict[int, tuple[Filmed, Path]] = {}
    for beside in [RunLayout(out).expert_films(task_name, revision) for revision in expert_revisions] if films else []:
        for seed, expert in films_in(beside).items():
            experts.setdefault(seed, (expert, expert.path(beside)))
    return [Pair(film, film.path(directory), *experts.get(film.seed, (None, None))) for film in films]


def make_videos(directory: Path, pairs: dict[str, list[Pair]], max_bytes: int) -> dict[str, TaskVideo]:
    """Make a video per task, with a total size of at most ``max_bytes``."""
    shown = {task: _shown(found, _num_shown(len(pairs))) for task, found in pairs.items() if found}
    limit = max_bytes // max(1, len(shown))
    progress = Progress("videos of the report", len(shown), interval_s=10)
    videos = {}
    for task, episodes in shown.items():
        frames_per_s = episodes[0].agent.frames_per_s
        path = directory / f"{task}.mp4"
        sources = [source for pair in episodes for source in pair.paths]
        videos[task] = TaskVideo(
            _made(path, sources, limit, functools.partial(_beside, episodes), frames_per_s), tuple(episodes)
        )
        progress.advance(1, task)
    return videos


def make_grids(directory: Path, pairs: dict[str, dict[str, Pair]], max_bytes: int) -> dict[str, Path]:
    """Make a video per domain with the agent in its tasks at once, with a total size of at most ``max_bytes``."""
    limit = max_bytes // max(1, len(pairs))
    made = {}
    for domain, found in pairs.items():
        paths = [pair.agent_path for pair in found.values()]
        path = _made(directory / f"{domain}.mp4", paths, limit, functools.partial(_grid, paths), pace(domain)[1])
        if path:
            made[domain] = path
    return made


def _shown(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """Return the first episodes, and the worst one if these show no failure."""
    worst = missing_failure([pair.agent for pair in pairs], [pair.agent.seed for pair in pairs[:count]])
    return [*pairs[:count], *(pair for pair in pairs[count:] if pair.agent.seed == worst)]


def _num_shown(num_tasks: int) -> int:
    return max(1, min(MAX_EPISODES, MAX_FILMS // max(1, num_tasks)))


def _made(
    path: Path, sources: Sequence[Path], max_bytes: int, frames: Callable[[], list[np.ndarray]], frames_per_s: int
) -> Path | None:
    """Return the video at ``path``, made from ``sources`` unless it is up to date; None if it cannot be made small
    enough."""
    note = path.with_suffix(".json")
    made_of = digest_of([VERSION, max_bytes, [sha256_of(source) for source in sources]])
    known = read_record(note, MadeVideo, "the note of a video", "delete it") if note.exists() else None
    if known and known.made_of == made_of and (path.exists() or not known.fits):
        return path if known.fits else None
    note.unlink(missing_ok=True)
    fits = _write_within(path, frames(), frames_per_s, max_bytes)
    update_json(note, MadeVideo(made_of, fits))
    return path if fits else None


def _write_within(path: Path, frames: Sequence[np.ndarray], frames_per_s: int, max_bytes: int) -> bool:
    """Write the video with the best quality of ``LADDER`` that is small enough; return whether there is one."""
    for every, shrink, crf in LADDER:
        kept = [_shrunk(frame, shrink) for frame in frames[::every]]
        write_mp4(path, kept, max(1, round(frames_per_s / every)), crf)
        if path.stat().st_size <= max_bytes:
            return True
    log.warning("%s is left out: it cannot be made smaller than %d kB", path, max_bytes // 1000)
    path.unlink()
    return False


def _shrunk(frame: np.ndarray, factor: int) -> np.ndarray:
    return frame if factor == 1 else _resized(frame, frame.shape[1] // factor, frame.shape[0] // factor)


def _resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BOX))


def _beside(pairs: Sequence[Pair]) -> list[np.ndarray]:
    """Return the episodes one after the other, agent left and expert right; the last frame of each is held for a
    second."""
    return list(itertools.chain.from_iterable(_episode(pair) for pair in pairs))


def _episode(pair: Pair) -> Iterator[np.ndarray]:
    agent = list(read_mp4(pair.agent_path))
    expert = list(read_mp4(pair.expert_path)) if pair.expert_path else []
    num_frames = max(len(agent), len(expert)) + pair.agent.frames_per_s
    headings = [_heading(agent[0].shape[1], f"agent: {_result(pair.agent)}")]
    if pair.expert:
        headings.append(_heading(expert[0].shape[1], f"expert: {_result(pair.expert)}"))
    for index in range(num_frames):
        sides = [
            np.concatenate([heading, _frame_at(film, index)])
            for film, heading in zip((agent, expert), headings, strict=False)
        ]
        yield _side_by_side(sides)


def _result(filmed: Filmed) -> str:
    return f"{filmed.total_reward:.4g}" + (
        "" if filmed.success is None else ", solved" if filmed.success else ", failed"
    )


def _frame_at(film: Sequence[np.ndarray], index: int) -> np.ndarray:
    if index < len(film):
        return film[index]
    return (film[-1] * DIMMED).astype(np.uint8)


def _side_by_side(sides: Sequence[np.ndarray]) -> np.ndarray:
    """Place the frames side by side on black, the smaller one aligned to the top."""
    height = max(side.shape[0] for side in sides)
    parts = []
    for side in sides:
        missing = height - side.shape[0]
        parts += [np.pad(side, ((0, missing), (0, 0), (0, 0))), np.zeros((height, GAP, 3), np.uint8)]
    return np.concatenate(parts[:-1], axis=1)


def _heading(width: int, text: str) -> np.ndarray:
    """Draw a black strip with a line of white text whose font size fits the width."""
    from PIL import Image, ImageDraw, ImageFont

    strip = Image.new("RGB", (width, HEADING_HEIGHT))
    size = HEADING_HEIGHT * 0.6
    font = ImageFont.load_default(size)
    while font.getlength(text) > width - 4 and size > 6:
        size *= 0.9
        font = ImageFont.load_default(size)
    ImageDraw.Draw(strip).text((width / 2, HEADING_HEIGHT / 2), text, "white", font, anchor="mm")
    return np.asarray(strip)


def _grid(paths: Sequence[Path]) -> list[np.ndarray]:
    """Return all videos at once as tiles of one size; finished ones restart."""
    height, width = next(read_mp4(paths[0])).shape[:2]
    columns = max(1, min(len(paths), round(math.sqrt(GRID_ASPECT * len(paths) * height / width))))
    rows = -(-len(paths) // columns)
    tile_width = min(width, GRID_WIDTH // columns)
    tile_height = round(height * tile_width / width)
    films = [[_resized(frame, tile_width, tile_height) for frame in read_mp4(path)] for path in paths]
    frames = []
    for index in range(max(map(len, films))):
        frame = np.zeros((rows * (tile_height + GAP) - GAP, columns * (tile_width + GAP) - GAP, 3), np.uint8)
        for number, film in enumerate(films):
            top, left = (number // columns) * (tile_height + GAP), (number % columns) * (tile_width + GAP)
            frame[top : top + tile_height, left : left + tile_width] = film[index % len(film)]
        frames.append(frame)
    return frames

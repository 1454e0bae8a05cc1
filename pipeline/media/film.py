"""Record a policy's episodes as films: one mp4 per seed, so that two policies can be shown side by side.

The agent and the expert of a task are filmed by the same code on the same seeds: the frames with the same index show
the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.envs.domain import domain_name
from pipeline.envs.episode import Episode
from pipeline.envs.registry import domain_named
from pipeline.envs.task import Task
from pipeline.errors import UserError, how_to_install
from pipeline.files import update_json
from pipeline.records import read_record

log = logging.getLogger(__name__)

MAX_FRAMES = 100  # per episode; later steps are not filmed


class Outcome(Protocol):
    """Outcome of an episode: the attributes that the choice of films depends on."""

    @property
    def seed(self) -> int: ...

    @property
    def total_reward(self) -> float: ...

    @property
    def success(self) -> bool | None: ...

    @property
    def rejected(self) -> str | None: ...


@dataclass(frozen=True)
class Filmed:
    """Record of a filmed episode, stored in the same folder as its mp4 and written after it.

    Attributes:
        revision: revision of the policy that acted.
        versions: versions of the packages that define the environment.
        num_frames: number of frames of the film.
        rejected: the reason why the episode is not counted, or None.
    """

    task: str
    seed: int
    revision: str
    versions: dict[str, str]
    total_reward: float
    length: int
    num_frames: int
    success: bool | None
    rejected: str | None

    def path(self, directory: Path) -> Path:
        """Path of its mp4."""
        return directory / f"{self.seed}.mp4"

    @property
    def frames_per_s(self) -> int:
        return pace(domain_name(self.task))[1]

    @property
    def is_whole(self) -> bool:
        """Whether the film shows the whole episode."""
        return self.length < MAX_FRAMES * pace(domain_name(self.task))[0]


def pace(domain: str) -> tuple[int, int]:
    """Steps per frame, and frames per second."""
    found = domain_named(domain)
    return found.steps_per_frame, found.frames_per_s


class CannotDrawError(UserError):
    """A task cannot be drawn on this machine."""


def draw(task: Task, env: Any) -> np.ndarray:
    """Render a frame of an environment in its current state, ``(H, W, 3)`` uint8.

    Args:
        task: task of the environment.
        env: the environment.

    Raises:
        CannotDrawError: the environment cannot be rendered.
    """
    from pipeline.envs.render import render_frame

    try:
        return render_frame(env)
    except ImportError as error:
        package = f"the package {error.name!r}" if error.name else "a package"
        raise CannotDrawError(
            f"{task.name} cannot be drawn: {package} is missing ({error}); run {how_to_install('all', 'setup')}"
        ) from error
    except NotImplementedError as error:
        raise CannotDrawError(
            f"{task.name} cannot be drawn: its environment {task.env_id} has no way to render"
            + (f" ({error})" if str(error) else "")
        ) from error


class Film:
    """Collects frames of episodes during a rollout.

    Args:
        task: task of the episodes.
        seeds: seeds of the episodes to film; the rollout may also play other seeds.
        directory: output folder of the films.
    """

    def __init__(self, task: Task, seeds: Sequence[int], directory: Path) -> None:
        self._task, self._directory = task, directory
        self._stride, self._frames_per_s = pace(task.domain)
        self._calls = dict.fromkeys(seeds, 0)
        self._frames: dict[int, list[np.ndarray]] = {seed: [] for seed in seeds}

    def listen(self, seed: int, env: Any) -> None:
        """A step listener for the rollout; an environment that cannot be rendered is not filmed."""
        if seed not in self._frames:
            return
        if self._calls[seed] % self._stride == 0 and len(self._frames[seed]) < MAX_FRAMES:
            try:
                self._frames[seed].append(draw(self._task, env))
            except CannotDrawError as error:
                log.warning("%s; its films are left out", error)
                self._frames.clear()
                return
        self._calls[seed] += 1

    def of(self, episodes: Iterable[Episode], revision: str, versions: dict[str, str]) -> Iterator[Episode]:
        """Yield the episodes unchanged, after writing the film of each."""
        for episode in episodes:
            self.write(episode, revision, versions)
            yield episode

    def write(self, episode: Episode, revision: str, versions: dict[str, str]) -> None:
        """Write the film of a finished episode, if the episode is filmed."""
        from pipeline.media.video import write_mp4

        frames = self._frames.pop(episode.seed, None)
        if not frames:
            return
        filmed = Filmed(
            self._task.name,
            episode.seed,
            revision,
            versions,
            episode.total_reward,
            len(episode),
            len(frames),
            None if self._task.success is None else bool(episode.success),
            episode.rejected,
        )
        write_mp4(filmed.path(self._directory), frames, self._frames_per_s)
        update_json(self._directory / f"{episode.seed}.json", filmed)


def missing_failure(outcomes: Iterable[Outcome], filmed: Collection[int]) -> int | None:
    """Seed of the worst episode, if the films of the seeds ``filmed`` do not show it.

    The worst episode is a failed one if there is any, else the one with the lowest return. None if it, or another
    failed one, is filmed, or if all episodes are rejected.
    """
    counted = [outcome for outcome in outcomes if outcome.rejected is None]
    if not counted:
        return None
    worst = min(counted, key=lambda outcome: (outcome.success is not False, outcome.total_reward))
    shown = [outcome for outcome in counted if outcome.seed in filmed]
    is_shown = worst in shown or (worst.success is False and any(outcome.success is False for outcome in shown))
    return None if is_shown else worst.seed


def films_in(directory: Path) -> dict[int, Filmed]:
    """Complete films of a directory, by seed; empty if the directory does not exist.

    Raises:
        UserError: a record is damaged, or is that of another seed than its name says.
    """
    what, fix = "the record of a film", "delete it and make the film again"
    found = {}
    for path in sorted(directory.glob("*.json")):
        filmed = read_record(path, Filmed, what, fix)
        if path.stem != str(filmed.seed):
            raise UserError(f"{path} is not {what} (its seed is another); {fix}")
        if filmed.path(directory).exists():
            found[filmed.seed] = filmed
    return found

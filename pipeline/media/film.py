"""Films of a policy's episodes: one mp4 per seed, so that two policies can be shown beside each other.

The agent and the expert of a task are filmed by the same code on the same seeds: a frame of one shows the same step as
that frame of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError, how_to_install
from pipeline.files import update_json
from pipeline.records import read_record
from pipeline.scoring.measurement import experts_directory

# Steps per frame and frames per second: a grid world is read step by step, an arm's 100 steps are one motion.
PACE = {"babyai": (1, 5)}
DEFAULT_PACE = (2, 20)
MAX_FRAMES = 100  # per episode: what follows is not filmed


class Outcome(Protocol):
    """How an episode ended, as far as films are chosen by it."""

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
    """What is known of a filmed episode; it stands beside its mp4, and is written after it.

    Attributes:
        revision: of the policy that acted.
        versions: of the packages that define the environment.
        num_frames: of the film.
        rejected: why the episode does not count, or None.
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
        """Its mp4."""
        return directory / f"{self.seed}.mp4"

    @property
    def frames_per_s(self) -> int:
        return pace(self.task.partition("-")[0])[1]

    @property
    def is_whole(self) -> bool:
        """Whether the film goes on to the episode's end."""
        return self.length < MAX_FRAMES * pace(self.task.partition("-")[0])[0]


def pace(domain: str) -> tuple[int, int]:
    """Steps per frame, and frames per second."""
    return PACE.get(domain, DEFAULT_PACE)


def draw(task: Task, env: Any, otherwise: str = "") -> np.ndarray:
    """A frame of a task's environment, ``(H, W, 3)`` uint8.

    Args:
        task: which.
        env: in its present state.
        otherwise: what else can be done where it cannot be drawn, for the message.

    Raises:
        UserError: it cannot.
    """
    from pipeline.envs.render import render_frame

    try:
        return render_frame(env)
    except ImportError as error:
        raise UserError(
            f"{task.name} cannot be drawn: the package {error.name!r} is missing ({error}); "
            f"run {how_to_install('all', 'setup')}" + (f", or {otherwise}" if otherwise else "")
        ) from error
    except NotImplementedError as error:
        raise UserError(
            f"{task.name} cannot be drawn: its environment {task.env_id} has no way to render"
            + (f"; {otherwise}" if otherwise else "")
        ) from error


class Film:
    """Frames of episodes, taken while a rollout plays them.

    Args:
        task: where they are played.
        seeds: of the episodes to film; the rollout may play others too.
        directory: where the films go.
    """

    def __init__(self, task: Task, seeds: Sequence[int], directory: Path) -> None:
        self._task, self._directory = task, directory
        self._stride, self._frames_per_s = pace(task.domain)
        self._calls = dict.fromkeys(seeds, 0)
        self._frames: dict[int, list[np.ndarray]] = {seed: [] for seed in seeds}

    def listen(self, seed: int, env: Any) -> None:
        """A step listener for the rollout.

        Raises:
            UserError: the environment cannot be drawn.
        """
        if seed not in self._frames:
            return
        if self._calls[seed] % self._stride == 0 and len(self._frames[seed]) < MAX_FRAMES:
            self._frames[seed].append(draw(self._task, env, "do without films (--video-episodes 0)"))
        self._calls[seed] += 1

    def of(self, episodes: Iterable[Episode], revision: str, versions: dict[str, str]) -> Iterator[Episode]:
        """The same episodes; the film of each is written when it is over."""
        for episode in episodes:
            self.write(episode, revision, versions)
            yield episode

    def write(self, episode: Episode, revision: str, versions: dict[str, str]) -> None:
        """The film of an episode that is over, if it is filmed."""
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
    """The seed of the worst episode, if films of the seeds ``filmed`` would show success alone.

    The worst is a failed episode if there is any, else the one of the least return. None if it, or another failed one,
    is filmed, or if no episode counts.
    """
    counted = [outcome for outcome in outcomes if outcome.rejected is None]
    if not counted:
        return None
    worst = min(counted, key=lambda outcome: (outcome.success is not False, outcome.total_reward))
    shown = [outcome for outcome in counted if outcome.seed in filmed]
    is_shown = worst in shown or (worst.success is False and any(outcome.success is False for outcome in shown))
    return None if is_shown else worst.seed


def evaluation_folder(out: Path, name: str = "") -> Path:
    """Where an evaluation stands in a run; ``name`` is that of one beside the run's own."""
    return out / "evaluation" / name


def agent_films(out: Path, task_name: str, name: str = "") -> Path:
    """Where the films of the agent in a task stand in an evaluation of a run."""
    return evaluation_folder(out, name) / "films" / task_name


def expert_films(out: Path, task_name: str, revision: str) -> Path:
    """Where the films of an expert stand in a run: beside its record."""
    return experts_directory(out, task_name) / revision / "films"


def films_in(directory: Path) -> dict[int, Filmed]:
    """The complete films of a directory, by seed; none if there is no such directory."""
    fix = "delete it and make the film again"
    found = [read_record(path, Filmed, "the record of a film", fix) for path in sorted(directory.glob("*.json"))]
    return {filmed.seed: filmed for filmed in found if filmed.path(directory).exists()}

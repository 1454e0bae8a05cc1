"""Films of episodes, made on demand into a temporary folder and kept while the browser runs."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collectors.replay import replay_stored
from collectors.stored import StoredEpisode, naming_missing_packages
from collectors.video import film_stored, video_pace
from pipeline.envs.registry import domain_named
from pipeline.envs.task import IMAGE
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import digest_of
from pipeline.media.video import write_mp4

log = logging.getLogger(__name__)

MAX_FILMS = 50  # kept; the oldest goes first
STORED_PACE = 15  # frames per second of stored images


@dataclass(frozen=True)
class EpisodeFilm:
    """A film.

    Attributes:
        path: of its mp4.
        frames_per_s: frames per second.
        stride: steps per frame.
        note: what is to be said about it, or nothing.
    """

    path: Path
    frames_per_s: int
    stride: int
    note: str


class Films:
    """Makes films, one at a time.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._films: OrderedDict[str, EpisodeFilm] = OrderedDict()
        self._playing = threading.Lock()  # environments and experts are not made for several threads

    def find(self, key: str) -> EpisodeFilm | None:
        return self._films.get(key)

    def make(self, key: str, episode: StoredEpisode) -> EpisodeFilm:
        """The film of an episode, made unless there is one: drawn from the seed, or else of the stored images.

        Raises:
            UserError: it can be neither drawn nor has it images.
        """
        with self._playing:
            if key not in self._films:
                self._films[key] = _make(episode, self._folder / f"{key}.mp4")
            while len(self._films) > MAX_FILMS:
                self._films.popitem(last=False)[1].path.unlink(missing_ok=True)
            return self._films[key]

    def replay(self, episode: StoredEpisode, out: Path) -> tuple[bool, str]:
        """Play an episode again and compare: whether it is equal, and one line about it."""
        with self._playing:
            try:
                return True, replay_stored(episode, out)
            except (JobsFailedError, UserError) as error:
                return False, str(error)


def key_of(*names: object) -> str:
    """Key of an episode's film."""
    return digest_of([str(name) for name in names])[:24]


def _make(episode: StoredEpisode, path: Path) -> EpisodeFilm:
    task = episode.task
    is_image = task.observation == IMAGE
    why = "an imported episode has no seed"
    if episode.seed is not None:
        try:
            with naming_missing_packages(task):
                frames_per_s, stride = video_pace(task)
                difference = film_stored(episode, path, frames_per_s, stride)
            note = f"what is shown is not what is stored: {difference}" if difference else ""
            return EpisodeFilm(path, frames_per_s, stride, note)
        except UserError as error:
            if not is_image:
                raise
            why = str(error)
    if not is_image:
        raise UserError(f"there is no film: {why}, and its observations are no images")
    write_mp4(path, map(_picture(task.domain), episode.steps.observations), STORED_PACE)
    return EpisodeFilm(path, STORED_PACE, 1, f"the stored images, not drawn anew: {why}")


def _picture(domain: str) -> Callable[[np.ndarray], np.ndarray]:
    """Function that makes ``(H, W, 3)`` of an observation ``(H, W, 4)``: a game's newest frame, or the colours."""
    if domain_named(domain).is_arcade:
        return lambda observation: np.repeat(observation[..., -1:], 3, axis=2)
    return lambda observation: observation[..., :3]

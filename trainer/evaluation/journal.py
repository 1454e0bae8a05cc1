"""What is played of a task in an evaluation: a file once all of it is, and a journal until then.

The journal has a line per episode, written as it ends, so that when a worker is killed only the episodes that were not
over are played again. They stand in the order of their ends, and short ones end first: scores of them would be biased,
so nothing is made of a journal but going on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.files import read_json, replacing, update_json
from pipeline.scoring.measurement import EpisodeResult, Measurement, measurement_of
from pipeline.seeds import seed_range, seeds_of
from pipeline.versions import versions_of


@dataclass(frozen=True)
class Heading:
    """Whose episodes they are: the policy's revision, and the versions of the environment's packages."""

    revision: str
    versions: dict[str, str]


class TaskResults:
    """The results of one task, of one policy and the installed packages.

    Args:
        directory: of the evaluation.
        task: whose.
        revision: of the policy.

    Attributes:
        versions: of the packages that define the environment.
        measurement: of the file; None if there is none.
        played: all episodes by seed, those of the file and those of the journal.
        others: whose results are in their place, if they are not ours.
    """

    def __init__(self, directory: Path, task: Task, revision: str) -> None:
        self.task = task
        self.versions = versions_of(task.packages)
        self._path, self._journal = directory / f"{task.name}.json", directory / f"{task.name}.jsonl"
        self._heading = Heading(revision, self.versions)
        self._handle: IO[str] | None = None
        self.measurement: Measurement | None = None
        self.played: dict[int, EpisodeResult] = {}
        self.others: Heading | None = None
        if self._path.exists():
            found = Measurement(**read_json(self._path))
            if self._is_ours(Heading(found.revision, found.versions), found.seeds):
                self.measurement = found
                self._know(found.episodes)
        if self._journal.exists() and (read := _read_journal(self._journal)) and self._is_ours(read[0]):
            self._know(read[1])

    def missing(self, num_episodes: int) -> list[int]:
        """The seeds that are still to be played, of the first so many."""
        return [seed for seed in seeds_of("evaluate", num_episodes) if seed not in self.played]

    def is_whole(self, num_episodes: int) -> bool:
        """Whether the file has so many episodes."""
        return self.measurement is not None and len(self.measurement.seeds) >= num_episodes

    def add(self, episode: Episode) -> None:
        """Keep an episode that is over, for whoever goes on if this process ends now."""
        if self._handle is None:
            with replacing(self._journal) as temporary:
                temporary.write_text(_line(self._heading) + "".join(map(_line, self.played.values())), encoding="utf-8")
            # A line at a time goes to the system, which keeps it whatever becomes of this process.
            self._handle = self._journal.open("a", buffering=1, encoding="utf-8")
        played = EpisodeResult.of(episode)
        self.played[played.seed] = played
        self._handle.write(_line(played))

    def finish(self) -> Measurement:
        """Write the file, of all episodes up to the first that is missing."""
        self.close()
        leading = list(itertools.takewhile(self.played.__contains__, seed_range("evaluate")))
        self.measurement = measurement_of(
            self.task, [self.played[seed] for seed in leading], "agent", self._heading.revision, self._heading.versions
        )
        update_json(self._path, self.measurement)
        if len(leading) == len(self.played):
            self._journal.unlink(missing_ok=True)
        return self.measurement

    def remove(self) -> None:
        """Remove both files, whosever they are."""
        self._path.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _is_ours(self, heading: Heading, seeds: Sequence[int] = ()) -> bool:
        if heading != self._heading or list(seeds) != seeds_of("evaluate", len(seeds)):
            self.others = self.others or heading
            return False
        return True

    def _know(self, episodes: Iterable[EpisodeResult]) -> None:
        self.played |= {played.seed: played for played in episodes}


def _read_journal(path: Path) -> tuple[Heading, list[EpisodeResult]] | None:
    """A line that was cut off by a kill is left out; None if that is the first."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    return (
        (Heading(**json.loads(lines[0])), [EpisodeResult(**json.loads(line)) for line in lines[1:]]) if lines else None
    )


def _line(value: Heading | EpisodeResult) -> str:
    return json.dumps(asdict(value)) + "\n"

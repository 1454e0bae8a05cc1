"""Episode results of a task in an evaluation: a file when the task is finished, and a journal until then.

The journal has one line per episode, appended when the episode ends, so after a worker is killed only unfinished
episodes are played again. Entries are in completion order, so short episodes come first; the journal is only used to
resume, never to compute scores, which would be biased.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TypeVar

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.files import replacing, update_json
from pipeline.records import record_of
from pipeline.scoring.measurement import EpisodeResult, Measurement, measurement_of, read_measurement
from pipeline.seeds import seed_range, seeds_of
from pipeline.versions import versions_of
from trainer.evaluation.results import AGAIN

RecordT = TypeVar("RecordT")


@dataclass(frozen=True)
class Heading:
    """Provenance of the episodes: the policy's revision, and the versions of the environment's packages."""

    revision: str
    versions: dict[str, str]


class TaskResults:
    """The results of one task, for one policy and the installed package versions.

    Args:
        directory: directory of the evaluation.
        task: the task.
        revision: revision of the policy.

    Attributes:
        versions: versions of the packages that define the environment.
        measurement: contents of the finished file; None if there is none.
        played: all episodes by seed, from the file and from the journal.
        others: provenance of existing results, if it differs from this one.
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
            found = read_measurement(self._path, AGAIN)
            if self._is_ours(Heading(found.revision, found.versions), found.seeds):
                self.measurement = found
                self._know(found.episodes)
        if self._journal.exists() and (read := _read_journal(self._journal)) and self._is_ours(read[0]):
            self._know(read[1])

    def missing(self, num_episodes: int) -> list[int]:
        """Return the seeds still to be played, of the first ``num_episodes``."""
        return [seed for seed in seeds_of("evaluate", num_episodes) if seed not in self.played]

    def is_whole(self, num_episodes: int) -> bool:
        """Whether the finished file has at least ``num_episodes`` episodes."""
        return self.measurement is not None and len(self.measurement.seeds) >= num_episodes

    def add(self, episode: Episode) -> None:
        """Store a finished episode, so that a run after an interruption can resume from it."""
        if self._handle is None:
            with replacing(self._journal) as temporary:
                temporary.write_text(_line(self._heading) + "".join(map(_line, self.played.values())), encoding="utf-8")
            # Line buffering: every line is passed to the operating system, so it survives a kill of this process.
            self._handle = self._journal.open("a", buffering=1, encoding="utf-8")
        played = EpisodeResult.of(episode)
        self.played[played.seed] = played
        self._handle.write(_line(played))

    def finish(self) -> Measurement:
        """Write the file with all episodes before the first missing one."""
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
        """Remove both files, even if they have another provenance."""
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
    """Read a journal. Damaged lines are skipped, so their episodes are played again; None if the first line is."""
    heading, *lines = path.read_bytes().split(b"\n")[:-1] or [b""]
    found = _parsed(heading, Heading)
    if found is None:
        return None
    return found, [played for line in lines if (played := _parsed(line, EpisodeResult))]


def _parsed(line: bytes, kind: type[RecordT]) -> RecordT | None:
    try:
        return record_of(json.loads(line), kind)
    except (ValueError, RecursionError):  # a RecordError is a ValueError
        return None


def _line(value: Heading | EpisodeResult) -> str:
    return json.dumps(asdict(value)) + "\n"

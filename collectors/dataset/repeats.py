"""Find duplicate episodes in a dataset, by a digest of all their stored data.

Equal episodes are not always a problem. In a small grid world, or a game with few starts, different seeds give equal
episodes, and their frequency is part of the data. So duplicates with different seeds are only counted. Without seeds
the reason is unknown. In tasks with continuous observations a duplicate is then reported as a copy, because real
numbers do not repeat by chance. A test episode that is also a training episode is reported too, as it tests nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collectors.dataset.findings import Findings
from collectors.dataset.importing.rows import unfit_episode
from pipeline.envs.episode import Episode
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.storage.episode_rules import Problem

REPEATED = "episode that is there twice"
LEAKED = "test episode that is a training episode, too"
REPEATS = "repeats an earlier episode"  # reason of a rejection


@dataclass(frozen=True)
class _Place:
    path: Path
    split: str
    row: int
    has_seed: bool


class Repeats:
    """Finds equal episodes among all files of a task, which are added one by one.

    Args:
        task: the task of the files.
        findings: collects the problems, and counts equal episodes that are no problem.
    """

    def __init__(self, task: Task, findings: Findings) -> None:
        self._task, self._findings = task, findings
        self._first: dict[bytes, _Place] = {}

    def add(self, path: Path, split: str, digests: Sequence[bytes], has_seed: np.ndarray) -> None:
        """Add the episodes of one more file.

        Args:
            path: of the file.
            split: of the file.
            digests: of its episodes, as returned by ``scan_episodes``.
            has_seed: ``(E,)`` whether the seed of an episode is known.
        """
        problems: dict[str, list[tuple[int, _Place]]] = {}
        for row, (digest, seeded) in enumerate(zip(digests, has_seed.tolist(), strict=True)):
            if not digest:
                continue
            here = _Place(path, split, row, seeded)
            first = self._first.setdefault(digest, here)
            if first is here:
                continue
            kind = self._kind(here, first)
            if kind is None:
                self._findings.num_equal += 1
            else:
                problems.setdefault(kind, []).append((row, first))
        for kind, found in problems.items():
            self._findings.add(_problem(kind, path, found))

    def _kind(self, here: _Place, first: _Place) -> str | None:
        """The kind of problem of two equal episodes; None if there is none."""
        if here.has_seed and first.has_seed:
            return None
        if here.split != first.split:
            return LEAKED
        return REPEATED if self._task.observation == CONTINUOUS else None


def _problem(kind: str, path: Path, found: list[tuple[int, _Place]]) -> Problem:
    row, first = found[0]
    return Problem(kind, path, f"is row {first.row} of {first.path.name} ({first.split}), too", row, len(found))


def digest_of_episode(episode: Episode) -> bytes:
    """Identifies the content of an episode: equal digests mean equal steps."""
    found = hashlib.blake2b(digest_size=16)
    for values in (episode.observations, episode.actions, episode.rewards):
        found.update(f"{values.shape} {values.dtype}".encode())
        found.update(np.ascontiguousarray(values).data)
    found.update("\0".join(episode.texts or ()).encode(errors="surrogatepass"))
    return found.digest()


def reject_copies(task: Task, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Yield the episodes; in tasks with continuous observations, copies of an earlier episode are rejected."""
    seen: set[bytes] = set()
    for episode in episodes:
        if not episode.rejected and task.observation == CONTINUOUS:
            digest = digest_of_episode(episode)
            if digest in seen:
                yield unfit_episode(task, episode.seed, REPEATS)
                continue
            seen.add(digest)
        yield episode

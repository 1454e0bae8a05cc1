"""Which shards a request needs and which are still missing. Only arithmetic on seeds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.manifest import ShardManifest
from pipeline.seeds import FIRST_SEED
from pipeline.tasks import Task


@dataclass(frozen=True)
class ShardJob:
    """The seeds ``first_seed .. first_seed + num_seeds - 1`` of one split, played by one expert.

    A shard's content is a function of its job and the package versions, so a repeated job writes the same file.
    """

    task: Task
    split: str
    first_seed: int
    num_seeds: int
    expert: str

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return f"{self.split}-{self.first_seed:010d}-{self.num_seeds:06d}"

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


def missing_jobs(
    task: Task,
    split: str,
    num_episodes: int,
    expert: str,
    done: Iterable[ShardManifest],
    shard_episodes: int,
) -> list[ShardJob]:
    """Jobs that complete the first ``num_episodes`` seeds of a split.

    Jobs are cut on a grid of ``shard_episodes``, so that what a killed run left over is cut the same way again.
    Shards that are already there stay, whatever grid they were cut on.
    """
    first = FIRST_SEED[split]
    gaps = _gaps(first, first + num_episodes, [(m.first_seed, m.num_seeds) for m in done])
    jobs = []
    for begin, end in gaps:
        start = begin
        while start < end:
            grid_end = first + ((start - first) // shard_episodes + 1) * shard_episodes
            stop = min(end, grid_end)
            jobs.append(ShardJob(task, split, start, stop - start, expert))
            start = stop
    return jobs


def _gaps(start: int, end: int, covered: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of ``[start, end)`` outside the covered ``(first, count)`` ranges."""
    gaps = []
    for first, count in sorted(covered):
        if first > start:
            gaps.append((start, min(first, end)))
        start = max(start, first + count)
        if start >= end:
            break
    if start < end:
        gaps.append((start, end))
    return gaps

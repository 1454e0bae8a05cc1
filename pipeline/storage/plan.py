"""Plan of a folder of shards: which episodes are to be collected, and which shards are still missing.

``<root>/<task>/plan.json`` is written before the task's first shard. It has the number of episodes of each split, the
expert and the package versions; the shards are computed from it by arithmetic on seeds alone. There is one file per
task, so that several collectors can work on different tasks in one folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.envs.task import Task
from pipeline.files import list_folders, update_json
from pipeline.records import read_record
from pipeline.run_layout import PLAN
from pipeline.seeds import FIRST_SEED
from pipeline.storage.manifest import ShardManifest, shard_stem


@dataclass(frozen=True)
class ShardJob:
    """The seeds ``first_seed .. first_seed + num_seeds - 1`` of one split, played by one expert, with or without noise.

    ``labels`` is the revision of the expert (or mix) that labels every step, None for no labels.

    Jobs are idempotent: a shard's content is a function of its job and the package versions.
    """

    task: Task
    split: str
    first_seed: int
    num_seeds: int
    expert: str
    noise: str | None = None
    labels: str | None = None

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return shard_stem(self.split, self.first_seed, self.num_seeds)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


@dataclass(frozen=True)
class TaskPlan:
    """Episodes to collect of one task.

    Attributes:
        expert: expert kind, or a mix of kinds.
        expert_revision: revision of the expert.
        versions: versions of the packages that determine the content of an episode.
        shard_episodes: seeds per shard: jobs are cut at multiples of this number.
        episodes: number of seeds to play, by split.
        noise: noise added to the expert's actions, in the syntax of ``--noise``; None for none.
        labels: revision of the expert that labels every step; None for no labels.
    """

    expert: str
    expert_revision: str
    versions: dict[str, str]
    shard_episodes: int
    episodes: dict[str, int]
    noise: str | None = None  # missing in plans older than this field
    labels: str | None = None  # likewise


MAX_NAMED = 10  # maximum number of tasks named in a message


def read_plan(root: Path) -> dict[str, TaskPlan]:
    """The plans of a folder of shards by task name; empty if it has no plans."""
    plans = {folder.name: read_task_plan(root, folder.name) for folder in list_folders(root)}
    return {name: plan for name, plan in sorted(plans.items()) if plan is not None}


def read_task_plan(root: Path, task_name: str) -> TaskPlan | None:
    """The plan of one task, or None.

    Raises:
        UserError: the file is not a plan.
    """
    path = root / task_name / PLAN
    if not path.exists():
        return None
    return read_record(path, TaskPlan, "the plan of a task", "delete it and run `jat collect` again")


def extend_plan(root: Path, wanted: Mapping[str, TaskPlan]) -> None:
    """Update the plans. Larger numbers of episodes planned by earlier runs are kept."""
    for name, task in wanted.items():
        before = read_task_plan(root, name)
        earlier = before.episodes if before else {}
        episodes = {split: max(count, earlier.get(split, 0)) for split, count in task.episodes.items()}
        update_json(root / name / PLAN, replace(task, episodes=episodes))


def interleaved(jobs: Sequence[Sequence[ShardJob]]) -> list[ShardJob]:
    """Interleave the jobs of several tasks so that all tasks advance evenly and no slow task delays the rest."""
    keyed = [((index + 0.5) / len(of_task), job) for of_task in jobs for index, job in enumerate(of_task)]
    return [job for _, job in sorted(keyed, key=lambda pair: pair[0])]


def missing_jobs(
    task: Task,
    split: str,
    num_episodes: int,
    expert: str,
    done: Iterable[ShardManifest],
    shard_episodes: int,
    noise: str | None = None,
    labels: str | None = None,
) -> list[ShardJob]:
    """Jobs that complete the first ``num_episodes`` seeds of a split.

    Jobs are cut at multiples of ``shard_episodes``, so that a resumed run cuts the remaining seeds in the same way.
    Existing shards are kept, whatever their size.
    """
    first = FIRST_SEED[split]
    gaps = _gaps(first, first + num_episodes, [(m.first_seed, m.num_seeds) for m in done])
    jobs = []
    for begin, end in gaps:
        start = begin
        while start < end:
            grid_end = first + ((start - first) // shard_episodes + 1) * shard_episodes
            stop = min(end, grid_end)
            jobs.append(ShardJob(task, split, start, stop - start, expert, noise, labels))
            start = stop
    return jobs


def count_missing(plan: TaskPlan, done: Iterable[ShardManifest]) -> dict[str, int]:
    """Number of planned seeds of each split that are in no finished shard; complete splits are omitted.

    Args:
        plan: plan of a task.
        done: finished shards of the task.
    """
    shards = list(done)
    counts = {}
    for split, num_episodes in plan.episodes.items():
        first = FIRST_SEED[split]
        covered = [(shard.first_seed, shard.num_seeds) for shard in shards if shard.split == split]
        counts[split] = sum(end - begin for begin, end in _gaps(first, first + num_episodes, covered))
    return {split: count for split, count in counts.items() if count}


def describe_missing(missing: Mapping[str, Mapping[str, int]], there: Collection[str]) -> str:
    """Format e.g. ``metaworld-reach (250 train episodes), mujoco-ant (all of it)``; after a few tasks, only a count.

    Args:
        missing: number of missing episodes by task and split.
        there: names of the tasks that have at least one episode.
    """
    words = []
    for name, counts in list(missing.items())[:MAX_NAMED]:
        parts = " and ".join(f"{count:,} {split}" for split, count in counts.items())
        words.append(f"{name} ({f'{parts} episodes' if name in there else 'all of it'})")
    others = len(missing) - len(words)
    return ", ".join(words) + (f" and {others} other tasks" if others else "")


def _gaps(start: int, end: int, covered: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Parts of ``[start, end)`` that no ``(first, count)`` range covers."""
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

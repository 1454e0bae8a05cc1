"""What is to be collected: the plan of a folder of shards, and which of them are still missing.

``<root>/<task>/plan.json`` is written before the task's first shard. It says how many episodes of each split are
wanted, who plays them and with which package versions; with it, the shards follow by arithmetic on seeds alone. A file
per task, so that several collectors may work on different tasks in one place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.envs.task import Task
from pipeline.files import list_folders, update_json
from pipeline.records import read_record
from pipeline.seeds import FIRST_SEED
from pipeline.storage.manifest import ShardManifest, shard_stem


@dataclass(frozen=True)
class ShardJob:
    """The seeds ``first_seed .. first_seed + num_seeds - 1`` of one split, played by one expert, with noise or without.

    A shard's content is a function of its job and the package versions, so a repeated job writes the same file.
    """

    task: Task
    split: str
    first_seed: int
    num_seeds: int
    expert: str
    noise: str | None = None

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return shard_stem(self.split, self.first_seed, self.num_seeds)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.num_seeds)


@dataclass(frozen=True)
class TaskPlan:
    """What is wanted of one task.

    Attributes:
        expert: who plays; a kind, or a mix of them.
        expert_revision: which of that kind.
        versions: of the packages that decide what an episode looks like.
        shard_episodes: the grid on which jobs are cut.
        episodes: seeds to play, by split.
        noise: added to the expert's actions, as ``--noise`` spells it; None for none.
    """

    expert: str
    expert_revision: str
    versions: dict[str, str]
    shard_episodes: int
    episodes: dict[str, int]
    noise: str | None = None  # plans written before there was any do not say


PLAN = "plan.json"
MAX_NAMED = 10  # tasks in a message


def read_plan(root: Path) -> dict[str, TaskPlan]:
    """The plans of a folder of shards by task name; empty if nothing was planned there."""
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
    """Write what is wanted into the plans. Larger numbers of episodes of earlier runs stay."""
    for name, task in wanted.items():
        before = read_task_plan(root, name)
        earlier = before.episodes if before else {}
        episodes = {split: max(count, earlier.get(split, 0)) for split, count in task.episodes.items()}
        update_json(root / name / PLAN, replace(task, episodes=episodes))


def interleaved(jobs: Sequence[Sequence[ShardJob]]) -> list[ShardJob]:
    """The jobs of several tasks in an order in which all tasks advance evenly, so that no slow one holds the rest."""
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
            jobs.append(ShardJob(task, split, start, stop - start, expert, noise))
            start = stop
    return jobs


def count_missing(plan: TaskPlan, done: Iterable[ShardManifest]) -> dict[str, int]:
    """Seeds of each split that are planned and in no finished shard; splits that lack none are left out.

    Args:
        plan: of a task.
        done: its finished shards.
    """
    shards = list(done)
    counts = {}
    for split, num_episodes in plan.episodes.items():
        first = FIRST_SEED[split]
        covered = [(shard.first_seed, shard.num_seeds) for shard in shards if shard.split == split]
        counts[split] = sum(end - begin for begin, end in _gaps(first, first + num_episodes, covered))
    return {split: count for split, count in counts.items() if count}


def describe_missing(missing: Mapping[str, Mapping[str, int]], there: Collection[str]) -> str:
    """``metaworld-reach (250 train episodes), mujoco-ant (all of it)``; a few tasks are named, the others counted.

    Args:
        missing: episodes by task and split.
        there: names of the tasks of which there is something.
    """
    words = []
    for name, counts in list(missing.items())[:MAX_NAMED]:
        parts = " and ".join(f"{count:,} {split}" for split, count in counts.items())
        words.append(f"{name} ({f'{parts} episodes' if name in there else 'all of it'})")
    others = len(missing) - len(words)
    return ", ".join(words) + (f" and {others} other tasks" if others else "")


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

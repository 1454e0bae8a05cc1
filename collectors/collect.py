"""Collect episodes: experts play the seeds of each split, workers write them as shards.

    python -m collectors.collect --task 'metaworld-*' --episodes 20 --out runs/default

Writes ``OUT/shards/<task>/...`` (see ``pipeline/shards.py``). A shard that is there stays: run the same command again
after a kill and it goes on with what is missing; ask for more episodes and it adds them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.choice import BEST, Mix, choose, parse_choice
from pipeline.cli import check_at_least_one, parse, run
from pipeline.cluster import run_jobs
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.manifest import ShardManifest
from pipeline.plan import ShardJob, missing_jobs
from pipeline.progress import Progress
from pipeline.rollout import rollout
from pipeline.seeds import SPLITS
from pipeline.shards import finished_shards, write_shard
from pipeline.tasks import DEMO_TASKS, Task, select_tasks
from pipeline.versions import format_versions, versions_of

log = logging.getLogger(__name__)

MAX_ERRORS = 5  # shown of one kind


@dataclass(frozen=True)
class CollectConfig:
    """Collect episodes of experts into shards."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: str = "1000"
    """Training episodes per task: a number, or numbers by task or domain such as `300,babyai=10000`."""
    test_share: float = 0.1
    """Test episodes as a share of the training episodes; at least one."""
    shard_episodes: int = 250
    """Episodes per shard at most: the unit of work, and what a kill can cost."""
    workers: int = 2
    """Worker processes."""
    envs: int = 16
    """Environments each worker steps in lockstep."""
    expert: str = BEST
    """Who acts: `best` or `best-success` as measured, a kind, a revision, the first there is of a comma list, or a mix
    such as `0.7*best+0.3*scripted`, in which each seed is played by one of them."""
    allow_weak: bool = False
    """Collect with experts that are not clearly better than random, too."""

    def __post_init__(self) -> None:
        _parse_episodes(self.episodes)
        parse_choice(self.expert)
        check_at_least_one(self, "shard_episodes", "workers", "envs")
        if not 0 < self.test_share <= 1:
            raise UserError(f"--test-share is {self.test_share}; it must be above 0 and at most 1")

    def num_episodes(self, task: Task, split: str) -> int:
        """Episodes wanted of a split.

        Raises:
            UserError: ``episodes`` names neither the task nor its domain nor a number for the rest.
        """
        counts = _parse_episodes(self.episodes)
        count = counts.get(task.name, counts.get(task.domain, counts.get("", 0)))
        if not count:
            raise UserError(f"--episodes {self.episodes!r} says nothing about {task.name}; add a number for the rest")
        return count if split == "train" else math.ceil(count * self.test_share)


def _parse_episodes(text: str) -> dict[str, int]:
    """``300,babyai=10000`` as counts by name; the number for the rest has the name ``""``."""
    counts = {}
    for part in text.split(","):
        name, _, count = part.strip().rpartition("=")
        if not count.isdecimal() or int(count) < 1:
            raise UserError(f"--episodes {text!r}: {part!r} is not a number of at least 1, nor name=number")
        counts[name] = int(count)
    return counts


def demo() -> CollectConfig:
    """The demo's six tasks, as much as minutes allow: a grid-world episode is short, an arm's has 100 steps."""
    return CollectConfig(task=DEMO_TASKS, episodes="500,babyai=12000", shard_episodes=500, expert="scripted,bot")


RECIPES = {"demo": demo}


@dataclass(frozen=True)
class CollectJob:
    """One shard to write below ``root``."""

    shard: ShardJob
    mix: Mix
    root: Path
    num_envs: int

    def __str__(self) -> str:
        return f"collecting {self.shard.task.name} {self.shard.stem}"


def collect_shard(job: CollectJob) -> ShardManifest:
    """Play the seeds of one shard and write it. A plain function: it needs neither Ray nor other shards."""
    task, mix = job.shard.task, job.mix

    def actor(seed: int) -> tuple[str, str]:
        record = mix.actor(seed)
        return record.kind, record.revision

    episodes = rollout(task, mix.make_policy(task), job.shard.seeds, job.num_envs)
    return write_shard(job.root, job.shard, mix.revision, episodes, actor)


def collect(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Write the shards that are missing for the episodes asked for."""
    known = {name for task in tasks for name in (task.name, task.domain)} | {""}
    for name in _parse_episodes(config.episodes):
        if name not in known:
            raise UserError(f"--episodes {config.episodes!r}: {name!r} is neither a chosen task nor its domain")
    out = config.out.absolute()  # workers may stand elsewhere
    root = out / "shards"
    mixes = _choose(config, out, tasks)
    jobs = [
        CollectJob(shard, mixes[task.name], root, config.envs)
        for task in tasks
        for shard in _plan(config, task, mixes[task.name], root)
    ]
    write_json(root / "config.json", config)
    num_episodes = sum(job.shard.num_seeds for job in jobs)
    log.info("%d tasks; %d shards with %d episodes to collect", len(tasks), len(jobs), num_episodes)
    progress = Progress("episodes", num_episodes)
    num_rejected = 0
    for job, manifest in run_jobs(collect_shard, jobs, config.workers):
        num_rejected += manifest.num_rejected
        progress.advance(manifest.num_seeds, f"{num_rejected} rejected, last {job.shard.task.name} {job.shard.split}")


def _choose(config: CollectConfig, out: Path, tasks: Sequence[Task]) -> dict[str, Mix]:
    """Who acts in each task.

    Raises:
        UserError: names every task that has no such expert, up to a few.
    """
    mixes, errors = {}, []
    for task in tasks:
        try:
            mixes[task.name] = choose(out, task, config.expert, config.allow_weak)
        except UserError as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        shown = "\n  ".join(errors[:MAX_ERRORS]) + ("\n  ..." if len(errors) > MAX_ERRORS else "")
        raise UserError(f"{len(errors)} of {len(tasks)} tasks have no expert to collect with:\n  {shown}")
    return mixes


def _plan(config: CollectConfig, task: Task, mix: Mix, root: Path) -> list[ShardJob]:
    """Missing jobs of a task.

    Raises:
        UserError: what is there was collected by another expert or with other package versions.
    """
    done = finished_shards(root, task.name)
    now = (mix.kind, mix.revision, versions_of(task.packages))
    for shard in done:
        before = (shard.expert, shard.expert_revision, shard.versions)
        if before != now:
            raise UserError(
                f"{root / task.name} holds episodes of {_describe(*before)}; this run would add {_describe(*now)}. "
                f"Use another --out, move that folder away, or name the expert that is there: "
                f"--expert '{shard.expert_revision}' (EXPERT=)"
            )
    return [
        job
        for split in SPLITS
        for job in missing_jobs(
            task,
            split,
            config.num_episodes(task, split),
            mix.kind,
            [shard for shard in done if shard.split == split],
            config.shard_episodes,
        )
    ]


def _describe(expert: str, revision: str, versions: dict[str, str]) -> str:
    return f"expert {expert!r} ({revision}) with {format_versions(versions)}"


def main() -> None:
    config = parse(CollectConfig, RECIPES)
    collect(config, select_tasks(config.task))


if __name__ == "__main__":
    run("collectors.collect")

"""Collect episodes: experts play the seeds of each split, workers write them as shards.

    python -m collectors.collect --task 'metaworld-*' --episodes 20 --out runs/default

Writes ``OUT/shards/<task>/...`` (see ``pipeline/shards.py``). A shard that is there stays: run the same command again
after a kill and it goes on with what is missing; ask for more episodes and it adds them.

What can go wrong costs no more than it must. A worker that dies or hangs is replaced and its shard begun again; a
shard that goes through several workers is taken apart, and the seeds that do it alone are put into quarantine
(``OUT/shards/<task>/quarantine.json``): rejected with their reason, like the episodes an environment or an expert
cannot finish. ``python -m collectors.status`` tells how far it is.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collectors.status import Monitor, summarise
from experts.choice import BEST, Mix, choose, parse_choice
from pipeline.cli import check_at_least_one, parse, run
from pipeline.cluster import Resources, Supervision, run_jobs
from pipeline.episode import Episode
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import exclusive, read_json, update_json
from pipeline.manifest import ShardManifest
from pipeline.plan import ShardJob, TaskPlan, extend_plan, interleaved, missing_jobs
from pipeline.rollout import rejected_episode, rollout
from pipeline.seeds import SPLITS
from pipeline.shards import finished_shards, index_shards, write_shard
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
    max_rejected: float = 0.25
    """Share of a task's episodes that may be rejected; above it the command ends with an error once all is done."""
    stall_s: float = 300.0
    """Seconds without a single environment step after which a worker is held to be hung and replaced."""
    worker_gb: float = 4.0
    """Memory a worker may hold between shards; one that holds more is replaced."""
    cpus_per_worker: float = 1.0
    """CPU cores the scheduler sets aside for a worker."""
    memory_gb_per_worker: float = 0.0
    """Memory the scheduler sets aside for a worker; 0 leaves memory out of its account."""
    resources: str = ""
    """What else a node must have for a worker, as declared with `ray start --resources`, such as `simulator=1`."""

    def __post_init__(self) -> None:
        _parse_episodes(self.episodes)
        parse_choice(self.expert)
        _parse_resources(self.resources)
        check_at_least_one(self, "shard_episodes", "workers", "envs")
        for name in ("stall_s", "worker_gb", "cpus_per_worker"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name):g}; it must be above 0")
        if not 0 <= self.max_rejected <= 1:
            raise UserError(f"--max-rejected is {self.max_rejected}; it must be between 0 and 1")
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


def _parse_resources(text: str) -> dict[str, float]:
    """``simulator=1,licence=0.5`` as amounts by name."""
    amounts = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, amount = part.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError as error:
            raise UserError(f"--resources {text!r}: {part!r} is not name=amount") from error
    return amounts


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
    """One shard to write below ``root``, without the seeds in ``quarantine``, which are rejected with its reasons."""

    shard: ShardJob
    mix: Mix
    root: Path
    num_envs: int
    quarantine: Mapping[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"collecting {self.shard.task.name} {self.shard.stem}"


def collect_shard(job: CollectJob) -> ShardManifest:
    """Play the seeds of one shard and write it. A plain function: it needs neither Ray nor other shards."""
    mix = job.mix

    def actor(seed: int) -> tuple[str, str]:
        record = mix.actor(seed)
        return record.kind, record.revision

    return write_shard(job.root, job.shard, mix.revision, _play(job), actor)


def _play(job: CollectJob) -> Iterator[Episode]:
    task = job.shard.task
    playable = [seed for seed in job.shard.seeds if seed not in job.quarantine]
    played = rollout(task, job.mix.make_policy(task), playable, job.num_envs)
    for seed in job.shard.seeds:
        reason = job.quarantine.get(seed)
        yield next(played) if reason is None else rejected_episode(task, seed, reason)


@dataclass(frozen=True)
class ProbeJob:
    """One seed of a shard that no worker survives, to be played alone and forgotten."""

    shard: CollectJob
    seed: int

    def __str__(self) -> str:
        return f"probing {self.shard.shard.task.name} seed {self.seed}"


def probe_seed(job: ProbeJob) -> None:
    """Play one seed in one environment; whether the worker outlives it is the result."""
    task = job.shard.shard.task
    for _ in rollout(task, job.shard.mix.make_policy(task), [job.seed], 1):
        pass


def collect(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Write the shards that are missing for the episodes asked for.

    Raises:
        UserError: bad input, or another collector is at work in the same place.
        JobsFailedError: some shards could not be made, or too many episodes of a task were rejected.
    """
    known = {name for task in tasks for name in (task.name, task.domain)} | {""}
    for name in _parse_episodes(config.episodes):
        if name not in known:
            raise UserError(f"--episodes {config.episodes!r}: {name!r} is neither a chosen task nor its domain")
    out = config.out.absolute()  # workers may stand elsewhere
    root = out / "shards"
    plans = {task.name: {split: config.num_episodes(task, split) for split in SPLITS} for task in tasks}
    mixes = _choose(config, out, tasks)
    with exclusive(root / ".lock", "wait for it, stop it, or use another --out; `make status` shows how far it is"):
        missing = [_missing(config, task, mixes[task.name], root) for task in tasks]
        extend_plan(
            root,
            {
                task.name: TaskPlan(
                    mixes[task.name].kind,
                    mixes[task.name].revision,
                    versions_of(task.packages),
                    config.shard_episodes,
                    plans[task.name],
                )
                for task in tasks
            },
        )
        update_json(root / "config.json", config)
        jobs = [
            CollectJob(shard, mixes[shard.task.name], root, config.envs, _quarantine(root, shard.task))
            for shard in interleaved(missing)
        ]
        num_episodes = sum(job.shard.num_seeds for job in jobs)
        log.info("%d tasks; %d shards with %d episodes to collect", len(tasks), len(jobs), num_episodes)
        try:
            _collect_all(config, root, jobs)
        finally:
            for task in tasks:
                index_shards(root, task.name)
        _check_rejected(config, root, tasks)


def _collect_all(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    """Run the jobs; those that no worker survives once more without the seeds that are to blame."""
    try:
        _run(config, root, jobs)
    except JobsFailedError as error:
        lost = [failure.job for failure in error.failures if failure.is_worker_lost]
        if not lost:
            raise
        log.warning("%d shards went through several workers; looking for the seeds that do it", len(lost))
        for job in lost:
            _quarantine_lethal_seeds(config, job)
        again = [CollectJob(job.shard, job.mix, root, job.num_envs, _quarantine(root, job.shard.task)) for job in lost]
        _run(config, root, again)
        if len(lost) < len(error.failures):
            raise


def _run(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    if not jobs:
        return
    needed = Resources(
        num_cpus=config.cpus_per_worker,
        memory=int(config.memory_gb_per_worker * 2**30),
        custom=_parse_resources(config.resources),
    )
    with Monitor(root, {(job.shard.task.name, job.shard.stem): job.shard.num_seeds for job in jobs}) as monitor:
        supervision = Supervision(
            config.stall_s,
            int(config.worker_gb * 2**30),
            lambda running: monitor.update(
                [(r.job.shard.task.name, r.job.shard.stem, r.pulse.episodes, r.resident_bytes) for r in running]
            ),
        )
        for _, manifest in run_jobs(collect_shard, jobs, config.workers, needed, supervision):
            monitor.add(manifest)


def _quarantine_path(root: Path, task: Task) -> Path:
    return root / task.name / "quarantine.json"


def _quarantine(root: Path, task: Task) -> dict[int, str]:
    """Reasons by seed."""
    path = _quarantine_path(root, task)
    return {int(seed): reason for seed, reason in read_json(path).items()} if path.exists() else {}


def _quarantine_lethal_seeds(config: CollectConfig, job: CollectJob) -> None:
    """Play every seed of a shard alone and put those into quarantine that no worker survives."""
    probes = [ProbeJob(job, seed) for seed in job.shard.seeds if seed not in job.quarantine]
    supervision = Supervision(config.stall_s, int(config.worker_gb * 2**30), lambda running: None)
    try:
        for _ in run_jobs(probe_seed, probes, config.workers, supervision=supervision):
            pass
    except JobsFailedError as error:
        found = {f.job.seed: f"quarantined: {f.reason}" for f in error.failures if f.is_worker_lost}
        for seed, reason in found.items():
            log.warning("%s, seed %d: %s", job.shard.task.name, seed, reason)
        known = _quarantine(job.root, job.shard.task) | found
        update_json(_quarantine_path(job.root, job.shard.task), {str(seed): known[seed] for seed in sorted(known)})


def _check_rejected(config: CollectConfig, root: Path, tasks: Sequence[Task]) -> None:
    """Raise if a task lost more of its episodes than allowed. They stay where they are, with their reasons."""
    worst = []
    for task in tasks:
        row = summarise(finished_shards(root, task.name))
        if row.num_seeds and row.num_rejected > config.max_rejected * row.num_seeds:
            reason, count = max(row.rejected.items(), key=lambda item: item[1])
            worst.append(
                f"{task.name}: {row.num_rejected} of {row.num_seeds} episodes rejected, {count} of them for {reason!r}"
            )
    if worst:
        shown = "\n  ".join(worst[:MAX_ERRORS]) + ("\n  ..." if len(worst) > MAX_ERRORS else "")
        raise JobsFailedError(
            f"{len(worst)} tasks have more than {config.max_rejected:.0%} of their episodes rejected "
            f"(--max-rejected); what was collected stays:\n  {shown}"
        )


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


def _missing(config: CollectConfig, task: Task, mix: Mix, root: Path) -> list[ShardJob]:
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

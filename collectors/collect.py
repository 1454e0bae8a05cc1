"""Collect episodes: experts play the seeds of each split, and workers write the episodes as shards.

    jat collect --task 'metaworld-*' --episodes 20 --out runs/default

Writes ``OUT/shards/<task>/...`` (see ``pipeline/storage/shards.py``). Existing shards are kept. Run the same command
again after a kill to resume with the missing shards; ask for more episodes to add them.

Failure handling: a worker that dies or hangs is replaced and its shard is retried. If a shard crashes several workers,
its seeds are played one by one, and seeds that crash a worker on their own are quarantined
(``OUT/shards/<task>/quarantine.json``): they are rejected with their reason, like episodes that an environment or an
expert cannot finish. ``jat status`` shows the progress.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from collectors.config import RECIPES, CollectConfig, check_amounts, parse_resources
from collectors.jobs import CollectJob, ProbeJob, add_to_quarantine, probe_seed, read_quarantine, timed_shard
from collectors.pace import JobProgress, UnitCost
from collectors.planning import MAX_ERRORS, choose_all, plan_jobs, plan_tasks
from collectors.progress import Monitor
from collectors.rates import load_rates
from collectors.status import summarise
from experts.acting.noise import check_noise
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError
from pipeline.files import exclusive, remove_leftovers, update_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.cluster import Resources
from pipeline.runtime.pool import Running, Supervision, run_jobs
from pipeline.runtime.stage import reported
from pipeline.storage.plan import extend_plan
from pipeline.storage.shards import finished_shards, index_shards
from pipeline.text import format_count

log = logging.getLogger(__name__)


def collect(config: CollectConfig, tasks: Sequence[Task]) -> None:
    """Write the shards that are missing for the requested number of episodes.

    Raises:
        UserError: invalid input, or another collector is running on the same tasks and folder.
        JobsFailedError: some shards could not be written, or too many episodes of a task were rejected.
    """
    check_amounts(config, tasks)
    check_noise(config.noise, tasks)
    out = config.out.absolute()  # workers may have another current directory
    root = RunLayout(out).shards
    mixes, labellers = choose_all(config, out, tasks)
    plan = plan_tasks(config, tasks, mixes, lambda task: mixes[task.name].mean_steps(task), labellers)
    with _locked(root, tasks):
        jobs = plan_jobs(config, tasks, mixes, plan, root, labellers)
        extend_plan(root, plan)
        update_json(RunLayout(out).shards_config, config)
        num_episodes = sum(job.shard.num_seeds for job in jobs)
        counts = (
            format_count(len(tasks), "task"),
            format_count(len(jobs), "shard"),
            format_count(num_episodes, "episode"),
        )
        log.info("%s; %s with %s to collect", *counts)
        try:
            _collect_all(config, root, jobs)
        finally:
            for task in tasks:
                remove_leftovers(root / task.name)
                index_shards(root, task.name)
        _check_rejected(config, root, tasks)


@contextlib.contextmanager
def _locked(root: Path, tasks: Sequence[Task]) -> Iterator[None]:
    """Lock these tasks for this collector; other collectors may work on other tasks in the same folder.

    Raises:
        UserError: another process is collecting one of the tasks.
    """
    with contextlib.ExitStack() as stack:
        for task in tasks:
            fix = "wait for it, stop it, or use another --out; `jat status` shows how far it is"
            stack.enter_context(exclusive(root / task.name / ".lock", fix))
        yield


def _collect_all(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    """Run the jobs. Shards that crash several workers are run once more without the seeds that cause it."""
    try:
        _run(config, root, jobs)
    except JobsFailedError as error:
        lost = [failure.job for failure in error.failures if failure.is_worker_lost]
        if not lost:
            raise
        log.warning(
            "%s went through several workers; looking for the seeds that do it", format_count(len(lost), "shard")
        )
        for job in lost:
            _quarantine_lethal_seeds(config, job)
        again = [dataclasses.replace(job, quarantine=read_quarantine(root, job.shard.task)) for job in lost]
        _run(config, root, again)
        if len(lost) < len(error.failures):
            raise


def _run(config: CollectConfig, root: Path, jobs: Sequence[CollectJob]) -> None:
    if not jobs:
        return
    needed = Resources(
        num_cpus=config.cpus_per_worker,
        memory=int(config.memory_gb_per_worker * 2**30),
        custom=parse_resources(config.resources),
    )
    planned = {(job.shard.task.name, job.shard.stem): job.shard.num_seeds for job in jobs}
    with Monitor("episodes", planned, _expected_costs(config.out, jobs)) as monitor:
        supervision = Supervision(
            config.stall_s,
            int(config.worker_gb * 2**30),
            lambda running: monitor.update([_progress_of(job) for job in running]),
        )
        for _, (manifest, seconds) in run_jobs(timed_shard, jobs, config.workers, needed, supervision):
            monitor.add(
                manifest.task, manifest.stem, manifest.num_seeds, manifest.num_rejected, seconds, manifest.num_steps
            )


def _progress_of(running: Running[CollectJob]) -> JobProgress:
    shard, pulse = running.job.shard, running.pulse
    return JobProgress(shard.task.name, shard.stem, pulse.episodes, running.resident_bytes, pulse.steps)


def _expected_costs(out: Path, jobs: Sequence[CollectJob]) -> dict[str, UnitCost]:
    """Expected cost of one episode of each task, from the known rates and the expert's own mean episode length."""
    rates = load_rates(out)
    costs = {}
    for task, mix in {job.shard.task: job.mix for job in jobs}.items():
        rate = rates.find(task)
        length = mix.mean_steps(task) or (rate.steps_per_episode if rate else None)
        costs[task.name] = UnitCost(length, length / rate.steps_per_second if rate and length else None)
    return costs


def _quarantine_lethal_seeds(config: CollectConfig, job: CollectJob) -> None:
    """Play every seed of a shard alone and quarantine those that crash every worker."""
    probes = [ProbeJob(job, seed) for seed in job.shard.seeds if seed not in job.quarantine]
    supervision = Supervision(config.stall_s, int(config.worker_gb * 2**30), lambda running: None)
    try:
        for _ in run_jobs(probe_seed, probes, config.workers, supervision=supervision):
            pass
    except JobsFailedError as error:
        found = {f.job.seed: f"quarantined: {f.reason}" for f in error.failures if f.is_worker_lost}
        for seed, reason in found.items():
            log.warning("%s, seed %d: %s", job.shard.task.name, seed, reason)
        add_to_quarantine(job.root, job.shard.task, found)


def _check_rejected(config: CollectConfig, root: Path, tasks: Sequence[Task]) -> None:
    """Raise if more episodes of a task were rejected than allowed. The shards are kept, with the reasons."""
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
            f"more than {config.max_rejected:.0%} of the episodes of {format_count(len(worst), 'task')} are rejected "
            f"(--max-rejected); what was collected stays:\n  {shown}"
        )


def main() -> None:
    config = parse(CollectConfig, RECIPES)
    with reported("collect", config.out, config.task):
        tasks = select_tasks(config.task)
        collect(config, tuple(task.as_reference() for task in tasks) if config.reference_envs else tasks)


if __name__ == "__main__":
    run("collectors.collect")

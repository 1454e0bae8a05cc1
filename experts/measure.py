"""Measure experts: play fixed seeds with the expert of each task and with the random policy.

    python -m experts.measure --task 'metaworld-*' --out runs/default

Writes ``OUT/experts/<task>/<kind>.json`` with every episode's return, length and success. All scores of a run are
normalised with these measurements. A measurement that is there, at the same revision and of enough episodes, stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.registry import DEFAULT, KINDS, resolve
from pipeline.cli import check_at_least_one, parse, run
from pipeline.cluster import run_jobs
from pipeline.files import write_json
from pipeline.measurement import Measurement, load_measurement, measurement_path, summarise
from pipeline.progress import Progress
from pipeline.rollout import rollout
from pipeline.scores import mean_interval
from pipeline.seeds import seeds_of
from pipeline.tasks import DEMO_TASKS, Task, select_tasks
from pipeline.versions import versions_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExpertsConfig:
    """Measure the expert and the random policy of each task."""

    task: str
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: int = 100
    """Episodes per policy, on seeds that no dataset holds."""
    workers: int = 2
    """Worker processes."""
    expert: str = DEFAULT
    """Kind of expert; `default` takes the domain's own."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "episodes", "workers")


def demo() -> ExpertsConfig:
    """The demo's six tasks."""
    return ExpertsConfig(task=DEMO_TASKS)


RECIPES = {"demo": demo}


@dataclass(frozen=True)
class MeasureJob:
    """Play the first ``num_episodes`` measuring seeds of a task."""

    task: Task
    expert: str
    num_episodes: int
    out: Path


def measure(job: MeasureJob) -> Measurement:
    """Play, write the measurement and return it."""
    kind = KINDS[job.expert]
    episodes = rollout(job.task, kind.make(job.task), seeds_of("measure", job.num_episodes))
    measurement = summarise(job.task, episodes, job.expert, kind.revision, versions_of(job.task.packages))
    if not len(measurement.accepted_returns):
        raise RuntimeError(f"{job.expert} had every episode of {job.task.name} rejected: {measurement.rejected[0]}")
    write_json(measurement_path(job.out, job.task.name, job.expert), measurement)
    return measurement


def measure_experts(config: ExpertsConfig, tasks: Sequence[Task]) -> None:
    """Measure what is not measured yet."""
    wanted = [(task, expert) for task in tasks for expert in dict.fromkeys((resolve(task, config.expert), "random"))]
    jobs = [
        MeasureJob(task, expert, config.episodes, config.out)
        for task, expert in wanted
        if not _is_measured(config.out, task, expert, config.episodes)
    ]
    write_json(config.out / "experts" / "config.json", config)
    log.info("%d measurements wanted, %d already there", len(wanted), len(wanted) - len(jobs))
    progress = Progress("measurements", len(jobs))
    for job, measurement in run_jobs(measure, jobs, config.workers):
        mean = mean_interval([measurement.accepted_returns])
        progress.advance(1, f"{job.task.name} {job.expert}: return {mean.mean:.2f} [{mean.low:.2f}, {mean.high:.2f}]")


def _is_measured(out: Path, task: Task, expert: str, num_episodes: int) -> bool:
    found = load_measurement(out, task.name, expert)
    return (
        found is not None
        and found.revision == KINDS[expert].revision
        and found.versions == versions_of(task.packages)
        and len(found.seeds) >= num_episodes
    )


def main() -> None:
    config = parse(ExpertsConfig, RECIPES)
    measure_experts(config, select_tasks(config.task))


if __name__ == "__main__":
    run("experts.measure")

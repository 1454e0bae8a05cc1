"""Record videos of the experts on the agent's video seeds, so that the report can show both side by side.

    jat film --out runs/default

Finds the episodes recorded by ``trainer.evaluation.evaluate``, and writes
``OUT/experts/<task>/<revision>/films/<seed>.mp4`` with metadata in ``<seed>.json``. The report reads these files, so
the trainer does not import experts. Existing videos are skipped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.ranking import best_of, rank_experts
from experts.registry import experts_of, make_policy
from experts.store import StoredExpert, ensure_in_store
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.media.film import Film, films_in
from pipeline.run_layout import RunLayout
from pipeline.runtime.pool import run_jobs
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import reported
from pipeline.storage.manifest import collected_by
from pipeline.text import format_count
from pipeline.versions import versions_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FilmConfig:
    """Record videos of experts on the evaluation's seeds."""

    task: str = "*"
    """Task name, domain, glob, or comma list of these, among the tasks with videos of the agent."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    name: str = ""
    """Name of the evaluation, in OUT/evaluation/NAME. Default: the run's own evaluation."""
    workers: int = 2
    """Worker processes; each records one task at a time."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "workers")


@dataclass(frozen=True)
class FilmJob:
    """The seeds of a task without a video of the expert with the installed packages."""

    task: Task
    expert: StoredExpert
    out: Path
    seeds: tuple[int, ...]

    def __str__(self) -> str:
        return f"filming {self.expert.record.revision} in {self.task.name}"


def film_expert(job: FilmJob) -> int:
    """Play and record the episodes; return their number."""
    policy = make_policy(job.task, job.expert)
    revision = job.expert.record.revision
    film = Film(job.task, job.seeds, RunLayout(job.out).expert_films(job.task.name, revision))
    played = rollout(job.task, policy, job.seeds, listener=film.listen, keep_observations=False)
    return len(list(film.of(played, revision, versions_of(job.task.packages))))


def missing_films(config: FilmConfig, tasks: Sequence[Task] | None = None) -> list[FilmJob]:
    """Return jobs for the seeds with a video of the agent but none of the expert with the installed packages."""
    collected = collected_by(config.out)
    jobs = []
    names = [path.name for path in RunLayout(config.out).agent_films(name=config.name).glob("*")]
    for task in select_tasks(config.task, tasks, names):
        wanted = films_in(RunLayout(config.out).agent_films(task.name, config.name))
        expert = shown_expert(config.out, task, collected.get(task.name, "")) if wanted else None
        if expert is None:
            continue
        found = films_in(RunLayout(config.out).expert_films(task.name, expert.record.revision))
        versions = versions_of(task.packages)
        seeds = [seed for seed in wanted if seed not in found or found[seed].versions != versions]
        if seeds:
            # The folder of a rule may not exist yet, and that of an embedded expert is read-only.
            expert = ensure_in_store(config.out.absolute(), expert)
            jobs.append(FilmJob(task, expert, config.out.absolute(), tuple(seeds)))
    return jobs


def film(config: FilmConfig, tasks: Sequence[Task] | None = None) -> None:
    """Record the missing videos.

    Args:
        config: options of the stage.
        tasks: tasks to select from; all 157 if None.

    Raises:
        UserError: the run has no evaluation.
    """
    if not RunLayout(config.out).evaluation(config.name).is_dir():
        command = "jat evaluate" + (f" --name {config.name}" if config.name else "")
        raise UserError(
            f"there is no evaluation in {config.out}, so the agent is filmed nowhere that an expert could be filmed "
            f"beside it; run `{command}` with the same --out first"
        )
    jobs = missing_films(config, tasks)
    log.info("%s whose expert is to be filmed", format_count(len(jobs), "task"))
    progress = Progress("experts filmed", len(jobs))
    for job, _ in run_jobs(film_expert, jobs, config.workers):
        progress.advance(1, job.task.name)


def shown_expert(out: Path, task: Task, revision: str) -> StoredExpert | None:
    """Return the expert of a revision if it can act; otherwise, such as for a mix, the best measured expert of the run.

    This is the expert that the evaluation uses for normalised scores.
    """
    named = next((expert for expert in experts_of(out, task) if expert.record.revision == revision), None)
    best = None if named else best_of(rank_experts(out, task))
    return named or (best.expert if best else None)


def main() -> None:
    config = parse(FilmConfig)
    with reported("film", config.out, config.task, needs_disk=True):
        film(config)


if __name__ == "__main__":
    run("experts.film")

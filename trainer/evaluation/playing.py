"""The work of one evaluation process: the agent plays the seeds of some tasks; and how that work is split into jobs.

Tasks of one layout are played together as vectorised environments, each over its own seeds, because a network decides
for 50 environments in less than half the time that it takes for 10 five times. ``EvaluateJob`` is one such group.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.envs.episode import Episode, rejected_episode
from pipeline.envs.rollout import RolloutPart, rollout, rollout_parts
from pipeline.envs.task import Task
from pipeline.errors import JobFailure, JobsFailedError
from pipeline.media.film import Film, films_in, missing_failure
from pipeline.runtime.pool import Supervision, run_jobs
from pipeline.scoring.measurement import Measurement
from pipeline.text import format_count
from trainer.config import lookup_by_task_or_domain
from trainer.evaluation.journal import TaskResults

if TYPE_CHECKING:
    from trainer.checkpoint import AgentConfig, Checkpoint

# Number of vectorised environments: enough to fill a batch, few enough for their simulators (20 MB each in Meta-World)
# to fit in memory.
MAX_ENVS = 32  # per task
MAX_SLOTS = 64  # of all tasks of a job
MAX_LOST = 3  # seeds of a task that crash every worker, before the task is given up
STALL_S = 600.0  # without a step before a worker is considered hung; the released JAT may need a minute
JOBS_PER_WORKER = 2  # at least, if there are enough tasks, so that the workers finish at about the same time


@dataclass(frozen=True)
class EvaluateJob:
    """Tasks of one layout that a worker plays together as vectorised environments.

    Attributes:
        revision: revision of the agent; it identifies the weights and settings of the results.
        filmed: seeds of every task to record as videos.
        films: folder of the videos, with a subfolder per task.
        directory: folder of the results.
        returns: what to ask for, by task or domain.
        alone_from: for a task that crashed its workers: play one seed at a time, starting with this one.
        quarantine: seeds of such a task that crash every worker, with the cause; they count as rejected.
    """

    tasks: tuple[Task, ...]
    checkpoint: Path
    revision: str
    num_episodes: int
    temperature: float
    context_steps: int | None
    filmed: Sequence[int]
    films: Path
    directory: Path
    num_threads: int
    alone_from: int | None = None
    quarantine: dict[int, str] = field(default_factory=dict)
    returns: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"playing {', '.join(task.name for task in self.tasks)}"


def play_tasks(job: EvaluateJob) -> list[Measurement]:
    """Play the missing seeds; write each task's results as soon as all of its seeds are played."""
    import torch

    torch.set_num_threads(job.num_threads)
    with ExitStack() as stack:
        played = {
            task.name: stack.enter_context(closing(TaskResults(job.directory, task, job.revision)))
            for task in job.tasks
        }
        for task, episode in _episodes(job, played):
            played[task.name].add(episode)
            if not played[task.name].missing(job.num_episodes):
                _finish(job, played[task.name])  # each task when it is finished, not after the last one
        return [_finish(job, results) for results in played.values()]


def _finish(job: EvaluateJob, results: TaskResults) -> Measurement:
    """Write a task's results after the video of its worst episode, so a kill in between loses neither."""
    from trainer.agent import Agent

    task, directory = results.task, job.films / results.task.name
    films = [film.seed for film in films_in(directory).values() if film.revision == job.revision] if job.filmed else []
    worst = missing_failure(results.played.values(), films) if films else None
    if worst is not None:
        # The worst episode is known only now; the same seed reproduces it.
        agent = Agent(
            _open_checkpoint(job.checkpoint, job.revision), [task], job.temperature, job.context_steps, job.returns
        )
        film = Film(task, [worst], directory)
        episodes = rollout(task, agent, [worst], 1, film.listen, keep_observations=False)
        list(film.of(episodes, job.revision, results.versions))
    return results.finish()


def _episodes(job: EvaluateJob, played: Mapping[str, TaskResults]) -> Iterator[tuple[Task, Episode]]:
    """Yield the missing episodes as they end."""
    from trainer.agent import Agent

    films = {
        task.name: Film(
            task, [seed for seed in job.filmed if seed not in played[task.name].played], job.films / task.name
        )
        for task in job.tasks
    }
    parts = []
    for task in job.tasks:
        seeds = [seed for seed in played[task.name].missing(job.num_episodes) if seed not in job.quarantine]
        if seeds:
            num_envs = lockstep_of(len(seeds)) if job.alone_from is None else 1
            parts.append(RolloutPart(task, seeds, num_envs, films[task.name].listen if job.filmed else None))
    if parts:
        slots = [part.task for part in parts for _ in range(part.num_slots)]
        checkpoint = _open_checkpoint(job.checkpoint, job.revision)
        agent = Agent(checkpoint, slots, job.temperature, job.context_steps, job.returns)
        for task, episode in rollout_parts(parts, agent, keep_observations=False):
            films[task.name].write(episode, job.revision, played[task.name].versions)
            yield task, episode
    for seed, reason in job.quarantine.items():
        (task,) = job.tasks
        yield task, rejected_episode(task, seed, reason)


@functools.lru_cache(maxsize=1)
def _open_checkpoint(folder: Path, revision: str) -> Checkpoint:
    """Cached, because a worker plays task after task with the same weights, which ``revision`` identifies."""
    from trainer.pretrained.load import from_pretrained

    return from_pretrained(folder)


def lockstep_of(num_episodes: int) -> int:
    """Return how many episodes of a task to play at once, such that the last round has about as many as the others."""
    rounds = -(-num_episodes // MAX_ENVS)
    return -(-num_episodes // rounds)


def key_of(agent: AgentConfig, task: Task) -> Hashable:
    """Return a key that tasks share if an agent can play them together, in one batch."""
    context_steps = lookup_by_task_or_domain(agent.contexts, task.name, task.domain, agent.context_steps)
    return task.observation_shape, task.has_text, agent.layouts[agent.tasks.index(task.name)], context_steps


def in_groups(sizes: Sequence[tuple[Hashable, int]], workers: int) -> list[list[int]]:
    """Group the tasks that are played together; return their indices.

    Args:
        sizes: for each task, a key that tasks played together must share, and the number of episodes to play.
        workers: number of processes that share the work.
    """
    slots = [lockstep_of(count) if count else 0 for _, count in sizes]
    most = min(MAX_SLOTS, -(-sum(slots) // (JOBS_PER_WORKER * workers)))
    groups: dict[Hashable, list[list[int]]] = {}
    for index, (kind, _) in enumerate(sizes):
        of_kind = groups.setdefault(kind, [[]])
        if of_kind[-1] and sum(slots[i] for i in of_kind[-1]) + slots[index] > most:
            of_kind.append([])
        of_kind[-1].append(index)
    return [group for of_kind in groups.values() for group in of_kind]


def play_jobs(jobs: Sequence[EvaluateJob], workers: int) -> Iterator[tuple[EvaluateJob, list[Measurement]]]:
    """Play in workers. A job that crashes its workers is split into smaller jobs, so that nothing else is affected.

    Raises:
        JobsFailedError: some tasks failed; the others are played.
    """
    given_up: list[JobFailure] = []
    supervision = Supervision(STALL_S, sys.maxsize, report=lambda running: None)
    waiting = list(jobs)
    while waiting:
        failures: Sequence[JobFailure] = ()
        try:
            yield from run_jobs(play_tasks, waiting, workers, supervision=supervision)
        except JobsFailedError as error:
            if not error.failures:  # an error of Ray itself
                raise
            failures = error.failures
        parts = [(failure, _smaller(failure)) for failure in failures]
        waiting = [job for _, smaller in parts for job in smaller]
        given_up += [failure for failure, smaller in parts if not smaller]
    if given_up:
        raise JobsFailedError(
            f"{format_count(len(given_up), 'task')} failed; the others are played. First: {given_up[0]}", given_up
        )


def _smaller(failure: JobFailure) -> list[EvaluateJob]:
    """Return the jobs to retry after a job failed: single tasks, then single seeds, then without the seed that crashes
    every worker.

    Empty after an exception, which explains the failure, after ``MAX_LOST`` such seeds, or if it cannot be split
    further.
    """
    job: EvaluateJob = failure.job
    if len(job.tasks) > 1:
        return [replace(job, tasks=(task,)) for task in job.tasks]
    if not failure.is_worker_lost:
        return []
    results = TaskResults(job.directory, job.tasks[0], job.revision)
    missing = [seed for seed in results.missing(job.num_episodes) if seed not in job.quarantine]
    quarantine = job.quarantine
    if missing and missing[0] == job.alone_from:  # in all attempts
        if len(quarantine) == MAX_LOST:
            return []
        quarantine = {**quarantine, missing.pop(0): f"quarantined: {failure.reason}"}
    smaller = replace(job, quarantine=quarantine, alone_from=missing[0] if missing else None)
    return [smaller] if smaller != job else []

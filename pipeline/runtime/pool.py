"""A pool of Ray actors that runs jobs and survives the loss of some of them.

Actors keep no state between jobs. A dead actor is replaced, and its job is retried on another one. Results are small
records; a job writes large outputs to files itself.
"""

from __future__ import annotations

import atexit
import gc
import itertools
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from pipeline.cli import configure_logging
from pipeline.domain_files import add_to_search_path
from pipeline.errors import JobFailure, JobsFailedError, UserError
from pipeline.files import NO_SPACE
from pipeline.runtime import heartbeat
from pipeline.runtime.cluster import Resources, connect, cut_to_largest_node
from pipeline.runtime.heartbeat import WorkerProgress

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

ONE_CPU = Resources()
# A job that loses this many workers is assumed to crash them and fails.
MAX_ATTEMPTS = 3
# Interval at which supervised workers are polled for their progress.
POLL_S = 2.0
# A worker process that has started answers within this time, however busy it is.
ANSWER_S = 10.0


@dataclass(frozen=True)
class Supervision:
    """Limits for workers whose jobs report heartbeats (``pipeline/runtime/heartbeat.py``).

    Attributes:
        stall_s: a worker without a heartbeat for this many seconds is considered hung: it is killed and its job is
            retried. A heartbeat is one step of the environments, so this limit is independent of a job's duration.
        max_bytes: a worker that uses more memory than this after a job is replaced by a new one.
        report: called every ``POLL_S`` seconds with the running jobs and their progress.
    """

    stall_s: float
    max_bytes: int
    report: Callable[[Sequence[Running[Any]]], None]


@dataclass(frozen=True)
class Control:
    """Stopping and retrying of jobs that take hours.

    Attributes:
        stop: once set, no more jobs start, and running jobs are asked to end (``heartbeat.STOP``).
        stop_s: seconds that running jobs have to end before their workers are killed.
        try_again: called with every failure; returns whether to retry the job, ahead of all waiting jobs. Without a
            ``Control`` only jobs that lost their worker are retried, after all waiting jobs, with at most
            ``MAX_ATTEMPTS`` attempts in total.
    """

    stop: threading.Event
    stop_s: float
    try_again: Callable[[JobFailure], bool]


@dataclass
class Running(Generic[JobT]):
    """A job that runs in a worker.

    Attributes:
        job: as given to ``run_jobs``.
        attempt: number of this attempt, from 1.
        actor: the worker.
        number: distinguishes it from all other jobs of its worker.
        pulse: the worker's last reported progress.
        resident_bytes: resident memory of the worker's process at the last report.
        last_change: when a report last differed from the previous one, in seconds of ``time.monotonic``.
        question: object reference of the pending report, or None.
        killed_for: why the worker was killed, or None.
    """

    job: JobT
    attempt: int
    actor: Any
    number: int = 0
    pulse: WorkerProgress = field(default_factory=WorkerProgress)
    resident_bytes: int = 0
    last_change: float = math.inf
    question: Any = None
    killed_for: str | None = None


def freeze_heap() -> None:
    """Exclude all current objects of this process, such as modules, from garbage collection.

    After a first job there are at least 200,000 long-lived objects, which the garbage collector would scan repeatedly.
    That took 5 % of the time when collecting short episodes, whose levels consist of thousands of small objects.
    """
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # else objects leak at exit, and nanobind's modules print warnings


def run_jobs(
    function: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    workers: int,
    resources: Resources | Callable[[JobT], Resources] = ONE_CPU,
    supervision: Supervision | None = None,
    control: Control | None = None,
) -> Iterator[tuple[JobT, ResultT]]:
    """Run ``function`` on every job and yield ``(job, result)`` as they finish, in no particular order.

    At most one job per actor is in flight, so memory does not grow with the number of jobs. Log lines of our packages
    in an actor appear on the terminal of this process.

    Args:
        function: a module-level function; it builds what it needs (environments, networks) inside the actor.
        jobs: small and picklable.
        workers: maximum number of actors at a time; the cluster's free resources may allow fewer.
        resources: resources of one job, limited to those of the largest node, so that every job can be scheduled.
            With one value for all jobs, actors are reused; with a function of the job, each job gets its own process.
        supervision: limits for hung workers and for their memory; without it neither is checked.
        control: how to stop and what to retry; without it a run ends with its last job.

    Raises:
        JobsFailedError: after all jobs were tried, if some raised or lost their worker ``MAX_ATTEMPTS`` times. Once
            there is no space left to write, no more jobs start.
    """
    if not jobs:
        return
    pool: _Pool[JobT] = _Pool(function, jobs, workers, resources, supervision, control)
    try:
        yield from pool.run()
    finally:
        pool.close()
    if pool.failures:
        raise JobsFailedError(
            f"{len(pool.failures)} of {len(jobs)} jobs failed; the others are done. First: {pool.failures[0]}",
            pool.failures,
        )


class _Pool(Generic[JobT]):
    """The actors of one ``run_jobs`` call, with their waiting and running jobs."""

    def __init__(
        self,
        function: Callable[[JobT], Any],
        jobs: Sequence[JobT],
        workers: int,
        resources: Resources | Callable[[JobT], Resources],
        supervision: Supervision | None,
        control: Control | None,
    ) -> None:
        connect(workers)
        import ray

        self.failures: list[JobFailure] = []
        self._supervision, self._control = supervision, control
        self._killed_at: float | None = None  # deadline after which running jobs are killed
        self._resources = resources
        self._waiting = deque((job, 1) for job in jobs)
        self._running: dict[Any, Running[JobT]] = {}
        self._num_workers = min(workers, len(jobs))
        self._last_poll = time.monotonic()
        self._numbers = itertools.count(1)
        log_level = log.getEffectiveLevel()

        # The class and the objects it refers to are pickled by value, but modules are pickled by reference:
        # `heartbeat.WORKER_PROGRESS` is the worker's own.
        class Worker:
            def __init__(self) -> None:
                configure_logging(log_level)
                add_to_search_path()
                self._has_worked, self._number = False, 0

            def run(self, job: JobT, number: int) -> tuple[Any, int]:
                heartbeat.WORKER_PROGRESS.beats = heartbeat.WORKER_PROGRESS.episodes = (
                    heartbeat.WORKER_PROGRESS.steps
                ) = 0
                self._number = number
                result = function(job)
                if not self._has_worked:
                    freeze_heap()
                    self._has_worked = True
                return result, heartbeat.resident_bytes()

            def pulse(self) -> tuple[WorkerProgress, int, int]:
                return heartbeat.WORKER_PROGRESS, heartbeat.resident_bytes(), self._number

            def stop(self) -> None:
                heartbeat.STOP.set()

        # Two threads: one runs the job, one answers polls.
        self._worker_class: Any = ray.remote(max_restarts=0, max_concurrency=2)(Worker)

    def run(self) -> Iterator[tuple[JobT, Any]]:
        import ray

        for _ in range(self._num_workers):
            self._submit(None)
        while self._running:
            timeout = POLL_S if self._supervision or self._control else None
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            if self._supervision and (not ready or time.monotonic() - self._last_poll > POLL_S):
                self._poll(self._supervision)
            if self._control and self._control.stop.is_set():
                self._stop(self._control.stop_s)
            if ready and ready[0] in self._running:
                running = self._running.pop(ready[0])
                is_usable = True
                try:
                    result, size = ray.get(ready[0])
                except ray.exceptions.RayActorError as error:
                    is_usable = False
                    self._note_lost_worker(running, error)
                except ray.exceptions.RayTaskError as error:
                    self._note_error(running, error)
                else:
                    is_usable = self._supervision is None or size <= self._supervision.max_bytes
                    if not is_usable:
                        log.info("a worker holds %d MB and is replaced after %s", size // 2**20, running.job)
                    yield running.job, result
                self._go_on(running.actor, is_usable)

    def _stop(self, seconds: float) -> None:
        """Ask running jobs to end; kill jobs that still wait for resources, and after the deadline all others."""
        import ray

        now = time.monotonic()
        if self._killed_at is None:
            self._killed_at = now + seconds
            self._waiting.clear()
            questions = {running.actor.stop.remote(): ref for ref, running in self._running.items()}
            answered, late = ray.wait(list(questions), num_returns=len(questions), timeout=ANSWER_S)
            log.info("%d jobs are asked to end", len(answered))
        elif now < self._killed_at:
            return
        else:
            log.warning("%d jobs have not ended within %g s and are killed", len(self._running), seconds)
            questions = {ref: ref for ref in self._running}
            late = list(questions)
        for question in late:
            ray.kill(self._running.pop(questions[question]).actor)

    def close(self) -> None:
        import ray

        for running in self._running.values():
            ray.kill(running.actor)

    def _submit(self, actor: Any) -> None:
        job, attempt = self._waiting.popleft()
        is_new = actor is None
        if actor is None:
            wanted = self._resources if isinstance(self._resources, Resources) else self._resources(job)
            needed = cut_to_largest_node(wanted)
            actor = self._worker_class.options(
                num_cpus=needed.num_cpus,
                num_gpus=needed.num_gpus,
                memory=needed.memory or None,
                resources=dict(needed.custom) or None,
            ).remote()
        running = Running(job, attempt, actor, next(self._numbers))
        if self._supervision:
            # A new worker cannot answer before the cluster has scheduled it; until then it does not time out.
            running.last_change = math.inf if is_new else time.monotonic()
            running.question = actor.pulse.remote()
        self._running[actor.run.remote(job, running.number)] = running

    def _go_on(self, actor: Any, is_usable: bool) -> None:
        """Give the actor its next job, or kill it: an idle actor would occupy a CPU that another may need."""
        import ray

        if self._waiting and is_usable and isinstance(self._resources, Resources):
            self._submit(actor)
            return
        ray.kill(actor)
        if self._waiting:
            self._submit(None)

    def _note_lost_worker(self, running: Running[JobT], error: Exception) -> None:
        reason = running.killed_for or f"its worker died ({str(error).splitlines()[0]})"
        log.warning("attempt %d failed, %s: %s", running.attempt, reason, running.job)
        self._note_failure(running, JobFailure(running.job, reason, is_worker_lost=True))

    def _note_error(self, running: Running[JobT], error: Any) -> None:
        log.error("failed: %s\n%s", running.job, error)
        is_bad_input = isinstance(error.cause, UserError)
        self._note_failure(running, JobFailure(running.job, repr(error.cause), False, is_bad_input))
        if isinstance(error.cause, OSError) and error.cause.errno in NO_SPACE and self._waiting:
            log.error("no space left: the %d jobs that have not begun are left for the next run", len(self._waiting))
            self._waiting.clear()

    def _note_failure(self, running: Running[JobT], failure: JobFailure) -> None:
        if self._control and self._control.try_again(failure):
            if self._killed_at is None:  # after a stop the job is left to the next run
                self._waiting.appendleft((running.job, running.attempt + 1))
        elif not self._control and failure.is_worker_lost and running.attempt < MAX_ATTEMPTS:
            self._waiting.append((running.job, running.attempt + 1))
        else:
            self.failures.append(failure)

    def _poll(self, supervision: Supervision) -> None:
        """Read the reports that have arrived, request new ones, and kill workers without progress for too long."""
        import ray

        for running in self._running.values():
            running.question = running.question or running.actor.pulse.remote()
        questions = [running.question for running in self._running.values()]
        # Live workers answer within milliseconds; pending answers are read at the next poll.
        answered = set(ray.wait(questions, num_returns=len(questions), timeout=0.2)[0]) if questions else set()
        now = self._last_poll = time.monotonic()
        for running in self._running.values():
            if running.question in answered:
                try:
                    pulse, running.resident_bytes, number = ray.get(running.question)
                except ray.exceptions.RayError:
                    continue  # the worker is dead; `ray.get` of its job raises as well
                finally:
                    running.question = None
                if number != running.number:  # answered before the job began: these are counts of the one before
                    pulse = WorkerProgress()
                if pulse != running.pulse or running.last_change == math.inf:
                    running.pulse, running.last_change = pulse, now
            if now - running.last_change > supervision.stall_s and running.killed_for is None:
                running.killed_for = f"no step was made for {supervision.stall_s:g} s"
                ray.kill(running.actor)
        supervision.report(list(self._running.values()))

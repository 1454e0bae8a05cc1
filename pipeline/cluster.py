"""The one place that says ``import ray``: a pool of actors that runs jobs and survives the loss of some of them.

``RAY_ADDRESS`` names a cluster; without it an embedded Ray is started here and ends with this process. An actor holds
nothing between jobs, so a dead one is replaced and its job handed to another. Only small records come back: whatever
is large, a job writes to files itself.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pipeline.cli import configure_logging
from pipeline.errors import JobsFailedError, UserError

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# A job whose worker died this often is a job that kills workers.
MAX_ATTEMPTS = 3


def connect(workers: int) -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start an embedded one with ``workers`` CPUs, unless connected.

    Raises:
        UserError: nothing answers at ``RAY_ADDRESS``.
    """
    # Read when Ray is imported: lines that differ only in their numbers, as progress does, are not repetitions.
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    if ray.is_initialized():
        return
    # Token authentication is on by default and stays on; the line that says so is not news.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its default prints a warning in every worker
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.WARNING)


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({error}); start one there, or unset it") from error


@dataclass(frozen=True)
class Resources:
    """What a job occupies while it runs: CPU cores, and GPUs (or a share of one) where the cluster has any."""

    num_cpus: float = 1
    num_gpus: float = 0


def run_jobs(
    function: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    workers: int,
    resources: Callable[[JobT], Resources] | None = None,
) -> Iterator[tuple[JobT, ResultT]]:
    """Run ``function`` on every job and yield ``(job, result)`` as they finish, in no particular order.

    At most one job per actor is in flight, so memory does not grow with the number of jobs. What our packages log in
    an actor appears on the terminal of this process.

    Args:
        function: a module-level function; it builds what it needs (environments, networks) inside the actor.
        jobs: small and picklable.
        workers: actors at most at a time; as many run as the cluster has room for.
        resources: what each job occupies, cut to what the largest node has, so that no job waits for ever. With it
            every job gets a process of its own. Without it each takes one CPU and the processes go from job to job.

    Raises:
        JobsFailedError: after all jobs were tried, if some raised or killed their worker ``MAX_ATTEMPTS`` times.
    """
    if not jobs:
        return
    connect(workers)
    import ray

    class Worker:
        def __init__(self, log_level: int) -> None:
            configure_logging(log_level)

        def run(self, job: Any) -> Any:
            return function(job)

    worker_class: Any = ray.remote(max_restarts=0)(Worker)
    log_level = log.getEffectiveLevel()

    waiting = deque((job, 1) for job in jobs)
    in_flight: dict[Any, tuple[Any, JobT, int]] = {}
    failures: list[str] = []

    def submit(actor: Any = None) -> None:
        job, attempt = waiting.popleft()
        if actor is None:
            needed = _cut_to_largest_node(resources(job)) if resources else Resources()
            actor = worker_class.options(num_cpus=needed.num_cpus, num_gpus=needed.num_gpus).remote(log_level)
        in_flight[actor.run.remote(job)] = (actor, job, attempt)

    try:
        for _ in range(min(workers, len(jobs))):
            submit()
        while in_flight:
            (ready,), _ = ray.wait(list(in_flight), num_returns=1)
            actor, job, attempt = in_flight.pop(ready)
            is_alive = True
            try:
                result = ray.get(ready)
            except ray.exceptions.RayActorError as error:
                is_alive = False
                log.warning("a worker died on attempt %d of %d: %s", attempt, MAX_ATTEMPTS, job)
                if attempt < MAX_ATTEMPTS:
                    waiting.append((job, attempt + 1))
                else:
                    failures.append(f"{job}: {error}")
            except ray.exceptions.RayTaskError as error:
                log.error("failed: %s\n%s", job, error)
                failures.append(f"{job}: {error.cause!r}")
            else:
                yield job, result
            if waiting and is_alive and resources is None:
                submit(actor)
                continue
            # An idle actor would keep the CPU that one still waiting to start may need.
            ray.kill(actor)
            if waiting:
                submit()
    finally:
        for actor, _, _ in in_flight.values():
            ray.kill(actor)
    if failures:
        raise JobsFailedError(f"{len(failures)} of {len(jobs)} jobs failed; the others are done. First: {failures[0]}")


def _cut_to_largest_node(wanted: Resources) -> Resources:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Resources(
        num_cpus=min(wanted.num_cpus, max(node.get("CPU", 0) for node in nodes)),
        num_gpus=min(wanted.num_gpus, max(node.get("GPU", 0) for node in nodes)),
    )

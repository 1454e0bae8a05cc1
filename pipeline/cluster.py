"""The one place that says ``import ray``: a pool of actors that runs jobs and survives the loss of some of them.

``RAY_ADDRESS`` names a cluster; without it an embedded Ray is started here and ends with this process. An actor holds
nothing between jobs, so a dead one is replaced and its job handed to another. Only small records come back: whatever
is large, a job writes to files itself.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import math
import os
import shutil
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from pipeline import heartbeat
from pipeline.cli import configure_logging
from pipeline.errors import JobFailure, JobsFailedError, UserError, first_line
from pipeline.files import NO_SPACE
from pipeline.heartbeat import Pulse

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")

# A job whose worker died this often is a job that kills workers.
MAX_ATTEMPTS = 3
# How often supervised workers are asked for their pulse.
POLL_S = 2.0
# How long Ray may take to start or to connect.
START_S = 120.0
# How long the last numbers of a run may take to reach the cluster.
GAUGES_S = 10.0
REPEAT_S = 1.0  # less than the shortest time after which Ray forgets a number


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
    # Ray starts idle workers with the cluster and lets the driver wait for them. If one is killed before it has
    # reported, the driver waits for ever, in C++.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _check_answers(address)
    with _no_longer_than(START_S):
        if address:
            try:
                ray.init(address=address, logging_level=logging.WARNING)
            except (ray.exceptions.AuthenticationError, ConnectionError) as error:
                raise UserError(
                    f"the Ray cluster at RAY_ADDRESS={address} refuses this process; put the cluster's token into "
                    f"RAY_AUTH_TOKEN (or its file into RAY_AUTH_TOKEN_PATH), set RAY_AUTH_MODE=token, and let it run "
                    f"Ray {ray.__version__}, too"
                ) from error
            return
        try:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, logging_level=logging.WARNING)
        except Exception as error:  # Ray raises this very class when one of its processes does not come up
            raise JobsFailedError(f"Ray did not start ({error}); run the same command again") from error


@contextlib.contextmanager
def _no_longer_than(seconds: float) -> Iterator[None]:
    """End this process with exit code 1 and a traceback if the block takes longer.

    Now and then Ray waits for ever for a process of its own, in C++, where no Python can interrupt it (seen once, with
    several clusters on one machine). A process that has ended can be started again; one that hangs must be noticed.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def _check_answers(address: str) -> None:
    """Refuse an address where nothing listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return  # "auto": Ray looks for a cluster on this machine
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({error}); start one there, or unset it") from error


class Gauges:
    """Numbers on the metrics endpoint of the Ray node that the process with this object runs on.

    Ray passes on what it is told once. As an actor this repeats it, for as long as it lives.
    """

    def __init__(self, is_repeating: bool = False) -> None:
        self._gauges: dict[str, Any] = {}
        self._values: dict[tuple[str, ...], tuple[str, dict[str, str], float]] = {}
        if is_repeating:
            threading.Thread(target=self._repeat, daemon=True).start()

    def set(self, values: Sequence[tuple[str, str, dict[str, str], float]]) -> None:
        """Take values, each with its name, description and labels."""
        from ray.util.metrics import Gauge

        for name, description, labels, value in values:
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, description, tuple(labels))
            self._values[name, *labels.values()] = (name, labels, value)
            self._gauges[name].set(value, labels)

    def _repeat(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            for name, labels, value in list(self._values.values()):
                self._gauges[name].set(value, labels)


_own_gauges = Gauges()


def set_gauges(values: Sequence[tuple[str, str, dict[str, str], float]], is_waiting: bool) -> None:
    """Set gauges (see ``Gauges``) of the cluster this process is connected to, if it is; a failure is logged.

    On a cluster that lasts, an actor on its head keeps them as long as that lasts: Ray forgets what a process told
    seconds after its end, and alerts are about those that have ended, too.

    Args:
        values: what to set.
        is_waiting: whether to return only when they have arrived.
    """
    import ray

    if not ray.is_initialized():
        return
    if not os.environ.get("RAY_ADDRESS"):
        _own_gauges.set(values)
        return
    try:
        actor = ray.remote(Gauges).options(
            name="gauges", namespace="jat", lifetime="detached", get_if_exists=True, max_restarts=-1,
            num_cpus=0, resources={"node:__internal_head__": 0.001},
        ).remote(is_repeating=True)  # fmt: skip
        arrived = actor.set.remote(values)
        if is_waiting:
            ray.get(arrived, timeout=GAUGES_S)
    except ray.exceptions.RayError as error:
        log.warning("the metrics of this run did not reach the cluster: %s", first_line(error))


@dataclass(frozen=True)
class Resources:
    """What a job occupies while it runs: CPU cores, GPUs (or a share of one) where the cluster has any, memory in
    bytes, and whatever else the cluster's nodes declare, by name."""

    num_cpus: float = 1
    num_gpus: float = 0
    memory: int = 0
    custom: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Supervision:
    """What is expected of workers whose jobs beat (``pipeline/heartbeat.py``).

    Attributes:
        stall_s: a worker whose job has not beaten for so many seconds is hung; it is killed and its job tried again.
            A beat is a step of the environments, so this has nothing to do with how long a job takes.
        max_bytes: a worker that holds more memory than this after a job is replaced by a new one.
        report: called with the jobs that run and what they have done so far, every ``POLL_S`` seconds.
    """

    stall_s: float
    max_bytes: int
    report: Callable[[Sequence[Running[Any]]], None]


@dataclass
class Running(Generic[JobT]):
    """A job in a worker.

    Attributes:
        job: as given to ``run_jobs``.
        attempt: from 1.
        actor: the worker.
        pulse: its last answer.
        resident_bytes: of its process, at the last answer.
        last_change: when an answer last differed from the one before, in seconds of ``time.monotonic``.
        question: the answer that is still to come, or None.
    """

    job: JobT
    attempt: int
    actor: Any
    pulse: Pulse = field(default_factory=Pulse)
    resident_bytes: int = 0
    last_change: float = math.inf
    question: Any = None
    killed_for: str | None = None


def run_jobs(
    function: Callable[[JobT], ResultT],
    jobs: Sequence[JobT],
    workers: int,
    resources: Resources | Callable[[JobT], Resources] = Resources(),
    supervision: Supervision | None = None,
) -> Iterator[tuple[JobT, ResultT]]:
    """Run ``function`` on every job and yield ``(job, result)`` as they finish, in no particular order.

    At most one job per actor is in flight, so memory does not grow with the number of jobs. What our packages log in
    an actor appears on the terminal of this process.

    Args:
        function: a module-level function; it builds what it needs (environments, networks) inside the actor.
        jobs: small and picklable.
        workers: actors at most at a time; as many run as the cluster has room for.
        resources: what a job occupies, cut to what the largest node has, so that no job waits for ever. If all are
            alike, processes go from job to job; with a function of the job, every job has a process of its own.
        supervision: how to tell that a worker hangs or has grown too large; without it neither is looked for.

    Raises:
        JobsFailedError: after all jobs were tried, if some raised, or lost their worker ``MAX_ATTEMPTS`` times. Once
            there is no space to write to, no more are begun.
    """
    if not jobs:
        return
    pool: _Pool[JobT] = _Pool(function, jobs, workers, resources, supervision)
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
    """The actors of one ``run_jobs`` and what each of them does."""

    def __init__(
        self,
        function: Callable[[JobT], Any],
        jobs: Sequence[JobT],
        workers: int,
        resources: Resources | Callable[[JobT], Resources],
        supervision: Supervision | None,
    ) -> None:
        connect(workers)
        import ray

        self.failures: list[JobFailure] = []
        self._supervision = supervision
        self._resources = resources
        self._waiting = deque((job, 1) for job in jobs)
        self._running: dict[Any, Running[JobT]] = {}
        self._num_workers = min(workers, len(jobs))
        self._last_poll = time.monotonic()
        log_level = log.getEffectiveLevel()

        # Pickled by value, and so is every object it names, but modules are not: `heartbeat.PULSE` is the worker's own.
        class Worker:
            def __init__(self) -> None:
                configure_logging(log_level)

            def run(self, job: JobT) -> tuple[Any, int]:
                heartbeat.PULSE.beats = heartbeat.PULSE.episodes = 0
                return function(job), heartbeat.resident_bytes()

            def pulse(self) -> tuple[Pulse, int]:
                return heartbeat.PULSE, heartbeat.resident_bytes()

        # Two threads: one for the job, one to answer meanwhile.
        self._worker_class: Any = ray.remote(max_restarts=0, max_concurrency=2)(Worker)

    def run(self) -> Iterator[tuple[JobT, Any]]:
        import ray

        for _ in range(self._num_workers):
            self._submit(None)
        while self._running:
            timeout = POLL_S if self._supervision else None
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            if self._supervision and (not ready or time.monotonic() - self._last_poll > POLL_S):
                self._poll(self._supervision)
            if ready:
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

    def close(self) -> None:
        import ray

        for running in self._running.values():
            ray.kill(running.actor)

    def _submit(self, actor: Any) -> None:
        job, attempt = self._waiting.popleft()
        is_new = actor is None
        if actor is None:
            needed = _cut_to_largest_node(
                self._resources if isinstance(self._resources, Resources) else self._resources(job)
            )
            actor = self._worker_class.options(
                num_cpus=needed.num_cpus,
                num_gpus=needed.num_gpus,
                memory=needed.memory or None,
                resources=dict(needed.custom) or None,
            ).remote()
        running = Running(job, attempt, actor)
        if self._supervision:
            # A new worker answers once it has a place in the cluster; until then nothing is late.
            running.last_change = math.inf if is_new else time.monotonic()
            running.question = actor.pulse.remote()
        self._running[actor.run.remote(job)] = running

    def _go_on(self, actor: Any, is_usable: bool) -> None:
        """Give the actor its next job, or end it: an idle one would keep the CPU that another may need."""
        import ray

        if self._waiting and is_usable and isinstance(self._resources, Resources):
            self._submit(actor)
            return
        ray.kill(actor)
        if self._waiting:
            self._submit(None)

    def _note_lost_worker(self, running: Running[JobT], error: Exception) -> None:
        reason = running.killed_for or f"its worker died ({str(error).splitlines()[0]})"
        log.warning("attempt %d of %d failed, %s: %s", running.attempt, MAX_ATTEMPTS, reason, running.job)
        if running.attempt < MAX_ATTEMPTS:
            self._waiting.append((running.job, running.attempt + 1))
        else:
            self.failures.append(JobFailure(running.job, reason, is_worker_lost=True))

    def _note_error(self, running: Running[JobT], error: Any) -> None:
        log.error("failed: %s\n%s", running.job, error)
        self.failures.append(JobFailure(running.job, repr(error.cause), is_worker_lost=False))
        if isinstance(error.cause, OSError) and error.cause.errno in NO_SPACE and self._waiting:
            log.error("no space left: the %d jobs that have not begun are left for the next run", len(self._waiting))
            self._waiting.clear()

    def _poll(self, supervision: Supervision) -> None:
        """Take the answers that have come, ask again, and kill who has not changed for too long."""
        import ray

        for running in self._running.values():
            running.question = running.question or running.actor.pulse.remote()
        questions = [running.question for running in self._running.values()]
        # Who lives answers in milliseconds; who does not is asked again next time.
        answered = set(ray.wait(questions, num_returns=len(questions), timeout=0.2)[0]) if questions else set()
        now = self._last_poll = time.monotonic()
        for running in self._running.values():
            if running.question in answered:
                try:
                    pulse, running.resident_bytes = ray.get(running.question)
                except ray.exceptions.RayError:
                    continue  # the worker is dead; its job's own result says so
                finally:
                    running.question = None
                if pulse != running.pulse or running.last_change == math.inf:
                    running.pulse, running.last_change = pulse, now
            if now - running.last_change > supervision.stall_s and running.killed_for is None:
                running.killed_for = f"no step was made for {supervision.stall_s:g} s"
                ray.kill(running.actor)
        supervision.report(list(self._running.values()))


def _cut_to_largest_node(wanted: Resources) -> Resources:
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not nodes:
        raise JobsFailedError("no node of the Ray cluster is alive any more; run the same command again")

    def most(name: str) -> float:
        return max(node.get(name, 0) for node in nodes)

    return Resources(
        num_cpus=min(wanted.num_cpus, most("CPU")),
        num_gpus=min(wanted.num_gpus, most("GPU")),
        memory=int(min(wanted.memory, most("memory"))),
        custom={name: min(amount, most(name)) for name, amount in wanted.custom.items() if most(name)},
    )


def run_group(
    function: Callable[[JobT], ResultT],
    job: JobT,
    workers: int,
    progress: Callable[[], Any],
    scratch: Path,
) -> ResultT:
    """Run ``function(job)`` in ``workers`` processes at once that form a group of ``torch.distributed`` (Ray Train).

    Each has a GPU if the cluster has one for each, else a CPU. When one is lost all are ended and started again, and it
    is for the function to go on from what it saved.

    Args:
        function: a module-level function.
        job: small and picklable.
        workers: how many; the cluster must have room for all of them.
        progress: asked here after a loss; anything that differs once the function has saved more.
        scratch: a folder for Ray's own notes, which all nodes see; removed at the end.

    Returns:
        what the function returned in the process of rank 0.

    Raises:
        UserError: the function raised one in some process, or the cluster has no room for all of them.
        JobsFailedError: workers were lost, or raised anything else, ``MAX_ATTEMPTS`` times in a row without progress.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # Looks for notices of spot machines; the loss of a worker is seen without.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    connect(workers)
    _check_room(workers)
    attempt = 1
    try:
        while True:
            before = progress()
            try:
                return _run_group_once(function, job, workers, scratch)
            except _LostError as error:
                attempt = attempt + 1 if progress() == before else 1
                if attempt > MAX_ATTEMPTS:
                    raise JobsFailedError(
                        f"workers were lost {MAX_ATTEMPTS} times without progress ({error}); run the same command again"
                    ) from error
                log.warning("a worker was lost (%s); all start again from what was saved last", error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_room(workers: int) -> None:
    """Refuse a group that is larger than the cluster; Ray itself would wait for ever."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus < workers:
        raise UserError(f"--workers is {workers}, the Ray cluster has {num_cpus} CPU; lower it, or add nodes")


class _LostError(RuntimeError):
    """A process of a group died, or raised what may be due to another's death."""


def _run_group_once(function: Callable[[JobT], ResultT], job: JobT, workers: int, scratch: Path) -> ResultT:
    import ray
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    is_embedded = not os.environ.get("RAY_ADDRESS")

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """Without, where the cluster ends with this process, what frees the cluster's places after this process:
            it asks the dashboard, of which there is none."""
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not (is_embedded and isinstance(c, PlacementGroupCleanerCallback))]

    log_level = log.getEffectiveLevel()

    def work(config: Mapping[str, Any]) -> Any:
        configure_logging(log_level)
        return function(config["job"])

    use_gpu = ray.cluster_resources().get("GPU", 0) >= workers
    trainer = Trainer(
        work,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu, resources_per_worker={"CPU": 1}),
        run_config=RunConfig(
            name=uuid.uuid4().hex, storage_path=str(scratch), logging_config=LoggingConfig(log_level="WARNING")
        ),
    )
    try:
        result: ResultT = trainer.fit().return_value
        return result
    except WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        raise next((cause for cause in causes if isinstance(cause, UserError)), _LostError(str(causes[0]))) from error
    except TrainingFailedError as error:
        raise _LostError(str(error)) from error

"""Runs a function in several processes that form a ``torch.distributed`` process group, with Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.cli import configure_logging
from pipeline.domain_files import add_to_search_path
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import NO_SPACE
from pipeline.runtime.cluster import connect
from pipeline.runtime.pool import MAX_ATTEMPTS
from pipeline.stopping import deferred_stop, raise_stop, stop_requested

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


def run_group(
    function: Callable[[JobT], ResultT],
    job: JobT,
    workers: int,
    progress: Callable[[], Any],
    scratch: Path,
    on_stop: Callable[[], None] = lambda: None,
) -> ResultT:
    """Run ``function(job)`` in ``workers`` processes that form a ``torch.distributed`` process group (Ray Train).

    Each process gets a GPU if the cluster has enough for all, else a CPU. If a process is lost, all are restarted, and
    the function must resume from its last checkpoint.

    Args:
        function: a module-level function.
        job: small and picklable.
        workers: number of processes; the cluster must have resources for all of them.
        progress: called in this process before each attempt and after a loss; its value must change whenever the
            function has saved more.
        scratch: a folder for Ray's own files that all nodes can access; removed at the end.
        on_stop: called if this command is asked to stop while the processes run; must make the function return soon.

    Returns:
        the function's return value in the process of rank 0.

    Raises:
        UserError: the function raised one in some process, or the cluster has too few resources.
        OSError: some process had no space left to write to.
        JobsFailedError: workers were lost, or raised any other error, ``MAX_ATTEMPTS`` times in a row without progress.
    """
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    # This watcher looks for preemption notices of spot machines; lost workers are detected without it.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    connect(workers)
    _check_room(workers)
    attempt = 1
    try:
        while True:
            before = progress()
            try:
                return _run_group_once(function, job, workers, scratch, on_stop)
            except _LostError as error:
                if stop_requested():
                    raise_stop()
                attempt = attempt + 1 if progress() == before else 1
                if attempt > MAX_ATTEMPTS:
                    raise JobsFailedError(
                        f"workers were lost {MAX_ATTEMPTS} times without progress ({error}); run the same command again"
                    ) from error
                log.warning("a worker was lost (%s); all start again from what was saved last", error)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_room(workers: int) -> None:
    """Raise ``UserError`` if the group is larger than the cluster; Ray itself would wait without end."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus < workers:
        raise UserError(f"--workers is {workers}, the Ray cluster has {num_cpus} CPU; lower it, or add nodes")


def _is_without_space(cause: BaseException) -> bool:
    return isinstance(cause, OSError) and cause.errno in NO_SPACE


class _LostError(RuntimeError):
    """A process of a group died, or raised an error that the death of another process may have caused."""


def _run_group_once(
    function: Callable[[JobT], ResultT], job: JobT, workers: int, scratch: Path, on_stop: Callable[[], None]
) -> ResultT:
    import ray
    from ray.train import LoggingConfig, RunConfig, ScalingConfig, TrainingFailedError, WorkerGroupError
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    is_embedded = not os.environ.get("RAY_ADDRESS")

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _create_default_callbacks(self) -> list[Any]:
            """Drop ``PlacementGroupCleanerCallback`` on an embedded cluster: it queries the dashboard, which is not
            running. The callback releases resources after this process ends, and an embedded cluster ends with it."""
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not (is_embedded and isinstance(c, PlacementGroupCleanerCallback))]

        def _register_sigint_handler(self, controller: Any) -> None:
            """Install no handler: Ray's would kill the processes before they have saved a checkpoint."""

    log_level = log.getEffectiveLevel()

    def work(config: Mapping[str, Any]) -> Any:
        configure_logging(log_level)
        add_to_search_path()
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
        with deferred_stop(on_stop):
            result: ResultT = trainer.fit().return_value
        return result
    except WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        known = (cause for cause in causes if isinstance(cause, UserError) or _is_without_space(cause))
        raise next(known, _LostError(str(causes[0]))) from error
    except TrainingFailedError as error:
        raise _LostError(str(error)) from error

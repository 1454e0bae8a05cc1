"""One function in several processes at once that form a group of ``torch.distributed``, through Ray Train."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.cli import configure_logging
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
    """Run ``function(job)`` in ``workers`` processes at once that form a group of ``torch.distributed`` (Ray Train).

    Each has a GPU if the cluster has one for each, else a CPU. When one is lost all are ended and started again, and it
    is for the function to go on from what it saved.

    Args:
        function: a module-level function.
        job: small and picklable.
        workers: how many; the cluster must have room for all of them.
        progress: asked here after a loss; anything that differs once the function has saved more.
        scratch: a folder for Ray's own notes, which all nodes see; removed at the end.
        on_stop: called when this command is asked to end while the processes run; must make the function return soon.

    Returns:
        what the function returned in the process of rank 0.

    Raises:
        UserError: the function raised one in some process, or the cluster has no room for all of them.
        OSError: some process had no space left to write to.
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
    """Refuse a group that is larger than the cluster; Ray itself would wait for ever."""
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus < workers:
        raise UserError(f"--workers is {workers}, the Ray cluster has {num_cpus} CPU; lower it, or add nodes")


def _is_without_space(cause: BaseException) -> bool:
    return isinstance(cause, OSError) and cause.errno in NO_SPACE


class _LostError(RuntimeError):
    """A process of a group died, or raised what may be due to another's death."""


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
            """Without, where the cluster ends with this process, what frees the cluster's places after this process:
            it asks the dashboard, of which there is none."""
            callbacks = super()._create_default_callbacks()
            return [c for c in callbacks if not (is_embedded and isinstance(c, PlacementGroupCleanerCallback))]

        def _register_sigint_handler(self, controller: Any) -> None:
            """None: Ray's would end the processes before they have saved anything."""

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
        with deferred_stop(on_stop):
            result: ResultT = trainer.fit().return_value
        return result
    except WorkerGroupError as error:
        causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
        known = (cause for cause in causes if isinstance(cause, UserError) or _is_without_space(cause))
        raise next(known, _LostError(str(causes[0]))) from error
    except TrainingFailedError as error:
        raise _LostError(str(error)) from error

"""Train many experts in the order of a file, for days if necessary.

    jat experts-queue --queue queue.toml --out runs/default --workers 1

Each training runs in its own process at low priority, on this machine or on a free node of the cluster at
``RAY_ADDRESS``; the next one starts when one ends. When a training's budget is used up, its best policy is written to
the store and measured. After any kill the same command resumes from checkpoints that are at most a few minutes old:
finished work is not repeated, and budgets already spent are counted. SIGTERM and Ctrl-C stop the trainings after
writing a checkpoint.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from experts.algorithms import LOCK, export, train
from experts.prepare import MeasureJob, is_measured, measure, resources_of, write_best
from experts.queue.entries import QueueEntry, check_entries, read_entries
from experts.queue.states import (
    DONE,
    FAILED,
    MEASURING,
    STAGE,
    STOPPED,
    TRAINING,
    WAITING,
    change_state,
    entry_folder,
    is_done,
    read_list,
    read_reports,
    read_state,
    write_list,
)
from experts.queue.table import queue_table
from experts.ranking import rank_experts
from experts.store import StoredExpert, read_expert
from experts.training import TrainingStoppedError, read_progress
from pipeline.cli import check_at_least_one, parse, run
from pipeline.errors import JobFailure, UserError
from pipeline.files import exclusive, is_local, list_folders
from pipeline.run_layout import RunLayout
from pipeline.runtime import heartbeat
from pipeline.runtime.cluster import Resources, connect
from pipeline.runtime.pool import MAX_ATTEMPTS, Control, Supervision, run_jobs
from pipeline.runtime.progress import Progress
from pipeline.runtime.stage import current_stage, reported
from pipeline.scoring.measurement import load_measurement
from pipeline.stopping import deferred_stop, raise_stop
from pipeline.tables import print_table

log = logging.getLogger(__name__)

# Niceness of Ray's workers if Ray is started here. Ray's default is 15, and a process cannot lower its niceness.
WORKER_NICENESS = "RAY_worker_niceness"
# Seconds for trainers to stop. Most take seconds; Sample Factory takes up to two minutes on a busy machine.
STOP_S = 180.0
REASON_LENGTH = 300
# Seconds without a report or a step after which a worker is considered hung; it is killed and its training resumed.
STALL_S = 1800.0


@dataclass(frozen=True)
class QueueConfig:
    """Train experts of many tasks in the order of a file, resuming after any kill, and measure the finished ones."""

    queue: Path | None = None
    """TOML file that lists the trainings (docs/experts.md). Default: the list of the last run in OUT."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    workers: int = 1
    """Parallel trainings on this machine; with RAY_ADDRESS the cluster's resources are the limit."""
    nice: int = 10
    """Niceness of the training processes, 0 to 19; higher values give priority to other processes."""
    episodes: int = 100
    """Episodes per measurement of a finished expert."""
    export: bool = False
    """Train nothing: write the best policies so far of unfinished trainings to the store, and measure them."""
    forget: str | None = None
    """Train nothing: delete the state of the trainings of a task (name or glob), so that they start from scratch."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "workers", "episodes")
        if not 0 <= self.nice <= 19:
            raise UserError(f"--nice is {self.nice}; it must be from 0 to 19")
        if self.export and self.forget is not None:
            raise UserError("--export and --forget are two different things to do; give one of them")
        if not is_local(self.out):
            raise UserError(
                f"--out is {self.out}: the queue keeps its checkpoints on a disk; run it with `jat on-disk`"
            )


@dataclass(frozen=True)
class QueueJob:
    """An entry and the settings that a worker needs.

    Attributes:
        episodes: episodes of the expert's measurement.
        nice: niceness of the worker process.
    """

    entry: QueueEntry
    out: Path
    episodes: int
    nice: int

    def __str__(self) -> str:
        return str(self.entry.job(self.out))


def run_queue(config: QueueConfig) -> None:
    """Train all entries that are not done yet.

    Raises:
        UserError: an entry cannot be trained, or a queue is already running in OUT.
        JobsFailedError: some trainings failed for good; the others are done.
        SystemExit, KeyboardInterrupt: the queue was stopped; every training has a checkpoint.
    """
    out = config.out.absolute()  # workers may have another working directory
    entries = read_entries(config.queue) if config.queue else read_list(out)
    check_entries([entry for entry in entries if not is_done(out, entry)], out)
    with (
        exclusive(RunLayout(out).queue_lock, "a queue runs there already: stop it first"),
        reported(STAGE, out),
    ):
        write_list(out, entries)
        todo = [entry for entry in entries if not is_done(out, entry) or not _is_measured(config, out, entry)]
        for entry in todo:
            change_state(out, entry, state=WAITING, reason="", failures=0)
        try:
            _train(config, out, todo)
        finally:
            print_table(queue_table(read_reports(out)))


def _train(config: QueueConfig, out: Path, todo: Sequence[QueueEntry]) -> None:
    if not todo:
        return
    jobs = [QueueJob(entry, out, config.episodes, config.nice) for entry in todo]
    workers = len(jobs) if os.environ.get("RAY_ADDRESS") else config.workers
    _count_steps(out, todo)
    os.environ.setdefault(WORKER_NICENESS, str(config.nice))
    connect(workers)
    stop = threading.Event()

    def ask_to_stop() -> None:
        log.warning("the trainings are asked to stop; a second Ctrl-C kills them")
        stop.set()

    with deferred_stop(ask_to_stop):
        control = Control(stop, STOP_S, lambda failure: _try_again(out, failure))
        supervision = Supervision(STALL_S, sys.maxsize, report=lambda running: None)
        try:
            for job, state in run_jobs(train_and_measure, jobs, workers, _resources, supervision, control):
                log.info("%s is %s: %s", job.entry.name, state, read_state(out, job.entry).revision)
                if state == DONE:
                    task = job.entry.job(out).task
                    write_best(out, task, rank_experts(out, task))
        finally:
            for entry in todo if stop.is_set() else ():
                if read_state(out, entry).state in (TRAINING, MEASURING):
                    change_state(out, entry, state=STOPPED, reason="killed: it did not end in time")
    if stop.is_set():
        raise_stop()


def _count_steps(out: Path, todo: Sequence[QueueEntry]) -> None:
    """Report environment steps in the stage's status: a training may take days, and steps show its progress."""

    def steps() -> int:
        return sum(read_progress(entry_folder(out, entry)).steps for entry in todo)

    before = steps()
    wanted = [entry.steps for entry in todo]
    stage = current_stage()
    stage.begin("steps", 0 if None in wanted else max(0, sum(filter(None, wanted)) - before))
    stage.ask = lambda: max(0, steps() - before)


def _resources(job: QueueJob) -> Resources:
    return resources_of(job.entry.job(job.out))


def _try_again(out: Path, failure: JobFailure) -> bool:
    """Record why a training failed; return whether to retry it.

    It is not retried after bad input, or after ``MAX_ATTEMPTS`` failures without progress between them.
    """
    entry = failure.job.entry
    state, steps = read_state(out, entry), read_progress(entry_folder(out, entry)).steps
    failures = 1 if steps > state.failed_at else state.failures + 1
    again = not failure.is_bad_input and failures < MAX_ATTEMPTS
    change_state(
        out, entry, state=WAITING if again else FAILED, reason=failure.reason[:REASON_LENGTH], failures=failures,
        failed_at=steps,
    )  # fmt: skip
    return again


def train_and_measure(job: QueueJob) -> str:
    """In a worker: train until the budget is used up, then measure; return the entry's new state.

    Raises:
        UserError: the checkpoint cannot be resumed, or another process is running the same training.
    """
    os.nice(max(0, job.nice - os.nice(0)))
    out, entry = job.out, job.entry
    if heartbeat.STOP.is_set():
        return WAITING
    change_state(out, entry, state=TRAINING, reason="")
    try:
        expert = train(entry.job(out))
    except TrainingStoppedError:
        change_state(out, entry, state=STOPPED)
        return STOPPED
    revision = expert.record.revision
    change_state(out, entry, state=MEASURING, revision=revision)
    _measure(job, expert)
    change_state(out, entry, state=DONE, failures=0, asked=asdict(entry))
    return DONE


def _measure(job: QueueJob, expert: StoredExpert) -> None:
    """Measure an expert unless a valid measurement exists."""
    measuring = MeasureJob(job.entry.job(job.out).task, expert, job.episodes)
    if not is_measured(measuring):
        measure(measuring)


def _is_measured(config: QueueConfig, out: Path, entry: QueueEntry) -> bool:
    """Whether the expert of a finished entry is measured over the configured number of episodes."""
    expert = read_expert(RunLayout(out).expert(entry.task, read_state(out, entry).revision))
    return is_measured(MeasureJob(entry.job(out).task, expert, config.episodes))


def export_unfinished(config: QueueConfig) -> None:
    """Write the best policy so far of every training in progress to the store, and measure it.

    The queue may be running at the same time.

    Raises:
        UserError: no training is in progress.
        JobsFailedError: some trainings have no policy with a known return yet; the others are exported.
    """
    out = config.out.absolute()
    entries = [entry for entry in read_list(out) if not is_done(out, entry)]
    begun = [entry for entry in entries if read_progress(entry_folder(out, entry)).steps]
    if not begun:
        raise UserError(f"of the queue in {out} no training is under way; there is nothing to export")
    with reported(f"{STAGE}-export", out):
        os.environ.setdefault(WORKER_NICENESS, str(config.nice))
        progress = Progress("exports", len(begun), interval_s=0)
        jobs = [QueueJob(entry, out, config.episodes, config.nice) for entry in begun]
        for job, revision in run_jobs(export_and_measure, jobs, config.workers):
            task = job.entry.job(out).task
            measurement = load_measurement(RunLayout(out).expert(task.name, revision), task)
            mean = "" if measurement is None else f", return {measurement.mean_return.mean:.2f}"
            progress.advance(1, f"{job.entry.name}: {revision}{mean}")
            write_best(out, task, rank_experts(out, task))


def export_and_measure(job: QueueJob) -> str:
    """In a worker: export and measure the best policy so far; return its revision."""
    os.nice(max(0, job.nice - os.nice(0)))
    expert = export(job.entry.job(job.out))
    _measure(job, expert)
    return expert.record.revision


def forget(out: Path, pattern: str) -> None:
    """Delete the state of trainings of the queue; experts in the store are kept.

    Args:
        out: root of all outputs of a run.
        pattern: a task, a training (``task/algorithm``), or a glob of either.

    Raises:
        UserError: no training matches, or a matching one is running.
    """
    folders = [folder for task in list_folders(RunLayout(out).queue) for folder in list_folders(task)]
    names = {f"{folder.parent.name}/{folder.name}": folder for folder in folders}
    chosen = [name for name in names if any(fnmatch.fnmatchcase(n, pattern) for n in (name, name.partition("/")[0]))]
    if not chosen:
        raise UserError(f"--forget {pattern} matches no training in {RunLayout(out).queue}; there: {', '.join(names)}")
    with contextlib.ExitStack() as held:
        for name in chosen:
            held.enter_context(exclusive(names[name] / LOCK, "it is being trained: stop the queue first"))
        for name in chosen:
            shutil.rmtree(names[name])
            log.info("forgot %s", name)


def main() -> None:
    config = parse(QueueConfig, prints_tables=True)
    if config.forget is not None:
        forget(config.out, config.forget)
    elif config.export:
        export_unfinished(config)
    else:
        run_queue(config)


if __name__ == "__main__":
    run("experts.queue.run")

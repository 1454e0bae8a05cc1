"""Defines the status file of a stage's run: ``OUT/status/<stage>/<host>-<process>.json``, one small file per run.

``pipeline/runtime/stage.py`` rewrites it every few seconds, so a killed run is detected by an outdated file. The file
is kept after the run until the same stage runs again on the same tasks. Log lines, ``jat status`` and the metrics of
``pipeline/runtime/metrics.py`` all report its values.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError, first_line
from pipeline.files import list_folders, list_sizes, process_exists
from pipeline.records import RecordError, read_values, record_of
from pipeline.run_layout import RunLayout
from pipeline.text import format_count, format_estimate, format_rate

log = logging.getLogger(__name__)

RUNNING, DONE, FAILED, STOPPED = STATES = ("running", "done", "failed", "stopped")
SILENT = "silent"  # shown by `jat status` for a running state that was not updated for `SILENT_S` seconds
SILENT_S = 60.0


@dataclass
class TaskCount:
    """Progress of one task, or corpus, in one run of a stage.

    Attributes:
        planned: units that this run is to make.
        done: planned units in finished shards or jobs.
        rejected: done units that were rejected.
        running: planned units made so far in running jobs, by the job's name.
        timed: units finished by this run and by the earlier runs that it replaces.
        busy_s: seconds that workers spent on the ``timed`` units.
        recent_rate: units per second of one worker over the last minutes; 0 if there are too few measurements.
    """

    planned: int = 0
    done: int = 0
    rejected: int = 0
    running: dict[str, int] = field(default_factory=dict)
    timed: int = 0
    busy_s: float = 0.0
    recent_rate: float = 0.0

    @property
    def rate(self) -> float | None:
        """Units per second of one worker over all finished jobs; None if there are none."""
        return self.timed / self.busy_s if self.timed and self.busy_s > 0 else None


@dataclass
class StageStatus:
    """Status of one run of a stage. Times are seconds since 1970.

    Attributes:
        task: the run's tasks, in the syntax of ``--task``.
        out: root of the run's outputs.
        state: one of ``STATES``.
        error: first line of the error message of a failed run.
        updated: when this status was written; the end time of a finished run.
        progressed: when ``done`` last changed, or counting began.
        unit: what is counted; a run may count several units one after another.
        planned, done, rejected: numbers of units; ``planned`` is 0 if the total is unknown.
        rate: recent units done per second; for a finished run the mean since ``counting_since``.
        left_s: estimated seconds until all units are done; None if not known yet.
        activity: what the run does before it can count units, such as starting Ray.
        driver_bytes, worker_bytes: memory of the driver process and of its largest worker.
        disk_free_bytes: free bytes on the disk of the outputs; None for an object store.
        tasks: the same counts by task, for stages that count by task.
    """

    stage: str
    task: str
    out: str
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    state: str = RUNNING
    error: str = ""
    started: float = field(default_factory=time.time)
    updated: float = 0.0
    progressed: float = 0.0
    unit: str = ""
    counting_since: float = 0.0
    planned: int = 0
    done: int = 0
    rejected: int = 0
    rate: float = 0.0
    left_s: float | None = None
    activity: str = ""
    driver_bytes: int = 0
    worker_bytes: int = 0
    disk_free_bytes: int | None = None
    tasks: dict[str, TaskCount] = field(default_factory=dict)

    @property
    def file_name(self) -> str:
        return f"{self.host}-{self.process}.json"

    @property
    def is_running(self) -> bool:
        """The state is running, the last update is recent, and the process exists (if it is on this host)."""
        is_gone = self.host == socket.gethostname() and not process_exists(self.process)
        return self.state == RUNNING and time.time() - self.updated < SILENT_S and not is_gone

    @property
    def condition(self) -> str:
        """The state, or ``SILENT`` for a state of running that ``is_running`` contradicts."""
        return SILENT if self.state == RUNNING and not self.is_running else self.state

    @property
    def seconds(self) -> float:
        """Seconds for which the current unit has been counted."""
        return max(self.updated - (self.counting_since or self.started), 1e-9)

    @property
    def num_workers(self) -> int:
        """Number of running jobs, among those counted by task."""
        return sum(len(task.running) for task in self.tasks.values())

    def describe(self) -> str:
        """Format as ``10 of 40 episodes, 2 rejected, 1.7/s, about 18 s left``; empty if nothing was counted."""
        parts = [self.activity] if self.activity and self.state == RUNNING else []
        if self.unit and (self.planned or self.done):
            counted = format_count(self.done, self.unit.removesuffix("s"))
            parts.append(f"{self.done:,} of {self.planned:,} {self.unit}" if self.planned else counted)
        if self.rejected:
            parts.append(f"{self.rejected:,} rejected")
        if self.rate:
            parts.append(format_rate(self.rate))
        if self.state == RUNNING and self.left_s is not None and self.done < self.planned:
            parts.append(f"about {format_estimate(self.left_s)} left")
        return ", ".join(parts)


def read_statuses(out: Path, stage: str = "*") -> list[StageStatus]:
    """Read the statuses below ``out`` of one stage or of all, by start time; damaged files are skipped and logged."""
    folders = list_folders(RunLayout(out).status()) if stage == "*" else [RunLayout(out).status(stage)]
    known = {field.name for field in dataclasses.fields(StageStatus)}
    found = []
    for folder in folders:
        for name in list_sizes(folder):
            if name.startswith(".") or not name.endswith(".json"):
                continue
            with contextlib.suppress(FileNotFoundError):  # a later run has just replaced it
                try:
                    raw = read_values(folder / name, dict[str, Any], "the status of a stage", "delete it")
                    found.append(record_of({key: raw[key] for key in raw if key in known}, StageStatus))
                except (UserError, RecordError) as error:
                    log.warning("%s is left out: %s", folder / name, first_line(error))
    return sorted(found, key=lambda status: status.started)

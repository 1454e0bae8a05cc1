"""What a stage tells about itself: one small file per run, ``OUT/status/<stage>/<host>-<process>.json``.

``pipeline/runtime/stage.py`` renews it every few seconds, so a run that is killed is known by its silence. It stays
when the run has ended, until the same stage runs on the same tasks again. Log lines, ``jat status`` and the metrics of
``pipeline/runtime/metrics.py`` all say what stands in it.
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
from pipeline.text import format_count, format_estimate, format_rate

log = logging.getLogger(__name__)

FOLDER = "status"
RUNNING, DONE, FAILED, STOPPED = STATES = ("running", "done", "failed", "stopped")
SILENT = "silent"  # what `jat status` calls a run that says it runs and has not written for `SILENT_S`
SILENT_S = 60.0


@dataclass
class TaskCount:
    """One task, or corpus, in one run of a stage.

    Attributes:
        planned: units this run set out to make.
        done: of these, in finished shards or jobs.
        rejected: of the done ones.
        running: of the planned ones, made in jobs that are under way, by the job's name.
        timed: units that this run has finished, and earlier ones whose place it took.
        busy_s: seconds that workers spent on these.
        recent_rate: units per second of one worker over the last minutes; 0 if too little was seen.
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
    """A run of a stage. Times are seconds since 1970.

    Attributes:
        task: the tasks it is about, as ``--task`` says it.
        out: root of its outputs.
        state: one of ``STATES``.
        error: first line of why it failed.
        updated: when this was written; the end of a run that has ended.
        progressed: when ``done`` last changed, or counting began.
        unit: what is counted; a run may count one thing after another.
        planned, done, rejected: how many; ``planned`` is 0 where the end is not known.
        rate: done per second, lately; of a run that has ended, since ``counting_since``.
        left_s: seconds until all is done; None if nobody knows yet.
        activity: what is done before anything can be counted, such as starting Ray.
        driver_bytes, worker_bytes: memory of this process and of its largest worker.
        disk_free_bytes: where the outputs are; None for an object store.
        tasks: the same counts by task, of stages that count so.
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
        """It says so, has told of itself lately, and is there, as far as this machine can see."""
        is_gone = self.host == socket.gethostname() and not process_exists(self.process)
        return self.state == RUNNING and time.time() - self.updated < SILENT_S and not is_gone

    @property
    def condition(self) -> str:
        """The state, or ``SILENT``."""
        return SILENT if self.state == RUNNING and not self.is_running else self.state

    @property
    def seconds(self) -> float:
        """How long it has counted what it counts now."""
        return max(self.updated - (self.counting_since or self.started), 1e-9)

    @property
    def num_workers(self) -> int:
        """Jobs that are under way, as far as they are counted by task."""
        return sum(len(task.running) for task in self.tasks.values())

    def describe(self) -> str:
        """``10 of 40 episodes, 2 rejected, 1.7/s, about 18 s left``; empty if nothing was counted."""
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
    """Of the runs below ``out``, of one stage or of all, by start. A damaged one is left out, which the log says."""
    folders = list_folders(out / FOLDER) if stage == "*" else [out / FOLDER / stage]
    known = {field.name for field in dataclasses.fields(StageStatus)}
    found = []
    for folder in folders:
        for name in list_sizes(folder):
            if name.startswith(".") or not name.endswith(".json"):
                continue
            with contextlib.suppress(FileNotFoundError):  # a later run has just taken its place
                try:
                    raw = read_values(folder / name, dict[str, Any], "the status of a stage", "delete it")
                    found.append(record_of({key: raw[key] for key in raw if key in known}, StageStatus))
                except (UserError, RecordError) as error:
                    log.warning("%s is left out: %s", folder / name, first_line(error))
    return sorted(found, key=lambda status: status.started)

"""The queue's state, stored in files so that every machine with access to OUT can read it.

``OUT/queue/queue.json`` lists the entries in order. ``OUT/queue/<task>/<algorithm>/`` is the folder of a training.
Besides the trainer's files it contains ``state.json``, which the worker writes while it runs, and the driver after the
worker has ended.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from experts.queue.entries import QueueEntry
from experts.store import RECORD, TrainingPoint
from experts.training import CURVE, TrainingProgress, read_curve, read_progress
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.records import read_record, read_values
from pipeline.run_layout import RunLayout
from pipeline.runtime.status import read_statuses

STAGE = "experts-queue"  # the stage's name, as in `jat NAME`
WAITING, TRAINING, MEASURING, DONE, FAILED, STOPPED = (
    "waiting", "training", "measuring", "done", "failed", "stopped",
)  # fmt: skip
STATE = "state.json"
FIX = "delete it and run `jat experts-queue --queue FILE` again"


@dataclass(frozen=True)
class EntryState:
    """State of an entry.

    Attributes:
        state: one of the names above.
        reason: reason of the last failure or interruption.
        failures: consecutive failures without progress between them.
        failed_at: environment steps at the last failure.
        revision: revision of the trained expert.
        asked: the entry that was completed; if its budget changes, it must be trained again.
        host, process: host name and process id of the writer.
    """

    state: str = WAITING
    reason: str = ""
    failures: int = 0
    failed_at: int = 0
    revision: str = ""
    asked: dict[str, Any] = field(default_factory=dict)
    host: str = ""
    process: int = 0


def entry_folder(out: Path, entry: QueueEntry) -> Path:
    """Folder of an entry's state and training."""
    return RunLayout(out).queued_training(entry.task, entry.algorithm)


def read_state(out: Path, entry: QueueEntry) -> EntryState:
    """Read the state of an entry; ``EntryState()`` if there is none."""
    path = entry_folder(out, entry) / STATE
    what, fix = "the state of a training in the queue", "delete it; the training resumes from its checkpoint"
    return read_record(path, EntryState, what, fix) if path.exists() else EntryState()


def change_state(out: Path, entry: QueueEntry, **changes: Any) -> None:
    """Update fields of an entry's state."""
    here = {"host": socket.gethostname(), "process": os.getpid()}
    state = replace(read_state(out, entry), **{**here, **changes})
    write_json(entry_folder(out, entry) / STATE, state)


def write_list(out: Path, entries: Sequence[QueueEntry]) -> None:
    """Write ``entries`` as the queue's list."""
    write_json(RunLayout(out).queue_list, {"entries": [asdict(entry) for entry in entries]})


def read_list(out: Path) -> list[QueueEntry]:
    """Read the entries of the queue in order.

    Raises:
        UserError: there is no queue in ``out``.
    """
    path = RunLayout(out).queue_list
    if not path.exists():
        raise UserError(f"there is no queue in {out}; pass --queue FILE")
    found: dict[str, list[QueueEntry]] = read_values(path, dict[str, list[QueueEntry]], "the list of a queue", FIX)
    if "entries" not in found:
        raise UserError(f"{path} is not the list of a queue (entries is missing); {FIX}")
    return found["entries"]


@dataclass(frozen=True)
class EntryReport:
    """An entry with its state and the progress of its training.

    Attributes:
        pace: mean CPU seconds per step of the trainings with this algorithm; None if none has begun.
    """

    entry: QueueEntry
    state: EntryState
    progress: TrainingProgress
    curve: Sequence[TrainingPoint]
    pace: float | None = None

    @property
    def steps(self) -> int | None:
        """Budget of environment steps; None if only the recipe defines it and the training has not begun."""
        known = self.progress.budget.steps if self.progress.budget else None
        return self.entry.steps or known

    @property
    def core_seconds_left(self) -> float:
        """CPU seconds until the budget is used up, at the current rate; infinity if unknown."""
        if self.state.state in (DONE, MEASURING):
            return 0.0
        spent, left = self.progress.core_seconds, math.inf
        if self.entry.core_hours is not None:
            left = 3600 * self.entry.core_hours - spent
        elif self.progress.budget and self.progress.budget.core_seconds is not None:
            left = self.progress.budget.core_seconds - spent
        pace = spent / self.progress.steps if self.progress.steps else self.pace
        if self.steps is not None and pace is not None:
            left = min(left, (self.steps - self.progress.steps) * pace)
        return max(left, 0.0)


def is_done(out: Path, entry: QueueEntry) -> bool:
    """Whether an entry was trained with exactly this budget and its expert is still in the store."""
    state = read_state(out, entry)
    expert = RunLayout(out).expert(entry.task, state.revision) / RECORD
    return state.state == DONE and state.asked == asdict(entry) and expert.exists()


def read_reports(out: Path) -> list[EntryReport]:
    """Read all entries of the queue in ``out``, in order; an empty list if there is no queue.

    An entry whose state is running although no queue is running was interrupted; it is reported as waiting.
    """
    if not RunLayout(out).queue_list.exists():
        return []
    is_running = any(run.is_running for run in read_statuses(out, STAGE))
    found = []
    for entry in read_list(out):
        state = read_state(out, entry)
        if state.state in (TRAINING, MEASURING) and not is_running:
            state = replace(state, state=WAITING, reason="interrupted; run the queue again")
        if state.state == DONE and not is_done(out, entry):
            state = replace(state, state=WAITING, reason="its budget has changed")
        folder = entry_folder(out, entry)
        found.append(EntryReport(entry, state, read_progress(folder), read_curve(folder / CURVE)))
    return [replace(report, pace=_pace(found, report.entry.algorithm)) for report in found]


def _pace(reports: Sequence[EntryReport], algorithm: str) -> float | None:
    alike = [report.progress for report in reports if report.entry.algorithm == algorithm]
    steps = sum(progress.steps for progress in alike)
    return sum(progress.core_seconds for progress in alike) / steps if steps else None

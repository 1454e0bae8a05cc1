"""Track the progress of a collector: counts by task in the run's status, shown in the terminal or in the log.

Used by collectors of episodes and of documents; counts seeds or rows, rejected ones included.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from collectors.pace import JobProgress, Pace, SteadyEstimate, UnitCost
from pipeline.runtime.stage import current_stage
from pipeline.runtime.status import StageStatus, TaskCount
from pipeline.text import format_estimate, format_rate, format_seconds

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("progress")

LINE_S = 10.0  # seconds between two progress lines in a log


class Monitor:
    """Counts the work of the workers in the status of this run; shows a live table in a terminal, else log lines.

    Args:
        unit: the counted unit, such as ``episodes``.
        jobs: number of units of each job, by task and job name; None if unknown.
        expected: expected cost of a unit, by task, used until it has been measured here.
    """

    def __init__(
        self, unit: str, jobs: Mapping[tuple[str, str], int | None], expected: Mapping[str, UnitCost] | None = None
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self._jobs = jobs
        self._stage = current_stage()
        counts = jobs.values()
        self._stage.begin(unit, 0 if None in counts else sum(filter(None, counts)), knows_left=False)
        self._pace = Pace(jobs, expected or {})
        self._time_left = SteadyEstimate()
        self._has_begun = False
        with self._stage.changing() as status:
            for (name, _), planned in jobs.items():
                status.tasks.setdefault(name, TaskCount()).planned += planned or 0
        self._last_line = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Monitor:
        if self._live:
            self._live.start()
            self._live.update(progress_table(self._stage.status), refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        with self._stage.changing() as status:
            for task in status.tasks.values():
                task.running.clear()
            self._sum_up(status)
        self._say()

    def update(self, running: Sequence[JobProgress]) -> None:
        """Update with the running jobs."""
        if not self._has_begun:
            self._has_begun = any(job.count or job.steps for job in running)
            if not self._has_begun:
                self._stage.count_from_now()  # workers are starting and have made no step yet
        self._pace.watch(running, time.monotonic())
        with self._stage.changing() as status:
            status.activity = "" if self._has_begun else "starting workers"
            for task in status.tasks.values():
                task.running.clear()
            for job in running:
                planned = self._jobs[job.task, job.name]
                status.tasks[job.task].running[job.name] = job.count if planned is None else min(job.count, planned)
                status.worker_bytes = max(status.worker_bytes, job.num_bytes)
            self._sum_up(status)
        if self._live:
            self._live.update(progress_table(status), refresh=True)
        elif time.time() - self._last_line >= LINE_S:
            self._say()

    def add(self, name: str, job: str, count: int, rejected: int, seconds: float = 0.0, steps: int = 0) -> None:
        """Record a finished job: its units, how many are rejected, its worker seconds, and its environment steps."""
        self._has_begun = True
        self._pace.finish(name, job, count, seconds, steps, time.monotonic())
        with self._stage.changing() as status:
            status.activity = ""
            task = status.tasks[name]
            task.running.pop(job, None)
            task.done += count
            task.rejected += rejected
            if seconds:
                task.timed += count
                task.busy_s += seconds
            self._sum_up(status)

    def _sum_up(self, status: StageStatus) -> None:
        counts = status.tasks.values()
        status.done = sum(count.done + sum(count.running.values()) for count in counts)
        status.rejected = sum(count.rejected for count in counts)
        status.left_s = self._time_left.update(self._pace.seconds_left(), time.monotonic())
        for name, count in status.tasks.items():
            count.recent_rate = self._pace.rate(name) or 0.0

    def _say(self) -> None:
        self._last_line = time.time()
        status = self._stage.status
        running = ", ".join(sorted(name for name, task in status.tasks.items() if task.running)[:4])
        memory = f"largest worker {status.worker_bytes // 2**20} MB" if status.worker_bytes else ""
        log.info("%s", "; ".join(filter(None, (status.describe(), memory, running))))


def progress_table(status: StageStatus) -> Table:
    """A live table of the running tasks and the total."""
    from rich.table import Table

    table = Table("task", "done", "of", "running", title=f"collecting for {format_seconds(status.seconds)}")
    for name, task in sorted(status.tasks.items()):
        if task.running:
            table.add_row(name, str(task.done), str(task.planned or "?"), str(sum(task.running.values())))
    table.add_section()
    left = status.activity or (format_rate(status.rate) if status.rate else "")
    if status.left_s is not None:
        left += f", about {format_estimate(status.left_s)} left"
    table.add_row("all", str(status.done), str(status.planned or "?"), left)
    return table

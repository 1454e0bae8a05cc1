"""How far a collection is: planned, done, running, rejected and why, episodes per second, bytes, time left.

    python -m collectors.status --out runs/default

Works while a collector runs, from any machine that sees the output, and after it has ended: the plan says what is
wanted, the shards what is there, and ``OUT/shards/progress.json``, which a running collector renews every few
seconds, what is under way.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.cli import parse, print_table, run
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.heartbeat import resident_bytes
from pipeline.manifest import ShardManifest
from pipeline.plan import TaskPlan, read_plan
from pipeline.shards import finished_shards

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("progress")

PROGRESS = "progress.json"
# A collector that has not written for so long is gone, or its machine is.
SILENT_S = 60.0
LINE_S = 10.0  # between two lines of progress in a log


@dataclass(frozen=True)
class StatusConfig:
    """Show how far the collection in OUT/shards is."""

    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


@dataclass(frozen=True)
class Finished:
    """Totals of finished shards."""

    num_seeds: int
    num_steps: int
    num_bytes: int
    rejected: Counter[str]

    @property
    def num_rejected(self) -> int:
        return self.rejected.total()


def summarise(shards: Sequence[ShardManifest]) -> Finished:
    rejected: Counter[str] = Counter()
    for shard in shards:
        rejected.update(shard.rejected)
    return Finished(
        num_seeds=sum(shard.num_seeds for shard in shards),
        num_steps=sum(shard.num_steps for shard in shards),
        num_bytes=sum(shard.data.num_bytes + shard.episodes.num_bytes for shard in shards),
        rejected=rejected,
    )


@dataclass
class TaskProgress:
    """One task in one run of the collector.

    Attributes:
        todo: episodes this run set out to collect.
        done: of these, in finished shards.
        running: of these, finished in shards that are under way, by the shard's name.
        timed: episodes of the shards that this and earlier runs in the same place have finished.
        busy_s: seconds that workers spent on these.
    """

    todo: int = 0
    done: int = 0
    running: dict[str, int] = field(default_factory=dict)
    timed: int = 0
    busy_s: float = 0.0

    @property
    def rate(self) -> float | None:
        """Episodes per second of one worker; None if no shard is finished."""
        return self.timed / self.busy_s if self.timed and self.busy_s > 0 else None


@dataclass
class Progress:
    """What a collector tells about itself; ``ended`` is None while it runs. Times are seconds since 1970."""

    host: str
    process: int
    started: float
    updated: float
    ended: float | None = None
    driver_bytes: int = 0
    worker_bytes: int = 0  # of the largest worker
    tasks: dict[str, TaskProgress] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        return self.ended is None and time.time() - self.updated < SILENT_S

    @property
    def episodes(self) -> int:
        """Collected in this run so far."""
        return sum(task.done + sum(task.running.values()) for task in self.tasks.values())

    @property
    def left(self) -> int:
        return sum(task.todo for task in self.tasks.values()) - self.episodes

    @property
    def seconds(self) -> float:
        return max((self.ended or self.updated) - self.started, 1e-9)


def read_progress(root: Path) -> Progress | None:
    path = root / PROGRESS
    if not path.exists():
        return None
    raw = read_json(path)
    return Progress(**{**raw, "tasks": {name: TaskProgress(**task) for name, task in raw["tasks"].items()}})


class Monitor:
    """Keeps ``progress.json`` of one run, and tells the terminal: a live table there, lines in a log file.

    Args:
        root: folder of the shards.
        jobs: episodes to collect by task and name of the shard.
    """

    def __init__(self, root: Path, jobs: Mapping[tuple[str, str], int]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._root, self._jobs = root, jobs
        now = time.time()
        self.progress = Progress(socket.gethostname(), os.getpid(), now, now)
        before = read_progress(root)
        if before is not None:
            for name, task in before.tasks.items():
                self.progress.tasks[name] = TaskProgress(timed=task.timed, busy_s=task.busy_s if task.timed else 0.0)
        for (name, _), episodes in jobs.items():
            self.progress.tasks.setdefault(name, TaskProgress()).todo += episodes
        self._last_line = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Monitor:
        self._write()
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        for task in self.progress.tasks.values():
            task.running.clear()
        self.progress.ended = time.time()
        self._write()
        self._say()

    def update(self, running: Sequence[tuple[str, str, int, int]]) -> None:
        """Note what runs: task, name of the shard, episodes finished in it, bytes of its worker."""
        for task in self.progress.tasks.values():
            task.running.clear()
        for name, stem, episodes, num_bytes in running:
            self.progress.tasks[name].running[stem] = min(episodes, self._jobs[name, stem])
            self.progress.worker_bytes = max(self.progress.worker_bytes, num_bytes)
        self._write()
        if self._live:
            self._live.update(progress_table(self.progress), refresh=True)
        elif time.time() - self._last_line >= LINE_S:
            self._say()

    def add(self, manifest: ShardManifest, seconds: float) -> None:
        """Note a finished shard and the seconds its worker spent on it."""
        task = self.progress.tasks[manifest.task]
        task.running.pop(manifest.stem, None)
        task.done += manifest.num_seeds
        task.timed += manifest.num_seeds
        task.busy_s += seconds

    def _write(self) -> None:
        self.progress.updated = time.time()
        self.progress.driver_bytes = resident_bytes()
        write_json(self._root / PROGRESS, asdict(self.progress))

    def _say(self) -> None:
        self._last_line = time.time()
        progress = self.progress
        rate = progress.episodes / progress.seconds
        running = ", ".join(sorted(name for name, task in progress.tasks.items() if task.running)[:4])
        log.info(
            "%d of %d episodes, %.1f/s, about %s left; driver %d MB, largest worker %d MB%s",
            progress.episodes,
            progress.episodes + progress.left,
            rate,
            format_seconds(progress.left / rate if rate else math.inf),
            progress.driver_bytes // 2**20,
            progress.worker_bytes // 2**20,
            f"; {running}" if running else "",
        )


def format_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``, ``2.1 d``, or ``?`` for infinity."""
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds / 86_400:.3g} d"


def progress_table(progress: Progress) -> Table:
    """What is running now, and the total, to be shown while it runs."""
    from rich.table import Table

    table = Table("task", "done", "of", "running", title=f"collecting for {format_seconds(progress.seconds)}")
    for name, task in sorted(progress.tasks.items()):
        if task.running:
            table.add_row(name, str(task.done), str(task.todo), str(sum(task.running.values())))
    rate = progress.episodes / progress.seconds
    left = format_seconds(progress.left / rate if rate else math.inf)
    table.add_section()
    table.add_row("all", str(progress.episodes), str(progress.episodes + progress.left), f"{rate:.1f}/s, {left} left")
    return table


@dataclass(frozen=True)
class TaskStatus:
    """A row of the status: episodes planned, finished and under way, and what became of them."""

    name: str
    plan: TaskPlan
    finished: Finished
    progress: TaskProgress

    @property
    def num_planned(self) -> int:
        return sum(self.plan.episodes.values())

    @property
    def num_running(self) -> int:
        return sum(self.progress.running.values())

    @property
    def rate(self) -> float | None:
        """Episodes per second of one worker; None if no run has finished a shard of this task."""
        return self.progress.rate


def statuses(root: Path) -> list[TaskStatus]:
    """A row per planned task, by name.

    Raises:
        UserError: nothing was planned there.
    """
    plan = read_plan(root)
    if not plan:
        raise UserError(f"nothing is planned in {root}; run `make collect` with the same OUT first")
    progress = read_progress(root)
    tasks = progress.tasks if progress else {}
    if progress and not progress.is_running:
        for task in tasks.values():
            task.running.clear()
    return [
        TaskStatus(name, task, summarise(finished_shards(root, name)), tasks.get(name, TaskProgress()))
        for name, task in sorted(plan.items())
    ]


def status_table(root: Path) -> Table:
    """Every planned task, and the total."""
    from rich.table import Table

    rows = statuses(root)
    progress = read_progress(root)
    names = ("task", "expert", "planned", "done", "running", "rejected", "steps", "MB", "episodes/s per worker", "left")
    table = Table(*names, title=_headline(progress))
    for column in table.columns[2:]:
        column.justify = "right"
    num_workers = sum(len(row.progress.running) for row in rows)
    for row in rows:
        missing = row.num_planned - row.finished.num_seeds - row.num_running
        left = "" if missing <= 0 else "?" if not row.rate else format_seconds(missing / row.rate / max(num_workers, 1))
        who = row.plan.expert + (f" + {row.plan.noise}" if row.plan.noise else "")
        table.add_row(
            row.name, who, *_counts(row.num_planned, row.finished, row.num_running),
            "" if row.rate is None else f"{row.rate:.3g}", left,
        )  # fmt: skip
    rejected: Counter[str] = Counter()
    for row in rows:
        rejected.update(row.finished.rejected)
    total = Finished(
        sum(row.finished.num_seeds for row in rows),
        sum(row.finished.num_steps for row in rows),
        sum(row.finished.num_bytes for row in rows),
        rejected,
    )
    left = ""
    if progress and progress.is_running and progress.episodes:
        left = format_seconds(progress.left / progress.episodes * progress.seconds)
    table.add_section()
    planned, running = sum(row.num_planned for row in rows), sum(row.num_running for row in rows)
    table.add_row(f"{len(rows)} tasks", "", *_counts(planned, total, running), "", left)
    if rejected:
        table.caption = "rejected: " + "; ".join(f"{count} {reason}" for reason, count in rejected.most_common(10))
    return table


def _counts(planned: int, finished: Finished, running: int) -> tuple[str, ...]:
    return (
        f"{planned:,}",
        f"{finished.num_seeds:,}",
        f"{running:,}" if running else "",
        f"{finished.num_rejected:,}" if finished.num_rejected else "",
        f"{finished.num_steps:,}",
        f"{finished.num_bytes / 1e6:,.1f}",
    )


def _headline(progress: Progress | None) -> str:
    if progress is None:
        return "no collector has run yet"
    rate = (
        f"{progress.episodes:,} episodes in {format_seconds(progress.seconds)}, "
        f"{progress.episodes / progress.seconds:.1f}/s"
    )
    memory = f"driver {progress.driver_bytes / 1e6:,.0f} MB, largest worker {progress.worker_bytes / 1e6:,.0f} MB"
    who = f"process {progress.process} on {progress.host}"
    if progress.is_running:
        return f"{who} is collecting: {rate}; {memory}"
    if progress.ended is None:
        return f"{who} stopped without a word; run the same command again to go on. It had {rate}; {memory}"
    return f"no collector is running; the last: {rate}; {memory}"


def main() -> None:
    config = parse(StatusConfig)
    print_table(status_table(config.out / "shards"), min_width=140)


if __name__ == "__main__":
    run("collectors.status")

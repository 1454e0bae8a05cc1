"""What a running collector tells about itself.

Each keeps one file, ``OUT/shards/progress/<host>-<process>.json``, which it renews every few seconds, so several may
collect different tasks in the same place. ``collectors/status.py`` puts them together.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.files import list_sizes, read_json, write_json
from pipeline.heartbeat import resident_bytes
from pipeline.manifest import ShardManifest

if TYPE_CHECKING:
    from rich.table import Table

log = logging.getLogger("progress")

FOLDER = "progress"
# A collector that has not written for so long is gone, or its machine is.
SILENT_S = 60.0
LINE_S = 10.0  # between two lines of progress in a log


@dataclass
class TaskProgress:
    """One task in one run of the collector.

    Attributes:
        todo: episodes this run set out to collect.
        done: of these, in finished shards.
        running: of these, finished in shards that are under way, by the shard's name.
        timed: episodes of the shards that this run has finished, and earlier ones whose place it took.
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
    def file_name(self) -> str:
        return f"{self.host}-{self.process}.json"

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

    @property
    def rate(self) -> float:
        """Episodes per second."""
        return self.episodes / self.seconds

    @property
    def seconds_left(self) -> float:
        """Infinity as long as no episode is finished."""
        return self.left / self.rate if self.episodes else math.inf


def read_progresses(root: Path) -> list[Progress]:
    """Of every collector that runs on the shards in ``root`` and of the last that did, by start."""
    folder = root / FOLDER
    found = []
    for name in list_sizes(folder):
        if name.endswith(".json") and not name.startswith("."):
            raw = read_json(folder / name)
            found.append(Progress(**{**raw, "tasks": {t: TaskProgress(**task) for t, task in raw["tasks"].items()}}))
    return sorted(found, key=lambda progress: progress.started)


class Monitor:
    """Keeps the progress of one run, and tells the terminal: a live table there, lines in a log file.

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
        self._file = root / FOLDER / self.progress.file_name
        self._take_over()
        for (name, _), episodes in jobs.items():
            self.progress.tasks.setdefault(name, TaskProgress()).todo += episodes
        self._last_line = 0.0
        console = Console(stderr=True)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def _take_over(self) -> None:
        """Carry on the times that collectors which no longer run have measured, in the place of their files."""
        for before in read_progresses(self._root):
            if before.is_running and before.file_name != self.progress.file_name:
                continue
            for name, task in before.tasks.items():
                mine = self.progress.tasks.setdefault(name, TaskProgress())
                mine.timed += task.timed
                mine.busy_s += task.busy_s
            (self._root / FOLDER / before.file_name).unlink(missing_ok=True)

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
        write_json(self._file, asdict(self.progress))

    def _say(self) -> None:
        self._last_line = time.time()
        progress = self.progress
        running = ", ".join(sorted(name for name, task in progress.tasks.items() if task.running)[:4])
        log.info(
            "%d of %d episodes, %.1f/s, about %s left; driver %d MB, largest worker %d MB%s",
            progress.episodes,
            progress.episodes + progress.left,
            progress.rate,
            format_seconds(progress.seconds_left),
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
    left = f"{progress.rate:.1f}/s, {format_seconds(progress.seconds_left)} left"
    table.add_section()
    table.add_row("all", str(progress.episodes), str(progress.episodes + progress.left), left)
    return table

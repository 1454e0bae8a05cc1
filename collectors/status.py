"""How far a collection is: planned, done, running, rejected and why, episodes per second, bytes, time left.

    python -m collectors.status --out runs/default

Works while collectors run, from any machine that sees the output, and after they have ended: the plans say what is
wanted, the shards what is there, and ``collectors/progress.py`` what is under way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collectors.progress import Progress, TaskProgress, format_seconds, read_progresses
from pipeline.cli import parse, print_table, run
from pipeline.errors import UserError
from pipeline.manifest import ShardManifest
from pipeline.plan import TaskPlan, read_plan
from pipeline.shards import finished_shards

if TYPE_CHECKING:
    from rich.table import Table


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


def statuses(root: Path, progresses: Sequence[Progress] | None = None) -> list[TaskStatus]:
    """A row per planned task, by name, with what collectors tell; it is read if it is not given.

    Raises:
        UserError: nothing was planned there.
    """
    plan = read_plan(root)
    if not plan:
        raise UserError(f"nothing is planned in {root}; run `make collect` with the same OUT first")
    tasks = task_progress(read_progresses(root) if progresses is None else progresses)
    return [
        TaskStatus(name, task, summarise(finished_shards(root, name)), tasks.get(name, TaskProgress()))
        for name, task in sorted(plan.items())
    ]


def task_progress(progresses: Sequence[Progress]) -> dict[str, TaskProgress]:
    """What collectors tell of each task, put together; only those that run have shards under way."""
    tasks: dict[str, TaskProgress] = {}
    for progress in progresses:
        for name, task in progress.tasks.items():
            total = tasks.setdefault(name, TaskProgress())
            total.timed += task.timed
            total.busy_s += task.busy_s
            if progress.is_running:
                total.running.update(task.running)
    return tasks


def status_table(root: Path) -> Table:
    """Every planned task, and the total."""
    from rich.table import Table

    progresses = read_progresses(root)
    rows = statuses(root, progresses)
    names = ("task", "expert", "planned", "done", "running", "rejected", "steps", "MB", "episodes/s per worker", "left")
    table = Table(*names, title=_headline(progresses))
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
    lefts = [progress.seconds_left for progress in progresses if progress.is_running and progress.episodes]
    left = format_seconds(max(lefts)) if lefts else ""
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


def _headline(progresses: Sequence[Progress]) -> str:
    """A line for each collector that runs; if none does, one for the last."""
    if not progresses:
        return "no collector has run yet"
    running = [progress for progress in progresses if progress.is_running]
    return "\n".join(map(_collector_line, running or progresses[-1:]))


def _collector_line(progress: Progress) -> str:
    rate = f"{progress.episodes:,} episodes in {format_seconds(progress.seconds)}, {progress.rate:.1f}/s"
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

"""How far every stage is, of a collection: planned, done, running, rejected and why, bytes, time left; the queue.

    python -m collectors.status --out runs/default

Works while stages run, from any machine that sees the output, and after they have ended: what they tell of themselves
(``pipeline/status.py``) says what is under way, plans what is wanted of a collection, shards what is there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experts.queue.states import read_reports
from experts.queue.table import WIDTH as QUEUE_WIDTH
from experts.queue.table import queue_table
from pipeline import cli
from pipeline.cli import parse, print_table
from pipeline.corpora import CORPORA
from pipeline.documents import finished_documents
from pipeline.errors import UserError
from pipeline.manifest import ShardManifest
from pipeline.plan import TaskPlan, read_plan
from pipeline.seeds import SPLITS
from pipeline.shards import finished_shards
from pipeline.status import DONE, SILENT, StageStatus, TaskCount, format_seconds, read_statuses

if TYPE_CHECKING:
    from rich.table import Table


COLLECT = "collect"
WIDTH = 140  # characters


@dataclass(frozen=True)
class StatusConfig:
    """Show how far the stages in OUT are."""

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
    progress: TaskCount

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


def statuses(root: Path, runs: Sequence[StageStatus] | None = None) -> list[TaskStatus]:
    """A row per planned task, by name, with what collectors tell; it is read if it is not given.

    Raises:
        UserError: nothing was planned there.
    """
    plan = read_plan(root)
    if not plan:
        raise UserError(f"nothing is planned in {root}; run `make collect` with the same OUT first")
    counts = task_counts(read_statuses(root.parent, COLLECT) if runs is None else runs)
    return [
        TaskStatus(name, task, summarise(finished_shards(root, name)), counts.get(name, TaskCount()))
        for name, task in sorted(plan.items())
    ]


def task_counts(runs: Sequence[StageStatus]) -> dict[str, TaskCount]:
    """What runs tell of each task, put together; only those that go on have shards under way."""
    tasks: dict[str, TaskCount] = {}
    for run in runs:
        for name, count in run.tasks.items():
            total = tasks.setdefault(name, TaskCount())
            total.timed += count.timed
            total.busy_s += count.busy_s
            if run.is_running:
                total.running.update(count.running)
    return tasks


def stages_table(runs: Sequence[StageStatus]) -> Table:
    """A row for each run, but one for all of a stage that worked and have nothing more to tell."""
    from rich.table import Table

    table = Table("stage", "tasks", "state", "progress", "for", "last sign", "where", "disk free")
    worked: dict[str, list[StageStatus]] = {}
    for run in runs:
        if run.state == DONE:
            worked.setdefault(run.stage, []).append(run)
    for run in runs:
        others = worked.get(run.stage, [])
        if run.state == DONE and run is not others[-1]:
            continue
        tasks = _shortened(run.task)
        if run.state == DONE and len(others) > 1:
            tasks += f" and {len(others) - 1} other runs"
        progress = "; ".join(filter(None, (run.describe(), run.error and f"error: {run.error}")))
        table.add_row(
            run.stage, tasks, run.condition, progress, format_seconds(run.updated - run.started),
            f"{format_seconds(max(0.0, time.time() - run.updated))} ago", f"{run.host}, process {run.process}",
            "" if run.disk_free_bytes is None else f"{run.disk_free_bytes / 1e9:,.1f} GB",
        )  # fmt: skip
    return table


def _shortened(task: str) -> str:
    first, *others = task.split(",")
    return f"{first} and {len(others)} more" if len(others) > 1 else task


def status_table(root: Path, runs: Sequence[StageStatus] | None = None) -> Table:
    """Every task of a collection that is planned, and the total."""
    from rich.table import Table

    runs = read_statuses(root.parent, COLLECT) if runs is None else runs
    rows = statuses(root, runs)
    names = ("task", "expert", "planned", "done", "running", "rejected", "steps", "MB", "episodes/s per worker", "left")
    table = Table(*names, title=_headline(runs))
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
    lefts = [run.seconds_left for run in runs if run.is_running and run.done]
    left = format_seconds(max(lefts)) if lefts else ""
    table.add_section()
    planned, running = sum(row.num_planned for row in rows), sum(row.num_running for row in rows)
    table.add_row(f"{len(rows)} tasks", "", *_counts(planned, total, running), "", left)
    table.caption = _reasons(rejected)
    return table


def corpora_table(root: Path) -> Table | None:
    """What is finished of every corpus; None if nothing is of any."""
    from rich.table import Table

    found = {corpus.name: shards for corpus in CORPORA if (shards := finished_documents(root, corpus.name))}
    names = ("corpus", "source", *SPLITS, "rejected", "MB")
    table = Table(*names)
    for column in table.columns[2:]:
        column.justify = "right"
    rejected: Counter[str] = Counter()
    for name, shards in found.items():
        counts = [sum(shard.num_documents for shard in shards if shard.split == split) for split in SPLITS]
        num_bytes = sum(shard.data.num_bytes + shard.documents.num_bytes for shard in shards)
        num_rejected = sum(shard.num_rejected for shard in shards)
        table.add_row(
            name, shards[0].source, *(f"{count:,}" for count in counts), f"{num_rejected:,}" if num_rejected else "",
            f"{num_bytes / 1e6:,.1f}",
        )  # fmt: skip
        for shard in shards:
            rejected.update(shard.rejected)
    table.caption = _reasons(rejected)
    return table if found else None


def _reasons(rejected: Counter[str]) -> str | None:
    """The most frequent ones; None if there are none."""
    return "rejected: " + "; ".join(f"{count} {why}" for why, count in rejected.most_common(10)) if rejected else None


def _counts(planned: int, finished: Finished, running: int) -> tuple[str, ...]:
    return (
        f"{planned:,}",
        f"{finished.num_seeds:,}",
        f"{running:,}" if running else "",
        f"{finished.num_rejected:,}" if finished.num_rejected else "",
        f"{finished.num_steps:,}",
        f"{finished.num_bytes / 1e6:,.1f}",
    )


def _headline(runs: Sequence[StageStatus]) -> str:
    """A line for each collector that runs; if none does, one for the last."""
    if not runs:
        return "no collector has run yet"
    running = [run for run in runs if run.is_running]
    return "\n".join(map(_collector_line, running or runs[-1:]))


def _collector_line(run: StageStatus) -> str:
    rate = f"{run.done:,} episodes in {format_seconds(run.seconds)}, {run.rate:.1f}/s"
    memory = f"driver {run.driver_bytes / 1e6:,.0f} MB, largest worker {run.worker_bytes / 1e6:,.0f} MB"
    if run.is_running:
        return f"process {run.process} on {run.host} is collecting: {rate}; {memory}"
    if run.condition == SILENT:
        return (
            f"process {run.process} on {run.host} stopped without a word; run the same command again to go on. "
            f"It had {rate}; {memory}"
        )
    return f"no collector is running; the last: {rate}; {memory}"


def show(config: StatusConfig) -> None:
    """Print a table of the stages, and those of the queue, the collection and the corpora if there are any.

    Raises:
        UserError: there is nothing to tell of.
    """
    runs = read_statuses(config.out)
    if runs:
        print_table(stages_table(runs), min_width=WIDTH)
    queued = read_reports(config.out)
    if queued:
        print_table(queue_table(queued), min_width=QUEUE_WIDTH)
    root = config.out / "shards"
    corpora = corpora_table(root)
    if corpora:
        print_table(corpora, min_width=WIDTH)
    if read_plan(root) or not (runs or queued or corpora):
        print_table(status_table(root, [run for run in runs if run.stage == COLLECT]), min_width=WIDTH)


def main() -> None:
    show(parse(StatusConfig))


if __name__ == "__main__":
    cli.run("collectors.status")

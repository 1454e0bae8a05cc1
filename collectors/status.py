"""Show the progress of every stage, and of a collection: planned, done, running, rejected, bytes, time left; the queue.

    jat status --out runs/default

Works while stages run, from any machine that can read the output, and after they have ended. Status files
(``pipeline/runtime/status.py``) give what is running, plans give what was requested, shards give what is finished.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experts.queue.states import read_reports
from experts.queue.table import queue_table
from pipeline import cli
from pipeline.cli import parse
from pipeline.errors import UserError
from pipeline.run_layout import RunLayout
from pipeline.runtime.status import DONE, SILENT, StageStatus, TaskCount, read_statuses
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import CORPORA
from pipeline.storage.documents import finished_documents
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import TaskPlan, read_plan
from pipeline.storage.shards import finished_shards
from pipeline.tables import Cell, Column, Table, print_tables
from pipeline.text import format_count, format_estimate, format_rate, format_seconds

COLLECT = "collect"


@dataclass(frozen=True)
class StatusConfig:
    """Show the progress of the stages in OUT."""

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
    """A row of the status: episodes planned, finished and running, and the outcome of the finished ones."""

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
        """Episodes per second of one worker, recently or else over all shards; None if unknown."""
        return self.progress.recent_rate or self.progress.rate


def statuses(root: Path, runs: Sequence[StageStatus] | None = None) -> list[TaskStatus]:
    """A row per planned task, by name, with the progress that collectors report; ``runs`` is read if it is not given.

    Raises:
        UserError: nothing was planned in this folder.
    """
    plan = read_plan(root)
    if not plan:
        raise UserError(f"nothing is planned in {root}; run `jat collect` with the same --out first")
    counts = task_counts(read_statuses(root.parent, COLLECT) if runs is None else runs)
    return [
        TaskStatus(name, task, summarise(finished_shards(root, name)), counts.get(name, TaskCount()))
        for name, task in sorted(plan.items())
    ]


def task_counts(runs: Sequence[StageStatus]) -> dict[str, TaskCount]:
    """The counts of each task, merged over all runs; only active runs have running shards."""
    tasks: dict[str, TaskCount] = {}
    for run in runs:
        for name, count in run.tasks.items():
            total = tasks.setdefault(name, TaskCount())
            total.timed += count.timed
            total.busy_s += count.busy_s
            if run.is_running:
                total.running.update(count.running)
                total.recent_rate = count.recent_rate or total.recent_rate
    return tasks


def stages_table(runs: Sequence[StageStatus]) -> Table:
    """A row per run, but all successful runs of a stage are merged into one row."""
    seconds = Column("for", format_seconds, "seconds")
    age = Column("last sign", lambda number: f"{format_seconds(number)} ago", "seconds_since_last_sign")
    free = Column("disk free", lambda number: f"{number / 1e9:,.1f} GB", "disk_free_bytes")
    table = Table("stage", "tasks", "state", "progress", seconds, age, "where", free)
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
            tasks += f" and {format_count(len(others) - 1, 'other run')}"
        progress = "; ".join(filter(None, (run.describe(), run.error and f"error: {run.error}")))
        table.add_row(
            run.stage, tasks, run.condition, progress, run.updated - run.started,
            max(0.0, time.time() - run.updated), f"{run.host}, process {run.process}", run.disk_free_bytes,
        )  # fmt: skip
    return table


def _shortened(task: str) -> str:
    first, *others = task.split(",")
    return f"{first} and {len(others)} more" if len(others) > 1 else task


def status_table(root: Path, runs: Sequence[StageStatus] | None = None) -> Table:
    """Every planned task of a collection, and the total."""
    runs = read_statuses(root.parent, COLLECT) if runs is None else runs
    rows = statuses(root, runs)
    counts = ("planned", "done", Column("running", _or_nothing), Column("rejected", _or_nothing), "steps")
    rate, left = Column("episodes/s per worker"), Column("left", format_estimate, "seconds_left")
    table = Table("task", "expert", *counts, Column("MB", ",.1f"), rate, left, title=_headline(runs))
    num_workers = sum(len(row.progress.running) for row in rows)
    for row in rows:
        missing = row.num_planned - row.finished.num_seeds - row.num_running
        seconds = missing / row.rate / max(num_workers, 1) if missing > 0 and row.rate else None
        who = row.plan.expert + (f" + {row.plan.noise}" if row.plan.noise else "")
        table.add_row(row.name, who, *_counts(row.num_planned, row.finished, row.num_running), row.rate, seconds)
    rejected: Counter[str] = Counter()
    for row in rows:
        rejected.update(row.finished.rejected)
    total = Finished(
        sum(row.finished.num_seeds for row in rows),
        sum(row.finished.num_steps for row in rows),
        sum(row.finished.num_bytes for row in rows),
        rejected,
    )
    lefts = [run.left_s for run in runs if run.is_running and run.left_s is not None]
    table.add_section()
    planned, running = sum(row.num_planned for row in rows), sum(row.num_running for row in rows)
    counted = _counts(planned, total, running)
    table.add_row(format_count(len(rows), "task"), "", *counted, None, max(lefts, default=None), is_total=True)
    table.caption = _reasons(rejected)
    return table


def corpora_table(root: Path) -> Table | None:
    """The finished documents of every corpus; None if there are none."""
    found = {corpus.name: shards for corpus in CORPORA if (shards := finished_documents(root, corpus.name))}
    table = Table("corpus", "source", *SPLITS, Column("rejected", _or_nothing), Column("MB", ",.1f"))
    rejected: Counter[str] = Counter()
    for name, shards in found.items():
        counts = [sum(shard.num_documents for shard in shards if shard.split == split) for split in SPLITS]
        num_bytes = sum(shard.data.num_bytes + shard.documents.num_bytes for shard in shards)
        num_rejected = sum(shard.num_rejected for shard in shards)
        table.add_row(name, shards[0].source, *counts, num_rejected, num_bytes / 1e6)
        for shard in shards:
            rejected.update(shard.rejected)
    table.caption = _reasons(rejected)
    return table if found else None


def _reasons(rejected: Counter[str]) -> str | None:
    """The most frequent reasons; None if there are none."""
    return "rejected: " + "; ".join(f"{count} {why}" for why, count in rejected.most_common(10)) if rejected else None


def _counts(planned: int, finished: Finished, running: int) -> tuple[Cell, ...]:
    return (
        planned,
        finished.num_seeds,
        running,
        finished.num_rejected,
        finished.num_steps,
        finished.num_bytes / 1e6,
    )


def _or_nothing(number: float) -> str:
    return f"{number:,}" if number else ""


def _headline(runs: Sequence[StageStatus]) -> str:
    """One line per running collector; if none is running, one line for the last collector."""
    if not runs:
        return "no collector has run yet"
    running = [run for run in runs if run.is_running]
    return "\n".join(map(_collector_line, running or runs[-1:]))


def _collector_line(run: StageStatus) -> str:
    rate = f"{format_count(run.done, 'episode')} in {format_seconds(run.seconds)}, {format_rate(run.rate)}"
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
    """Print a table of the stages, and tables of the queue, the collection and the corpora where they exist.

    Raises:
        UserError: there is nothing to show.
    """
    runs = read_statuses(config.out)
    tables = {"stages": stages_table(runs)} if runs else {}
    queued = read_reports(config.out)
    if queued:
        tables["queue"] = queue_table(queued)
    root = RunLayout(config.out).shards
    corpora = corpora_table(root)
    if corpora:
        tables["documents"] = corpora
    if read_plan(root) or not (runs or queued or corpora):
        tables["episodes"] = status_table(root, [run for run in runs if run.stage == COLLECT])
    print_tables(tables)


def main() -> None:
    show(parse(StatusConfig, prints_tables=True))


if __name__ == "__main__":
    cli.run("collectors.status")

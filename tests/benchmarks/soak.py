"""Measure how speed and memory of collection change over a long run and with the number of workers.

    python -m tests.benchmarks.soak --episodes 100000

First the same episodes are collected with one worker and with two, in alternation. Long runs follow, with speed and
memory reported from beginning to end. Runs are repeated because the speed of a shared machine varies. Each run is the
actual command in a temporary folder; speeds are computed from the times at which finished shards appeared, which
excludes the start of Ray.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from collectors.status import COLLECT
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import JobsFailedError, UserError
from pipeline.run_layout import RunLayout
from pipeline.runtime.status import read_statuses
from pipeline.storage.shards import finished_shards
from pipeline.tables import Column, Table, print_tables

SAMPLE_S = 2.0
WARMUP_EPISODES = 1000


@dataclass(frozen=True)
class SoakConfig:
    """Compare one worker with two, and the beginning of long runs with the rest."""

    task: str = "babyai-go-to-local"
    """Task name, domain, glob, or comma list of these; choose tasks with a scripted expert, which needs no training."""
    workers_episodes: int = 8000
    """Training episodes per task of each run with one and with two workers; 0 skips these runs."""
    rounds: int = 3
    """Number of runs with one worker, with two workers, and of long runs; the result is the median ratio."""
    episodes: int = 100_000
    """Training episodes per task of a long run; 0 skips long runs."""
    window: int = 10_000
    """Number of episodes over which speed is averaged, starting at episode 1,000."""
    shard_episodes: int = 250
    """Episodes per shard."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "rounds", "window", "shard_episodes")
        least = WARMUP_EPISODES + self.window
        if 0 < self.episodes < least:
            raise UserError(
                f"--episodes is {self.episodes:,}; with --window {self.window:,} it must be {least:,} or more"
            )


@dataclass(frozen=True)
class SoakSample:
    """A collector at one moment: episodes done, memory in bytes of the driver and of the largest worker."""

    episodes: int
    driver_bytes: int
    worker_bytes: int


@dataclass(frozen=True)
class Run:
    """Measurements of one collection.

    Attributes:
        finished_at: times in seconds at which shards were finished, ascending.
        episodes: number of episodes in each of these shards.
        samples: taken during the run.
    """

    finished_at: np.ndarray
    episodes: np.ndarray
    samples: list[SoakSample]

    def rate(self, first: int = 0, last: int | None = None) -> float:
        """Episodes per second from episode ``first`` to episode ``last``."""
        done = np.cumsum(self.episodes)
        chosen = np.flatnonzero((done >= first) & (done <= (done[-1] if last is None else last)))
        begin, end = chosen[0], chosen[-1]
        return float((done[end] - done[begin]) / (self.finished_at[end] - self.finished_at[begin]))


def collect_and_watch(config: SoakConfig, tasks: Sequence[Task], episodes: int, workers: int) -> Run:
    """Collect in a subprocess and poll its status every few seconds.

    Raises:
        JobsFailedError: the collector failed.
    """
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory)
        command = [sys.executable, "-m", "collectors.collect", "--task", config.task, "--out", directory]
        command += ["--episodes", str(episodes), "--workers", str(workers), "--expert", "scripted,bot"]
        command += ["--shard-episodes", str(config.shard_episodes)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        samples: list[SoakSample] = []
        is_over = False
        try:
            while not is_over:
                is_over = (
                    process.poll() is not None
                )  # polled before the last read: a short run writes its status only at its end
                for status in read_statuses(out, COLLECT):
                    if status.worker_bytes:
                        samples.append(SoakSample(status.done, status.driver_bytes, status.worker_bytes))
                if not is_over:
                    time.sleep(SAMPLE_S)
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise JobsFailedError(
                f"{' '.join(command)} ended with code {process.returncode}; run it by hand to see why"
            )
        times, counts = [], []
        for task in tasks:
            for shard in finished_shards(RunLayout(out).shards, task.name):
                times.append((RunLayout(out).shards / task.name / f"{shard.stem}.json").stat().st_mtime)
                counts.append(shard.num_seeds)
    order = np.argsort(times)
    return Run(np.array(times)[order], np.array(counts)[order], samples)


def main() -> None:
    config = parse(SoakConfig, prints_tables=True)
    tasks = select_tasks(config.task)
    tables: dict[str, Table] = {}
    if config.workers_episodes:
        one, two = [], []
        for _ in range(config.rounds):
            one.append(collect_and_watch(config, tasks, config.workers_episodes, 1).rate())
            two.append(collect_and_watch(config, tasks, config.workers_episodes, 2).rate())
        columns = (
            Column("1 worker", ".1f", "one_worker"),
            Column("2 workers", ".1f", "two_workers"),
            Column("ratio", ".2f"),
        )
        table = Table(*columns, title=f"episodes/s, {config.task}")
        ratio = median(b / a for a, b in zip(one, two, strict=True))
        table.add_row(median(one), median(two), ratio)
        tables["workers"] = table
    if config.episodes:
        runs = [collect_and_watch(config, tasks, config.episodes, 2) for _ in range(config.rounds)]
        tables["long_runs"] = long_runs_table(config, runs)
    print_tables(tables)


def long_runs_table(config: SoakConfig, runs: Sequence[Run]) -> Table:
    """Speed and memory over the course of the long runs."""
    total = int(runs[0].episodes.sum())
    if not all(run.samples for run in runs):
        raise UserError(f"{total:,} episodes were over before their workers' memory was read; raise --episodes")
    firsts = range(WARMUP_EPISODES, total - config.window + 1, config.window)
    windows = [(first, first + config.window) for first in firsts]
    columns = (Column("episodes/s", ".1f"), Column("driver MB", ",.0f"), Column("largest worker MB", ",.0f"))
    table = Table("episodes", *columns, title=f"long runs, {config.task}")
    rates = [[run.rate(*window) for run in runs] for window in windows]
    for (first, last), found in zip(windows, rates, strict=True):
        samples = [min(run.samples, key=lambda s: abs(s.episodes - last)) for run in runs]
        memory = [median(s.driver_bytes for s in samples), median(s.worker_bytes for s in samples)]
        table.add_row(f"{first:,} to {last:,}", median(found), *(size / 2**20 for size in memory))
    ratios = sorted(late / early for early, late in zip(rates[0], rates[-1], strict=True))
    table.caption = f"last / first: {median(ratios):.3f}, of {ratios[0]:.3f} to {ratios[-1]:.3f}"
    return table


if __name__ == "__main__":
    run("tests.benchmarks.soak")

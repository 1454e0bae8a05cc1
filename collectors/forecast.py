"""Estimate what a collection will take: episodes, steps, core-hours, bytes, files and memory.

    jat plan --recipe jat --workers 64

Takes those options of ``collectors.collect`` that matter here. Lengths, speeds and sizes come from ``OUT/rates.json``
and ``collectors/rates.json`` (``collectors/rates.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from collectors.config import RECIPES, CollectConfig, check_amounts
from collectors.rates import Rates, load_rates
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.seeds import SPLITS
from pipeline.tables import Cell, Column, Table, print_table
from pipeline.text import format_count, format_seconds

FILES_PER_SHARD = 3  # data, side table, manifest
FILES_PER_TASK = 1  # the index


@dataclass(frozen=True)
class ForecastConfig:
    """Estimate what a collection will take. The options are those of `collectors.collect`."""

    task: str = "*"
    """Task name, domain, glob, or comma list of these."""
    episodes: str = "1000"
    """Training episodes per task, or steps, in the syntax of `jat collect`."""
    test_share: float = 0.1
    """Test episodes as a share of the training episodes."""
    shard_episodes: str = "250"
    """Episodes per shard, in the syntax of `jat collect`."""
    workers: int = 2
    """Number of worker processes, each with its own core."""
    out: Path = Path("runs/default")
    """Root of a run; its own speeds, as measured by `jat rates`, take precedence over those of the package."""
    by_task: bool = False
    """Also print a row per task."""

    def __post_init__(self) -> None:
        check_at_least_one(self, "workers")
        self.collection()

    def collection(self) -> CollectConfig:
        """The same options as a ``CollectConfig``, which checks them."""
        return CollectConfig(
            task=self.task,
            episodes=self.episodes,
            test_share=self.test_share,
            shard_episodes=self.shard_episodes,
            workers=self.workers,
        )


def _of_recipe(recipe: Callable[[], CollectConfig]) -> ForecastConfig:
    shared = {field.name for field in dataclasses.fields(ForecastConfig)} - {"by_task", "out"}
    return ForecastConfig(**{name: getattr(recipe(), name) for name in shared})


@dataclass(frozen=True)
class Cost:
    """The cost of one task or of several."""

    tasks: int = 0
    measured: int = 0  # tasks with their own measurements
    episodes: int = 0
    steps: float = 0.0
    core_s: float = 0.0
    num_bytes: float = 0.0
    shards: int = 0
    longest_s: float = 0.0  # of one shard, which a single worker writes

    @property
    def files(self) -> int:
        return FILES_PER_SHARD * self.shards + FILES_PER_TASK * self.tasks

    def __add__(self, other: Cost) -> Cost:
        names = {field.name for field in dataclasses.fields(Cost)} - {"longest_s"}
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return Cost(**sums, longest_s=max(self.longest_s, other.longest_s))

    def seconds(self, workers: int) -> float:
        """Wall time with this many workers, one core each; at least the time of the longest shard."""
        return max(self.core_s / workers, self.longest_s)


def costs(config: CollectConfig, tasks: Sequence[Task], rates: Rates) -> dict[str, Cost]:
    """The cost of each task, by name.

    Raises:
        UserError: an option has no value for a task, or its cost is unknown.
    """
    found = {}
    for task in tasks:
        rate = rates.of_task(task)
        counts = [config.num_episodes(task, split, rate.steps_per_episode) for split in SPLITS]
        steps = sum(counts) * rate.steps_per_episode
        found[task.name] = Cost(
            tasks=1,
            measured=int(task.name in rates.tasks),
            episodes=sum(counts),
            steps=steps,
            core_s=steps / rate.steps_per_second,
            num_bytes=steps * rate.bytes_per_step,
            shards=sum(-(-count // config.shard_size(task)) for count in counts),
            longest_s=min(max(counts), config.shard_size(task)) * rate.steps_per_episode / rate.steps_per_second,
        )
    return found


def forecast_table(config: ForecastConfig, found: Mapping[Task, Cost], rates: Rates) -> Table:
    """A row per domain, per task if requested, and a total; the caption gives times and the driver's memory."""
    sizes = (Column("core-hours", ",.1f"), Column("GB", ",.2f"), "shards", "files", Column("MB per shard", ",.1f"))
    steps = Column("steps", lambda number: f"{number / 1e6:,.1f} M")
    table = Table("task" if config.by_task else "domain", "tasks", "episodes", steps, *sizes, "figures from")
    for domain in dict.fromkeys(task.domain for task in found):
        alike = {task: cost for task, cost in found.items() if task.domain == domain}
        total = sum(alike.values(), Cost())
        if config.by_task:
            for task, cost in alike.items():
                table.add_row(task.name, *_cells(cost), rates.of_task(task).source)
            table.add_section()
        estimate = rates.estimates.get(domain)
        known = f"ESTIMATE: {estimate.source}" if estimate and not total.measured else _known(total)
        table.add_row(domain, *_cells(total), known, is_total=config.by_task)
    everything = sum(found.values(), Cost())
    table.add_section()
    table.add_row("all", *_cells(everything), _known(everything), is_total=True)
    workers = format_count(config.workers, "worker")
    table.caption = f"{workers} with a core each: {_wall_time(config, everything, rates)}."
    if rates.driver_bytes:
        table.caption += f" The driver takes about {rates.driver_bytes / 1e6:.0f} MB."
    return table


def _known(cost: Cost) -> str:
    return f"{cost.measured} of {format_count(cost.tasks, 'task')} measured"


def _wall_time(config: ForecastConfig, cost: Cost, rates: Rates) -> str:
    working = cost.seconds(config.workers)
    if not rates.start_s:
        return format_seconds(working)
    return f"{format_seconds(rates.start_s + working)}, {format_seconds(rates.start_s)} of it to start Ray and workers"


def _cells(cost: Cost) -> tuple[Cell, ...]:
    return (
        cost.tasks,
        cost.episodes,
        cost.steps,
        cost.core_s / 3600,
        cost.num_bytes / 1e9,
        cost.shards,
        cost.files,
        cost.num_bytes / cost.shards / 1e6,
    )


def forecast(config: ForecastConfig, tasks: Sequence[Task], rates: Rates) -> Table:
    """The table of ``config``.

    Raises:
        UserError: an option has no value for a task, or its cost is unknown.
    """
    collection = config.collection()
    check_amounts(collection, tasks)
    found = costs(collection, tasks, rates)
    return forecast_table(config, {task: found[task.name] for task in tasks}, rates)


def main() -> None:
    recipes = {name: partial(_of_recipe, recipe) for name, recipe in RECIPES.items()}
    config = parse(ForecastConfig, recipes, prints_tables=True)
    print_table(forecast(config, select_tasks(config.task), load_rates(config.out)))


if __name__ == "__main__":
    run("collectors.forecast")

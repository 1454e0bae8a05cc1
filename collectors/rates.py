"""Measure what collecting costs per task: steps per episode, steps per second on one core, and bytes per step.

    jat rates --out runs/default

Reads the finished shards of a run and the status of its collectors and writes ``OUT/rates.json``. `jat plan` and
`jat collect` with the same OUT use it for their estimates; for tasks missing there they use ``collectors/rates.json``,
which ships with the package. Only ``--ship`` writes the shipped file.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, harmonic_mean, median

from collectors.status import COLLECT, summarise, task_counts
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.records import read_record
from pipeline.run_layout import RunLayout
from pipeline.runtime.status import StageStatus, read_statuses
from pipeline.storage.plan import read_plan
from pipeline.storage.shards import finished_shards
from pipeline.text import format_count

log = logging.getLogger(__name__)

RATES = Path(__file__).with_name("rates.json")  # ships with the package
MIN_EPISODES = 100  # per task, required for the shipped table


@dataclass(frozen=True)
class Rate:
    """What one task costs. Every played seed counts as an episode, also a rejected one.

    Attributes:
        steps_per_episode: stored steps, mean over the played seeds.
        steps_per_second: of one worker on one core, from reset to the finished shard.
        bytes_per_step: on disk, side table included.
        episodes: number of measured episodes; 0 for an estimate.
        source: the acting expert, or the source of an estimate.
    """

    steps_per_episode: float
    steps_per_second: float
    bytes_per_step: float
    episodes: int
    source: str

    @property
    def is_possible(self) -> bool:
        numbers = (self.steps_per_episode, self.steps_per_second, self.bytes_per_step)
        return all(0 < number < math.inf for number in numbers) and self.episodes >= 0


@dataclass(frozen=True)
class Rates:
    """All known rates.

    Attributes:
        tasks: measured tasks, by name.
        estimates: by domain, for domains without measurements.
        driver_bytes: largest measured memory of the collecting process; 0 if not measured.
        start_s: seconds from a collector's start to the first step of a worker; 0 if not measured.
    """

    tasks: Mapping[str, Rate] = field(default_factory=dict)
    estimates: Mapping[str, Rate] = field(default_factory=dict)
    driver_bytes: int = 0
    start_s: float = 0.0

    def find(self, task: Task) -> Rate | None:
        """Like ``of_task``, but None if nothing is known about the domain."""
        try:
            return self.of_task(task)
        except UserError:
            return None

    def of_task(self, task: Task) -> Rate:
        """The task's own rates, else the mean of its domain's measured tasks, else the domain's estimate.

        Speeds are averaged by the harmonic mean, which averages the seconds per step; lengths and bytes by the
        arithmetic mean.

        Raises:
            UserError: nothing is known about the domain.
        """
        if task.name in self.tasks:
            return self.tasks[task.name]
        alike = [rate for name, rate in self.tasks.items() if name.startswith(f"{task.domain}-")]
        if alike:
            return Rate(
                min(fmean(rate.steps_per_episode for rate in alike), task.max_steps),
                harmonic_mean([rate.steps_per_second for rate in alike]),
                fmean(rate.bytes_per_step for rate in alike),
                0,
                f"mean of {format_count(len(alike), 'task')}",
            )
        if task.domain in self.estimates:
            return self.estimates[task.domain]
        raise UserError(
            f"nothing is known of what {task.name} costs; collect a little of {task.domain} and run "
            f"`jat rates` with the same --out"
        )


def load_rates(out: Path | None = None) -> Rates:
    """The rates measured in the run ``out``; for tasks not collected there, those shipped with the package."""
    shipped = read_rates(RATES)
    if out is None:
        return shipped
    own = read_rates(RunLayout(out).rates)
    return Rates(
        {**shipped.tasks, **own.tasks},
        shipped.estimates,
        own.driver_bytes or shipped.driver_bytes,
        own.start_s or shipped.start_s,
    )


def read_rates(path: Path) -> Rates:
    """The rates in a file; empty if the file does not exist.

    Raises:
        UserError: it is not a table of rates, or has numbers that no rate can have.
    """
    if not path.exists():
        return Rates()
    what, fix = "a table of rates", "delete it and run `jat rates` again"
    found = read_record(path, Rates, what, fix)
    wrong = [name for name, rate in (*found.tasks.items(), *found.estimates.items()) if not rate.is_possible]
    if wrong or found.driver_bytes < 0 or not 0 <= found.start_s < math.inf:
        raise UserError(f"{path} is not {what} (a number of {[*wrong, 'the run'][0]!r} is impossible); {fix}")
    return found


@dataclass(frozen=True)
class RatesConfig:
    """Measure what the collection in OUT/shards has cost, per task, and write it to OUT/rates.json."""

    out: Path = Path("runs/default")
    """Root of a run with a collection."""
    ship: bool = False
    """Write to the table that ships with the package instead, which all other runs use for planning; needs at least 100
    episodes of each task."""


def measure(root: Path) -> tuple[dict[str, Rate], int]:
    """Rates of every planned task with a finished and timed shard, and the driver's memory in bytes.

    Raises:
        UserError: there is no such task.
    """
    runs = read_statuses(root.parent, COLLECT)
    tasks = task_counts(runs)
    found = {}
    for name, plan in read_plan(root).items():
        done = summarise(finished_shards(root, name))
        timed = tasks.get(name)
        if timed is None or timed.rate is None or not done.num_steps:
            continue
        length = done.num_steps / done.num_seeds
        source = plan.expert + (f" + {plan.noise}" if plan.noise else "")
        found[name] = Rate(
            _rounded(length), _rounded(timed.rate * length), _rounded(done.num_bytes / done.num_steps),
            done.num_seeds, source,
        )  # fmt: skip
    if not found:
        raise UserError(f"no shard in {root} is finished and timed; run `jat collect` with the same --out first")
    return found, max(run.driver_bytes for run in runs)


def _rounded(value: float) -> float:
    """Rounded to four digits, the precision of a single measurement."""
    return float(f"{value:.4g}")


def measure_start(runs: Sequence[StageStatus]) -> float:
    """Seconds from the start of a collector to its first step, median of ``runs``; 0 if none has made a step."""
    seconds = [run.counting_since - run.started for run in runs if run.done]
    return median(seconds) if seconds else 0.0


def update_rates(config: RatesConfig) -> Rates:
    """Measure and write the rates; the result also contains the tasks of earlier runs.

    Raises:
        UserError: ``out`` has no collection, a task no longer exists, or there are too few episodes for ``ship``.
    """
    path = RATES if config.ship else RunLayout(config.out).rates
    before = read_rates(path)
    found, driver_bytes = measure(RunLayout(config.out).shards)
    for name in found:
        select_tasks(name)
    few = [f"{name} ({rate.episodes})" for name, rate in found.items() if rate.episodes < MIN_EPISODES]
    if config.ship and few:
        raise UserError(
            f"--ship takes at least {MIN_EPISODES} episodes of each task; there are fewer of {', '.join(few)}. Collect "
            f"more, or leave --ship out: the figures then go to {RunLayout(config.out).rates}"
        )
    tasks = {**before.tasks, **found}
    rates = Rates(
        {name: tasks[name] for name in sorted(tasks)},
        before.estimates,
        max(before.driver_bytes, driver_bytes),
        _rounded(measure_start(read_statuses(config.out, COLLECT)) or before.start_s),
    )
    write_json(path, asdict(rates))
    log.info("%s measured, %d in %s", format_count(len(found), "task"), len(tasks), path)
    return rates


def main() -> None:
    update_rates(parse(RatesConfig))


if __name__ == "__main__":
    run("collectors.rates")

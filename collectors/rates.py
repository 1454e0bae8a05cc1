"""What collecting costs: steps of an episode, steps per second on one core, bytes per step; measured, per task.

    jat rates --out runs/default

Reads the finished shards of a run and the status of its collectors and writes ``OUT/rates.json``. `jat plan` and
`jat collect` with the same OUT estimate with it, and with ``collectors/rates.json``, which comes with the package, for
tasks that are not in it. Only ``--ship`` writes that one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, harmonic_mean, median

from collectors.status import COLLECT, summarise, task_counts
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from pipeline.runtime.status import StageStatus, read_statuses
from pipeline.storage.plan import read_plan
from pipeline.storage.shards import finished_shards
from pipeline.text import format_count

log = logging.getLogger(__name__)

RATES = Path(__file__).with_name("rates.json")  # comes with the package
OF_RUN = "rates.json"  # below OUT
MIN_EPISODES = 100  # of a task in the table that comes with the package


@dataclass(frozen=True)
class Rate:
    """What one task costs. An episode is a seed played, rejected ones included.

    Attributes:
        steps_per_episode: steps that are kept, mean over the seeds played.
        steps_per_second: of one worker on one core, from reset to the finished shard.
        bytes_per_step: on disk, side table included.
        episodes: that these figures are from; 0 for an estimate.
        source: who acted, or where an estimate comes from.
    """

    steps_per_episode: float
    steps_per_second: float
    bytes_per_step: float
    episodes: int
    source: str


@dataclass(frozen=True)
class Rates:
    """All that is known.

    Attributes:
        tasks: measured ones, by name.
        estimates: by domain, for domains of which nothing is measured.
        driver_bytes: memory of the collecting process, the largest measured; 0 if none is.
        start_s: seconds from a collector's start to the first step of a worker; 0 if not measured.
    """

    tasks: Mapping[str, Rate] = field(default_factory=dict)
    estimates: Mapping[str, Rate] = field(default_factory=dict)
    driver_bytes: int = 0
    start_s: float = 0.0

    def find(self, task: Task) -> Rate | None:
        """As ``of_task``; None if nothing is known of the domain."""
        try:
            return self.of_task(task)
        except UserError:
            return None

    def of_task(self, task: Task) -> Rate:
        """The task's own figures, else the mean of its domain's measured ones, else the domain's estimate.

        Of speeds the harmonic mean, which is that of the seconds a step takes: times, lengths and bytes add up.

        Raises:
            UserError: nothing is known of the domain.
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
    """What is known: measured in the run ``out``, and in the package for tasks that were not collected there."""
    shipped = read_rates(RATES)
    if out is None:
        return shipped
    own = read_rates(out / OF_RUN)
    return Rates(
        {**shipped.tasks, **own.tasks},
        shipped.estimates,
        own.driver_bytes or shipped.driver_bytes,
        own.start_s or shipped.start_s,
    )


def read_rates(path: Path) -> Rates:
    """The figures of a file; none if there is no such file."""
    if not path.exists():
        return Rates()
    raw = read_json(path)
    return Rates(
        {name: Rate(**rate) for name, rate in raw["tasks"].items()},
        {domain: Rate(**rate) for domain, rate in raw["estimates"].items()},
        raw["driver_bytes"],
        raw.get("start_s", 0.0),
    )


@dataclass(frozen=True)
class RatesConfig:
    """Measure what the collection in OUT/shards has cost, per task, and write it to OUT/rates.json."""

    out: Path = Path("runs/default")
    """Root of a run that has collected."""
    ship: bool = False
    """Write to the table that comes with the package instead, which all other runs are planned with; takes at least 100
    episodes of each task."""


def measure(root: Path) -> tuple[dict[str, Rate], int]:
    """Figures of every planned task of which a shard is finished and timed, and the driver's memory in bytes.

    Raises:
        UserError: there is none.
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
    """Four digits: what is measured once is not known better."""
    return float(f"{value:.4g}")


def measure_start(runs: Sequence[StageStatus]) -> float:
    """Seconds from the start of a collector to its first step, median of ``runs``; 0 if none has got so far."""
    seconds = [run.counting_since - run.started for run in runs if run.done]
    return median(seconds) if seconds else 0.0


def update_rates(config: RatesConfig) -> Rates:
    """Measure and write; the result holds the tasks of earlier runs, too.

    Raises:
        UserError: nothing is collected in ``out``, a task that is no more, or too few episodes for ``ship``.
    """
    path = RATES if config.ship else config.out / OF_RUN
    before = read_rates(path)
    found, driver_bytes = measure(config.out / "shards")
    for name in found:
        select_tasks(name)
    few = [f"{name} ({rate.episodes})" for name, rate in found.items() if rate.episodes < MIN_EPISODES]
    if config.ship and few:
        raise UserError(
            f"--ship takes at least {MIN_EPISODES} episodes of each task; there are fewer of {', '.join(few)}. Collect "
            f"more, or leave --ship out: the figures then go to {config.out / OF_RUN}"
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

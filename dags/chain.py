"""Run stages one after another, each as its own command.

    jat chain --recipe demo --out runs/demo

Every stage is resumable and exits immediately if nothing is left to do, so running the chain again resumes it.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dags.stages import STAGES, Stage, command
from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.stopping import deferred_stop, raise_stop, stop_requested
from pipeline.tables import Column, Table, print_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainConfig:
    """Run experts, collect, dataset, train, evaluate, film and report in this order."""

    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    recipe: str | None = None
    """Recipe of every stage that has recipes; each stage's own default if not given."""
    task: str | None = None
    """Task name, domain, glob, or comma-separated list of these; the recipe's tasks if not given."""
    episodes: str | None = None
    """Number of training episodes per task; the recipe's number if not given."""
    workers: int = 2
    """Number of worker processes."""
    first: str = "experts"
    """First stage to run."""
    last: str = "report"
    """Last stage to run."""


def stages_between(first: str, last: str) -> tuple[Stage, ...]:
    """The stages from ``first`` to ``last``, both included.

    Raises:
        UserError: an unknown stage, or ``last`` before ``first``.
    """
    names = [stage.name for stage in STAGES]
    for name in (first, last):
        if name not in names:
            raise UserError(f"unknown stage {name!r}; allowed: {', '.join(names)}")
    chosen = STAGES[names.index(first) : names.index(last) + 1]
    if not chosen:
        raise UserError(f"stage {last!r} comes before {first!r}; the order is: {', '.join(names)}")
    return chosen


def options(config: ChainConfig) -> dict[str, str]:
    """Options that are passed to the stages, by name."""
    values = {name: getattr(config, name) for name in ("out", "recipe", "task", "episodes", "workers")}
    return {name: str(value) for name, value in values.items() if value is not None}


def run_chain(config: ChainConfig) -> None:
    """Run the stages; if a stage fails, exit with its exit code."""
    started = time.monotonic()
    stages = stages_between(config.first, config.last)
    durations: dict[str, float] = {}
    for number, stage in enumerate(stages, 1):
        stage_started = time.monotonic()
        log.info("stage %d of %d: %s", number, len(stages), stage.name)
        code = run_stage(command(stage, options(config)))
        if code:
            log.error("stage %s ended with exit code %d; run the same command again to go on", stage.name, code)
            sys.exit(code)
        now = time.monotonic()
        durations[stage.name] = now - stage_started
        log.info("%s took %.0f s, %.0f s since the start", stage.name, durations[stage.name], now - started)
    print_table(durations_table(durations))


def durations_table(durations: Mapping[str, float]) -> Table:
    """Seconds of each stage, and of all together."""
    table = Table(Column("stage"), Column("seconds", ",.0f"), title="Duration")
    for name, seconds in durations.items():
        table.add_row(name, seconds)
    table.add_section()
    table.add_row("all", sum(durations.values()), is_total=True)
    return table


def run_stage(words: Sequence[str]) -> int:
    """Run a command and return its exit code. Signals are forwarded to it, so that it can save its work."""
    process = subprocess.Popen(words)
    try:
        with deferred_stop(process.terminate):
            code = process.wait()
    except BaseException:  # a second Ctrl-C
        process.kill()
        process.wait()
        raise
    if stop_requested():
        raise_stop()
    return code


def main() -> None:
    run_chain(parse(ChainConfig, {"demo": _demo}, prints_tables=True))


def _demo() -> ChainConfig:
    return ChainConfig(out=Path("runs/demo"), recipe="demo")


if __name__ == "__main__":
    run("dags.chain")

"""Compares ways to sample tasks, or objectives, at equal processor time: scores with intervals, and each task's.

    python -m tests.benchmarks.recipes --study sampling --out runs/some
    python -m tests.benchmarks.recipes --study objectives --out runs/mixed

Writes ``OUT/<study>/``: the trainings (``tests/benchmarks/study.py``) and ``results.json``. What measuring and value
heads cost counts, because every training runs for its processor time, not for a number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.tables import Column, Table, interval_cell, print_table
from tests.benchmarks.study import StudyConfig, Variant, run_study

STUDIES = {
    "sampling": [
        Variant("uniform", {}, "tasks drawn alike"),
        Variant("adaptive-loss", {"sampling": "adaptive-loss"}, "by validation loss"),
        Variant("adaptive", {"sampling": "adaptive"}, "by short evaluations"),
    ],
    "objectives": [
        Variant("clone", {}, "every action"),
        Variant("filtered", {"objective": "filtered"}, "the best third of the episodes"),
        Variant("return-conditioned", {"objective": "return-conditioned"}, "asked for a high return"),
        Variant("advantage", {"objective": "advantage"}, "weighted by advantage"),
    ],
}


@dataclass(frozen=True)
class RecipesConfig(StudyConfig):
    """Compare recipes at equal processor time."""

    study: str = "sampling"
    """What differs between the trainings."""
    sampling_every: int = 100
    """Optimiser steps between two measurements of adaptive sampling."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.study not in STUDIES:
            raise UserError(f"--study {self.study!r} is unknown; there are: {', '.join(STUDIES)}")


def main() -> None:
    config = parse(RecipesConfig, prints_tables=True)
    every = {"sampling_every": config.sampling_every}
    variants = [Variant(v.name, {**v.changes, **every}, v.about) for v in STUDIES[config.study]]
    results = run_study(config.study, variants, config, by_clock=True)
    if not results:
        return
    tasks = (Column(task.split("-", 1)[1], ".2f", task) for task in results[0].tasks)
    table = Table("variant", "what", "score [95 %]", "against the first", Column("M steps", ".2f"), *tasks)
    for r in results:
        difference = "" if r.difference is None else interval_cell(r.difference)
        means = (interval.mean for interval in r.tasks.values())
        table.add_row(r.variant, r.about, interval_cell(r.score), difference, r.timesteps / 1e6, *means)
    print_table(table)


if __name__ == "__main__":
    run("tests.benchmarks.recipes")

"""Sweeps one number of a recipe over several values: scores with intervals, a table and a plot.

    python -m tests.benchmarks.sweep --sweep kappa --out runs/full

``kappa`` repeats JAT's study of the weight of the loss on predicting the next observation (arXiv 2402.09844, section
5.3). Writes ``OUT/sweep-<name>/``: the trainings (``tests/benchmarks/study.py``), ``results.json`` and ``<name>.png``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.tables import Column, Table, interval_cell, print_table
from tests.benchmarks.study import Result, StudyConfig, Variant, run_study
from trainer.config import RECIPES, BaseModelConfig

log = logging.getLogger(__name__)

KAPPAS = (0.0, 0.005, 0.05, 0.5)


@dataclass(frozen=True)
class SweepConfig(StudyConfig):
    """Train a recipe at several values of one of its numbers."""

    sweep: str = "kappa"
    """Quantity to vary: `kappa`, the weight of the loss on predicting the next observation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweep != "kappa":
            raise UserError(f"--sweep {self.sweep!r} is unknown; there is: kappa")


def make_variants(training: str) -> list[Variant]:
    """Return the recipe at each kappa; the two weights of the loss sum to 1, as in JAT."""
    is_base = isinstance(RECIPES[training]().model, BaseModelConfig)
    variants = []
    for kappa in KAPPAS:
        changes = {"model.observation_loss_coef": kappa} | ({} if is_base else {"model.action_loss_coef": 1 - kappa})
        variants.append(Variant(f"kappa-{kappa:g}", changes, f"{kappa:g}"))
    return variants


def plot(results: Sequence[Result], title: str, path: Path) -> None:
    """Plot the mean score with its interval at each value, and each task's mean as a thin line."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    places = range(len(results))
    for task in results[0].tasks:
        axes.plot(places, [r.tasks[task].mean for r in results], color="0.8", linewidth=1)
    means = [r.score.mean for r in results]
    errors = [[r.score.mean - r.score.low for r in results], [r.score.high - r.score.mean for r in results]]
    axes.errorbar(places, means, errors, marker="o", capsize=4, color="tab:blue", label="mean, 95 % interval")
    axes.plot([], [], color="0.8", linewidth=1, label="single tasks")
    axes.set_xticks(places, [r.about for r in results])
    axes.set_xlabel(title)
    axes.set_ylabel("expert-normalised score")
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main() -> None:
    config = parse(SweepConfig, prints_tables=True)
    name = f"sweep-{config.sweep}"
    results = run_study(name, make_variants(config.training), config)
    if not results:
        return
    tasks = (Column(task.split("-", 1)[1], ".2f", task) for task in results[0].tasks)
    table = Table(config.sweep, Column("score [95 %]", ".3f", "score"), *tasks)
    for r in results:
        table.add_row(r.about, interval_cell(r.score), *(interval.mean for interval in r.tasks.values()))
    print_table(table)
    path = config.out / name / f"{config.sweep}.png"
    plot(results, "weight of the observation loss (kappa)", path)
    log.info("wrote %s", path)


if __name__ == "__main__":
    run("tests.benchmarks.sweep")

"""Compares two evaluations by the probability that an episode of one has a higher return than one of the other.

    jat agent compare --out runs/default --name early

Uses the tasks that both evaluated with the same environment versions: the probability of improvement of Agarwal et al.
2021 (arXiv 2108.13264), per task, per domain and overall, with stratified bootstrap 95 % intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.scoring.scores import Interval, probability_of_improvement
from pipeline.tables import Column, Table, interval_cell, print_table
from trainer.evaluation.results import OVERALL, TaskScore, load_scores


@dataclass(frozen=True)
class CompareConfig:
    """Compare two evaluations of a run."""

    name: str
    """Name of the baseline evaluation, as given to `jat evaluate --name`, such as early; empty for the run's own."""
    better: str = ""
    """Name of the evaluation to test for improvement; empty for the run's own."""
    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""

    def __post_init__(self) -> None:
        if self.better == self.name:
            raise UserError(f"--name and --better are both {self.name!r}; there is nothing to compare")


def compare(first: Sequence[TaskScore], second: Sequence[TaskScore]) -> dict[str, Interval]:
    """Return the probability of improvement of the first over the second: by task, then by domain, then ``overall``.

    Raises:
        UserError: they have no task in common.
    """
    others = {score.task: score for score in second}
    pairs = [(score, others[score.task]) for score in first if score.task in others]
    if not pairs:
        raise UserError(
            f"the two have no task in common: {', '.join(score.task for score in first) or 'none'}; "
            f"{', '.join(others) or 'none'}"
        )
    groups = {score.task: [(score, other)] for score, other in pairs}
    for domain in dict.fromkeys(score.domain for score, _ in pairs):
        groups[domain] = [pair for pair in pairs if pair[0].domain == domain]
    groups[OVERALL] = pairs
    return {
        name: probability_of_improvement([a.returns for a, _ in members], [b.returns for _, b in members])
        for name, members in groups.items()
    }


def main() -> None:
    config = parse(CompareConfig, prints_tables=True)
    first, second = load_scores(config.out, config.better), load_scores(config.out, config.name)
    columns = (Column("task", key="task"), Column("P(better) [95 %]", ".2f", "probability"))
    table = Table(*columns, title=f"{config.better or 'own'} over {config.name or 'own'}")
    for name, interval in compare(first, second).items():
        table.add_row(name, interval_cell(interval))
    print_table(table)


if __name__ == "__main__":
    run("trainer.evaluation.compare")

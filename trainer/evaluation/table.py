"""Formats the results of an evaluation as a table."""

from __future__ import annotations

from pipeline.tables import Column, Table, interval_cell
from trainer.evaluation.results import Evaluation

COLUMNS = (
    Column("task"),
    Column("random", ".2f"),
    Column("expert", ".2f"),
    Column("agent", ".2f"),
    Column("normalised [95 %]", ".2f", "normalised", missing="not scorable"),
    Column("success", ".2f", missing="-"),
)


def scores_table(evaluation: Evaluation) -> Table:
    """Return a table of mean returns, normalised score and success of each task, followed by the mean score of each
    domain."""
    counts = sorted({score.num_episodes for score in evaluation.tasks})
    seeds = " to ".join(dict.fromkeys(f"{count:,}" for count in (counts[0], counts[-1])))
    table = Table(*COLUMNS, title=f"Agent on {seeds} unseen {'seed' if counts[-1] == 1 else 'seeds'} per task")
    for score in evaluation.tasks:
        scaled = interval_cell(score.score)
        table.add_row(score.task, score.random, score.expert, score.agent.mean, scaled, score.success_rate)
    table.add_section()
    for domain in evaluation.domains:
        mean = interval_cell(domain.expert.mean if domain.expert else None)
        table.add_row(f"mean of {domain.domain}", "", "", "", mean, "", is_total=True)
    return table

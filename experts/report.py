"""Report the experts of a run: one table, with plots of their training and their scores.

    jat experts-report --task 'mujoco-*' --out runs/default

Writes ``OUT/experts/report/``: ``index.html``, one self-contained page in the style of ``trainer.reporting.report``;
``table.md``, the best expert of each task with the cost of its training; and the figures as PNG files, for documents.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experts import plots
from experts.ranking import (
    ExpertResult,
    best_by_return,
    best_by_success,
    best_of,
    is_better_than_random,
    random_among,
    rank_experts,
)
from pipeline.cli import parse, run
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.pages.figures import to_svg, write_png
from pipeline.pages.page import render_page
from pipeline.run_layout import PAGE, RunLayout
from pipeline.scoring.scores import jat_scale, jat_scores
from pipeline.tables import Column, Table, interval_cell, print_note, print_table

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
NOT_BETTER = "not better than random"
AS_GOOD = 0.9  # normalised score from which an expert counts as equal to JAT's
COLUMNS = (
    Column("task"),
    Column("expert"),
    Column("mean return [95 %]", ".2f", "mean_return"),
    Column("success", ".2f", missing="-"),
    Column("length", ".0f"),
    Column("normalised [95 %]", ".2f", "normalised", missing="-"),
    Column("JAT's expert", ".2f", "jat_expert", missing="-"),
    Column("episodes", "d"),
    Column("best by"),
    Column("origin"),
)
HEADINGS = tuple(column.heading for column in COLUMNS)


@dataclass(frozen=True)
class ExpertsReportConfig:
    """Print the table of all stored experts and write it as a page with plots."""

    task: str = "*"
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


def table_rows(ranked: Sequence[ExpertResult]) -> list[tuple[str, ...]]:
    """Return the formatted cells of the table for the experts of one task, in the given order."""
    return standings_table([ranked]).texts()


def standings_table(tasks: Sequence[Sequence[ExpertResult]]) -> Table:
    """Make the table of the measured experts of each task, best first."""
    table = Table(*COLUMNS, title="Experts; normalised: 0 is JAT's random policy, 1 is JAT's expert")
    for ranked in tasks:
        random = random_among(ranked)
        marks = {"return": best_by_return(ranked), "success": best_by_success(ranked)}
        for standing in ranked:
            best = ", ".join(name for name, found in marks.items() if found is standing)
            if random is not None and standing is not random and not is_better_than_random(standing, random):
                best = NOT_BETTER
            jat = jat_scores().get(standing.task.name)
            table.add_row(
                standing.task.name,
                standing.revision,
                interval_cell(standing.mean_return),
                standing.measurement.success_rate,
                standing.mean_length,
                interval_cell(standing.on_jat_scale),
                jat["expert"] if jat else None,
                len(standing.measurement.accepted_returns),
                best,
                standing.expert.record.origin,
            )
        table.add_section()
    return table


def report(config: ExpertsReportConfig, tasks: Sequence[Task]) -> Path:
    """Write the page with its figures and return its path.

    Raises:
        UserError: no expert has a measurement.
    """
    found = [ranked for task in tasks if (ranked := rank_experts(config.out, task))]
    if not found:
        raise UserError(
            f"no expert of {config.task} is measured in {config.out}; run `jat experts --task '{config.task}'` first"
        )
    print_table(standings_table(found))
    directory = RunLayout(config.out).experts_report
    overviews = [*plots.draw_bars(found), *plots.draw_overviews(config.out, tasks)]
    curves = plots.draw_curves(config.out, tasks)
    for plot in (*overviews, *curves):
        write_png(plot.figure, directory / f"{plot.name}.png")
    with replacing(directory / PAGE) as temporary:
        temporary.write_text(_page(found, overviews, curves), encoding="utf-8")
    with replacing(directory / "table.md") as temporary:
        temporary.write_text(markdown_table(found), encoding="utf-8")
    return directory / PAGE


def markdown_table(found: Sequence[Sequence[ExpertResult]]) -> str:
    """Make a Markdown table of each task's best expert, with the steps and minutes of its training if known.

    A task without an expert has a row that says so.
    """
    lines = [
        "| task | expert | mean return [95 %] | normalised | JAT's expert | success | steps | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for ranked in found:
        best = best_of(ranked)
        if best is None:
            jat = jat_scores().get(ranked[0].task.name)
            cells = (ranked[0].task.name, "none", "-", "-", f"{jat['expert']:.2f}" if jat else "-", "-", "-", "-")
            lines.append("| " + " | ".join(cells) + " |")
            continue
        row = dict(zip(HEADINGS, list(table_rows(ranked))[ranked.index(best)], strict=True))
        training = best.expert.record.training
        cells = (
            row["task"],
            f"`{row['expert']}`",
            row["mean return [95 %]"],
            row["normalised [95 %]"].split()[0],  # the row already shows the interval of the return
            row["JAT's expert"],
            row["success"],
            f"{training['steps']:,}" if "steps" in training else "-",
            f"{training['seconds'] / 60:.0f}" if "seconds" in training else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class DomainSummary:
    """Summary of the best experts of a domain's tasks.

    Attributes:
        median: median normalised score over tasks, on JAT's scale; None if no task has such a scale.
        num_as_good: tasks with a score of at least ``AS_GOOD``, out of ``num_compared``.
    """

    domain: str
    num_tasks: int
    median: float | None
    num_as_good: int
    num_compared: int


def summaries(found: Sequence[Sequence[ExpertResult]]) -> list[DomainSummary]:
    """Compute the summaries for the page's tiles, one per domain."""
    made = []
    for domain in dict.fromkeys(ranked[0].task.domain for ranked in found):
        of_domain = [ranked for ranked in found if ranked[0].task.domain == domain]
        best = [expert for ranked in of_domain if (expert := best_of(ranked))]
        scores = [score.mean for expert in best if (score := expert.on_jat_scale)]
        median = statistics.median(scores) if scores else None
        as_good = sum(score >= AS_GOOD for score in scores)
        made.append(DomainSummary(domain, len(of_domain), median, as_good, len(scores)))
    return made


@dataclass(frozen=True)
class ExpertRow:
    """A row of the page's table; ``marks`` are the keywords of its filter."""

    standing: ExpertResult
    marks: str
    jat_expert: float | None
    best_by: str
    steps: int | None
    seconds: float | None


def _rows(ranked: Sequence[ExpertResult]) -> Iterator[ExpertRow]:
    best = best_of(ranked)
    for standing, cells in zip(ranked, table_rows(ranked), strict=True):
        row = dict(zip(HEADINGS, cells, strict=True))
        training = standing.expert.record.training
        marks = [
            *(["best"] if standing is best else []),
            *(["weak"] if row["best by"] == NOT_BETTER else []),
            *(["trained"] if "steps" in training else []),
        ]
        jat = jat_scores().get(standing.task.name, {})
        yield ExpertRow(
            standing, " ".join(marks), jat.get("expert"), row["best by"], training.get("steps"), training.get("seconds")
        )


def _page(
    found: Sequence[Sequence[ExpertResult]], overviews: Sequence[plots.Plot], curves: Sequence[plots.Plot]
) -> str:
    num_experts = sum(not standing.is_random for ranked in found for standing in ranked)
    episodes = sorted({len(s.measurement.accepted_returns) for ranked in found for s in ranked})
    return render_page(
        TEMPLATE,
        num_tasks=len(found),
        num_experts=num_experts,
        num_episodes=str(episodes[0]) if len(episodes) == 1 else f"{episodes[0]} to {episodes[-1]}",
        domains=summaries(found),
        as_good=AS_GOOD,
        rows=[row for ranked in found for row in _rows(ranked)],
        not_better=NOT_BETTER,
        weak=[row for ranked in found for row in _rows(ranked) if row.best_by == NOT_BETTER],
        no_scale=[ranked[0].task.name for ranked in found if jat_scale(ranked[0].task.name) is None],
        without=[ranked[0].task.name for ranked in found if best_of(ranked) is None],
        overviews=[(plot.caption, to_svg(plot.figure, plot.caption)) for plot in overviews],
        curves=[(plot.caption, to_svg(plot.figure, plot.caption)) for plot in curves],
    )


def main() -> None:
    config = parse(ExpertsReportConfig, prints_tables=True)
    page = report(config, select_tasks(config.task))
    print_note(f"report: {page.absolute()}")


if __name__ == "__main__":
    run("experts.report")

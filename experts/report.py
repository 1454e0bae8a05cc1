"""The experts of a run in one table, with plots of how they were trained and how good they are.

    python -m experts.report --task 'mujoco-*' --out runs/default

Writes ``OUT/experts/report/``: ``index.html`` and the pictures it shows, and ``table.md``, the best expert of each task
with what its training cost.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experts import plots
from experts.ranking import (
    Standing,
    best_by_return,
    best_by_success,
    is_better_than_random,
    random_among,
    standings,
)
from pipeline.cli import parse, print_table, run
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.scores import Interval, jat_scores
from pipeline.tasks import Task, select_tasks

if TYPE_CHECKING:
    from rich.table import Table

TABLE_WIDTH = 180  # where the terminal does not say
HEADINGS = (
    "task", "expert", "mean return [95 %]", "success", "length", "normalised [95 %]", "JAT's expert", "episodes",
    "best by", "origin",
)  # fmt: skip


@dataclass(frozen=True)
class ReportConfig:
    """Print the table of all stored experts and write it with plots."""

    task: str = "*"
    """Task name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""


def table_rows(ranked: Sequence[Standing]) -> Iterator[tuple[str, ...]]:
    """The table's cells for the experts of one task, in the order given."""
    random = random_among(ranked)
    marks = {"return": best_by_return(ranked), "success": best_by_success(ranked)}
    for standing in ranked:
        measurement = standing.measurement
        best = ", ".join(name for name, found in marks.items() if found is standing)
        if random is not None and standing is not random and not is_better_than_random(standing, random):
            best = "not better than random"
        jat = jat_scores().get(standing.task.name)
        yield (
            standing.task.name,
            standing.revision,
            _interval(standing.mean_return),
            "-" if measurement.success_rate is None else f"{measurement.success_rate:.2f}",
            f"{standing.mean_length:.0f}",
            "-" if standing.on_jat_scale is None else _interval(standing.on_jat_scale),
            f"{jat['expert']:.2f}" if jat else "-",
            str(len(measurement.accepted_returns)),
            best,
            standing.expert.record.origin,
        )


def _interval(value: Interval) -> str:
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"


def standings_table(tasks: Sequence[Sequence[Standing]]) -> Table:
    """The measured experts of each task, best first, for the terminal."""
    from rich.table import Table

    table = Table(title="Experts; normalised: 0 is JAT's random policy, 1 is JAT's expert")
    for heading in HEADINGS:
        is_text = heading in ("task", "expert", "best by", "origin")
        table.add_column(heading, justify="left" if is_text else "right", no_wrap=heading != "origin")
    for ranked in tasks:
        for cells in table_rows(ranked):
            table.add_row(*cells)
        table.add_section()
    return table


def report(config: ReportConfig, tasks: Sequence[Task]) -> Path:
    """Write the page with its pictures and return its path.

    Raises:
        UserError: no expert is measured.
    """
    found = [ranked for task in tasks if (ranked := standings(config.out, task))]
    if not found:
        raise UserError(
            f"no expert of {config.task} is measured in {config.out}; run `make experts TASK={config.task}` first"
        )
    print_table(standings_table(found), min_width=TABLE_WIDTH)
    directory = config.out / "experts" / "report"
    pictures = plots.write_bars(directory, found)
    pictures += plots.write_overviews(directory, config.out, tasks)
    for task in tasks:
        pictures += plots.write_curves(directory, config.out, task)
    with replacing(directory / "index.html") as temporary:
        temporary.write_text(_page(found, pictures), encoding="utf-8")
    with replacing(directory / "table.md") as temporary:
        temporary.write_text(_markdown(found), encoding="utf-8")
    return directory / "index.html"


def _markdown(found: Sequence[Sequence[Standing]]) -> str:
    """The best expert by return of each task that has one, and the steps and minutes of its training if known."""
    lines = [
        "| task | expert | mean return [95 %] | normalised | JAT's expert | success | steps | minutes |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for ranked in found:
        best = best_by_return(ranked)
        if best is None:
            continue
        row = dict(zip(HEADINGS, list(table_rows(ranked))[ranked.index(best)], strict=True))
        training = best.expert.record.training
        cells = (
            row["task"],
            f"`{row['expert']}`",
            row["mean return [95 %]"],
            row["normalised [95 %]"].split()[0],  # the interval is that of the return
            row["JAT's expert"],
            row["success"],
            f"{training['steps']:,}" if "steps" in training else "-",
            f"{training['seconds'] / 60:.0f}" if "seconds" in training else "-",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


STYLE = """body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .2em .7em; text-align: right }
td:nth-child(1), td:nth-child(2), td:nth-child(9), td:nth-child(10) { text-align: left }
tr:nth-child(even) { background: #f2f4f6 } img { max-width: 100%; display: block; margin: 1em 0 }"""


def _page(found: Sequence[Sequence[Standing]], pictures: Sequence[str]) -> str:
    rows = [cells for ranked in found for cells in table_rows(ranked)]
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in HEADINGS)
    body = "\n".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    images = "\n".join(f'<img src="{name}" alt="{name.removesuffix(".png")}">' for name in pictures)
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Experts</title>
<style>{STYLE}</style>
<h1>Experts</h1>
<p>Measured on fixed seeds that are in no dataset. Normalised: 0 is JAT's random policy, 1 is JAT's expert, both as JAT
published them; intervals are 95 % bootstrap intervals over episodes.</p>
<table><thead><tr>{head}</tr></thead><tbody>
{body}
</tbody></table>
{images}
</html>
"""


def main() -> None:
    from rich.console import Console

    config = parse(ReportConfig)
    page = report(config, select_tasks(config.task))
    Console().print(f"report: {page.absolute()}", soft_wrap=True)


if __name__ == "__main__":
    run("experts.report")

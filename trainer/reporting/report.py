"""The report of a run: one self-contained HTML page, and the same table in the terminal.

    jat report --out runs/default

Reads the outputs of the other stages and writes ``OUT/report/index.html``, which opens from disk without network:
figures are inline SVG, videos are embedded. ``OUT/report/videos/`` has the videos also as files. ``jat report`` first
records the experts' videos (``experts.film``), so that they are shown next to the agent's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import replacing, sha256_of, update_json
from pipeline.pages.page import as_base64, data_url, render_page
from pipeline.run_layout import CONFIG, MANIFEST, PAGE, VIDEOS, RunLayout
from pipeline.runtime.stage import reported
from pipeline.tables import print_note, print_table
from pipeline.text import format_count
from trainer.evaluation.results import Evaluation, load_evaluation
from trainer.evaluation.table import scores_table
from trainer.reporting import plots
from trainer.reporting.commands import report_commands
from trainer.reporting.facts import WEAK, Facts, expert_revisions, gather
from trainer.reporting.histograms import returns_histogram
from trainer.reporting.videos import Pair, TaskVideo, find_pairs, make_grids, make_videos

log = logging.getLogger(__name__)

TEMPLATE = Path(__file__).parent / "templates" / "report.html.j2"
CURVES = {"step": "optimiser steps", "timesteps": "time steps seen", "flops": "floating-point operations"}
FEW_REFERENCES = 50  # with fewer episodes of random and expert, the page warns that the scale is uncertain
# Maximum shares of the page's bytes for the videos of single tasks and of domains; the rest is tables and figures.
TASKS_SHARE, GRIDS_SHARE = 0.65, 0.22


@dataclass(frozen=True)
class AgentReportConfig:
    """Write the report of a run."""

    out: Path = Path("runs/default")
    """Root directory of all outputs of a run."""
    name: str = ""
    """Report the evaluation in OUT/evaluation/NAME, to OUT/report/NAME; default is the run's own evaluation."""
    max_mb: float = 30.0
    """Maximum size of the page in MB; the quality of the videos is reduced to fit."""

    def __post_init__(self) -> None:
        if self.max_mb < 2:
            raise UserError(f"--max-mb is {self.max_mb:g}; it must be at least 2, which tables and figures take")


@dataclass(frozen=True)
class EmbeddedVideo:
    """The video of a task as base64, and the episodes in it."""

    data: str
    pairs: tuple[Pair, ...]


def report(config: AgentReportConfig) -> Path:
    """Write the page unless its contents are unchanged, and return its path.

    Raises:
        UserError: nothing is evaluated in this run.
    """
    facts = gather(config.out, config.name)
    directory = RunLayout(config.out).report(config.name)
    page = directory / PAGE
    log.info("rendering %s", page)
    pairs = {
        row.score.task: find_pairs(
            config.out, row.score.task, row.agent_revision, expert_revisions(config.out, row), config.name
        )
        for row in facts.rows
    }
    # Four bytes of base64 encode three of a video.
    num_bytes = config.max_mb * 1e6 * 3 / 4
    videos = make_videos(directory / VIDEOS, pairs, int(num_bytes * TASKS_SHARE))
    first = {
        domain.domain: {
            row.score.task: pairs[row.score.task][0]
            for row in facts.rows
            if row.score.domain == domain.domain and pairs[row.score.task]
        }
        for domain in facts.evaluation.domains
    }
    grids = make_grids(directory / VIDEOS, {k: v for k, v in first.items() if v}, int(num_bytes * GRIDS_SHARE))
    text = render(facts, videos, grids, config.out)
    if page.exists() and page.read_text(encoding="utf-8") == text:
        log.info("up to date: %s", page)
        return page
    if len(text.encode()) > config.max_mb * 1e6:
        log.warning("%s takes more than --max-mb %g even with its videos as small as they get", page, config.max_mb)
    with replacing(page) as temporary:
        temporary.write_text(text, encoding="utf-8")
    update_json(directory / CONFIG, config)
    update_json(directory / MANIFEST, {"page": sha256_of(page), "num_bytes": page.stat().st_size})
    log.info("written: %s, %.1f MB", page, page.stat().st_size / 1e6)
    return page


def render(facts: Facts, videos: Mapping[str, TaskVideo], grids: Mapping[str, Path], out: Path) -> str:
    """Render the page from facts and from existing video files."""
    episodes = sorted({row.score.num_episodes for row in facts.rows})
    references = min(row.score.num_reference_episodes for row in facts.rows)
    return render_page(
        TEMPLATE,
        facts=facts,
        plots=_plots(facts),
        videos={
            task: EmbeddedVideo(as_base64(video.path), video.pairs) for task, video in videos.items() if video.path
        },
        histograms={row.score.task: found for row in facts.rows if (found := returns_histogram(row.score))},
        grids={domain: data_url(path, "video/mp4") for domain, path in grids.items()},
        studies={path.stem: data_url(path, "image/png") for path in sorted(out.glob("sweep-*/*.png"))},
        weak=WEAK,
        num_episodes=str(episodes[0]) if len(episodes) == 1 else f"{episodes[0]} to {episodes[-1]}",
        few_references=FEW_REFERENCES if references < FEW_REFERENCES else None,
        duration=_duration,
        commands=report_commands(out),
    )


def _plots(facts: Facts) -> dict[str, Any]:
    """Return the figures, by their names in the template."""
    curve = facts.curve
    has_curve = curve is not None and len(curve.points) > 1
    return {
        "aggregates": plots.aggregates(facts.evaluation),
        "profile": plots.profile(facts.evaluation),
        "against_jat": plots.against_jat(facts.evaluation),
        "training": plots.training(facts.log) if facts.log else None,
        "validation": plots.validation(facts.log) if facts.log else None,
        "rounds": [
            plots.rounds(facts.rounds, "number", "round"),
            plots.rounds(facts.rounds, "queries", "expert queries"),
        ]
        if len(facts.rounds) > 1
        else [],
        "sampling": plots.sampling(facts.log),
        "curves": [plots.learning_curve(curve, key, label) for key, label in CURVES.items()]
        if curve is not None and has_curve
        else [],
    }


def _duration(seconds: float) -> str:
    """Format a duration in the largest unit in which it exceeds one."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return format_count(round(seconds), "second")


def print_scores(evaluation: Evaluation) -> None:
    """Print the results in the terminal."""
    print_table(scores_table(evaluation))


def main() -> None:
    config = parse(AgentReportConfig, prints_tables=True)
    with reported("report", config.out, needs_disk=True):
        page = report(config)
        print_scores(load_evaluation(config.out, config.name))
    print_note(f"report: {page.absolute()}")


if __name__ == "__main__":
    run("trainer.reporting.report")

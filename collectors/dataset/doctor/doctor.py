"""Report what looks wrong with the quality of a dataset, task by task, and what to do about it.

    jat dataset doctor --dataset runs/default/dataset --card

Reads every episode once and changes nothing, except with ``--card`` the section of the card on quality. Files that
break a rule are for ``jat dataset validate``; this looks for data that is valid and yet not what anybody wants.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collectors.dataset.doctor.checks import Finding, check_quality
from collectors.dataset.doctor.facts import gather_facts
from collectors.dataset.doctor.section import check_section, quality_section, replace_section
from collectors.dataset.surgery.source import open_source
from experts.ranking import rank_experts
from pipeline.cli import parse, run
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.runtime.progress import Progress
from pipeline.scoring.measurement import Measurement
from pipeline.storage.statistics import load_statistics
from pipeline.tables import Table, print_tables
from pipeline.text import format_count

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DoctorConfig:
    """Report what looks wrong with the quality of a dataset."""

    dataset: Path = Path("runs/default/dataset")
    """Folder of the dataset."""
    task: str = "*"
    """Tasks to look at: name, domain, glob, or comma list."""
    out: Path | None = None
    """Root of the run with the experts and their measurements; the folder around the dataset if not given."""
    card: bool = False
    """Write the findings into the dataset's card, for its publication."""


def examine(config: DoctorConfig, tasks: Sequence[Task] | None = None) -> list[Finding]:
    """All findings of the selected tasks.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: there is no dataset, it has none of the tasks, or a file is damaged.
    """
    source = open_source(config.dataset, tasks)
    chosen = source.choose(config.task, tasks)
    if config.card:
        if len(chosen) < len(source.tasks):
            raise UserError(f"--card is about all tasks of the dataset; leave --task {config.task} out")
        check_section(config.dataset)
    out = config.out or config.dataset.absolute().parent
    progress = Progress("tasks examined", len(chosen))
    facts = []
    for task in chosen:
        statistics = load_statistics(config.dataset, task).splits
        measurements = measurements_of(out, task)
        facts.append(gather_facts(config.dataset, source.manifest, task, statistics, True, measurements))
        progress.advance()
    findings = check_quality(facts)
    if config.card:
        replace_section(config.dataset, quality_section(findings, is_complete=True))
    return findings


def measurements_of(out: Path, task: Task) -> dict[str, Measurement]:
    """Measurements of a task's experts, of the run and of those that come with the package, by revision."""
    return {found.revision: found.measurement for found in rank_experts(out, task)}


def finding_table(findings: Sequence[Finding]) -> Table:
    """One row per finding."""
    table = Table("task", "finding", "count", "what", "what to do")
    for finding in findings:
        table.add_row(finding.task, finding.kind, finding.count, finding.what, finding.advice)
    return table


def main() -> None:
    config = parse(DoctorConfig, prints_tables=True)
    findings = examine(config)
    if findings:
        print_tables({"findings": finding_table(findings)})
    log.info("%s in %s", format_count(len(findings), "finding"), config.dataset)


if __name__ == "__main__":
    run("collectors.dataset.doctor.doctor")

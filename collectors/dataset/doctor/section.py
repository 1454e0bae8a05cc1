"""The card's section on quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from collectors.dataset.doctor.checks import Finding, check_quality
from collectors.dataset.doctor.facts import gather_facts
from collectors.dataset.layout import CARD
from collectors.dataset.markdown import as_text
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.statistics import TaskStatistics

BEGIN, END = "<!-- quality -->", "<!-- end of quality -->"
LOOKED_FOR = (
    "returns and lengths far from the others, dimensions that never change, failures that earn more, and imbalance"
)
LOOKED_FOR_IN_DATA = "equal episodes and tasks, clipped actions, returns unlike the experts' measurement, "


def quality_section(findings: Sequence[Finding], is_complete: bool) -> str:
    """Markdown about the findings.

    Args:
        findings: of all tasks of the dataset.
        is_complete: whether the steps were read, too, and not only side tables and statistics.
    """
    looked = (LOOKED_FOR_IN_DATA if is_complete else "") + LOOKED_FOR
    more = "" if is_complete else " `jat dataset doctor --card` reads the steps, too, and looks for more."
    if not findings:
        body = f"Nothing was found. Looked for: {looked}.{more}\n"
    else:
        rows = "".join(f"| {f.task} | {f.kind} | {f.count:,} | {as_text(f.what)} |\n" for f in findings)
        body = f"A finding is a reason to look, not a fault. Looked for: {looked}.{more}\n\n"
        body += f"| task | finding | count | what |\n|---|---|--:|---|\n{rows}"
    return f"\n## Quality\n\n{BEGIN}\n{body}{END}\n"


def section_without_data(
    dataset: Path, manifest: DatasetManifest, tasks: Sequence[Task], statistics: Mapping[str, TaskStatistics]
) -> str:
    """The section as far as side tables and statistics tell; empty without tasks."""
    facts = [gather_facts(dataset, manifest, task, statistics[task.name].splits) for task in tasks]
    return quality_section(check_quality(facts), is_complete=False) if facts else ""


def replace_section(dataset: Path, section: str) -> None:
    """Put a section in the place of the card's.

    Raises:
        UserError: the dataset has no card, or it has no such section any more.
    """
    before, after = check_section(dataset)
    inner = section[section.index(BEGIN) : section.index(END)]
    with replacing(dataset / CARD) as temporary:
        temporary.write_text(before + inner + after, encoding="utf-8")


def check_section(dataset: Path) -> tuple[str, str]:
    """The card before and after the content of its section; raises UserError if it has no such section."""
    path = dataset / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = text.find(BEGIN), text.find(END)
    if not 0 <= begin < end:
        raise UserError(f"{path} has no section on quality between {BEGIN} and {END}; build it anew with `jat dataset`")
    return text[:begin], text[end:]

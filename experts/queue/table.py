"""Format the queue as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from experts.queue.states import DONE, FAILED, WAITING, EntryReport
from pipeline.tables import Column, Table

# Block characters of one to eight eighths, and a fallback for ASCII terminals.
BLOCKS, ASCII = "".join(map(chr, range(0x2581, 0x2589))), "_.-=+*#@"


def sparkline(values: Sequence[float], width: int = 16, levels: str = BLOCKS) -> str:
    """Draw a curve in at most ``width`` characters: the last value of each part, scaled to the range of levels."""
    if not values:
        return ""
    count = min(width, len(values))
    shown = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    low, high = min(shown), max(shown)
    if low == high:
        return levels[0] * count
    return "".join(levels[round((value - low) / (high - low) * (len(levels) - 1))] for value in shown)


def queue_table(reports: Sequence[EntryReport]) -> Table:
    """Make a table with one row per entry, in the queue's order, and a row of totals."""
    from rich.console import Console

    levels = ASCII if Console().options.ascii_only else BLOCKS
    numbers = (Column("steps", ",d"), Column("of", ",d", "planned_steps"), Column("return", ".4g"))
    hours = (Column("core-hours", _hours), Column("left", _hours, "core_hours_left"))
    table = Table(Column("", "d", "number"), "task", "algorithm", "state", *numbers, "curve", *hours, "note")
    for number, report in enumerate(reports, 1):
        progress, state = report.progress, report.state
        table.add_row(
            number, report.entry.task, report.entry.algorithm, state.state, progress.steps, report.steps,
            progress.mean_return, sparkline([point.mean_return for point in report.curve], levels=levels),
            progress.core_seconds / 3600, report.core_seconds_left / 3600, _note(report),
        )  # fmt: skip
    spent = sum(report.progress.core_seconds for report in reports)
    lefts = [report.core_seconds_left for report in reports if report.state.state != FAILED]
    known = sum(left for left in lefts if math.isfinite(left))
    table.add_section()
    more = "more than " if not all(map(math.isfinite, lefts)) else ""
    done = sum(report.state.state == DONE for report in reports)
    total = f"{done} of {len(reports)} done"
    left = f"{more}{_hours(known / 3600)}"
    table.add_row(None, total, "", "", None, None, None, "", spent / 3600, left, "", is_total=True)
    return table


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if math.isfinite(hours) else "?"


def _note(report: EntryReport) -> str:
    state = report.state
    if state.state == DONE:
        return state.revision
    if state.state == WAITING and state.failures:
        return f"failed {state.failures} times: {state.reason}"
    return state.reason

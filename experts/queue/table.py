"""The queue as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experts.queue.states import DONE, FAILED, WAITING, EntryReport

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 150  # characters
# Eighths of a block, from one to eight; and what terminals show that know ASCII only.
BLOCKS, ASCII = "".join(map(chr, range(0x2581, 0x2589))), "_.-=+*#@"


def sparkline(values: Sequence[float], width: int = 16, levels: str = BLOCKS) -> str:
    """A curve of at most ``width`` characters: the last value of each part, from the lowest level to the highest."""
    if not values:
        return ""
    count = min(width, len(values))
    shown = [values[(index + 1) * len(values) // count - 1] for index in range(count)]
    low, high = min(shown), max(shown)
    if low == high:
        return levels[0] * count
    return "".join(levels[round((value - low) / (high - low) * (len(levels) - 1))] for value in shown)


def queue_table(reports: Sequence[EntryReport]) -> Table:
    """A row for each entry, in the queue's order, and the sums."""
    from rich.console import Console
    from rich.table import Table

    levels = ASCII if Console().options.ascii_only else BLOCKS
    table = Table("", "task", "algorithm", "state", "steps", "of", "return", "curve", "core-hours", "left", "note")
    for column in (0, 4, 5, 6, 8, 9):
        table.columns[column].justify = "right"
    for name in (1, 2, 7):
        table.columns[name].no_wrap = True
    for number, report in enumerate(reports, 1):
        progress, state = report.progress, report.state
        table.add_row(
            str(number), report.entry.task, report.entry.algorithm, state.state, f"{progress.steps:,}",
            "" if report.steps is None else f"{report.steps:,}",
            "" if progress.mean_return is None else f"{progress.mean_return:.4g}",
            sparkline([point.mean_return for point in report.curve], levels=levels),
            _hours(progress.core_seconds), _hours(report.core_seconds_left), _note(report),
        )  # fmt: skip
    spent = sum(report.progress.core_seconds for report in reports)
    lefts = [report.core_seconds_left for report in reports if report.state.state != FAILED]
    known = sum(left for left in lefts if math.isfinite(left))
    table.add_section()
    more = "more than " if not all(map(math.isfinite, lefts)) else ""
    done = sum(report.state.state == DONE for report in reports)
    total = f"{done} of {len(reports)} done"
    table.add_row("", total, "", "", "", "", "", "", _hours(spent), f"{more}{_hours(known)}", "")
    return table


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f}" if math.isfinite(seconds) else "?"


def _note(report: EntryReport) -> str:
    state = report.state
    if state.state == DONE:
        return state.revision
    if state.state == WAITING and state.failures:
        return f"failed {state.failures} times: {state.reason}"
    return state.reason

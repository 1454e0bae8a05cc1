"""Prints the tables of commands: as text for people, as Markdown for documents, or as JSON or TSV for programs.

``--format json`` prints a list of objects, or an object of such lists if a command prints several tables. ``--format
tsv`` prints a header line and one line per row, several tables one below the other. Both contain unformatted numbers,
without totals or borders. Text is never truncated: a narrow terminal wraps cells, and lines in a pipe have full length.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pipeline.errors import UserError
from pipeline.text import format_number, nearest_name

if TYPE_CHECKING:
    from rich.table import Table as RichTable

FORMATS = TEXT, MARKDOWN, JSON, TSV = ("text", "markdown", "json", "tsv")
PIPE_WIDTH = 100_000  # characters; more than any table has

# A tuple is a mean with its interval: (mean, low, high).
Cell = str | int | float | None | tuple[float, float, float]

_chosen = [TEXT]  # the table format of this process


def choose_format(name: str) -> None:
    """Set the format of all tables that this process prints.

    Raises:
        UserError: the format is unknown.
    """
    if name not in FORMATS:
        near = nearest_name(name, FORMATS)
        hint = f"; did you mean {near}?" if near else ""
        raise UserError(f"--format is {name!r}; allowed: {', '.join(FORMATS)}{hint}")
    _chosen[0] = name


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        heading: heading in the text format.
        show: number format in the text format: a format spec such as ``,.1f``, or a function; three digits if empty.
        key: name in JSON and TSV; the heading in snake case if empty.
        missing: text for None in the text format.
    """

    heading: str
    show: str | Callable[[float], str] = ""
    key: str = ""
    missing: str = ""

    @property
    def name(self) -> str:
        words = self.heading.replace("%", " percent").replace("/", " per ").lower()
        return self.key or re.sub(r"[^a-z0-9]+", "_", words).strip("_") or "name"

    def text(self, cell: Cell) -> str:
        """Format a cell for the text format."""
        if cell is None:
            return self.missing
        if isinstance(cell, str):
            return cell
        if isinstance(cell, tuple):
            mean, low, high = (self.text(value) for value in cell)
            return f"{mean} [{low}, {high}]"
        if callable(self.show):
            return self.show(cell)
        if self.show:
            text = format(cell, self.show)
            return text[1:] if text.startswith("-") and not text.strip("-0.,%") else text  # -0.00 is 0.00
        return f"{cell:,}" if isinstance(cell, int) else format_number(cell)


class Table:
    """A table with columns and rows of cells.

    Args:
        columns: the columns; a string is a column with that heading.
        title: title above the table in the text format.
        caption: caption below the table in the text format.
    """

    def __init__(self, *columns: str | Column, title: str = "", caption: str | None = None) -> None:
        self.columns = [Column(column) if isinstance(column, str) else column for column in columns]
        self.title, self.caption = title, caption
        self.rows: list[tuple[Cell, ...]] = []
        self._totals: set[int] = set()
        self._sections: set[int] = set()

    def add_row(self, *cells: Cell, is_total: bool = False) -> None:
        """Add a row; a total row appears only in the text format."""
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells in a table of {len(self.columns)} columns")
        if is_total:
            self._totals.add(len(self.rows))
        self.rows.append(cells)

    def add_section(self) -> None:
        """Add a separator line below the last row."""
        self._sections.add(len(self.rows) - 1)

    def texts(self) -> list[tuple[str, ...]]:
        """Return the rows as formatted in the text format."""
        return [tuple(c.text(cell) for c, cell in zip(self.columns, row, strict=True)) for row in self.rows]

    def records(self) -> list[dict[str, str | int | float | None]]:
        """Return the rows for JSON and TSV, without totals; an interval becomes ``x``, ``x_low`` and ``x_high``."""
        intervals = {i for row in self.rows for i, cell in enumerate(row) if isinstance(cell, tuple)}
        found = []
        for number, row in enumerate(self.rows):
            if number in self._totals:
                continue
            record: dict[str, str | int | float | None] = {}
            for index, (column, cell) in enumerate(zip(self.columns, row, strict=True)):
                values = cell if isinstance(cell, tuple) else (cell, None, None)
                suffixes = ("", "_low", "_high") if index in intervals else ("",)
                record |= {column.name + suffix: _plain(value) for suffix, value in zip(suffixes, values, strict=False)}
            found.append(record)
        return found

    def is_text(self, index: int) -> bool:
        """Whether a column has no numbers, so that its cells begin at the left."""
        return all(isinstance(row[index], str | None) for row in self.rows)

    def is_total(self, index: int) -> bool:
        return index in self._totals

    def __rich__(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title or None, caption=self.caption)
        for index, column in enumerate(self.columns):
            table.add_column(column.heading, justify="left" if self.is_text(index) else "right", overflow="fold")
        for number, row in enumerate(self.texts()):
            style = "bold" if self.is_total(number) else None
            table.add_row(*map(Text, row), style=style, end_section=number in self._sections)
        return table


def print_table(table: Table) -> None:
    """Print a table to stdout in the chosen format."""
    if _chosen[0] == TEXT:
        _print_text(table)
    elif _chosen[0] == MARKDOWN:
        _write("\n".join(_markdown(table)))
    elif _chosen[0] == JSON:
        _write(_as_json(table.records()))
    else:
        _write("\n".join(_tsv(table)))


def print_tables(tables: Mapping[str, Table]) -> None:
    """Print all tables of a command to stdout in the chosen format; JSON and TSV include their names."""
    if _chosen[0] == TEXT:
        for table in tables.values():
            _print_text(table)
    elif _chosen[0] == MARKDOWN:
        _write("\n\n".join("\n".join(_markdown(table)) for table in tables.values()))
    elif _chosen[0] == JSON:
        _write(_as_json({name: table.records() for name, table in tables.items()}))
    else:
        _write("\n\n".join("\n".join([f"# {name}", *_tsv(table)]) for name, table in tables.items()))


def print_note(text: str) -> None:
    """Print a line to stdout in the text format, else to stderr, so that programs do not read it."""
    (sys.stdout if _chosen[0] == TEXT else sys.stderr).write(f"{text}\n")


def _print_text(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_WIDTH)
    console.print(table)


def _plain(value: str | int | float | None) -> str | int | float | None:
    """Replace non-finite numbers, which JSON does not have, with None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_json(value: object) -> str:
    return json.dumps(value, indent=1, allow_nan=False)


def _markdown(table: Table) -> list[str]:
    """Return the lines of a table as in the text format; totals are bold."""
    marks = ["---" if table.is_text(index) else "---:" for index in range(len(table.columns))]
    lines = [[column.heading for column in table.columns], marks]
    for number, row in enumerate(table.texts()):
        cells = [re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in row]
        lines.append([f"**{cell}**" if cell and table.is_total(number) else cell for cell in cells])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def _tsv(table: Table) -> list[str]:
    records = table.records()
    names = list(records[0]) if records else [column.name for column in table.columns]
    lines = ["\t".join(names)]
    return lines + ["\t".join(_tsv_cell(record[name]) for name in names) for record in records]


def _tsv_cell(cell: Cell) -> str:
    return "" if cell is None else re.sub(r"\s+", " ", str(cell))


def _write(text: str) -> None:
    sys.stdout.write(f"{text}\n")


class _Interval(Protocol):
    """The fields of ``pipeline.scoring.scores.Interval``, which is not imported here because of its own imports."""

    @property
    def mean(self) -> float: ...

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


def interval_cell(value: _Interval | None) -> tuple[float, float, float] | None:
    """Make the cell of a mean with its interval; None for None."""
    return None if value is None else (value.mean, value.low, value.high)

"""The result of validating a dataset: problems by kind, and totals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.storage.episode_rules import Problem
from pipeline.storage.validate import TOTALS
from pipeline.tables import Column, Table


@dataclass
class Kind:
    """Problems of one kind: the number of affected episodes or files, the files, and the first problem."""

    first: Problem
    count: int = 0
    files: set[Path] = field(default_factory=set)


@dataclass
class Totals:
    """What was read of one domain."""

    tasks: set[str] = field(default_factory=set)
    episodes: dict[str, int] = field(default_factory=dict)  # by split; for corpora, rows
    steps: int = 0
    num_bytes: int = 0


@dataclass
class Findings:
    """All results of a validation; ``add`` is the ``Report`` of all checks."""

    kinds: dict[str, Kind] = field(default_factory=dict)
    totals: dict[str, Totals] = field(default_factory=dict)
    num_equal: int = 0  # episodes that equal an earlier one without being a problem
    num_flagged: int = 0  # imported episodes whose actions are out of range, by their side tables

    def add(self, problem: Problem) -> None:
        kind = self.kinds.setdefault(problem.kind, Kind(problem))
        kind.count += problem.count
        kind.files.add(problem.file)

    def count(self, domain: str, name: str, split: str, episodes: int, steps: int, num_bytes: int) -> None:
        totals = self.totals.setdefault(domain, Totals())
        totals.tasks.add(name)
        totals.episodes[split] = totals.episodes.get(split, 0) + episodes
        totals.steps += steps
        totals.num_bytes += num_bytes

    def compare(
        self, manifest: Path, whose: str, said: Mapping[str, int | None], found: Mapping[str, int | None]
    ) -> None:
        """Report totals in a manifest that differ from its files; ``whose`` describes their owner."""
        for what, number in said.items():
            if found[what] != number:
                self.add(Problem(TOTALS, manifest, f"{whose}: {number} {what}, the files have {found[what]}"))


def problem_table(findings: Findings) -> Table:
    """One row per kind of problem, the most frequent first."""
    table = Table("problem", "count", "files", "first")
    for name, kind in sorted(findings.kinds.items(), key=lambda item: (-item[1].count, item[0])):
        table.add_row(name, kind.count, len(kind.files), str(kind.first))
    return table


def total_table(findings: Findings) -> Table:
    """One row per domain, and their sum."""
    splits = list(dict.fromkeys(split for totals in findings.totals.values() for split in totals.episodes))
    table = Table("domain", "tasks", *(f"{split} episodes" for split in splits), "steps", Column("MB", ",.1f"))
    rows: list[tuple[Any, ...]] = [
        (name, len(t.tasks), *(t.episodes.get(split, 0) for split in splits), t.steps, t.num_bytes / 1e6)
        for name, t in findings.totals.items()
    ]
    for row in rows:
        table.add_row(*row)
    sums = [sum(column) for column in list(zip(*rows, strict=True))[1:]] if rows else [0, 0, 0.0]
    table.add_row("all", *sums, is_total=True)
    return table

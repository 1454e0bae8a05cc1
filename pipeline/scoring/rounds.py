"""The rounds of a relabelling (``jat dagger``): what each has cost and how good its agent is."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.records import read_record
from pipeline.run_layout import RunLayout


@dataclass(frozen=True)
class Round:
    """One finished round: collect, train, evaluate.

    Attributes:
        number: 0 for the first, in which the experts act; the agent acts in the others.
        episodes: training episodes of each task so far, by name.
        queries: steps so far in which an expert acted or labelled, of all tasks.
        steps: optimiser steps of this round.
        checkpoint: of its agent, relative to ``OUT``.
        scores: expert-normalised mean score of each task; None where it has none.
    """

    number: int
    episodes: dict[str, int]
    queries: int
    steps: int
    checkpoint: str
    scores: dict[str, float | None] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        known = [score for score in self.scores.values() if score is not None]
        return sum(known) / len(known) if known else None

    def in_need(self, enough: float) -> list[str]:
        """Tasks whose score is below ``enough``."""
        return [name for name, score in self.scores.items() if score is not None and score < enough]


def load_rounds(out: Path) -> list[Round]:
    """The finished rounds of a run, in order; none if it is no relabelling.

    Raises:
        UserError: a file is not the record of its round.
    """
    found: list[Round] = []
    while (path := RunLayout(out).round_record(len(found))).exists():
        record = read_record(path, Round, "the record of a round", f"move {path.parent.parent} away")
        if record.number != len(found):
            raise UserError(f"{path} is of round {record.number}; move {path.parent.parent} away")
        found.append(record)
    return found

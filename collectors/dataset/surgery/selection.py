"""Conditions on episodes, evaluated on the rows of side tables."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import pyarrow as pa

from pipeline.errors import UserError

MAX_NAMED = 5  # values named in an error
MAX_SHOWN = 100  # characters of an option shown in an error
MAX_DIGITS = 18  # of a seed, an int64


@dataclass(frozen=True)
class Conditions:
    """Which episodes are meant: those that meet all given conditions."""

    task: str = "*"
    """Tasks and corpora: name, domain, glob, or comma list."""
    split: Literal["", "train", "test"] = ""
    """Episodes of this split."""
    success: Literal["", "yes", "no"] = ""
    """Episodes that succeeded, or that did not."""
    min_return: float | None = None
    """Episodes with at least this undiscounted return."""
    max_return: float | None = None
    """Episodes with at most this undiscounted return."""
    min_length: int | None = None
    """Episodes of at least this many steps."""
    max_length: int | None = None
    """Episodes of at most this many steps."""
    expert: str = ""
    """Episodes of these experts: kind or revision, glob, or comma list."""
    seeds: str = ""
    """Episodes of these seeds, such as `0-99,250`."""

    @property
    def are_given(self) -> bool:
        """Whether there is any condition."""
        return self.task != "*" or self.concern_episodes

    @property
    def concern_episodes(self) -> bool:
        """Whether there is a condition besides the task, so that it decides about single episodes."""
        return any(getattr(self, field.name) != field.default for field in fields(Conditions) if field.name != "task")

    def text(self) -> str:
        """The conditions as options, on one line."""
        given = [field.name for field in fields(Conditions) if getattr(self, field.name) != field.default]
        return " ".join(f"--{name.replace('_', '-')} {getattr(self, name)}" for name in given)


def matching_rows(conditions: Conditions, split: str, side: pa.Table) -> np.ndarray:
    """Rows of a side table that meet all conditions but that on the task, ``(rows,)`` bool.

    A rejected episode has no outcome, so it meets no condition on success, return or length.

    Args:
        conditions: the conditions.
        split: of the side table.
        side: the side table.

    Raises:
        UserError: ``--seeds`` cannot be read.
    """
    met = np.full(len(side), conditions.split in ("", split))
    for _, condition in _conditions(conditions):
        met &= condition(side)
    return met


def explain_nothing(conditions: Conditions, sides: Sequence[tuple[str, pa.Table]]) -> str:
    """Say which condition no episode meets, and what there is instead.

    Args:
        conditions: the conditions, which no row of the tables meets.
        sides: split and side table of every file.
    """
    if all(conditions.split not in ("", split) for split, _ in sides):
        return f"there are no episodes of the split {conditions.split}"
    for name, condition in _conditions(conditions):
        if not any(condition(side).any() for _, side in sides):
            return f"no episode has {name}; there are {_values(name, [side for _, side in sides])}"
    return "no episode meets all of these conditions together"


def _conditions(conditions: Conditions) -> list[tuple[str, Callable[[pa.Table], np.ndarray]]]:
    """The conditions that are given, each with its option."""
    c, found = conditions, list[tuple[str, Callable[[pa.Table], np.ndarray]]]()
    if c.success:
        found.append((f"--success {c.success}", lambda side: _success(side, c.success == "yes")))
    for name, column, sign in (
        ("min_return", "return", 1), ("max_return", "return", -1), ("min_length", "length", 1),
        ("max_length", "length", -1),
    ):  # fmt: skip
        bound = getattr(c, name)
        if bound is not None:
            option = f"--{name.replace('_', '-')} {bound:g}"
            found.append((option, lambda side, k=column, s=sign, b=bound: _bounded(side, k, s, b)))  # type: ignore[misc]
    if c.expert:
        found.append((f"--expert {c.expert}", lambda side: _expert(side, c.expert)))
    if c.seeds:
        ranges = parse_seeds(c.seeds)
        found.append((f"--seeds {c.seeds}", lambda side: _seeds(side, ranges)))
    return found


def _accepted(side: pa.Table) -> np.ndarray:
    valid: np.ndarray = side["row"].is_valid().to_numpy()
    return valid


def _success(side: pa.Table, wanted: bool) -> np.ndarray:
    met = np.array([value is not None and value == wanted for value in side["success"].to_pylist()], bool)
    return met & _accepted(side)


def _bounded(side: pa.Table, column: str, sign: int, bound: float) -> np.ndarray:
    """Whether a column is at least (``sign`` 1) or at most (-1) the bound."""
    values = side[column].to_numpy().astype(np.float64)
    met: np.ndarray = (values - bound) * sign >= 0
    return met & _accepted(side)


def _expert(side: pa.Table, patterns: str) -> np.ndarray:
    parts = [part.strip() for part in patterns.split(",")]
    names = zip(side["expert"].to_pylist(), side["expert_revision"].to_pylist(), strict=True)
    return np.array([any(fnmatch.fnmatchcase(str(n), p) for n in pair for p in parts) for pair in names], bool)


def _seeds(side: pa.Table, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    seeds = side["seed"].fill_null(-1).to_numpy()
    met = np.zeros(len(side), bool)
    for first, last in ranges:
        met |= (seeds >= first) & (seeds <= last)
    return met


def parse_seeds(text: str) -> list[tuple[int, int]]:
    """Parse ``0-99,250`` to ranges, both ends included.

    Raises:
        UserError: it is not such a list.
    """
    ranges = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        ends = first, last or first
        if not all(end.isdecimal() and len(end) <= MAX_DIGITS for end in ends) or int(ends[1]) < int(first):
            raise UserError(
                f"--seeds {text[:MAX_SHOWN]!r}: {part.strip()[:MAX_SHOWN]!r} is neither a seed nor a range such as 0-99"
            )
        ranges.append((int(first), int(ends[1])))
    return ranges


def _values(option: str, sides: Sequence[pa.Table]) -> str:
    """What there is of that which an option selects by."""
    name = option.split()[0]
    if name == "--success":
        known = sum(len(side) - side["success"].null_count for side in sides)
        return f"{known} episodes whose success is known, all the other way" if known else "none whose success is known"
    if name == "--expert":
        kinds = {str(kind) for side in sides for kind in side["expert"].unique().to_pylist()}
        more = f" and {len(kinds) - MAX_NAMED} more" if len(kinds) > MAX_NAMED else ""
        return ", ".join(sorted(kinds)[:MAX_NAMED]) + more
    column = "seed" if name == "--seeds" else name.rpartition("-")[2]
    values = np.concatenate([side[column].drop_null().to_numpy() for side in sides])
    what = "lengths" if column == "length" else f"{column}s"
    return f"{what} from {values.min():.10g} to {values.max():.10g}" if len(values) else f"no {what}"

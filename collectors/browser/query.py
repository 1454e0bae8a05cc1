"""Which episodes of a task a page lists, and in which order, as the parameters of its address."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlencode

from collectors.dataset.surgery.selection import MAX_DIGITS, MAX_SHOWN, Conditions, parse_seeds
from pipeline.errors import UserError

# Columns that episodes are sorted by, with their headings; `number` is the order of the files.
SORTS = {
    "number": "#",
    "split": "split",
    "seed": "seed",
    "return": "return",
    "length": "length",
    "success": "success",
    "expert": "expert",
    "rejected": "rejected",
}
CHOICES = {"split": ("train", "test"), "success": ("yes", "no"), "rejected": ("yes", "no")}
NUMBERS = {"min_return": float, "max_return": float, "min_length": int, "max_length": int}
TEXTS = ("expert", "seeds")


@dataclass(frozen=True)
class Query:
    """Conditions, order and page of a list of episodes.

    Attributes:
        conditions: as of ``jat dataset filter``.
        rejected: ``yes``: only rejected episodes; ``no``: only accepted ones.
        sort: a name in ``SORTS``.
        descending: whether the largest come first.
        page: from 1.
    """

    conditions: Conditions = field(default_factory=Conditions)
    rejected: str = ""
    sort: str = "number"
    descending: bool = False
    page: int = 1

    @property
    def order(self) -> Query:
        """The query without its page: what decides about the order."""
        return replace(self, page=1)

    def values(self) -> dict[str, Any]:
        """Parameters of the address that are not their defaults, by name."""
        given = {f.name: getattr(self.conditions, f.name) for f in fields(Conditions) if f.name != "task"}
        given |= {"rejected": self.rejected}
        found = {name: value for name, value in given.items() if value not in ("", None)}
        if self.sort != "number" or self.descending:
            found["sort"] = ("-" if self.descending else "") + self.sort
        return found | ({"page": self.page} if self.page != 1 else {})

    def address(self, **more: object) -> str:
        """The query, and further parameters, as the end of an address: ``?success=no&sort=-return``, or nothing."""
        values = self.values() | more
        return f"?{urlencode(values)}" if values else ""

    def sorted_by(self, sort: str) -> Query:
        """The query after a click on the heading of a column: sorted by it, or the other way round."""
        return replace(self, sort=sort, descending=self.sort == sort and not self.descending, page=1)

    def on_page(self, page: int) -> Query:
        return replace(self, page=page)


def parse_query(given: Mapping[str, str]) -> Query:
    """Read the parameters of an address; unknown ones are ignored, empty ones are not given.

    Raises:
        UserError: a value is not allowed; the message names it and what is.
    """
    words = {name: value.strip() for name, value in given.items() if value.strip()}
    chosen: dict[str, Any] = {name: words[name] for name in TEXTS if name in words}
    for name, allowed in CHOICES.items():
        if name in words:
            if words[name] not in allowed:
                raise UserError(f"{name} is {words[name][:MAX_SHOWN]!r}; allowed: {', '.join(allowed)}")
            chosen[name] = words[name]
    for name, kind in NUMBERS.items():
        if name in words:
            chosen[name] = _number(name, words[name], kind)
    if "seeds" in chosen:
        parse_seeds(chosen["seeds"])
    rejected = chosen.pop("rejected", "")
    sort = words.get("sort", "number")
    if sort.removeprefix("-") not in SORTS:
        raise UserError(f"sort is {sort[:MAX_SHOWN]!r}; allowed: {', '.join(SORTS)}, each with or without a -")
    page = max(1, parse_index("page", words.get("page", "1")))
    return Query(Conditions(**chosen), rejected, sort.removeprefix("-"), sort.startswith("-"), page)


def parse_index(name: str, text: str) -> int:
    """Read a whole number that is not negative.

    Raises:
        UserError: it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise UserError(f"{name} is {text[:MAX_SHOWN]!r}; it must be a whole number that is not negative")
    return int(text)


def parse_dimensions(name: str, text: str, size: int) -> list[int]:
    """Read dimensions such as ``0-3,7`` of a vector of ``size`` numbers; those beyond its end are left out.

    Raises:
        UserError: it is no such list.
    """
    try:
        ranges = parse_seeds(text)
    except UserError:
        raise UserError(
            f"{name} is {text[:MAX_SHOWN]!r}; give dimensions from 0 to {size - 1}, such as 0-3,7"
        ) from None
    found = [number for first, last in ranges for number in range(first, min(last + 1, size))]
    return list(dict.fromkeys(found))


def _number(name: str, text: str, kind: type[float] | type[int]) -> float | int:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        what = "number" if kind is float else "whole number"
        raise UserError(f"{name.replace('_', ' ')} is {text[:MAX_SHOWN]!r}; it must be a {what}")
    return value

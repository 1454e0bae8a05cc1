"""Formats numbers for people (counts with a noun, rates, durations), parses counts, and finds the closest name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from decimal import Decimal


def parse_count(text: str) -> int:
    """Parse a whole number such as ``1000000``, ``1_000_000``, ``1e6``, ``1.5M`` or ``10k``.

    Raises:
        ValueError: the text is not a whole number; the message shows valid ones.
    """
    plain = text.strip().replace("_", "")
    factor = {"k": 1000, "m": 1_000_000}.get(plain[-1:].lower(), 1)
    try:
        number = Decimal(plain if factor == 1 else plain[:-1]) * factor
        if number == int(number) and abs(number) < 10**18:
            return int(number)
    except (ArithmeticError, ValueError):
        pass
    raise ValueError(f"{text!r} is not a whole number, such as 1000, 1_000, 1e3 or 1k")


def format_count(number: int, noun: str) -> str:
    """Format as ``1 task`` or ``1,100 tasks``; ``noun`` is the singular, and its last word gets the plural ending."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2:-1] not in "aeiou" else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def format_rate(per_second: float) -> str:
    """Format as ``1,100/s``, ``1.67/s``, ``3.2/min`` or ``12/h``: three digits, in the unit that gives at least 0.1."""
    for factor, unit in ((1, "s"), (60, "min")):
        if per_second * factor >= 0.1:
            return f"{format_number(per_second * factor)}/{unit}"
    return f"{format_number(per_second * 3600)}/h"


def format_number(number: float) -> str:
    """Format with three significant digits, or as a whole number from 1000 up: ``0.0123``, ``167``, ``1,670``."""
    return f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:.3g}"


def format_seconds(seconds: float) -> str:
    """Format as ``45 s``, ``12 min``, ``3.5 h`` or ``2.1 d``; ``?`` for infinity."""
    if not math.isfinite(seconds):
        return "?"
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.3g} {name}"
    return f"{format_number(seconds / 86_400)} d"


def format_estimate(seconds: float) -> str:
    """Format an estimated duration with two digits, such as ``55 s`` or ``3.1 min``."""
    if seconds <= 0 or not math.isfinite(seconds):
        return format_seconds(max(seconds, 0.0))
    unit = next(size for limit, size in ((120, 1), (7200, 60), (172_800, 3600), (math.inf, 86_400)) if seconds < limit)
    count = seconds / unit
    return format_seconds(round(count, 1 - math.floor(math.log10(count))) * unit)


def nearest_name(word: str, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to a misspelt word; None if no name is similar."""
    found = difflib.get_close_matches(word, list(names), n=1)
    return found[0] if found else None

"""Escape untrusted names and reasons as Markdown that only displays them."""

from __future__ import annotations

import html
import re

MAX_SHOWN = 200  # characters


def as_code(text: str, in_table: bool = False) -> str:
    """A one-line code span for any text; bars are escaped ``in_table``, where they would end the cell."""
    text = _one_line(text)
    text = text.replace("|", r"\|") if in_table else text
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{text}{space}{fence}"


def as_text(text: str) -> str:
    """Plain text, escaped so that it starts no emphasis, link, image, HTML or table cell."""
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(_one_line(text), quote=False))


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]}..."

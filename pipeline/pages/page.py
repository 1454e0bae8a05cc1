"""Rendering of self-contained HTML pages: they open from disk and ask no network for anything.

A page extends ``templates/page.html.j2``, which has the style, the script of its table and a content security policy
that forbids everything from outside. Values from files are escaped; only figures of ``pipeline/pages/figures.py`` are
markup.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
TITLES = {"atari": "Atari", "babyai": "BabyAI", "metaworld": "Meta-World", "mujoco": "MuJoCo", "overall": "All tasks"}


def title(name: str) -> str:
    """Of a domain, as people write it; other names stay as they are."""
    return TITLES.get(name, name)


def render_page(template: Path, **values: Any) -> str:
    """The text of a page.

    Args:
        template: a file that extends ``page.html.j2``.
        values: what it shows; one that it names and that is not given is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=jinja2.select_autoescape(["j2"]),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["two"] = two_digits
    environment.filters["title_of"] = title
    return environment.get_template(template.name).render(**values)


def data_url(path: Path, media_type: str) -> str:
    """A file as an address that contains it."""
    return f"data:{media_type};base64,{as_base64(path)}"


def as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def two_digits(value: float) -> str:
    """Two digits after the point, and no minus before nothing."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text

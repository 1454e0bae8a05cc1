"""Render self-contained HTML pages, which open from disk and make no network requests.

A page extends ``templates/page.html.j2``, which has the style sheet, the script of its table and a content security
policy that blocks all external resources. Values from files are escaped; only the figures of
``pipeline/pages/figures.py`` are inserted as markup.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from pipeline.envs.registry import domain_named
from pipeline.pages.figures import domain_colours

TEMPLATES = Path(__file__).parent / "templates"
OVERALL_TITLE = "All tasks"


def title(name: str) -> str:
    """Display name of a domain, or of all tasks together (``overall``); other names are returned unchanged."""
    return OVERALL_TITLE if name == "overall" else domain_named(name).title


def render_page(template: Path, **values: Any) -> str:
    """Render a page as HTML text.

    Args:
        template: a file that extends ``page.html.j2``.
        values: variables of the template; a missing variable is an error.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, TEMPLATES]),
        autoescape=jinja2.select_autoescape(["j2"]),
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["two"] = two_digits
    environment.filters["title_of"] = title
    environment.globals["domain_colours"] = domain_colours()
    return environment.get_template(template.name).render(**values)


def data_url(path: Path, media_type: str) -> str:
    """Encode a file as a ``data:`` URL."""
    return f"data:{media_type};base64,{as_base64(path)}"


def as_base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def two_digits(value: float) -> str:
    """Format a number with two decimals, without a minus sign for zero."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text

"""Style of figures: inline SVG with the colours of the page (light or dark), or PNG files for documents.

The colours defined here are those of the light page, keyed by the name of their CSS variable.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.envs.registry import domains
from pipeline.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "page": "#ffffff", "ink": "#16191d", "soft": "#5b636c", "line": "#dde1e6",
    "other0": "#0f766e", "other1": "#a21caf", "other2": "#854d0e",
}  # fmt: skip
PAGE, INK, SOFT, LINE = (COLOURS[name] for name in ("page", "ink", "soft", "line"))
OTHER_COLOURS = tuple(COLOURS[name] for name in ("other0", "other1", "other2"))
# The same on a light and on a dark page.
SPARE_COLOURS = tuple(zip(OTHER_COLOURS, ("#45c7b8", "#e58af0", "#e0b050"), strict=True))


def domain_colours() -> dict[str, tuple[str, str]]:
    """Colours of all domains on a light and on a dark page; those without their own get the spare ones in turn."""
    spare = itertools.cycle(SPARE_COLOURS)
    return {domain.name: domain.colours or next(spare) for domain in domains()}


def series_colours() -> tuple[str, ...]:
    """Colours of series that are not domains."""
    return (*(light for light, _ in domain_colours().values()), *OTHER_COLOURS)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Create a figure of one panel with a grid; sizes in inches."""
    figure, panels = new_figure(width, height, 1, 1)
    panels[0].grid(color=LINE, linewidth=0.8)
    return figure, panels[0]


def new_figure(width: float, height: float, rows: int, columns: int, **shared: Any) -> tuple[Figure, list[Axes]]:
    """Create a figure of several panels, listed row by row; sizes in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    panels = list(np.ravel(figure.subplots(rows, columns, **shared)))
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(SOFT)
        axes.tick_params(colors=SOFT, labelcolor=INK, labelsize=8, which="both")
        axes.xaxis.label.set(color=INK, fontsize=9)
        axes.yaxis.label.set(color=INK, fontsize=9)
        axes.set_axisbelow(True)
    return figure, panels


def add_legend(axes: Axes) -> None:
    """Add a legend if anything has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def colour_of(name: str, names: Sequence[str]) -> str:
    """Colour of a series: a domain has its own colour, other names get the remaining colours in turn."""
    if name == "overall":
        return INK
    own = domain_colours()
    others = [other for other in names if other not in own]
    return own[name][0] if name in own else OTHER_COLOURS[others.index(name) % len(OTHER_COLOURS)]


def to_svg(figure: Figure, label: str) -> str:
    """Convert the figure to an inline SVG element; ``label`` is its text for screen readers."""
    import html

    import matplotlib

    buffer = io.StringIO()
    # A fixed salt and no date: equal numbers give equal bytes. Text is kept as text, in the font of the page.
    with matplotlib.rc_context({"svg.hashsalt": label, "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # unused, and not unique on a page
    text = re.sub(r"font-family: [^;\"]*", "font-family: system-ui, sans-serif", text)
    light_colours = COLOURS | {name: light for name, (light, _) in domain_colours().items()}
    for name, colour in light_colours.items():
        text = text.replace(colour, f"var(--{name})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG file in the colours of the light page; equal figures give equal bytes."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})

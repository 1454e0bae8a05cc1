from __future__ import annotations

import re
from pathlib import Path

from pipeline.pages.figures import COLOURS, INK, colour_of, domain_colours, new_axes, to_svg, write_png
from pipeline.pages.page import TEMPLATES, render_page


def test_the_colours_of_figures_are_those_of_the_light_page() -> None:
    shared = (TEMPLATES / "page.css").read_text().split("@media", 1)[0]
    assert {name: re.search(rf"--{name}: (#\w+);", shared)[1] for name in COLOURS} == COLOURS  # type: ignore[index]
    own = {name: light for name, (light, _) in domain_colours().items()}
    page = render_page(TEMPLATES / "page.html.j2")
    light, dark = page.split("@media (prefers-color-scheme: dark)")[1:]
    assert {name: re.search(rf"--{name}: (#\w+);", light)[1] for name in own} == own  # type: ignore[index]
    assert all(f"--{name}: {colour};" in dark for name, (_, colour) in domain_colours().items())
    colours = [*COLOURS.values(), *own.values()]
    assert len(set(colours)) == len(colours)


def test_a_figure_takes_its_colours_from_the_page_and_says_what_it_shows() -> None:
    figure, axes = new_axes(3, 2)
    axes.plot([0, 1], [0, 1], color=colour_of("mujoco", ["mujoco"]))
    text = to_svg(figure, 'scores of "a < b"')
    assert text.startswith('<svg role="img" aria-label="scores of &quot;a &lt; b&quot;" ')
    assert "var(--mujoco)" in text and "var(--ink)" in text
    assert not any(colour in text for colour in COLOURS.values())


def test_a_picture_keeps_the_colours(tmp_path: Path) -> None:
    from PIL import Image

    figure, axes = new_axes(2, 2)
    axes.set_position((0, 0, 1, 1))
    axes.fill_between([0, 1], [0, 0], [1, 1], color=INK)
    write_png(figure, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        width, height = picture.size
        assert "#{:02x}{:02x}{:02x}".format(*picture.getpixel((width // 2, height // 2))[:3]) == INK

"""Pages in a real browser: Debian's Chromium, or Chrome. What Playwright downloads plays no H.264."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
EXECUTABLE = next(filter(None, map(shutil.which, BROWSERS)), None)

needs_browser = pytest.mark.skipif(
    EXECUTABLE is None, reason="no browser: none of chromium, google-chrome is there; apt-get install chromium"
)


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox needs what a container's root does not have; the page is ours.
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextlib.contextmanager
def quiet_pages(browser: Any, file: Path) -> Iterator[Callable[..., Any]]:
    """A function that opens a file; afterwards nothing was said on the console and nothing was asked of a network."""
    contexts, said = [], []

    def open_one(width: int = 1280, height: int = 900, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith("http") and said.append(request.url))
        page.goto(file.absolute().as_uri())
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []


def check_contrast(page: Any, scheme: str, more: Mapping[str, str]) -> None:
    """Text, links, figures and the elements of ``more`` stand out from the page by WCAG's 4.5."""
    colour_of = "(e, name) => getComputedStyle(e)[name]"
    background = luminance(page.eval_on_selector("body", colour_of, "backgroundColor"))
    assert background > 0.9 if scheme == "light" else background < 0.05
    common = {"body": "color", ".note": "color", "nav a": "color", "figure svg text": "fill"}
    for selector, name in (common | dict(more)).items():
        found = luminance(page.eval_on_selector(selector, colour_of, name))
        ratio = (max(found, background) + 0.05) / (min(found, background) + 0.05)
        assert ratio >= 4.5, f"{selector} {name}: {ratio:.1f}"


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2) of ``rgb(r, g, b)``."""
    values = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

"""The pages of ``jat browse`` in a real browser: keyboard, film and cursor, phone width, contrast, a quiet console."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from collectors.browser.app import make_app
from collectors.browser.browse import listening
from tests.browser import check_contrast, launched, needs_browser
from tests.collectors.browser.conftest import NAME, TASKS

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def site(browsed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running server."""
    with listening(0) as listener:
        port = listener.getsockname()[1]
        app = make_app(browsed, port, tmp_path_factory.mktemp("films"), TASKS)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{port}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(site: str, browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a page; afterwards nothing was said on the console and no other site was asked."""
    contexts, said = [], []

    def open_one(path: str, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith((f"{site}/", "data:")) or said.append(request.url))
        page.goto(site + path)
        return page

    yield open_one
    for context in contexts:
        context.close()
    assert said == []


def wait_until(page: Any, selector: str, condition: str, seconds: float = 30.0) -> None:
    """Wait until ``condition``, a JavaScript function of the selected element, is true."""
    deadline = time.monotonic() + seconds
    while not page.eval_on_selector(selector, condition):
        assert time.monotonic() < deadline, f"{selector}: not {condition} within {seconds:.0f} s"
        page.wait_for_timeout(50)


def test_from_the_tasks_to_an_episode_and_back_by_keyboard(open_page: Callable[..., Any], site: str) -> None:
    page = open_page("/")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "name"
    page.keyboard.type("count")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?name=count")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/tasks/{NAME}")
    page.keyboard.press("n")
    page.wait_for_url("**page=2")
    page.keyboard.press("p")
    page.wait_for_url(f"**/tasks/{NAME}")
    for key in ("j", "ArrowDown", "j", "k"):
        page.keyboard.press(key)
    assert page.locator("tr.current td").first.inner_text() == "1"
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/tasks/{NAME}/train/1?at=1")
    page.keyboard.press("j")
    page.wait_for_url(f"**/tasks/{NAME}/train/2?at=2")
    page.keyboard.press("Escape")
    page.wait_for_url(f"**/tasks/{NAME}")
    page.keyboard.press("Escape")
    page.wait_for_url(f"{site}/")


def test_one_cursor_goes_through_film_and_plots(open_page: Callable[..., Any]) -> None:
    page = open_page(f"/tasks/{NAME}/train/3")
    reward = page.locator("#plots output").first
    step = page.locator("#step")
    page.keyboard.press("ArrowRight")
    assert (step.inner_text(), reward.inner_text()) == ("step 1 of 0 to 3", "2.75")
    page.keyboard.press("f")
    wait_until(page, "#film video", "v => v.videoWidth > 0 && v.paused && v.ended")
    page.keyboard.press("Home")
    wait_until(page, "#film video", "v => !v.seeking && v.currentTime < 0.02")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    wait_until(page, "#film video", "v => !v.seeking && Math.floor(v.currentTime * 50) === 2")
    assert (step.inner_text(), reward.inner_text()) == ("step 2 of 0 to 3", "3.75")
    assert float(page.locator("#cursor").get_attribute("x1")) == pytest.approx(1000 * 2 / 3)
    box = page.locator("#plots svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 1, box["y"] + 10)
    assert step.inner_text() == "step 3 of 0 to 3"
    wait_until(page, "#film video", "v => !v.seeking && Math.floor(v.currentTime * 50) === 3")


def test_a_button_replays_and_one_copies_the_command(open_page: Callable[..., Any]) -> None:
    page = open_page(f"/tasks/{NAME}/train/3", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="replay and compare").click()
    wait_until(page, "#verdict", "e => e.className === 'good' && e.textContent.includes('equal in all columns')")
    page.get_by_role("button", name="copy as a command").click()
    wait_until(page, "#copy", "e => e.textContent === 'copied'")
    assert page.evaluate("navigator.clipboard.readText()").startswith(
        f"jat dataset replay --task {NAME} --seed 3 --out"
    )


def test_the_agent_s_film_and_the_expert_s_play_together(open_page: Callable[..., Any]) -> None:
    page = open_page(f"/evaluation/{NAME}/2000000001")
    page.keyboard.press(" ")
    for who in ("agent", "expert"):
        wait_until(page, f"video[aria-label='film of the {who}']", "v => v.currentTime > 0.1")


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_tables_and_not_the_page(open_page: Callable[..., Any], width: int) -> None:
    for path in ("/", f"/tasks/{NAME}", f"/tasks/{NAME}/train/3", f"/tasks/{NAME}/train/7", f"/evaluation/{NAME}"):
        page = open_page(path, width)
        assert page.evaluate("document.documentElement.scrollWidth") == width, path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_light_and_dark(open_page: Callable[..., Any], scheme: str) -> None:
    page = open_page(f"/tasks/{NAME}/train/3", color_scheme=scheme)
    page.evaluate("document.querySelector('#verdict').className = 'good'")
    missing = "document.body.insertAdjacentHTML('beforeend', '<figure><svg><text></text></svg></figure>')"
    page.evaluate(missing)  # the report's figures, which this page has not
    more = {".plots small": "color", "#verdict": "color", ".plots path.action": "stroke", "kbd": "color"}
    page.evaluate("document.querySelector('figure text').style.fill = 'currentcolor'")
    check_contrast(page, scheme, more)

"""The report in a real browser: Debian's Chromium, or Chrome. What Playwright downloads plays no H.264."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import check_contrast, launched, needs_browser, quiet_pages
from tests.trainer.report_run import WITHOUT_FILM, write_run
from trainer.reporting.report import AgentReportConfig, report

pytestmark = [pytest.mark.slow, needs_browser]
WEAK = "atari-boxing"  # one of the ten lowest scores of the made-up run


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of all 157 tasks, seven of them filmed."""
    out = tmp_path_factory.mktemp("report")
    write_run(out, f"{WEAK},atari-pong,{WITHOUT_FILM},babyai-go-to-obj,metaworld-reach,mujoco-ant,mujoco-hopper")
    return report(AgentReportConfig(out=out))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched() as browser:
        yield browser


@pytest.fixture
def open_page(made: Path, browser: Any) -> Iterator[Any]:
    """A function that opens the page; afterwards nothing was said on the console and nothing was asked of a network."""
    with quiet_pages(browser, made) as open_one:
        yield open_one


def column(page: Any, number: int) -> list[str]:
    """Sorting values of a column, top to bottom, of the rows that are shown."""
    return page.eval_on_selector_all(  # type: ignore[no-any-return]
        "#tasks tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].dataset.value ?? '')"
    )


def test_a_click_on_a_heading_sorts_and_says_so(open_page: Any) -> None:
    page = open_page()
    names = column(page, 0)
    assert len(names) == 157 and names == sorted(names)
    heading = page.locator("#tasks").get_by_role("columnheader", name="score", exact=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    values = column(page, 1)
    assert values[-2:] == ["", ""]  # what is not scorable comes last
    numbers = [float(value) for value in values[:-2]]
    assert numbers == sorted(numbers, reverse=True)
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    values = column(page, 1)
    assert [float(value) for value in values[:-2]] == sorted(numbers) and values[-2:] == ["", ""]
    sorted_headings = "[aria-sort=ascending], [aria-sort=descending]"
    assert page.locator(f"#tasks thead :is({sorted_headings})").count() == 1


def test_the_table_is_filtered_by_name_domain_and_kind(open_page: Any) -> None:
    page = open_page()
    count = page.locator("#count")
    page.get_by_label("Name contains").fill("REACH")
    assert set(column(page, 0)) == {"metaworld-reach", "metaworld-reach-wall", "mujoco-reacher"}
    assert count.inner_text() == "3 of 157 tasks shown"
    page.get_by_role("button", name="Meta-World", exact=True).click()
    assert column(page, 0) == ["mujoco-reacher"]
    page.get_by_label("Name contains").fill("")
    page.get_by_label("Show").select_option("not scorable")
    assert column(page, 0) == ["atari-bowling", "atari-venture"]
    page.get_by_label("Show").select_option("with a video")
    page.get_by_role("button", name="Meta-World", exact=True).click()
    assert count.inner_text() == "6 of 157 tasks shown"


def wait_until(page: Any, selector: str, condition: str, seconds: float = 30.0) -> None:
    """Wait until ``condition``, a JavaScript function of the selected element, is true.

    The page's security policy forbids ``eval``, which Playwright's own ``wait_for_function`` does in the page.
    """
    deadline = time.monotonic() + seconds
    while not page.eval_on_selector(selector, condition):
        assert time.monotonic() < deadline, f"{selector}: not {condition} within {seconds:.0f} s"
        page.wait_for_timeout(50)


def playing(page: Any, selector: str) -> None:
    """Wait until a video has a picture and goes on."""
    wait_until(page, selector, "v => v.videoWidth > 0 && v.currentTime > 0.2")


def test_the_video_of_a_task_plays_and_leads_to_the_next(open_page: Any) -> None:
    page = open_page()
    page.get_by_label("Show").select_option("with a video")
    page.get_by_role("button", name="play the video of mujoco-ant").click()
    player = page.get_by_role("dialog", name="mujoco-ant")
    playing(page, "dialog video")
    assert page.eval_on_selector("dialog video", "v => [v.videoWidth, v.videoHeight]") == [484, 262]
    assert "seed 1,800,000,000: agent 10.00 in 60 steps, expert 20.00 in 60 steps" in player.inner_text()
    player.get_by_role("button", name="next").click()
    page.get_by_role("dialog", name="mujoco-hopper").get_by_role("button", name="next").click()
    assert page.get_by_role("dialog", name=WEAK).is_visible()
    playing(page, "dialog video")
    page.keyboard.press("Escape")
    assert page.get_by_role("dialog").count() == 0
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "play the video of mujoco-ant"


def test_a_weak_task_leads_to_its_video_and_back(open_page: Any) -> None:
    page = open_page()
    weak = page.get_by_role("table", name="Lowest scores").get_by_role("button", name=f"watch {WEAK}")
    weak.click()
    assert page.get_by_role("dialog", name=WEAK).is_visible()
    playing(page, "dialog video")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == f"watch {WEAK}"


def test_the_returns_of_a_domain_are_shown_on_demand(open_page: Any) -> None:
    page = open_page()
    figure = page.get_by_role("img", name="mujoco-ant: returns from")
    assert figure.count() == 0
    page.get_by_text("MuJoCo: 11 tasks").click()
    assert figure.bounding_box()["height"] > 40
    assert "agent" in figure.get_attribute("aria-label") and "random" in figure.get_attribute("aria-label")


def test_the_videos_of_the_domains_play_when_they_are_in_sight(open_page: Any) -> None:
    page = open_page()
    video = "video[aria-label='the agent in Meta-World']"
    assert page.eval_on_selector(video, "v => v.paused")
    page.locator(video).scroll_into_view_if_needed()
    playing(page, video)


def test_nothing_moves_for_those_who_asked_for_that(open_page: Any) -> None:
    page = open_page(reduced_motion="reduce")
    video = page.locator("video[aria-label='the agent in Meta-World']")
    video.scroll_into_view_if_needed()
    page.get_by_role("button", name="play the video of mujoco-ant").click()
    wait_until(page, "dialog video", "v => v.readyState >= 2")
    assert video.evaluate("v => v.paused") and page.eval_on_selector("dialog video", "v => v.paused")


def test_everything_works_by_keyboard(open_page: Any) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the table of tasks"
    page.keyboard.press("Enter")
    heading = page.locator("#tasks").get_by_role("columnheader", name="score", exact=True)
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    outline = heading.get_by_role("button").evaluate("b => getComputedStyle(b).outlineStyle")
    assert outline == "solid"
    page.get_by_role("button", name="play the video of mujoco-ant").focus()
    page.keyboard.press("Space")
    assert page.get_by_role("dialog", name="mujoco-ant").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_figures_have_contrast_in_light_and_dark(open_page: Any, scheme: str) -> None:
    check_contrast(open_page(color_scheme=scheme), scheme, {"td small": "color", ".play": "color", ".bad": "color"})


@pytest.mark.parametrize("width", [320, 390])
def test_a_phone_scrolls_tables_and_not_the_page(open_page: Any, width: int) -> None:
    page = open_page(width, 800)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    scrolled = page.eval_on_selector("#tasks-region", "e => { e.scrollLeft = 300; return e.scrollLeft; }")
    assert scrolled > 0
    box = page.locator("#tasks tbody th").first.bounding_box()
    assert box["x"] < 40  # the names stay
    page.get_by_role("button", name="play the video of mujoco-ant").click()
    box = page.locator("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_without_scripts_all_tasks_can_be_read(open_page: Any) -> None:
    page = open_page(java_script_enabled=False)
    assert page.locator("#tasks tbody tr:visible").count() == 157
    assert page.locator("noscript p").is_visible()

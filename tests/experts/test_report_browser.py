from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experts.report import ExpertsReportConfig, report
from experts.store import TrainingPoint
from tests.browser import check_contrast, launched, needs_browser, quiet_pages
from tests.fakes import FAKE_COUNT, store_network, store_random, write_measurement

pytestmark = [pytest.mark.slow, needs_browser, pytest.mark.usefixtures("nothing_embedded")]
HOPPER = replace(FAKE_COUNT, name="mujoco-hopper", domain="mujoco", success=None)
REACH = replace(FAKE_COUNT, name="metaworld-reach", domain="metaworld")


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Any]:
    """A function that opens the page of three experts of two tasks."""
    curve = [TrainingPoint(1_000_000, 60.0, 20.0), TrainingPoint(2_000_000, 150.0, 900.0)]
    write_measurement(store_network(tmp_path, HOPPER, 0.5, "sac", curve), HOPPER, [1858.7] * 4)
    write_measurement(store_network(tmp_path, HOPPER, 0.7, "ppo"), HOPPER, [900.0] * 4)
    write_measurement(store_random(tmp_path, HOPPER), HOPPER, [18.4] * 4)
    write_measurement(store_network(tmp_path, REACH, 0.5, "sac"), REACH, [700.0, 800.0], [True, False])
    page = report(ExpertsReportConfig(out=tmp_path), [HOPPER, REACH])
    with launched() as browser, quiet_pages(browser, page) as open_one:
        yield open_one


def test_the_table_is_sorted_and_filtered(open_page: Any) -> None:
    page = open_page()
    assert page.locator("#count").inner_text() == "4 of 4 experts shown"
    heading = page.locator("#tasks").get_by_role("columnheader", name="on JAT's scale", exact=True)
    heading.get_by_role("button").click()
    first = page.locator("#tasks tbody tr").first.get_attribute("data-task")
    assert first.startswith("metaworld-reach sac-")
    page.get_by_label("Name contains").fill("ppo")
    assert page.locator("#tasks tbody tr:visible").count() == 1
    page.get_by_label("Name contains").fill("")
    page.get_by_label("Show").select_option("best of its task")
    assert page.locator("#tasks tbody tr:visible").count() == 2
    page.get_by_role("button", name="Meta-World", exact=True).click()
    assert page.locator("#count").inner_text() == "1 of 4 experts shown"


def test_it_can_be_read_in_light_and_dark_and_on_a_phone(open_page: Any) -> None:
    for scheme in ("light", "dark"):
        check_contrast(open_page(color_scheme=scheme), scheme, {"#tasks td small": "color"})
    page = open_page(390, 800)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.eval_on_selector("#tasks-region", "e => { e.scrollLeft = 300; return e.scrollLeft; }") > 0

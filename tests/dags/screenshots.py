"""Pictures of Airflow's pages for the guide, taken in headless Chromium while `make dags` runs.

    python -m tests.dags.screenshots http://127.0.0.1:8080 PASSWORD RUN docs/operations

RUN is the id of a run of `jat_collect`, such as ``manual__2026-01-01T00:00:00+00:00``.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from tests.trainer.reporting.test_report_browser import EXECUTABLE

SETTLE_MS = 4000  # after the last request: pages draw their tables by and by


def main() -> None:
    from playwright.sync_api import sync_playwright

    address, password, run, folder = sys.argv[1:]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=EXECUTABLE, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 840}, color_scheme="light")
        page.set_default_timeout(120_000)
        page.goto(address)
        page.fill("input[name=username]", "admin")
        page.fill("input[name=password]", password)
        page.click("button[type=submit]")
        page.wait_for_url(f"{address}/**")
        page.goto(f"{address}/dags")
        page.click("button[aria-label*='table' i]")  # all of them on one page
        show(page, f"{address}/dags", Path(folder, "dags.png"))
        show(page, f"{address}/dags/jat_collect/runs/{quote(run)}/tasks/collect/mapped", Path(folder, "run.png"))
        browser.close()


def show(page: Any, address: str, path: Path) -> None:
    page.goto(address)
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(SETTLE_MS)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.open(io.BytesIO(page.screenshot()))
    picture.convert("RGB").quantize(160).save(path, optimize=True)


if __name__ == "__main__":
    main()

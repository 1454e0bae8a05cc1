"""Datasets on the Hub and in object stores: pages of them, and what is downloaded for which page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from collectors.browser.app import make_app
from collectors.browser.browse import BrowseConfig, browse
from pipeline.errors import UserError
from pipeline.files import location
from pipeline.storage.manifest import DatasetManifest
from tests.collectors.browser.conftest import NAME, PORT, TASKS
from tests.hub import serve_hub

# A client of the pages of a repository, as somebody who finds only the Hub on loopback.
PAGES = """
import json, sys, tempfile
from pathlib import Path
from starlette.testclient import TestClient
from collectors.browser.app import make_app
from pipeline.errors import UserError
from tests.collectors.browser.conftest import PORT, TASKS
folder = Path(tempfile.mkdtemp())
try:
    app = make_app(Path(sys.argv[1]), PORT, folder, TASKS)
except UserError as error:
    print(error)
    raise SystemExit
client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
found = []
for address in sys.argv[2:]:
    answer = client.get(address)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    found.append([answer.status_code, answer.text, files])
print(json.dumps(found))
"""


def files_of(dataset: Path) -> tuple[list[str], list[str]]:
    """Data files and side tables of the training episodes of the first task."""
    split = DatasetManifest.load(dataset / "manifest.json").tasks[NAME].splits["train"]
    return [entry.name for entry in split.data], [entry.name for entry in split.episodes]


@pytest.mark.slow
def test_a_repository_s_files_are_downloaded_when_a_page_needs_them(browsed: Path, tmp_path: Path) -> None:
    with serve_hub(tmp_path / "server") as hub:
        hub.upload("owner/played", browsed / "dataset", tmp_path / "home")
        home = tmp_path / "home"
        said = hub.run_script(
            PAGES, "hub:owner/played", "/", f"/tasks/{NAME}", f"/tasks/{NAME}/train/3", "/evaluation", home=home
        )
        tasks, episodes, episode, evaluation = json.loads(said)
        assert tasks[0] == 200 and NAME in tasks[1] and "hub:owner/played" in tasks[1]
        assert tasks[2] == ["downloads/published/manifest.json"]
        data, sides = files_of(browsed / "dataset")
        assert episodes[0] == 200 and f"/tasks/{NAME}/train/3" in episodes[1]
        assert set(episodes[2]) >= {f"downloads/published/{name}" for name in sides}
        assert not any(name in file for name in data for file in episodes[2])
        assert episode[0] == 200 and "return" in episode[1] and "replay and compare" not in episode[1]
        assert sum(name in file for name in data for file in episode[2]) == 1
        assert evaluation[0] == 404
        other = tmp_path / "other"
        other.mkdir()
        (other / "README.md").write_text("nothing")
        hub.upload("owner/other", other, home)
        assert "was not published by `jat publish`" in hub.run_script(PAGES, "hub:owner/other", home=home)
        said = hub.run_script(PAGES, "hub:owner/nothing", home=home)
        assert "there is no public repository owner/nothing" in said and "\n" not in said


@pytest.mark.parametrize("is_run", [True, False])
def test_a_run_or_dataset_in_a_store_is_shown_and_only_a_run_has_evaluations(
    is_run: bool, browsed: Path, tmp_path: Path
) -> None:
    store: Any = location(f"memory://browsed-{is_run}/run")
    store.fs.put(f"{browsed / ('' if is_run else 'dataset')}/", store.path, recursive=True)
    app = make_app(store, PORT, tmp_path, TASKS)
    client = TestClient(app, base_url=f"http://127.0.0.1:{PORT}")
    for page in ("/", f"/tasks/{NAME}", f"/tasks/{NAME}/train/3"):
        assert client.get(page).status_code == 200
    assert "memory://" in client.get("/").text
    assert client.get("/evaluation").status_code == (200 if is_run else 404)
    if is_run:
        assert "2000000001" in client.get(f"/evaluation/{NAME}").text
    store.fs.rm(store.path, recursive=True)
    answer = client.get(f"/tasks/{TASKS[1].name}")  # not downloaded yet
    assert answer.status_code == 400 and "is gone; the dataset has changed since" in answer.text


def test_a_file_that_is_not_the_manifest_s_is_refused(browsed: Path, tmp_path: Path) -> None:
    shutil.copytree(browsed / "dataset", tmp_path / "damaged")
    _, (side, *_) = files_of(tmp_path / "damaged")
    (tmp_path / "damaged" / side).write_bytes(b"PAR1" * 100)
    store: Any = location("memory://damaged/dataset")
    store.fs.put(f"{tmp_path / 'damaged'}/", store.path, recursive=True)
    client = TestClient(make_app(store, PORT, tmp_path / "new", TASKS), base_url=f"http://127.0.0.1:{PORT}")
    answer = client.get(f"/tasks/{NAME}")
    assert answer.status_code == 400
    assert "expected at most" in answer.text or "is not the file of its manifest" in answer.text


def test_a_store_without_a_dataset_is_refused() -> None:
    with pytest.raises(UserError, match=r"memory://.*nothing.* is no dataset and has none: no manifest.json is in it"):
        browse(BrowseConfig(location("memory://nothing/here"), port=0))

"""The pages of ``jat browse`` by a client without a browser: what they list, show, make and refuse."""

from __future__ import annotations

import re
import shutil
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from collectors.browser import catalogue, plots
from collectors.browser.app import make_app
from collectors.browser.browse import BrowseConfig, browse, listening
from collectors.browser.catalogue import PAGE_ROWS, Catalogue, TaskIndex
from collectors.browser.query import Query, parse_query
from collectors.dataset.surgery.selection import Conditions
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.collectors.browser.conftest import EVIL, NAME, PORT, TASKS
from tests.fakes import DRAWN, num_steps, reward_at

SITE = f"http://127.0.0.1:{PORT}"
OWN = {"origin": SITE}
EPISODE = f"/tasks/{NAME}/train/3"


def numbers(text: str) -> list[int]:
    """Numbers of the episodes in a list, top to bottom."""
    return [int(number) for number in re.findall(rf'href="/tasks/{NAME}/train/(\d+)', text)]


def listed(client: TestClient, query: str) -> list[int]:
    answer = client.get(f"/tasks/{NAME}{query}")
    assert answer.status_code == 200, answer.text
    return numbers(answer.text)


def test_tasks_are_listed_with_what_is_in_them(client: TestClient) -> None:
    text = client.get("/").text
    assert "2 of 2 tasks" in text and "fake-count" in text and "toy-grid" in text
    assert "1 of 2 tasks" in client.get("/?name=GRID").text


def test_episodes_are_filtered_as_dataset_filter_does_and_sorted(client: TestClient) -> None:
    accepted = [seed for seed in range(120) if seed != 7]
    returns = {seed: sum(reward_at(DRAWN, seed, t) for t in range(num_steps(seed))) for seed in accepted}
    assert listed(client, "?split=train") == list(range(PAGE_ROWS))
    assert listed(client, "?split=train&page=3") == list(range(100, 120))
    assert listed(client, "?split=train&page=99") == list(range(100, 120))  # the last one
    assert listed(client, "?split=train&rejected=yes") == [7]
    assert listed(client, "?split=train&success=no&seeds=0-9") == [1, 2, 4, 5, 8]
    assert listed(client, "?split=train&max_length=1&page=1") == [s for s in accepted if num_steps(s) == 1]
    by_return = sorted(accepted, key=lambda seed: -returns[seed])
    assert listed(client, "?split=train&rejected=no&sort=-return") == by_return[:PAGE_ROWS]
    assert (
        listed(client, "?split=train&rejected=no&min_return=20&sort=return")
        == [seed for seed in sorted(accepted, key=lambda seed: returns[seed]) if returns[seed] >= 20][:PAGE_ROWS]
    )
    assert listed(client, "?expert=rand*&seeds=5") == [5]
    assert listed(client, "?expert=nobody") == []


def test_an_episode_leads_to_its_neighbours_in_the_list_that_it_was_opened_from(client: TestClient) -> None:
    order = listed(client, "?split=train&rejected=no&sort=-return")
    text = client.get(f"/tasks/{NAME}/train/{order[4]}?split=train&rejected=no&sort=-return&at=4").text
    found = dict(re.findall(rf'href="/tasks/{NAME}/train/(\d+)[^"]*" rel="(prev|next)"', text))
    assert found == {str(order[3]): "prev", str(order[5]): "next"}


def test_an_episode_shows_outcome_provenance_command_and_steps(client: TestClient, browsed: Path) -> None:
    text = client.get(EPISODE).text
    assert f"jat dataset replay --task {NAME} --seed 3 --out {browsed}" in text
    assert "4 steps, terminated" in text and "numpy" in text
    rewards = [reward_at(DRAWN, 3, t) for t in range(4)]
    assert f">[{rewards}".replace(" ", "") in text.replace(" ", "")
    chosen = client.get(f"{EPISODE}?observations=3&actions=").text
    assert "observation 3" in chosen and "observation 0" not in chosen and "action 0" not in chosen
    assert "seed 3 step 0" in client.get("/tasks/toy-grid/train/3").text  # the mission


def test_a_rejected_episode_says_why_and_nothing_of_a_file_becomes_markup(client: TestClient) -> None:
    for page in (f"/tasks/{NAME}/train/7", f"/tasks/{NAME}?rejected=yes", f"/evaluation/{NAME}"):
        text = client.get(page).text
        assert EVIL not in text and "&lt;script&gt;alert(1)" in text, page
    answer = client.post(f"/tasks/{NAME}/train/7/film", headers=OWN)
    assert answer.status_code == 400 and answer.json()["error"].startswith("the episode was rejected")
    assert EVIL not in client.get(f"/tasks/{NAME}?expert={EVIL}").text


def test_a_film_is_made_once_into_the_temporary_folder_and_nothing_else_is_written(
    client: TestClient, browsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in browsed.rglob("*")}
    made = client.post(f"{EPISODE}/film", headers=OWN).json()
    assert made["note"] == "" and made["stride"] == 1
    monkeypatch.setattr("collectors.browser.films.film_stored", None)  # a second film would fail
    assert client.post(f"{EPISODE}/film", headers=OWN).json() == made
    film = client.get(made["address"], headers={"range": "bytes=0-99"})
    assert film.status_code == 206 and film.content[4:8] == b"ftyp"
    assert "data-made" in client.get(EPISODE).text
    assert len(list(tmp_path.iterdir())) == 1
    assert {path: path.stat().st_mtime_ns for path in browsed.rglob("*")} == before


def test_an_episode_is_played_again_and_compared(client: TestClient) -> None:
    answer = client.post(f"{EPISODE}/replay", headers=OWN).json()
    assert answer["equal"] and "equal in all columns, 4 steps" in answer["text"]


def test_what_cannot_be_drawn_is_said(client: TestClient) -> None:
    answer = client.post("/tasks/toy-grid/train/3/film", headers=OWN)
    assert answer.status_code == 400 and "toy-grid cannot be drawn" in answer.json()["error"]


def test_an_evaluation_shows_failures_first_and_the_films_of_both(client: TestClient) -> None:
    text = client.get(f"/evaluation/{NAME}").text
    seeds = [int(seed) for seed in re.findall(rf"/evaluation/{NAME}/(\d+)\"", text)]
    assert seeds == [2_000_000_002, 2_000_000_001, 2_000_000_000]  # rejected, failed, succeeded
    page = f"/evaluation/{NAME}/2000000001"
    text = client.get(page).text
    assert "agent: return 1.00" in text and "expert: return 9.00" in text
    for who in ("agent", "expert"):
        assert client.get(f"{page}/{who}.mp4").content[4:8] == b"ftyp"
    assert client.get(f"{page}/nobody.mp4").status_code == 404
    assert "no film" in client.get(f"/evaluation/{NAME}/2000000000").text


def test_evaluations_are_chosen_by_name(client: TestClient, browsed: Path, tmp_path: Path) -> None:
    assert "Evaluations:" not in client.get("/evaluation").text  # there is only one
    shutil.copytree(browsed, tmp_path / "run")
    shutil.copytree(browsed / "evaluation", tmp_path / "run" / "evaluation" / "step 8")
    file = tmp_path / "run" / "evaluation" / "step 8" / f"{NAME}.json"
    played = read_json(file)
    write_json(file, played | {"seeds": [1, 2, 3], "returns": [7.0, 1.0, 0.0]})
    (tmp_path / "films").mkdir()
    app = make_app(tmp_path / "run", PORT, tmp_path / "films", TASKS)
    with TestClient(app, base_url=SITE) as client:
        text = client.get("/evaluation").text
        assert 'href="/evaluation?name=step%208"' in text and "the run&#39;s own" in text
        assert f'href="/evaluation/{NAME}?name=step%208"' in client.get("/evaluation?name=step%208").text
        text = client.get(f"/evaluation/{NAME}?name=step%208").text
        assert re.findall(rf"/evaluation/{NAME}/(\d+)\?name=step%208", text) == ["3", "2", "1"]
        text = client.get(f"/evaluation/{NAME}/2?name=step%208").text
        assert f'/evaluation/{NAME}/3?name=step%208" rel="prev"' in text
        assert client.get(f"/evaluation/{NAME}/2").status_code == 404  # not of the run's own
        answer = client.get("/evaluation?name=other")
        assert answer.status_code == 404 and "there are the run&#39;s own, step 8" in answer.text
        assert client.get("/evaluation?name=films").status_code == 404
        assert client.get("/evaluation?name=..").status_code == 404


@pytest.mark.parametrize(
    ("page", "status", "said"),
    [
        ("/tasks/nothing", 404, "the dataset has no task"),
        ("/tasks/..%2f..%2fetc", 400, "number is"),
        ("/static/../../etc/passwd", 404, "there is no page"),
        (f"/tasks/{NAME}/train/120", 404, "train of fake-count has 120 rows"),
        (f"/tasks/{NAME}/other/0", 404, "no episodes of the split"),
        (f"/tasks/{NAME}/train/-1", 400, "number is"),
        (f"/tasks/{NAME}?page=x", 400, "page is"),
        (f"/tasks/{NAME}?sort=colour", 400, "sort is"),
        (f"/tasks/{NAME}?success=maybe", 400, "allowed: yes, no"),
        (f"/tasks/{NAME}?min_return=nan", 400, "min return is"),
        (f"/tasks/{NAME}?seeds=a", 400, "neither a seed nor a range"),
        (f"{EPISODE}?observations=x", 400, "give dimensions from 0 to 3"),
        ("/films/0.mp4", 404, "there is no such film"),
        ("/evaluation/toy-grid", 404, "the evaluation has no task"),
    ],
)
def test_bad_addresses_get_a_page_that_says_why(client: TestClient, page: str, status: int, said: str) -> None:
    answer = client.get(page)
    assert answer.status_code == status and said in answer.text


@pytest.mark.parametrize("host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1", "[::1]"])
def test_a_request_with_another_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 403


def test_another_site_makes_nothing_and_the_page_loads_nothing_foreign(client: TestClient, tmp_path: Path) -> None:
    for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert client.post(f"{EPISODE}/film", headers=headers).status_code == 403
    assert client.get(f"{EPISODE}/film").status_code == 405
    assert not list(tmp_path.iterdir())
    answer = client.get(EPISODE, headers={"host": f"localhost:{PORT}"})
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert not re.findall(r'(?:src|href)="(?!/|data:,|#)', answer.text) and "style=" not in answer.text


def test_a_link_out_of_the_dataset_is_not_followed_and_damage_is_told(browsed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(browsed, out)
    entry = Catalogue(out, TASKS).manifest.tasks[NAME].splits["train"].episodes[0]
    side = out / "dataset" / entry.name
    elsewhere = tmp_path / "elsewhere.parquet"
    side.rename(elsewhere)
    (tmp_path / "films").mkdir()
    client = TestClient(make_app(out, PORT, tmp_path / "films", TASKS), base_url=SITE)
    side.symlink_to(elsewhere)
    answer = client.get(f"/tasks/{NAME}")
    assert answer.status_code == 400 and "leads out of its folder" in answer.text
    side.unlink()
    elsewhere.rename(side)
    data = out / "dataset" / Catalogue(out, TASKS).manifest.tasks[NAME].splits["train"].data[0].name
    whole = pq.read_table(data)
    data.unlink()  # it may be a link to a shard
    for damaged in (whole.drop_columns(["continuous_actions"]), whole.slice(1)):
        pq.write_table(damaged, data)
        text = client.get(f"/tasks/{NAME}/train/3").text
        assert "cannot be read" in text and "Over time" not in text
    side.unlink()
    side.write_bytes(b"damaged")
    answer = client.get(f"/tasks/{NAME}")
    assert answer.status_code == 400 and "cannot be read" in answer.text


def test_a_dataset_that_is_replaced_is_read_again(browsed: Path, tmp_path: Path) -> None:
    shutil.copytree(browsed, tmp_path / "run")
    found = Catalogue(tmp_path / "run", TASKS)
    assert len(found.index(NAME).table) == 124
    path = tmp_path / "run" / "dataset" / "manifest.json"
    text = path.read_text()
    path.unlink()
    with pytest.raises(UserError, match="is gone"):
        found.index(NAME)
    path.write_text(text.replace(f'"{NAME}"', '"fake-other"'))
    with pytest.raises(UserError, match="no task 'fake-count'"):
        found.index(NAME)


def test_a_page_of_100_000_episodes_reads_few_columns_once_and_makes_only_its_own_rows(
    browsed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, count = tmp_path / "run", 100_000
    shutil.copytree(browsed, out)
    found = Catalogue(out, TASKS)
    path = out / "dataset" / found.manifest.tasks[NAME].splits["train"].episodes[0].name
    few = pq.read_table(path)
    many = few.take(pa.array(np.arange(count) % len(few)))
    many = many.set_column(few.column_names.index("seed"), "seed", pa.array(np.arange(count)))
    pq.write_table(many, path)
    reads: list[list[str] | None] = []
    read_small = catalogue.read_small

    def count_reads(source: Any, columns: list[str] | None = None) -> pa.Table:
        reads.append(columns)
        return read_small(source, columns)

    monkeypatch.setattr(catalogue, "read_small", count_reads)
    sorts = []
    sort = TaskIndex._sort
    monkeypatch.setattr(TaskIndex, "_sort", lambda index, query: sorts.append(query) or sort(index, query))
    for page in (1, 2, 1000, 2000):
        index = found.index(NAME)
        rows = index.page(Query(Conditions(split="train"), sort="seed", descending=True, page=page)).rows
        first = count - 1 - (page - 1) * PAGE_ROWS
        assert [row["seed"] for row in rows] == list(range(first, first - PAGE_ROWS, -1))
    assert len(reads) == 2  # a file of each split, once
    assert all(columns == list(catalogue.COLUMNS) for columns in reads)
    assert "versions" not in catalogue.COLUMNS and "final_observation" not in catalogue.COLUMNS
    assert len(sorts) == 1  # and its order is kept for the pages that follow


def test_lists_are_made_by_several_threads_at_once(browsed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "MAX_ORDERS", 1)
    index = Catalogue(browsed, TASKS).index(NAME)
    monkeypatch.setattr(TaskIndex, "_sort", lambda _, query: np.arange(len(query.sort)))
    queries = [Query(sort=sort) for sort in ("seed", "return", "success", "number")] * 5000
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            sizes = list(pool.map(lambda query: len(index.order(query)), queries))
    finally:
        sys.setswitchinterval(interval)
    assert sizes == [len(query.sort) for query in queries]


def test_a_task_that_is_evaluated_but_not_in_the_dataset_is_shown(browsed: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "run", "metaworld-reach"
    shutil.copytree(browsed, out)
    text = (out / "evaluation" / f"{NAME}.json").read_text()
    (out / "evaluation" / f"{other}.json").write_text(text.replace(NAME, other))
    tasks = (*TASKS, replace(DRAWN, name=other))
    client = TestClient(make_app(out, PORT, tmp_path, tasks), base_url=SITE)
    assert other in client.get("/evaluation").text and other not in client.get("/").text
    assert "2000000002" in client.get(f"/evaluation/{other}").text


def test_a_query_and_its_address_say_the_same() -> None:
    query = parse_query({"success": "no", "min_return": "1.5", "sort": "-return", "page": "3", "seeds": "", "x": "y"})
    assert query == Query(Conditions(success="no", min_return=1.5), sort="return", descending=True, page=3)
    assert query.address(at=7) == "?success=no&min_return=1.5&sort=-return&page=3&at=7"
    assert query.sorted_by("return").address() == "?success=no&min_return=1.5&sort=return"
    assert Query().address() == ""


def test_a_long_curve_keeps_its_peaks_and_a_short_one_its_points() -> None:
    values = np.zeros(20_000)
    values[12_345] = 1.0
    path = plots._path(values, 0.0, 1.0, 0.0)
    heights = [float(point.split(" ")[1]) for point in path[1:].split("L")]
    assert len(heights) <= plots.MAX_POINTS and min(heights) == plots.MARGIN
    assert plots._path(np.array([2.0]), 2.0, 2.0, 0.0) == f"M0 {plots.HEIGHT / 2}H{plots.WIDTH}"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "is no folder; name a dataset, or a run with one"),
        (lambda path: path.mkdir(), "is no dataset and has none"),
    ],
)
def test_a_place_without_a_dataset_is_refused(tmp_path: Path, make: Any, said: str) -> None:
    make(tmp_path / "place")
    with pytest.raises(UserError, match=said):
        browse(BrowseConfig(tmp_path / "place", port=0))


def test_a_port_that_is_taken_or_none_is_refused(browsed: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} cannot be used .*--port 0 for a free one"):
            browse(BrowseConfig(browsed, port))
    with pytest.raises(UserError, match="--port is 70000; it must be 0 to 65535"):
        BrowseConfig(browsed, 70_000)
    with listening(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_a_dataset_can_be_named_without_its_run(browsed: Path) -> None:
    assert Catalogue(browsed / "dataset", TASKS).dataset == Catalogue(browsed, TASKS).dataset

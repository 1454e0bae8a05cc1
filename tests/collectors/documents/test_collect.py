from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from collectors.documents.collect import collect_corpora, stream_jobs
from collectors.documents.config import RECIPES, CorporaConfig
from collectors.documents.images import stored_image
from collectors.documents.jobs import StreamJob, collect_stream
from collectors.status import corpora_table
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import location
from pipeline.runtime.stage import reported
from pipeline.runtime.status import read_statuses
from pipeline.storage.corpora import Corpus, select_corpora
from pipeline.storage.documents import finished_documents
from tests.collectors.documents.test_images import Web
from tests.corpora_sources import (
    IMAGE_TYPE,
    article,
    oscar_row,
    picture,
    write_captions,
    write_oscar,
    write_questions,
    write_wikipedia,
)
from tests.web import served


def config_of(out: Path, name: str, source: Path, **changes: Any) -> CorporaConfig:
    settings: dict[str, Any] = {"task": name, "out": out, "episodes": "all", "source": f"{name}={source}", "workers": 1}
    return CorporaConfig(**{**settings, **changes})


def jobs_of(config: CorporaConfig) -> list[StreamJob]:
    (corpus,) = select_corpora(config.task)
    return stream_jobs(config, corpus, config.out / "shards")


def collect_here(config: CorporaConfig) -> None:
    """Without Ray."""
    for job in jobs_of(config):
        collect_stream(job)


def documents(out: Path, name: str, split: str) -> list[dict[str, Any]]:
    shards = [shard for shard in finished_documents(out / "shards", name) if shard.split == split]
    return [row for shard in shards for row in pq.read_table(out / "shards" / name / shard.data.name).to_pylist()]


def side_rows(out: Path, name: str, split: str) -> list[dict[str, Any]]:
    shards = [shard for shard in finished_documents(out / "shards", name) if shard.split == split]
    return [row for shard in shards for row in pq.read_table(out / "shards" / name / shard.documents.name).to_pylist()]


def file_contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


TESTED = [9, 19, 29]


def test_articles_are_split_in_ten_and_told_by_their_addresses(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    collect_here(config_of(tmp_path, "wikipedia", tmp_path / "source", shard_documents=7))
    assert documents(tmp_path, "wikipedia", "train") == [{"text": article(i)} for i in range(30) if i not in TESTED]
    assert documents(tmp_path, "wikipedia", "test") == [{"text": article(i)} for i in TESTED]
    rows = side_rows(tmp_path, "wikipedia", "test")
    assert [row["index"] for row in rows] == TESTED
    assert rows[0]["origin"] == "https://en.wikipedia.org/wiki/9"


def test_pages_come_from_compressed_nested_json_lines(tmp_path: Path) -> None:
    write_oscar(tmp_path / "source")
    collect_here(config_of(tmp_path, "oscar", tmp_path / "source", shard_documents=8))
    expected = [oscar_row(i)["content"] for i in range(30)]
    assert [d["text"] for d in documents(tmp_path, "oscar", "train")] == [
        text for i, text in enumerate(expected) if i not in TESTED
    ]
    assert [d["text"] for d in documents(tmp_path, "oscar", "test")] == [expected[i] for i in TESTED]


def test_questions_become_image_and_text_and_keep_their_own_split(tmp_path: Path) -> None:
    write_questions(tmp_path / "source")
    collect_here(config_of(tmp_path, "ok-vqa", tmp_path / "source", shard_documents=4))
    train = documents(tmp_path, "ok-vqa", "train")
    assert [d["text"] for d in train] == [f"Q: What is {i}? A: answer {i}" for i in (0, 2, 3, 4, 5)]
    assert [d["images"] for d in train] == [{"bytes": picture(i), "path": None} for i in (0, 2, 3, 4, 5)]
    assert [d["text"] for d in documents(tmp_path, "ok-vqa", "test")] == [
        f"Q: What is {i}? A: answer {i}" for i in (0, 2)
    ]
    rejected = [(row["index"], row["rejected"]) for row in side_rows(tmp_path, "ok-vqa", "train") if row["rejected"]]
    assert rejected == [(1, "image unreadable")]


def test_jat_s_own_columns_pass_as_they_are(tmp_path: Path) -> None:
    images = pa.array([{"bytes": picture(i, 400, 300), "path": None} for i in range(3)], IMAGE_TYPE)
    (tmp_path / "source").mkdir()
    for split in ("train", "test"):
        table = pa.table({"images": images, "text": [f"Q: {split} {i} A: b" for i in range(3)]})
        pq.write_table(table, tmp_path / "source" / f"{split}-00000-of-00001.parquet")
    collect_here(config_of(tmp_path, "ok-vqa", tmp_path / "source", image_size=200))
    found = documents(tmp_path, "ok-vqa", "train")
    assert [d["text"] for d in found] == [f"Q: train {i} A: b" for i in range(3)]
    assert [d["images"]["bytes"] for d in found] == [stored_image(picture(i, 400, 300), 200) for i in range(3)]


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    with served(Web) as address:
        yield address


def test_captions_get_their_images_from_the_web_and_say_which_failed(tmp_path: Path, web: str) -> None:
    names = [
        "good-0",
        "404",
        "good-2",
        "silent",
        "page",
        "good-5",
        "good-6",
        "ftp://x/y",
        "",
        "good-9",
        "moved",
        "good-11",
    ]
    write_captions(tmp_path / "source", web, names)
    config = config_of(
        tmp_path, "conceptual-captions", tmp_path / "source", allow_private=True, download_s=0.5, downloads=4
    )
    collect_here(config)
    train = documents(tmp_path, "conceptual-captions", "train")
    numbers = {"good-0": 0, "good-2": 2, "good-5": 5, "good-6": 6, "good-9": 9, "moved": 7, "good-11": 11}
    assert [d["text"] for d in train] == [f"caption of {name}" for name in numbers]
    assert [d["images"]["bytes"] for d in train] == [picture(number) for number in numbers.values()]
    rows = side_rows(tmp_path, "conceptual-captions", "train")
    assert [(row["index"], row["rejected"]) for row in rows if row["rejected"]] == [
        (1, "download failed: HTTP 404"),
        (3, "download failed: timed out"),
        (4, "image unreadable"),
        (7, "download failed: not an address"),
        (8, "no image"),
    ]
    assert rows[2]["origin"] == f"{web}/good-2"
    (shard,) = [s for s in finished_documents(tmp_path / "shards", "conceptual-captions") if s.split == "train"]
    assert (shard.num_documents, shard.num_images, shard.num_rejected, shard.num_rows) == (7, 7, 5, 12)


def test_a_broken_network_is_not_taken_for_broken_documents(tmp_path: Path) -> None:
    write_captions(tmp_path / "source", "http://127.0.0.1:9", ["good-1"] * 6)
    config = config_of(tmp_path, "conceptual-captions", tmp_path / "source", allow_private=True, download_s=0.5)
    with pytest.raises(
        JobsFailedError, match=r"6 of 6 documents .* 6 of them for 'download failed: no connection'; their"
    ):
        collect_here(config)
    assert finished_documents(tmp_path / "shards", "conceptual-captions") == []


def test_blank_texts_are_rejected(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source", empty=(3, 9))
    collect_here(config_of(tmp_path, "wikipedia", tmp_path / "source"))
    train, test = (side_rows(tmp_path, "wikipedia", split) for split in ("train", "test"))
    assert [row["index"] for row in train if row["rejected"] == "empty text"] == [3]
    assert [row["index"] for row in test if row["rejected"] == "empty text"] == [9]
    assert len(documents(tmp_path, "wikipedia", "train")) == 26


def test_episodes_bound_what_is_read_and_more_are_added_later(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    config = config_of(tmp_path, "wikipedia", tmp_path / "source", episodes="12", shard_documents=5)
    collect_here(config)
    assert len(documents(tmp_path, "wikipedia", "train")) == 12
    before = file_contents(tmp_path / "shards")
    collect_here(replace(config, episodes="27"))
    after = file_contents(tmp_path / "shards")
    assert {name: after[name] for name in before} == before
    assert [d["text"] for d in documents(tmp_path, "wikipedia", "train")] == [
        article(i) for i in range(30) if i not in TESTED
    ]
    collect_here(replace(config, episodes="all"))
    assert [d["text"] for d in documents(tmp_path, "wikipedia", "test")] == [article(i) for i in TESTED]


def test_the_test_split_of_a_source_gives_a_share_of_the_training_documents(tmp_path: Path) -> None:
    write_questions(tmp_path / "source", 30, 20)
    collect_here(config_of(tmp_path, "ok-vqa", tmp_path / "source", episodes="20"))
    assert len(side_rows(tmp_path, "ok-vqa", "train")) == 20
    assert len(side_rows(tmp_path, "ok-vqa", "test")) == 2


@pytest.mark.parametrize("write", [write_wikipedia, write_oscar])
def test_what_was_interrupted_goes_on_to_the_same_bytes(tmp_path: Path, write: Any) -> None:
    name = "wikipedia" if write is write_wikipedia else "oscar"
    write(tmp_path / "source")
    for out in ("whole", "parts"):
        (tmp_path / out).mkdir()
    config = config_of(tmp_path / "whole", name, tmp_path / "source", shard_documents=4)
    collect_here(config)
    (job,) = jobs_of(replace(config, out=tmp_path / "parts"))
    for num_rows in (4, 12, 16, 24, None):
        collect_stream(replace(job, num_rows=num_rows))
    assert file_contents(tmp_path / "parts" / "shards" / name) == file_contents(tmp_path / "whole" / "shards" / name)


def test_going_on_reads_nothing_that_is_before(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source", rows=(12, 8, 10), row_group=4)
    (job,) = jobs_of(config_of(tmp_path, "wikipedia", tmp_path / "source", shard_documents=5))
    collect_stream(replace(job, num_rows=16))
    # The next row is the first of the second row group of the second file.
    first, second = (tmp_path / "source" / f"train-0000{i}-of-00003.parquet" for i in (0, 1))
    first.unlink()
    content = bytearray(second.read_bytes())
    group = pq.ParquetFile(second).metadata.row_group(0)
    end = max(group.column(i).data_page_offset + group.column(i).total_compressed_size for i in range(4))
    content[4:end] = b"\xff" * (end - 4)
    second.write_bytes(content)
    with pytest.raises(OSError, match="deserialize"):
        pq.read_table(second)
    collect_stream(job)
    expected = [article(i) for i in range(30) if i not in TESTED]
    assert [d["text"] for d in documents(tmp_path, "wikipedia", "train")] == expected


def test_a_half_made_pair_of_shards_is_made_again(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    config = config_of(tmp_path, "wikipedia", tmp_path / "source", shard_documents=10)
    collect_here(config)
    before = file_contents(tmp_path / "shards")
    (tmp_path / "shards" / "wikipedia" / "test-0000000010-000010.json").unlink()
    collect_here(config)
    assert file_contents(tmp_path / "shards") == before


def test_rows_come_in_order_however_many_are_downloaded_at_a_time(tmp_path: Path, web: str) -> None:
    write_captions(tmp_path / "source", web, [f"good-{i}" for i in range(20)])
    for downloads in (1, 8):
        config = config_of(
            tmp_path / str(downloads),
            "conceptual-captions",
            tmp_path / "source",
            allow_private=True,
            downloads=downloads,
            shard_documents=6,
        )
        collect_here(config)
    assert file_contents(tmp_path / "1" / "shards") == file_contents(tmp_path / "8" / "shards")


@pytest.mark.usefixtures("one_worker")
def test_the_command_collects_several_corpora_and_then_has_nothing_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_wikipedia(tmp_path / "wikipedia")
    write_oscar(tmp_path / "oscar")
    config = CorporaConfig(
        task="wikipedia,oscar",
        out=tmp_path,
        episodes="10,oscar=all",
        source=f"wikipedia={tmp_path / 'wikipedia'}, oscar={tmp_path / 'oscar'}/*.jsonl.*",
        workers=1,
    )
    with reported("corpora", tmp_path, config.task):
        collect_corpora(config)
    assert len(documents(tmp_path, "wikipedia", "train")) == 10
    assert len(documents(tmp_path, "oscar", "train")) == 27
    # What is told of it: of one corpus nobody knew how long it is.
    (status,) = read_statuses(tmp_path)
    assert (status.describe().partition(",")[0], status.planned) == ("41 documents", 0)
    assert {name: (count.planned, count.done) for name, count in status.tasks.items()} == {
        "wikipedia": (11, 11),
        "oscar": (0, 30),
    }
    table = corpora_table(tmp_path / "shards")
    assert table is not None
    assert [(row["corpus"], row["train"], row["test"]) for row in table.records()] == [
        ("wikipedia", 10, 1), ("oscar", 27, 3),
    ]  # fmt: skip
    before = file_contents(tmp_path / "shards")
    caplog.clear()
    with caplog.at_level("INFO", logger="collectors"):
        collect_corpora(config)
    assert "0 of 2 streams to read: none" in caplog.text
    assert file_contents(tmp_path / "shards") == before


def test_killed_and_started_again_it_gives_the_same_bytes(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source", rows=(3000, 3000), row_group=100)
    arguments = [
        *("--task", "wikipedia", "--episodes", "all", "--shard-documents", "200", "--workers", "1"),
        *("--source", f"wikipedia={tmp_path / 'source'}"),
    ]
    command = [sys.executable, "-m", "collectors.documents.collect", *arguments, "--out"]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    shards = tmp_path / "killed" / "shards" / "wikipedia"
    process = subprocess.Popen(
        [*command, str(tmp_path / "killed")], env=environment, start_new_session=True, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while len(list(shards.glob("train-*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(shards.glob("train-*.json")))
    assert 3 <= kept < 30
    subprocess.run([*command, str(tmp_path / "killed")], env=environment, check=True, timeout=200)
    collect_here(config_of(tmp_path / "whole", "wikipedia", tmp_path / "source", shard_documents=200))
    assert file_contents(shards) == file_contents(tmp_path / "whole" / "shards" / "wikipedia")


def test_shards_of_another_source_or_size_are_not_added_to(tmp_path: Path) -> None:
    write_questions(tmp_path / "a")
    write_questions(tmp_path / "b")
    config = config_of(tmp_path, "ok-vqa", tmp_path / "a", episodes="2")
    collect_here(config)
    with pytest.raises(UserError, match=r"holds documents of another origin: source was .*/a, is .*/b.* Use another"):
        jobs_of(replace(config, source=f"ok-vqa={tmp_path / 'b'}"))
    with pytest.raises(UserError, match=r"image_size was 352, is 100"):
        jobs_of(replace(config, image_size=100))
    write_questions(tmp_path / "a", num_train=7)
    with pytest.raises(UserError, match=r"revision was .*, is "):
        jobs_of(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes": "0"}, "'0' is no number of at least 1, such as 1000 or 1e3, nor 'all'"),
        ({"episodes": "5,oskar=3"}, "'oskar' is no corpus; there are wikipedia"),
        ({"source": "oskar=x"}, "'oskar' is no corpus"),
        ({"source": "oscar"}, "'oscar' is not corpus=source"),
        ({"task": "oskar"}, "no corpus matches 'oskar'; nearest: oscar"),
        ({"workers": 0}, "--workers is 0"),
        ({"download_s": 0.0}, "--download-s is 0; it must be above 0"),
        ({"max_rejected": 2.0}, "--max-rejected is 2; it must be above 0, at most 1"),
        ({"source": "oscar=/nowhere"}, "there is no file or folder /nowhere"),
    ],
)
def test_bad_input_is_refused_before_work(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        collect_corpora(CorporaConfig(**{"task": "oscar", "out": tmp_path, **changes}))


def test_a_source_of_other_columns_is_refused(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    with pytest.raises(
        UserError, match=r"has the columns id, url, title, text; ok-vqa is made of images\+text or image"
    ):
        jobs_of(config_of(tmp_path, "ok-vqa", tmp_path / "source"))


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source", rows=(0,))
    with pytest.raises(UserError, match="has no rows"):
        collect_here(config_of(tmp_path, "wikipedia", tmp_path / "source"))


def test_the_recipe_is_jat_s(tmp_path: Path) -> None:
    config = RECIPES["jat"]()
    wanted: dict[Corpus, int | None] = {corpus: config.num_documents(corpus.name) for corpus in select_corpora("*")}
    assert [wanted[corpus] for corpus in wanted] == [None, 1_000_000, None, None]


def test_an_object_store_gets_the_same_bytes(tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    store: Any = location("memory://corpora-test")
    config = config_of(tmp_path, "wikipedia", tmp_path / "source", shard_documents=10)
    collect_here(config)
    collect_here(replace(config, out=store, episodes="10"))
    collect_here(replace(config, out=store))
    folder = tmp_path / "shards" / "wikipedia"
    for path in folder.glob("train-0000000020-*"):
        assert (store / "shards" / "wikipedia" / path.name).read_bytes() == path.read_bytes()
    found = [
        shard.num_documents for shard in finished_documents(store / "shards", "wikipedia") if shard.split == "train"
    ]
    assert sum(found) == 27
    store.fs.rm("/corpora-test", recursive=True)

"""Documents from a Hub on loopback, by the clients that read from the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.storage.documents import finished_documents
from tests.collectors.documents.test_collect import TESTED, documents
from tests.corpora_sources import article, write_oscar, write_wikipedia
from tests.hub import TOKEN, LoopbackHub, serve_hub

COLLECT = """
import json, sys
from dataclasses import replace
from pathlib import Path
from collectors.documents.collect import stream_jobs
from collectors.documents.jobs import collect_stream
from collectors.documents.config import CorporaConfig
from pipeline.storage.corpora import select_corpora
from pipeline.errors import UserError
settings = json.loads(sys.argv[1])
config = CorporaConfig(**{**settings, "out": Path(settings["out"])})
(corpus,) = select_corpora(config.task)
try:
    for job in stream_jobs(config, corpus, config.out / "shards"):
        collect_stream(job)
except UserError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """One with Wikipedia in a folder of a public dataset, and OSCAR in a private one."""
    folder = tmp_path_factory.mktemp("hub")
    write_wikipedia(folder / "wikipedia")
    write_oscar(folder / "oscar")
    with serve_hub(folder / "server") as hub:
        hub.upload("owner/wikipedia", folder / "wikipedia", folder / "home", "20231101.en")
        hub.upload("owner/oscar", folder / "oscar", folder / "home", "en_meta", private=True)
        yield hub


def collect(hub: LoopbackHub, out: Path, token: str | None = None, **settings: Any) -> str:
    found = {"task": "wikipedia", "out": str(out), "episodes": "all", "shard_documents": 7, **settings}
    return hub.run_script(COLLECT, json.dumps(found), home=out / "home", token=token)


def test_documents_stream_from_a_folder_of_a_dataset_and_name_its_commit(hub: LoopbackHub, tmp_path: Path) -> None:
    source = "hub:owner/wikipedia/20231101.en"
    assert collect(hub, tmp_path, source=f"wikipedia={source}") == ""
    expected = [article(i) for i in range(30) if i not in TESTED]
    assert [d["text"] for d in documents(tmp_path, "wikipedia", "train")] == expected
    repository = hub.repository("owner/wikipedia")
    shards = finished_documents(tmp_path / "shards", "wikipedia")
    assert {(shard.source, shard.revision) for shard in shards} == {(source, repository["branches"]["main"])}


def test_a_later_run_stays_at_the_commit_of_the_first_and_reads_on_from_there(hub: LoopbackHub, tmp_path: Path) -> None:
    write_wikipedia(tmp_path / "source")
    name, source = "owner/growing", "hub:owner/growing/data"
    hub.upload(name, tmp_path / "source", tmp_path / "home", "data")
    collect(hub, tmp_path, source=f"wikipedia={source}", episodes="13")
    first = hub.repository(name)["branches"]["main"]
    write_wikipedia(tmp_path / "source", rows=(2, 3, 4))
    hub.upload(name, tmp_path / "source", tmp_path / "home", "data")
    assert hub.repository(name)["branches"]["main"] != first
    hub.forget()
    collect(hub, tmp_path, source=f"wikipedia={source}")
    expected = [article(i) for i in range(30) if i not in TESTED]
    assert [d["text"] for d in documents(tmp_path, "wikipedia", "train")] == expected
    assert {shard.revision for shard in finished_documents(tmp_path / "shards", "wikipedia")} == {first}
    message = collect(hub, tmp_path, source=f"wikipedia=hub:{name}@main/data")
    assert "holds documents of another origin: source was" in message


def test_a_private_dataset_opens_with_a_token_that_is_written_nowhere(hub: LoopbackHub, tmp_path: Path) -> None:
    source = "oscar=hub:owner/oscar/en_meta/*.jsonl.*"
    message = collect(hub, tmp_path / "a", task="oscar", source=source)
    assert "there is no public repository owner/oscar" in message and "`hf auth login`" in message
    assert collect(hub, tmp_path / "b", TOKEN, task="oscar", source=source) == ""
    assert len(documents(tmp_path / "b", "oscar", "train")) == 27
    files = [path for path in (tmp_path / "b" / "shards").rglob("*") if path.is_file()]
    assert files and all(TOKEN.encode() not in path.read_bytes() for path in files)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hub:owner/nobody", "there is no public repository owner/nobody on the Hugging Face Hub"),
        ("hub:owner/wikipedia@v9", "owner/wikipedia has no revision v9"),
        ("hub:owner/wikipedia/20991231.en", "hub:owner/wikipedia/20991231.en has no data files"),
        ("hub:owner", "'hub:owner' names no dataset; expected hub:owner/name"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: LoopbackHub, tmp_path: Path, source: str, message: str) -> None:
    assert message in collect(hub, tmp_path, source=f"wikipedia={source}")


def test_without_network_the_way_out_is_named(hub: LoopbackHub, tmp_path: Path) -> None:
    nobody = LoopbackHub(hub.process, "http://127.0.0.1:9", hub.folder)
    message = collect(nobody, tmp_path, source="wikipedia=hub:owner/wikipedia")
    assert "owner/wikipedia cannot be downloaded from the Hugging Face Hub" in message
    assert "give local files with --source" in message

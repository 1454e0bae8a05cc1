from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from collectors.dataset.build import DatasetConfig, build_dataset
from collectors.dataset.corpora import pattern_of_tasks
from collectors.dataset.validate import ValidateConfig, validate
from collectors.documents.collect import stream_jobs
from collectors.documents.config import CorporaConfig
from collectors.documents.jobs import collect_stream
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.storage.corpora import select_corpora
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import write_shard
from tests.corpora_sources import IMAGE_TYPE, article, picture, write_questions, write_wikipedia
from tests.fakes import FAKE_COUNT, FAKE_TASKS, expected_episode

TESTED = (9, 19, 29)


def collect_texts(out: Path) -> None:
    for name, write in (("wikipedia", write_wikipedia), ("ok-vqa", write_questions)):
        write(out / "source" / name)
        source = f"{name}={out / 'source' / name}"
        config = CorporaConfig(task=name, out=out, episodes="all", source=source, shard_documents=10)
        (corpus,) = select_corpora(name)
        for job in stream_jobs(config, corpus, out / "shards"):
            collect_stream(job)


def collect_episodes(out: Path) -> None:
    for split, first_seed, count in (("train", 0, 5), ("test", 1_000_000_000, 2)):
        job = ShardJob(FAKE_COUNT, split, first_seed, count, "random")
        write_shard(out / "shards", job, "1", [expected_episode(FAKE_COUNT, seed) for seed in job.seeds])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with episodes of one task and two corpora, and the dataset of all of them. Not to be changed."""
    out = tmp_path_factory.mktemp("run")
    collect_texts(out)
    collect_episodes(out)
    build_dataset(DatasetConfig(out=out), FAKE_TASKS)
    return out


@pytest.fixture
def run_dir(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


def kinds_of(dataset: Path, task: str = "*") -> list[str]:
    return sorted(validate(ValidateConfig(dataset, task), FAKE_TASKS).kinds)


def test_the_dataset_has_the_corpora_beside_the_tasks(made: Path) -> None:
    manifest = DatasetManifest.load(made / "dataset" / "manifest.json")
    assert (list(manifest.tasks), list(manifest.corpora)) == (["fake-count"], ["wikipedia", "ok-vqa"])
    train, test = (manifest.corpora["wikipedia"].splits[split] for split in ("train", "test"))
    expected = [article(i) for i in range(30) if i not in TESTED]
    assert (train.num_documents, train.num_characters, train.num_images) == (27, sum(map(len, expected)), 0)
    assert (test.num_documents, len(train.data), len(train.documents)) == (3, 3, 3)
    questions = manifest.corpora["ok-vqa"].splits["train"]
    assert (questions.num_documents, questions.num_images, questions.rejected) == (5, 5, {"image unreadable": 1})
    assert DatasetManifest.load(made / "dataset" / "manifest.json") == manifest
    for entry in manifest.files:
        assert sha256_of(made / "dataset" / entry.name) == entry.sha256


@pytest.mark.parametrize("streaming", [False, True])
def test_load_dataset_opens_every_configuration(made: Path, tmp_path: Path, streaming: bool) -> None:
    from datasets import Image, Value, load_dataset

    def load(name: str, split: str) -> Any:
        return load_dataset(
            str(made / "dataset"), name, split=split, streaming=streaming, cache_dir=str(tmp_path / "cache")
        )

    texts = load("wikipedia", "train")
    assert [row["text"] for row in texts] == [article(i) for i in range(30) if i not in TESTED]
    questions = load("ok-vqa", "train")
    assert questions.features == {"images": Image(), "text": Value("string")}
    first = next(iter(questions))
    assert (first["images"].size, first["images"].mode, first["text"]) == ((20, 12), "RGB", "Q: What is 0? A: answer 0")
    assert [row["rejected"] for row in load("ok-vqa-documents", "train")] == [None, "image unreadable"] + [None] * 4
    assert [row["index"] for row in load("wikipedia-documents", "test")] == list(TESTED)
    assert len(list(load("fake-count", "test"))) == 2


def test_the_card_shows_them_and_says_that_their_licences_are_their_own(made: Path) -> None:
    card = (made / "dataset" / "README.md").read_text()
    assert "license: other" in card
    assert "| wikipedia | 27 | 3 |" in card
    assert "| ok-vqa | 5 | 2 |" in card and "| image unreadable |" in card
    assert "CC BY-SA 3.0" in card and "COCO" in card and "OSCAR" not in card
    assert "visual-question-answering" in card


def test_a_dataset_of_texts_alone_is_one(tmp_path: Path) -> None:
    collect_texts(tmp_path)
    build_dataset(DatasetConfig(out=tmp_path), FAKE_TASKS)
    manifest = DatasetManifest.load(tmp_path / "dataset" / "manifest.json")
    assert (list(manifest.tasks), list(manifest.corpora)) == ([], ["wikipedia", "ok-vqa"])
    card = (tmp_path / "dataset" / "README.md").read_text()
    assert "# 37 texts and images" in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert not any("default" in config for config in front["configs"])
    sizes = [sum(entry.num_bytes for entry in split.data) for split in manifest.corpora["wikipedia"].splits.values()]
    assert front["dataset_info"][0]["dataset_size"] == sum(sizes)
    assert kinds_of(tmp_path / "dataset") == []


def test_corpora_are_chosen_like_tasks_and_stay(tmp_path: Path) -> None:
    collect_texts(tmp_path)
    collect_episodes(tmp_path)

    def contents(pattern: str) -> list[str]:
        build_dataset(DatasetConfig(task=pattern, out=tmp_path), FAKE_TASKS)
        manifest = DatasetManifest.load(tmp_path / "dataset" / "manifest.json")
        return [*manifest.tasks, *manifest.corpora]

    assert contents("wikipedia") == ["wikipedia"]
    assert contents("fake-count") == ["fake-count", "wikipedia"]
    assert contents("ok-*") == ["fake-count", "wikipedia", "ok-vqa"]


def test_a_pattern_is_parted_into_tasks_and_corpora() -> None:
    assert pattern_of_tasks("fake-count, wikipedia,*-*,ok-*,nothing", FAKE_TASKS) == "fake-count,*-*,nothing"
    assert pattern_of_tasks("*", FAKE_TASKS) == "*"
    assert pattern_of_tasks("wikipedia,oscar", FAKE_TASKS) == ""


def test_what_is_not_collected_is_named(tmp_path: Path) -> None:
    collect_texts(tmp_path)
    with pytest.raises(UserError, match=r"oscar is not collected in .*; run `jat corpora --task oscar`"):
        build_dataset(DatasetConfig(task="oscar", out=tmp_path), FAKE_TASKS)
    build_dataset(DatasetConfig(out=tmp_path), FAKE_TASKS)
    shutil.rmtree(tmp_path / "shards" / "wikipedia")
    with pytest.raises(UserError, match=r"wikipedia is in .* but its shards are gone"):
        build_dataset(DatasetConfig(task="ok-vqa", out=tmp_path), FAKE_TASKS)


def test_a_split_without_shards_is_refused(run_dir: Path) -> None:
    for path in (run_dir / "shards" / "ok-vqa").glob("test-*.json"):
        path.unlink()
    with pytest.raises(UserError, match="ok-vqa has no finished test shard"):
        build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)


def test_the_same_shards_give_the_same_dataset_and_nothing_to_do(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = (run_dir / "dataset" / "manifest.json").read_bytes()
    with caplog.at_level("INFO", logger="collectors"):
        build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)
    assert "up to date" in caplog.text
    assert (run_dir / "dataset" / "manifest.json").read_bytes() == before


def test_a_checked_shard_is_not_read_again(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    visited = []
    monkeypatch.setattr(
        "collectors.dataset.corpora.scan_document_shard",
        lambda corpus, directory, shard, report: visited.append((corpus.name, shard.stem)),
    )
    build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)
    assert visited == []
    for path in (run_dir / "shards" / "ok-vqa").glob("test-*.parquet"):
        path.touch()
    build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)
    assert visited == [("ok-vqa", "test-0000000000-000010")]


def rewrite(path: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def amend(directory: Path, stem: str, **fields: Any) -> None:
    """Make a sidecar fit files that were changed, with other ``fields``."""
    path = directory / f"{stem}.json"
    raw = json.loads(path.read_text())
    for kind in ("data", "documents"):
        file = directory / raw[kind]["name"]
        raw[kind].update(num_bytes=file.stat().st_size, sha256=sha256_of(file))
    path.write_text(json.dumps({**raw, **fields}))


def with_text(table: pa.Table, row: int, text: str | None) -> pa.Table:
    texts = table["text"].to_pylist()
    texts[row] = text
    return table.set_column(table.schema.get_field_index("text"), "text", pa.array(texts, pa.string()))


def with_image(table: pa.Table, row: int, file: bytes | None) -> pa.Table:
    images = table["images"].to_pylist()
    images[row] = {"bytes": file, "path": None}
    return table.set_column(0, "images", pa.array(images, table.schema.field("images").type))


STEM = "train-0000000000-000010"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("wikipedia", lambda t: with_text(t, 3, " "), r"row 3: the text is missing or blank"),
        ("wikipedia", lambda t: with_text(t, 3, None), r"row 3: the text is missing or blank"),
        ("wikipedia", lambda t: t.rename_columns(["content"]), r"there is no column text; there are content"),
        ("wikipedia", lambda t: t.append_column("url", t["text"]), r"unexpected columns: url"),
        ("wikipedia", lambda t: t.slice(1), r"documents=8.*the manifest says .*documents=9"),
        ("ok-vqa", lambda t: with_image(t, 2, b"GIF89a"), r"row 2: the image is neither a JPEG nor a PNG"),
        ("ok-vqa", lambda t: with_image(t, 2, None), r"row 2: there is no image"),
    ],
)
def test_a_shard_that_breaks_a_rule_is_refused_by_file_and_row(
    run_dir: Path, name: str, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    directory = run_dir / "shards" / name
    rewrite(directory / f"{STEM}.parquet", change)
    amend(directory, STEM)
    with pytest.raises(UserError, match=rf"{STEM}\.parquet.*{message}"):
        build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)


def test_a_flipped_bit_is_refused(run_dir: Path) -> None:
    path = run_dir / "shards" / "ok-vqa" / f"{STEM}.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"the file is damaged: SHA-256"):
        build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"revision": "other"}, r"revision other, but .* has"),
        ({"corpus": "oscar"}, r"is a shard of oscar, in the folder of wikipedia"),
        ({"rejected": {"empty text": 1}}, r"0 rejected, the manifest says 1"),
        ({"first_row": 5}, r"rows .* are in .*, too"),
    ],
)
def test_shards_that_do_not_go_together_are_refused(run_dir: Path, fields: dict[str, Any], message: str) -> None:
    amend(run_dir / "shards" / "wikipedia", "train-0000000010-000010", **fields)
    with pytest.raises(UserError, match=message):
        build_dataset(DatasetConfig(out=run_dir), FAKE_TASKS)


def test_validate_finds_nothing_in_what_was_built(made: Path) -> None:
    findings = validate(ValidateConfig(made / "dataset"), FAKE_TASKS)
    assert findings.kinds == {}
    totals = findings.totals["texts and pictures"]
    assert (totals.tasks, totals.episodes) == ({"wikipedia", "ok-vqa"}, {"train": 32, "test": 5})


def test_validate_takes_corpora_by_name(made: Path) -> None:
    findings = validate(ValidateConfig(made / "dataset", "wikipedia"), FAKE_TASKS)
    assert (findings.kinds, list(findings.totals)) == ({}, ["texts and pictures"])


def test_validate_tells_all_that_is_wrong(run_dir: Path) -> None:
    dataset = run_dir / "dataset"
    path = dataset / "data" / "wikipedia" / "train-00000-of-00003.parquet"
    path.unlink()
    side = dataset / "documents" / "ok-vqa" / "train-00000-of-00001.parquet"
    content = side.read_bytes()
    side.unlink()  # it is a hard link
    side.write_bytes(content[:-1] + b"x")
    (dataset / "data" / "wikipedia" / "extra-00000-of-00001.parquet").write_bytes(content)
    assert kinds_of(dataset) == ["checksum", "file missing", "file of no task or split"]
    manifest = DatasetManifest.load(dataset / "manifest.json")
    split = manifest.corpora["wikipedia"].splits["test"]
    manifest.corpora["wikipedia"].splits["test"] = replace(split, num_characters=1)
    (dataset / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    assert kinds_of(dataset, "wikipedia") == ["file missing", "manifest and files disagree"]


def test_validate_looks_into_jat_s_own_texts(tmp_path: Path) -> None:
    folder = tmp_path / "ok-vqa"
    folder.mkdir()
    images = pa.array([{"bytes": picture(i), "path": None} for i in range(3)], IMAGE_TYPE)
    pq.write_table(pa.table({"images": images, "text": ["a", "b", ""]}), folder / "train-00000-of-00001.parquet")
    findings = validate(ValidateConfig(tmp_path), FAKE_TASKS)
    assert {name: kind.count for name, kind in findings.kinds.items()} == {"document without text": 1}
    assert findings.totals["texts and pictures"].episodes == {"train": 3}

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import sha256_of
from pipeline.storage.corpora import CORPORA, Corpus, Document
from pipeline.storage.documents import DocumentProgress, DocumentRange, finished_documents, write_documents
from pipeline.storage.manifest import DocumentShard, FileEntry
from pipeline.storage.schema import document_features, read_documents

WIKIPEDIA, _, QUESTIONS, _ = CORPORA


def write(root: Path, corpus: Corpus, documents: list[Document], first: int = 0, split: str = "train") -> DocumentShard:
    wanted = DocumentRange(corpus, split, "hub:owner/name", "abc", first, 10)
    return write_documents(
        root, wanted, documents, lambda: DocumentProgress(len(documents), 1, 2), {"image_size": "352"}
    )


def side_table(root: Path, shard: DocumentShard) -> list[dict[str, Any]]:
    return pq.read_table(root / shard.corpus / shard.documents.name).to_pylist()


def two_and_a_rejected_one() -> list[Document]:
    return [
        Document(3, "one", b"\xff\xd8first", "http://a"),
        Document(4, "", None, None, "no image"),
        Document(7, "\u4e24 two", b"\xff\xd8second!"),
    ]


@given(
    st.lists(st.tuples(st.text(max_size=20), st.binary(min_size=1, max_size=30), st.booleans()), max_size=12),
    st.integers(1, 60),
)
def test_what_is_read_is_exactly_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, bytes, bool]], row_group_bytes: int
) -> None:
    root = tmp_path_factory.mktemp("shards")
    documents = [
        Document(i, text, None if rejected else image, None, "lost" if rejected else None)
        for i, (text, image, rejected) in enumerate(rows)
    ]
    accepted = [document for document in documents if document.rejected is None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.storage.documents.ROW_GROUP_BYTES", row_group_bytes)
        shard = write(root, QUESTIONS, documents)
    blocks = list(read_documents(root / "ok-vqa" / shard.data.name))
    assert [text for block in blocks for text in block.texts.to_pylist()] == [d.text for d in accepted]
    images = [image for block in blocks if block.images is not None for image in block.images.to_pylist()]
    assert images == [d.image for d in accepted]
    side = side_table(root, shard)
    assert [row["index"] for row in side] == list(range(len(rows)))
    assert [row["row"] for row in side if row["row"] is not None] == list(range(len(accepted)))


def test_a_text_corpus_has_one_column_and_no_images(tmp_path: Path) -> None:
    shard = write(tmp_path, WIKIPEDIA, [Document(0, "text", None, "http://a")])
    path = tmp_path / "wikipedia" / shard.data.name
    assert pq.read_schema(path).names == ["text"]
    (block,) = read_documents(path)
    assert (block.texts.to_pylist(), block.images) == (["text"], None)


def test_the_columns_are_jat_s_with_an_image_feature(tmp_path: Path) -> None:
    from datasets import Features, Image, Value

    assert document_features(QUESTIONS) == Features({"images": Image(), "text": Value("string")})
    shard = write(tmp_path, QUESTIONS, two_and_a_rejected_one())
    schema = pq.read_schema(tmp_path / "ok-vqa" / shard.data.name)
    assert Features.from_arrow_schema(schema) == document_features(QUESTIONS)


def test_the_manifest_and_the_side_table_say_what_came_of_each_row(tmp_path: Path) -> None:
    shard = write(tmp_path, QUESTIONS, two_and_a_rejected_one(), first=3)
    assert (shard.num_documents, shard.num_characters, shard.num_images) == (2, 3 + 5, 2)
    assert shard.rejected == {"no image": 1}
    assert (shard.num_rows, shard.next_file, shard.next_row, shard.count) == (3, 1, 2, 10)
    assert (shard.source, shard.revision, shard.options) == ("hub:owner/name", "abc", {"image_size": "352"})
    assert list(shard.versions) == ["pillow"]
    assert side_table(tmp_path, shard) == [
        {"index": 3, "row": 0, "characters": 3, "image_bytes": 7, "origin": "http://a", "rejected": None},
        {"index": 4, "row": None, "characters": 0, "image_bytes": None, "origin": None, "rejected": "no image"},
        {"index": 7, "row": 1, "characters": 5, "image_bytes": 9, "origin": None, "rejected": None},
    ]
    for entry in (shard.data, shard.documents):
        path = tmp_path / "ok-vqa" / entry.name
        assert entry == FileEntry(path.name, path.stat().st_size, sha256_of(path))
    assert DocumentShard.load(tmp_path / "ok-vqa" / "train-0000000003-000010.json") == shard


def test_images_are_stored_as_they_are_and_texts_compressed(tmp_path: Path) -> None:
    shard = write(tmp_path, QUESTIONS, two_and_a_rejected_one())
    group = pq.ParquetFile(tmp_path / "ok-vqa" / shard.data.name).metadata.row_group(0)
    found = {group.column(i).path_in_schema: group.column(i).compression for i in range(group.num_columns)}
    assert found == {"images.bytes": "UNCOMPRESSED", "images.path": "UNCOMPRESSED", "text": "ZSTD"}


def test_memory_is_bounded_by_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.documents.ROW_GROUP_BYTES", 10)
    shard = write(tmp_path, WIKIPEDIA, [Document(i, "x" * 5) for i in range(5)])
    blocks = read_documents(tmp_path / "wikipedia" / shard.data.name)
    assert [len(block.texts) for block in blocks] == [2, 2, 1]


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, QUESTIONS, two_and_a_rejected_one())
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_an_exception_while_documents_come_leaves_no_file(tmp_path: Path) -> None:
    def documents() -> Iterator[Document]:
        yield Document(0, "text")
        raise RuntimeError("the network died")

    wanted = DocumentRange(WIKIPEDIA, "train", "x", "y", 0, 10)
    with pytest.raises(RuntimeError, match="the network died"):
        write_documents(tmp_path, wanted, documents(), lambda: DocumentProgress(0, 0, 0), {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_whole_shards_are_finished(tmp_path: Path) -> None:
    shards = [write(tmp_path, WIKIPEDIA, [Document(first, "text")], first) for first in (0, 10, 20)]
    assert finished_documents(tmp_path, "wikipedia") == shards
    (tmp_path / "wikipedia" / shards[0].data.name).write_bytes(b"short")
    (tmp_path / "wikipedia" / shards[1].stem).with_suffix(".json").unlink()
    assert finished_documents(tmp_path, "wikipedia") == [shards[2]]
    assert finished_documents(tmp_path, "oscar") == []

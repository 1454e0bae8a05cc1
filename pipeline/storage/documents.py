"""The only writer of documents: a data file, its side table, then the sidecar that makes the shard exist.

    <root>/<corpus>/train-0000000000-010000.parquet            documents in JAT's columns
    <root>/<corpus>/train-0000000000-010000.documents.parquet  one row per row of the source: what came of it
    <root>/<corpus>/train-0000000000-010000.json               DocumentShard, written last

The layout of the shards of episodes (``pipeline/storage/shards.py``); the numbers are rows of the source instead of
seeds. Memory is bounded by a row group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.files import list_sizes, replacing, sha256_of, write_json
from pipeline.storage.corpora import Corpus, Document
from pipeline.storage.manifest import DocumentShard, FileEntry, shard_stem
from pipeline.storage.parquet import COMPRESSION
from pipeline.storage.schema import (
    DOCUMENT_TEXT,
    document_features,
    document_side_features,
    document_side_table,
    documents_table,
)
from pipeline.storage.shards import MAX_REASON, SIDECAR, are_there
from pipeline.versions import versions_of

# What decides what a document looks like, besides its source.
PACKAGES = ("pillow",)
ROW_GROUP_BYTES = 32 * 2**20  # of texts and pictures, in memory twice at most


@dataclass(frozen=True)
class DocumentRange:
    """Rows ``first_row .. first_row + count - 1`` of a source, of which those of one split are to be written."""

    corpus: Corpus
    split: str
    source: str
    revision: str
    first_row: int
    count: int

    @property
    def stem(self) -> str:
        """File name without suffix."""
        return shard_stem(self.split, self.first_row, self.count)


@dataclass(frozen=True)
class DocumentProgress:
    """How far a source has been read: rows of this range, and where the next one stands."""

    num_rows: int
    next_file: int
    next_row: int


def write_documents(
    root: Path,
    wanted: DocumentRange,
    documents: Iterable[Document],
    progress: Callable[[], DocumentProgress],
    options: Mapping[str, str],
) -> DocumentShard:
    """Write one shard from its documents, given in the order of the source, and return its manifest.

    Args:
        root: where shards stand, a folder per corpus.
        wanted: which rows.
        documents: those of its split, rejected ones included.
        progress: how far the source has been read, asked when ``documents`` has ended.
        options: what else decides what a document looks like, for the manifest.
    """
    directory, corpus = root / wanted.corpus.name, wanted.corpus
    data_path, side_path = directory / f"{wanted.stem}.parquet", directory / f"{wanted.stem}.documents.parquet"
    counts: Counter[str] = Counter()
    rejected: Counter[str] = Counter()
    with replacing(data_path) as data, replacing(side_path) as side:
        _write(corpus, data, side, documents, counts, rejected)
        entries = [
            FileEntry(path.name, file.stat().st_size, sha256_of(file))
            for path, file in ((data_path, data), (side_path, side))
        ]
    end = progress()
    manifest = DocumentShard(
        corpus=corpus.name,
        split=wanted.split,
        source=wanted.source,
        revision=wanted.revision,
        first_row=wanted.first_row,
        count=wanted.count,
        num_rows=end.num_rows,
        next_file=end.next_file,
        next_row=end.next_row,
        options=dict(options),
        versions=versions_of(PACKAGES if corpus.has_images else ()),
        num_documents=counts["documents"],
        num_characters=counts["characters"],
        num_images=counts["images"],
        rejected=dict(sorted(rejected.items())),
        data=entries[0],
        documents=entries[1],
    )
    write_json(directory / f"{wanted.stem}.json", manifest)
    return manifest


def _write(
    corpus: Corpus,
    data: Path,
    side: Path,
    documents: Iterable[Document],
    counts: Counter[str],
    rejected: Counter[str],
) -> None:
    with (
        pq.ParquetWriter(
            data,
            document_features(corpus).arrow_schema,
            # Images are compressed already, and texts hardly ever occur twice.
            compression={DOCUMENT_TEXT: COMPRESSION},
            use_dictionary=False,
            write_page_index=True,
            use_content_defined_chunking=True,
        ) as data_writer,
        pq.ParquetWriter(side, document_side_features().arrow_schema, compression=COMPRESSION) as side_writer,
    ):
        buffer: list[Document] = []
        num_rows = num_bytes = 0

        def flush() -> None:
            nonlocal num_rows, num_bytes
            accepted = [document for document in buffer if document.rejected is None]
            if accepted:
                data_writer.write_table(documents_table(corpus, accepted))
            side_writer.write_table(document_side_table(buffer, num_rows))
            num_rows += len(accepted)
            buffer.clear()
            num_bytes = 0

        for document in documents:
            buffer.append(document)
            num_bytes += len(document.text) + len(document.image or b"")
            if document.rejected:
                rejected[document.rejected[:MAX_REASON]] += 1
            else:
                counts["documents"] += 1
                counts["characters"] += len(document.text)
                counts["images"] += document.image is not None
            if num_bytes >= ROW_GROUP_BYTES:
                flush()
        flush()


def finished_documents(root: Path, name: str) -> list[DocumentShard]:
    """Manifests of a corpus's complete shards, by split and first row.

    A shard counts when its sidecar is there and both files have the size it names.
    """
    directory = root / name
    sizes = list_sizes(directory)
    shards = [DocumentShard.load(directory / file) for file in sorted(filter(SIDECAR.fullmatch, sizes))]
    return [shard for shard in shards if are_there((shard.data, shard.documents), sizes)]

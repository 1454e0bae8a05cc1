"""The only writer of documents: it writes a data file, its side table, then the sidecar that completes the shard.

    <root>/<corpus>/train-0000000000-010000.parquet            documents in JAT's columns
    <root>/<corpus>/train-0000000000-010000.documents.parquet  one row per row of the source: accepted or rejected
    <root>/<corpus>/train-0000000000-010000.json               DocumentShard, written last

The layout is that of shards of episodes (``pipeline/storage/shards.py``), with row indices of the source instead of
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

# Packages that determine the content of a document, besides its source.
PACKAGES = ("pillow",)
ROW_GROUP_BYTES = 32 * 2**20  # bytes of texts and images, at most two copies in memory


@dataclass(frozen=True)
class DocumentRange:
    """Rows ``first_row .. first_row + count - 1`` of a source; a shard contains those of one split."""

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
    """Read position in a source: number of rows read of this range, and file and index of the next row."""

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
        root: folder of the shards, with one folder per corpus.
        wanted: range of rows.
        documents: documents of its split, rejected ones included.
        progress: returns the read position in the source, called after ``documents`` is exhausted.
        options: other settings that determine the content of a document, for the manifest.
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
            # Images are already compressed, and texts hardly ever repeat.
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
    """Manifests of a corpus's complete shards, sorted by split and first row.

    A shard is complete if its sidecar exists and both files have the size that it states.
    """
    directory = root / name
    sizes = list_sizes(directory)
    shards = [DocumentShard.load(directory / file) for file in sorted(filter(SIDECAR.fullmatch, sizes))]
    return [shard for shard in shards if are_there((shard.data, shard.documents), sizes)]

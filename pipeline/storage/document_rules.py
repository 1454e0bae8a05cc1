"""Validate the documents of one data file, and shards of documents.

As with episodes (``pipeline/storage/episode_rules.py``), every problem is passed to ``report``, and the check continues
with the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import first_line
from pipeline.storage.corpora import Corpus
from pipeline.storage.episode_rules import PNG, UNREADABLE, Problem, Report
from pipeline.storage.manifest import DocumentShard
from pipeline.storage.parquet_limits import check_limits
from pipeline.storage.schema import DocumentBlock, document_features, document_side_features, read_documents
from pipeline.storage.validate import (
    MIXED_VERSIONS,
    OTHER_TASK,
    OVERLAP,
    ROWS,
    TOTALS,
    read_table,
    scan_columns,
    scan_file,
)

BLANK = "document without text"
NO_IMAGE = "document without an image"
NOT_AN_IMAGE = "image that is neither JPEG nor PNG"
JPEG = b"\xff\xd8\xff"


@dataclass
class DocumentCounts:
    """Totals of a data file."""

    documents: int = 0
    characters: int = 0
    images: int = 0


def scan_documents(corpus: Corpus, path: Path, report: Report) -> DocumentCounts | None:
    """Report the problems of the documents of a data file, reading one row group at a time.

    Args:
        corpus: expected corpus of the file.
        path: path of a file written by this project, or one with the same columns.
        report: called with each problem.

    Returns:
        Totals of the file; None if it cannot be read or its columns are wrong.
    """
    try:
        check_limits(pq.read_metadata(path))
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        report(Problem(UNREADABLE, path, f"cannot be read ({first_line(error)})"))
        return None
    if not scan_columns(path, schema, document_features(corpus).arrow_schema, report):
        return None
    counts = DocumentCounts()
    try:
        for block in read_documents(path):
            _scan_block(path, block, counts, report)
    except (pa.ArrowException, OSError) as error:
        report(Problem(UNREADABLE, path, f"cannot be read ({first_line(error)})"))
        return None
    return counts


def _scan_block(path: Path, block: DocumentBlock, counts: DocumentCounts, report: Report) -> None:
    first = counts.documents
    is_blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(block.texts, ""))), 0)
    _tell(path, first, is_blank, BLANK, "the text is missing or blank", report)
    if block.images is not None:
        is_missing = pc.equal(pc.binary_length(pc.fill_null(block.images, b"")), 0)
        _tell(path, first, is_missing, NO_IMAGE, "there is no image", report)
        heads = pc.fill_null(pc.binary_slice(block.images, 0, len(PNG)), b"")
        is_known = pc.or_(pc.equal(heads, PNG), pc.equal(pc.binary_slice(heads, 0, len(JPEG)), JPEG))
        is_strange = pc.and_not(pc.invert(is_known), is_missing)
        _tell(path, first, is_strange, NOT_AN_IMAGE, "the image is neither a JPEG nor a PNG file", report)
        counts.images += len(block.images) - int(pc.sum(is_missing).as_py() or 0)
    counts.documents += len(block.texts)
    counts.characters += int(pc.sum(pc.utf8_length(block.texts)).as_py() or 0)


def _tell(path: Path, first_row: int, is_wrong: pa.Array, kind: str, reason: str, report: Report) -> None:
    wrong = np.flatnonzero(is_wrong.to_numpy(zero_copy_only=False))
    if len(wrong):
        report(Problem(kind, path, reason, first_row + int(wrong[0]), len(wrong)))


def scan_document_shard(corpus: Corpus, directory: Path, shard: DocumentShard, report: Report) -> None:
    """Report every problem of a single shard of documents."""
    sidecar = directory / f"{shard.stem}.json"
    if shard.corpus != corpus.name:
        report(Problem(OTHER_TASK, sidecar, f"is a shard of {shard.corpus}, in the folder of {corpus.name}"))
        return
    data_path, side_path = directory / shard.data.name, directory / shard.documents.name
    counts = scan_documents(corpus, data_path, report) if scan_file(directory, shard.data, report) else None
    said = DocumentCounts(shard.num_documents, shard.num_characters, shard.num_images)
    if counts is not None and counts != said:
        report(Problem(TOTALS, data_path, f"{counts}, the manifest says {said}"))
    if scan_file(directory, shard.documents, report):
        side = scan_document_side(side_path, shard.num_documents, report)
        if side is not None and (num_rejected := side["row"].null_count) != shard.num_rejected:
            report(Problem(TOTALS, side_path, f"{num_rejected} rejected, the manifest says {shard.num_rejected}"))


def scan_document_side(path: Path, num_documents: int, report: Report) -> pa.Table | None:
    """Report the problems of a side table and return it; None if it cannot be read or its columns are wrong."""
    side = read_table(path, document_side_features().arrow_schema, report)
    if side is None:
        return None
    if side["row"].drop_null().to_pylist() != list(range(num_documents)):
        report(Problem(ROWS, path, f"accepted rows are not 0 to {num_documents - 1} in order"))
    indices = side["index"].to_numpy()
    if (np.diff(indices) <= 0).any():
        row = int(np.flatnonzero(np.diff(indices) <= 0)[0]) + 1
        report(Problem(ROWS, path, "indices in the source do not grow", row))
    return side


def scan_documents_together(directory: Path, shards: list[DocumentShard], report: Report) -> None:
    """Report conflicts between the shards of one corpus: overlapping rows, or different sources or settings."""
    ends: dict[str, tuple[int, str]] = {}
    for shard in sorted(shards, key=lambda shard: shard.first_row):
        sidecar = directory / f"{shard.stem}.json"
        end, holder = ends.get(shard.split, (0, ""))
        if shard.first_row < end:
            report(Problem(OVERLAP, sidecar, f"rows {shard.first_row} to {end - 1} are in {holder}, too; delete one"))
        ends[shard.split] = (shard.first_row + shard.count, shard.stem)
        for name in ("source", "revision", "options"):
            here, there = getattr(shard, name), getattr(shards[0], name)
            if here != there:
                reason = f"{name} {here}, but {shards[0].stem} has {there}; delete one and run `jat corpora` again"
                report(Problem(MIXED_VERSIONS, sidecar, reason))

"""Validate the documents of a dataset, as part of ``collectors/dataset/validate.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collectors.dataset.findings import Findings
from pipeline.runtime.progress import Progress
from pipeline.storage.corpora import Corpus
from pipeline.storage.document_rules import DocumentCounts, scan_document_side, scan_documents
from pipeline.storage.episode_rules import Problem
from pipeline.storage.manifest import CorpusManifest, CorpusSplit, DatasetManifest
from pipeline.storage.validate import OVERLAP, TOTALS, scan_file

DOMAIN = "texts and pictures"  # domain under which the totals count them


def validate_corpus(
    dataset: Path, corpus: Corpus, info: CorpusManifest, progress: Progress, findings: Findings
) -> None:
    """Check every byte, document and side table of one corpus, and the manifest's totals."""
    for split, of_split in info.splits.items():
        _validate_split(dataset, corpus, split, of_split, progress, findings)


def _validate_split(
    dataset: Path, corpus: Corpus, split: str, info: CorpusSplit, progress: Progress, findings: Findings
) -> None:
    manifest = dataset / DatasetManifest.FILE_NAME
    found = {"documents": 0, "characters": 0, "images": 0, "rejected": 0}
    is_complete = len(info.data) == len(info.documents)
    if not is_complete:
        reason = f"{corpus.name}, {split}: {len(info.data)} data files and {len(info.documents)} side tables"
        findings.add(Problem(TOTALS, manifest, reason))
    last_index = -1
    for data, side in zip(info.data, info.documents, strict=False):
        counts = (
            scan_document_file(corpus, split, dataset / data.name, findings)
            if scan_file(dataset, data, findings.add)
            else None
        )
        rows = None
        if counts is not None:
            for name in ("documents", "characters", "images"):
                found[name] += getattr(counts, name)
            if scan_file(dataset, side, findings.add):
                rows = scan_document_side(dataset / side.name, counts.documents, findings.add)
        if rows is not None:
            found["rejected"] += rows["row"].null_count
            last_index = _scan_order(dataset / side.name, rows["index"].to_numpy(), last_index, findings)
        is_complete &= rows is not None
        progress.advance(2)
    said = {
        "documents": info.num_documents,
        "characters": info.num_characters,
        "images": info.num_images,
        "rejected": info.num_rejected,
    }
    if is_complete:
        findings.compare(manifest, f"{corpus.name}, {split}", said, found)


def _scan_order(path: Path, indices: np.ndarray, last_index: int, findings: Findings) -> int:
    """Report rows of the source that are also in an earlier file; returns the last row of this file."""
    shared = int(np.count_nonzero(indices <= last_index))
    if shared:
        reason = f"row {indices[0]} of the source or a later one is in an earlier file, too"
        findings.add(Problem(OVERLAP, path, reason, 0, shared))
    return max(last_index, int(indices[-1])) if len(indices) else last_index


def scan_document_file(corpus: Corpus, split: str, path: Path, findings: Findings) -> DocumentCounts | None:
    """Check and count the documents of one file of any origin."""
    counts = scan_documents(corpus, path, findings.add)
    if counts is not None:
        findings.count(DOMAIN, corpus.name, split, counts.documents, 0, path.stat().st_size)
    return counts

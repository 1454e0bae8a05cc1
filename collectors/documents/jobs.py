"""Stream the rows of one source of documents into shards, in a worker."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from collectors.documents.images import ImageLoader, ImageOptions
from collectors.documents.sources import DocumentSource, SourceReader
from collectors.downloads import RejectedError
from pipeline.errors import JobsFailedError, UserError
from pipeline.runtime.heartbeat import WORKER_PROGRESS
from pipeline.storage.corpora import Corpus, CorpusLayout, Document, split_of
from pipeline.storage.documents import DocumentProgress, DocumentRange, finished_documents, write_documents
from pipeline.storage.manifest import DocumentShard

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Minimum number of documents for checking the share of rejected ones.
ENOUGH = 200


@dataclass(frozen=True)
class StreamJob:
    """Reads the rows of one source in order and writes the shards of the split or splits drawn from them.

    Attributes:
        corpus: the corpus to write.
        source: the source of the rows.
        splits: ``train`` and ``test`` if the source has no test files, else one of them.
        num_rows: number of rows requested; None for all.
        layout: of the source's columns.
        root: folder of the shards.
        shard_documents: rows per shard.
        images: how images are downloaded and stored.
        downloads: number of concurrent image downloads; 1 if the source contains the image files.
        max_rejected: share of a shard's documents that may be rejected.
    """

    corpus: Corpus
    source: DocumentSource
    splits: tuple[str, ...]
    num_rows: int | None
    layout: CorpusLayout
    root: Path
    shard_documents: int
    images: ImageOptions
    downloads: int
    max_rejected: float

    def __str__(self) -> str:
        return f"reading {self.corpus.name} {'+'.join(self.splits)}"

    @property
    def options(self) -> dict[str, str]:
        return {"image_size": str(self.images.size)} if self.corpus.has_images else {}


def collect_stream(job: StreamJob) -> list[DocumentShard]:
    """Write the missing shards of a stream and return them. A plain function that does not need Ray."""
    first, next_file, next_row, is_exhausted = documents_done(job)
    written: list[DocumentShard] = []
    columns = [*job.layout.columns, *_origin_columns(job)]
    reader = SourceReader(job.source.files[job.splits[0]], columns, next_file, next_row)
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(job.downloads)) if job.downloads > 1 else None
        convert = _Converter(job)
        while not is_exhausted and (job.num_rows is None or first < job.num_rows):
            end = (first // job.shard_documents + 1) * job.shard_documents
            count = min(end, job.num_rows or end) - first
            rows = islice(iter(reader), count)
            row = next(rows, None)
            if row is None:
                if first == 0:
                    raise UserError(f"{job.source.text} has no rows")
                break
            documents = _mapped(threads, convert, enumerate(chain([row], rows), first), 2 * job.downloads)
            shards = _write_group(job, first, count, documents, reader)
            written += shards
            log.info("%s", _describe(job, first, shards))
            first, is_exhausted = first + count, shards[0].num_rows < count
    return written


def documents_done(job: StreamJob) -> tuple[int, int, int, bool]:
    """Where to resume, by the finished shards: rows done, next file, next row, and whether the source is exhausted."""
    done: dict[int, list[DocumentShard]] = {}
    for shard in finished_documents(job.root, job.corpus.name):
        if shard.split in job.splits:
            done.setdefault(shard.first_row, []).append(shard)
    first = next_file = next_row = 0
    while len(group := done.get(first, [])) == len(job.splits):
        last = group[0]
        first, next_file, next_row = first + last.count, last.next_file, last.next_row
        if last.num_rows < last.count:
            return first, next_file, next_row, True
    return first, next_file, next_row, False


def _write_group(
    job: StreamJob, first: int, count: int, documents: Iterator[Document], reader: SourceReader
) -> list[DocumentShard]:
    """Write one shard per split from ``count`` rows, beginning with row ``first``.

    Documents of the other splits are buffered in memory meanwhile: they are a tenth of a shard.
    """
    num_rows = 0
    rejected: Counter[str] = Counter()
    waiting: dict[str, list[Document]] = {split: [] for split in job.splits[1:]}

    def of_first_split() -> Iterator[Document]:
        nonlocal num_rows
        for document in documents:
            num_rows += 1
            if document.rejected:
                rejected[document.rejected] += 1
            if num_rows >= ENOUGH:
                _check_rejected(job, first, num_rows, rejected)
            split = split_of(document.index, job.splits)
            if split in waiting:
                waiting[split].append(document)
            else:
                yield document
        _check_rejected(job, first, num_rows, rejected)

    def write(split: str, documents: Iterable[Document]) -> DocumentShard:
        wanted = DocumentRange(job.corpus, split, job.source.text, job.source.revision, first, count)
        return write_documents(
            job.root,
            wanted,
            documents,
            lambda: DocumentProgress(num_rows, reader.next_file, reader.next_row),
            job.options,
        )

    return [write(job.splits[0], of_first_split()), *(write(split, found) for split, found in waiting.items())]


def _check_rejected(job: StreamJob, first: int, num_rows: int, rejected: Mapping[str, int]) -> None:
    num_rejected = sum(rejected.values())
    if num_rejected > job.max_rejected * num_rows:
        reason, count = max(rejected.items(), key=lambda item: item[1])
        raise JobsFailedError(
            f"{num_rejected} of {num_rows} documents of {job.corpus.name} from row {first} on are rejected, {count} of "
            f"them for {reason!r}; their shard is not written. Check the network, or raise --max-rejected"
        )


def _describe(job: StreamJob, first: int, shards: Sequence[DocumentShard]) -> str:
    num_documents = ", ".join(f"{shard.num_documents} {shard.split}" for shard in shards)
    num_rejected = sum(shard.num_rejected for shard in shards)
    wanted = "" if job.num_rows is None else f" of {job.num_rows}"
    return (
        f"{job.corpus.name}: rows {first} to {first + shards[0].num_rows - 1}{wanted}: {num_documents} documents, "
        f"{num_rejected} rejected"
    )


def _origin_columns(job: StreamJob) -> list[str]:
    origin = job.layout.origin
    return [origin] if origin and origin not in job.layout.columns else []


class _Converter:
    """Converts a numbered row to a document."""

    def __init__(self, job: StreamJob) -> None:
        self._layout = job.layout
        self._loader = ImageLoader(job.images, job.downloads) if job.corpus.has_images else None

    def __call__(self, numbered: tuple[int, Mapping[str, Any]]) -> Document:
        index, row = numbered
        WORKER_PROGRESS.beats += 1
        WORKER_PROGRESS.episodes += 1
        layout = self._layout
        origin = row.get(layout.origin) if layout.origin else None
        origin = origin if isinstance(origin, str) else None
        try:
            text = layout.text(row) or ""
        except (TypeError, AttributeError):  # a question or an answer of another type
            text = None
        if not isinstance(text, str) or not _is_unicode(text, origin or ""):
            return Document(index, "", None, None, "text of another type")
        if not text.strip():
            return Document(index, text, None, origin, "empty text")
        if self._loader is None or layout.image is None:
            return Document(index, text, None, origin)
        try:
            return Document(index, text, self._loader.load(row[layout.image]), origin)
        except RejectedError as error:
            return Document(index, text, None, origin, str(error))


def _is_unicode(*texts: str) -> bool:
    """Whether texts can be encoded: JSON can contain lone surrogates."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True


def _mapped(
    threads: ThreadPoolExecutor | None,
    function: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    window: int,
) -> Iterator[ResultT]:
    """``map`` in threads, in order, with at most ``window`` pending results; without threads, plain ``map``."""
    if threads is None:
        yield from map(function, items)
        return
    waiting: deque[Future[ResultT]] = deque()
    try:
        for item in items:
            if len(waiting) >= window:
                yield waiting.popleft().result()
            waiting.append(threads.submit(function, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()

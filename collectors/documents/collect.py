"""Collect documents: stream JAT's text and image corpora from the Hub or from local files into shards.

    jat corpora --task 'wikipedia,oscar' --episodes 10000 --out runs/default

Writes ``OUT/shards/<corpus>/...`` (see ``pipeline/storage/documents.py``). A shard is a function of the corpus, the
revision of its source, the first row and the count. Run the same command again after a kill: it resumes after the last
shard without reading the rows before it; ask for more documents to add them. Only downloads from the web may differ
between runs: a document whose download fails is rejected with its reason.
"""

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

from collectors.documents.config import RECIPES, CorporaConfig
from collectors.documents.images import ImageLoader, ImageOptions
from collectors.documents.sources import DocumentSource, SourceReader, columns_of, resolve_source
from collectors.downloads import RejectedError
from collectors.pace import JobProgress
from collectors.progress import Monitor
from pipeline.cli import parse, run
from pipeline.errors import JobsFailedError, UserError
from pipeline.files import exclusive, remove_leftovers, update_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.heartbeat import WORKER_PROGRESS
from pipeline.runtime.pool import Supervision, run_jobs
from pipeline.runtime.stage import reported
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import Corpus, CorpusLayout, Document, rows_for, select_corpora, split_of
from pipeline.storage.documents import DocumentProgress, DocumentRange, finished_documents, write_documents
from pipeline.storage.manifest import DocumentShard
from pipeline.text import format_count

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

# Minimum number of documents for checking the share of rejected ones.
ENOUGH = 200
WORKER_BYTES = 8 * 2**30


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
    first, next_file, next_row, is_exhausted = _done(job)
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


def _done(job: StreamJob) -> tuple[int, int, int, bool]:
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


def collect_corpora(config: CorporaConfig) -> None:
    """Write the shards that are missing for the requested number of documents.

    Raises:
        UserError: invalid input, a source that cannot be reached or has changed, or another process is collecting here.
        JobsFailedError: some shards could not be written.
    """
    layout = RunLayout(config.out.absolute())  # workers may have another current directory
    root = layout.shards
    with exclusive(layout.corpora_lock, "wait for it, stop it, or use another --out"):
        jobs = [job for corpus in select_corpora(config.task) for job in stream_jobs(config, corpus, root)]
        update_json(layout.corpora_config, config)
        missing = [job for job in jobs if not _is_done(job)]
        log.info("%d of %d streams to read: %s", len(missing), len(jobs), ", ".join(map(str, missing)) or "none")
        try:
            _read_all(config, missing)
        finally:
            for job in jobs:
                remove_leftovers(root / job.corpus.name)


def _read_all(config: CorporaConfig, jobs: Sequence[StreamJob]) -> None:
    if not jobs:
        return
    counts = {(job.corpus.name, str(job)): job.num_rows and job.num_rows - _done(job)[0] for job in jobs}
    with Monitor("documents", counts) as monitor:
        supervision = Supervision(
            config.stall_s,
            WORKER_BYTES,
            lambda running: monitor.update(
                [JobProgress(r.job.corpus.name, str(r.job), r.pulse.episodes, r.resident_bytes) for r in running]
            ),
        )
        for job, shards in run_jobs(collect_stream, jobs, config.workers, supervision=supervision):
            num_rows = sum(shard.num_rows for shard in shards if shard.split == job.splits[0])
            monitor.add(job.corpus.name, str(job), num_rows, sum(shard.num_rejected for shard in shards))
            log.info("%s: done, %s", job, format_count(len(shards), "new shard"))


def _is_done(job: StreamJob) -> bool:
    first, _, _, is_exhausted = _done(job)
    return is_exhausted or (job.num_rows is not None and first >= job.num_rows)


def stream_jobs(config: CorporaConfig, corpus: Corpus, root: Path) -> list[StreamJob]:
    """The streams of one corpus: one, or one per split if the source has test files.

    Args:
        config: the options.
        corpus: the corpus.
        root: folder of the shards; a source without a revision stays at the commit of the existing shards.

    Raises:
        UserError: the source cannot be used, or existing shards are from another source.
    """
    done = finished_documents(root, corpus.name)
    text = config.source_of(corpus)
    source = resolve_source(text, done[0].revision if done and done[0].source == text else None)
    train, test = SPLITS
    streams = [(train,), (test,)] if test in source.files else [(train, test)]
    num_train = config.num_documents(corpus.name)
    jobs = []
    for splits in streams:
        num_rows = num_train
        if num_train is not None and len(splits) > 1:
            num_rows = rows_for(num_train)
        elif num_train is not None and splits == (test,):
            num_rows = max(1, round(num_train * config.test_share))
        layout = corpus.layout_of(columns_of(source.files[splits[0]][0]), text)
        from_web = layout.origin is not None and layout.origin == layout.image
        job = StreamJob(
            corpus,
            source,
            splits,
            num_rows,
            layout,
            root,
            config.shard_documents,
            ImageOptions(config.image_size, config.download_s, config.allow_private),
            config.downloads if from_web else 1,
            config.max_rejected,
        )
        _check_same(job, [shard for shard in done if shard.split in splits])
        jobs.append(job)
    return jobs


def _check_same(job: StreamJob, done: Sequence[DocumentShard]) -> None:
    """Refuse to add to shards of another origin.

    Raises:
        UserError: names the differences.
    """
    for shard in done:
        now = {"source": job.source.text, "revision": job.source.revision, **job.options}
        before = {"source": shard.source, "revision": shard.revision, **shard.options}
        differ = [f"{key} was {before.get(key)}, is {now.get(key)}" for key in now if before.get(key) != now.get(key)]
        if differ:
            raise UserError(
                f"{job.root / job.corpus.name} holds documents of another origin: {'; '.join(differ)}. Use another "
                f"OUT, remove that folder to collect them anew, or give what they were made with"
            )


def main() -> None:
    config = parse(CorporaConfig, RECIPES)
    with reported("corpora", config.out, config.task):
        collect_corpora(config)


if __name__ == "__main__":
    run("collectors.documents.collect")

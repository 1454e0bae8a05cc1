"""Collect documents: stream JAT's text and image corpora from the Hub or from local files into shards.

    jat corpora --task 'wikipedia,oscar' --episodes 10000 --out runs/default

Writes ``OUT/shards/<corpus>/...`` (see ``pipeline/storage/documents.py``). A shard is a function of the corpus, the
revision of its source, the first row and the count. Run the same command again after a kill: it resumes after the last
shard without reading the rows before it; ask for more documents to add them. Only downloads from the web may differ
between runs: a document whose download fails is rejected with its reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from collectors.documents.config import RECIPES, CorporaConfig
from collectors.documents.images import ImageOptions
from collectors.documents.jobs import StreamJob, collect_stream, documents_done
from collectors.documents.sources import columns_of, resolve_source
from collectors.pace import JobProgress
from collectors.progress import Monitor
from pipeline.cli import parse, run
from pipeline.errors import UserError
from pipeline.files import exclusive, remove_leftovers, update_json
from pipeline.run_layout import RunLayout
from pipeline.runtime.pool import Supervision, run_jobs
from pipeline.runtime.stage import reported
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import Corpus, rows_for, select_corpora
from pipeline.storage.documents import finished_documents
from pipeline.storage.manifest import DocumentShard
from pipeline.text import format_count

log = logging.getLogger(__name__)

WORKER_BYTES = 8 * 2**30


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
    counts = {(job.corpus.name, str(job)): job.num_rows and job.num_rows - documents_done(job)[0] for job in jobs}
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
    first, _, _, is_exhausted = documents_done(job)
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

"""Import episodes of another dataset: one in JAT's columns, such as JAT's own, or a Minari dataset.

    jat dataset import --source jat-project/jat-dataset --task mujoco-hopper --out runs/default

Writes ``OUT/imported/<task>/<source>/...``, shards like collected ones (``pipeline/storage/shards.py``) that ``jat
dataset`` includes too. Rows are streamed a few at a time, also from the Hub, and only the shards are stored. A shard is
a range of the source's rows: run the same command again after a kill to resume; ask for more episodes to add them.

An imported episode has no seed, so it cannot be replayed. Invalid rows are rejected with their reason, and so are
copies of an earlier episode of the same shard. Actions out of range are kept unchanged and flagged in the side table.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collectors.dataset.findings import Findings
from collectors.dataset.importing.rows import EMPTY, OTHER_SIZE, Rows
from collectors.dataset.importing.sources import EpisodeSource, NotThereError, num_tests, resolve_source, source_name
from collectors.dataset.repeats import Repeats, reject_copies
from pipeline.cli import check_at_least_one, parse, run
from pipeline.envs.registry import domain_of, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import digest_of, exclusive, remove_leftovers
from pipeline.run_layout import RunLayout
from pipeline.runtime.pool import Supervision, run_jobs
from pipeline.runtime.progress import Progress
from pipeline.seeds import FIRST_SEED, SPLITS
from pipeline.storage.episode_rules import scan_episodes
from pipeline.storage.manifest import ShardManifest
from pipeline.storage.plan import ShardJob, interleaved, missing_jobs
from pipeline.storage.shards import IMPORTED, Origin, finished_shards, index_shards, write_shard
from pipeline.text import format_count

log = logging.getLogger(__name__)

# Rows per shard, by domain: what a kill can lose, and small enough to import many shards in parallel.
NUM_TRIED = 8  # first rows, of which at least one must be valid
WORKER_BYTES = 8 * 2**30


@dataclass(frozen=True)
class ImportConfig:
    """Import episodes of another dataset into shards."""

    source: str
    """A folder (of Parquet files in JAT's columns, or of a Minari dataset), `owner/name` of a dataset on the Hub,
    optionally with `@revision`, or `minari:NAME`."""
    task: str
    """Tasks: name, domain, glob, or comma list of these."""
    out: Path = Path("runs/default")
    """Root of all outputs of a run."""
    episodes: int | None = None
    """Training episodes per task; all if not given."""
    test_share: float = 0.1
    """Test episodes as a share of the training episodes where `episodes` is given; where the source has no test split,
    also the share of its episodes, the last ones, that become the test split."""
    environment: str = ""
    """Id of the environment in which the episodes were played. If not given: the one that Minari records; this
    project's for a dataset of `jat dataset`; else JAT's, as listed by `jat tasks`."""
    shard_episodes: int | None = None
    """Rows of the source per shard, the unit of work; if not given 10,000 (BabyAI), 4,000, 500 or 25 (Atari)."""
    workers: int = 2
    """Worker processes."""
    stall_s: float = 300.0
    """Seconds without a single row after which a worker is considered hung and replaced."""

    def __post_init__(self) -> None:
        given = [name for name in ("episodes", "shard_episodes") if getattr(self, name) is not None]
        check_at_least_one(self, "workers", *given)
        if not 0 < self.test_share <= 1:
            raise UserError(f"--test-share is {self.test_share:g}; it must be above 0 and at most 1")
        if self.stall_s <= 0:
            raise UserError(f"--stall-s is {self.stall_s:g}; it must be above 0")


@dataclass(frozen=True)
class ImportJob:
    """One shard to write below ``root`` (a folder of sources), in the folder ``name``, from the rows of its split."""

    shard: ShardJob
    rows: Rows
    origin: Origin
    root: Path
    name: str

    def __str__(self) -> str:
        return f"importing {self.shard.task.name} {self.shard.stem}"


def import_shard(job: ImportJob) -> ShardManifest:
    """Read the rows of one shard and write it. A plain function that does not need Ray."""
    shard = job.shard
    episodes = job.rows.read(shard.task, shard.first_seed - FIRST_SEED[shard.split], shard.num_seeds)
    unlike = reject_copies(shard.task, episodes)
    return write_shard(job.root, shard, job.origin.revision, unlike, origin=job.origin, folder=job.name)


def import_dataset(config: ImportConfig, tasks: Sequence[Task] | None = None) -> None:
    """Write the shards that are missing for the requested number of episodes.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: invalid input, or a source that cannot be reached, is no dataset, has changed, or does not fit.
        JobsFailedError: some shards could not be written.
    """
    layout = RunLayout(config.out.absolute())  # workers may have another current directory
    name = folder_of(config.source)
    chosen = select_tasks(config.task, tasks)
    root = layout.imported
    with exclusive(layout.import_lock, "wait for it, stop it, or use another --out"):
        jobs = import_jobs(config, chosen, root)
        progress = Progress("shards imported", len(jobs))
        try:
            supervision = Supervision(config.stall_s, WORKER_BYTES, lambda running: None)
            for _ in run_jobs(import_shard, jobs, config.workers, supervision=supervision):
                progress.advance()
        finally:
            for task in chosen:
                remove_leftovers(root / task.name / name)
                index_shards(root / task.name, name)
        for task in chosen:
            _tell(task, root, name)
            if any(job.shard.task == task for job in jobs):
                _tell_repeats(task, root, name)


def folder_of(source: str) -> str:
    """Name of the folder for the shards of a source."""
    name = source_name(source)
    short = Path(name).name if Path(name).is_absolute() else name.partition(":")[2]
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', short).strip('-.')}-{digest_of(name)[:8]}"


def import_jobs(config: ImportConfig, tasks: Sequence[Task], root: Path) -> list[ImportJob]:
    """Missing shards of all tasks in the source.

    Args:
        config: the options.
        tasks: the selected tasks.
        root: folder of the imported shards, with a folder per task.

    Raises:
        UserError: the source cannot be reached, is not a dataset, or has none of the tasks or other columns.
    """
    name = folder_of(config.source)
    named = {part.strip() for part in config.task.split(",")}
    jobs, absent, last = [], [], None
    for task in tasks:
        try:
            jobs.append(_jobs(config, task, root, name))
        except NotThereError as error:
            if task.name in named:
                raise
            absent.append(task.name)
            last = error
    if last is not None:
        if not jobs:
            raise last
        log.info("not in %s: %s", config.source, ", ".join(absent))
    by_shard = {job.shard: job for of_task in jobs for job in of_task}
    return [by_shard[shard] for shard in interleaved([[job.shard for job in of_task] for of_task in jobs])]


def _jobs(config: ImportConfig, task: Task, root: Path, name: str) -> list[ImportJob]:
    """Missing shards of one task."""
    done = finished_shards(root / task.name, name)
    known = (done[0].source or "").rpartition("@")[2] if done else None
    source = resolve_source(config.source, task, config.episodes, config.test_share, known)
    environment = config.environment or source.environment
    if environment is None:
        raise UserError(f"{config.source} does not say in which environment it was played; tell it with --environment")
    origin = Origin(source.text, environment)
    _check_same(task, root / task.name / name, done, origin)
    if not done:
        _check_fits(task, source, environment)
    jobs = []
    for split in SPLITS:
        rows = source.rows[split]
        count = rows.num_rows
        if config.episodes is not None:
            wanted = config.episodes if split == "train" else num_tests(config.episodes, config.test_share)
            count = min(count, wanted)
        of_split = [shard for shard in done if shard.split == split]
        size = config.shard_episodes or domain_of(task).shard_episodes
        for shard in missing_jobs(task, split, count, IMPORTED, of_split, size):
            jobs.append(ImportJob(shard, rows, origin, root / task.name, name))
    return jobs


def _check_same(task: Task, folder: Path, done: Sequence[ShardManifest], origin: Origin) -> None:
    """Refuse to add rows of another revision or environment to existing shards."""
    for shard in done:
        if (shard.source, shard.environment) != (origin.source, origin.environment):
            raise UserError(
                f"{folder} holds episodes of {task.name} from {shard.source} ({shard.environment}); now the source is "
                f"{origin.source} ({origin.environment}). Give what was given then, or remove that folder to import "
                f"anew"
            )


def _check_fits(task: Task, source: EpisodeSource, environment: str) -> None:
    """Refuse a source if all of its first rows are invalid: then it is of another task or version."""
    rows, reasons = source.rows["train"], list[str]()
    for episode in rows.read(task, 0, rows.num_rows):
        if not episode.rejected:
            return
        reasons += [episode.rejected] if episode.rejected != EMPTY else []
        if len(reasons) == NUM_TRIED:
            break
    if reasons:
        tried = format_count(len(reasons), "episode")
        why = f"none of the first {tried} of {task.name} in {source.name} fits: {reasons[0]}"
        if OTHER_SIZE in reasons[0]:
            why += f". They are of {environment}, the task is {task.env_id}: another task or version has other sizes"
        raise UserError(why)


def _tell(task: Task, root: Path, name: str) -> None:
    """Log the counts of a task's imported episodes."""
    done = finished_shards(root / task.name, name)
    if not done:
        return
    rejected: Counter[str] = Counter()
    for shard in done:
        rejected.update(shard.rejected)
    counts = {split: sum(shard.num_episodes for shard in done if shard.split == split) for split in SPLITS}
    log.info(
        "%s from %s (%s): %d train and %d test episodes%s%s; in %s",
        task.name,
        done[0].source,
        done[0].environment,
        counts["train"],
        counts["test"],
        "".join(f"; {count} rejected: {reason}" for reason, count in rejected.most_common()),
        f"; {flagged} flagged for actions out of range" if (flagged := sum(s.num_flagged for s in done)) else "",
        root / task.name / name,
    )


def _tell_repeats(task: Task, root: Path, name: str) -> None:
    """Log episodes that occur in two shards of a source; within one shard they are rejected."""
    found = Findings()
    repeats = Repeats(task, found)
    done = finished_shards(root / task.name, name)
    for shard in sorted(done, key=lambda shard: SPLITS.index(shard.split)):
        path, digests = root / task.name / name / shard.data.name, list[bytes]()
        scan_episodes(task, path, lambda problem: None, digests=digests)
        repeats.add(path, shard.split, digests, np.zeros(len(digests), bool))
    for kind, what in found.kinds.items():
        log.warning("%s: %d times: %s, such as %s", task.name, what.count, kind, what.first)
    if found.num_equal:
        log.info("%s: %d episodes equal another one, as they may in a small world", task.name, found.num_equal)


def main() -> None:
    import_dataset(parse(ImportConfig))


if __name__ == "__main__":
    run("collectors.dataset.importing.imports")

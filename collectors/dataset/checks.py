"""Check every shard once and cache the result next to it, in ``checked.json``.

A later build checks only shards that are new, whose files or manifest have changed, or that were checked by older
rules. A cache entry that is damaged, or that another user or machine wrote, is ignored (``signatures.py``).
``jat dataset validate`` ignores the cache and reads everything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors.dataset.signatures import is_ours, sign
from collectors.dataset.sources import Shard
from pipeline.envs.task import Task
from pipeline.files import digest_of, list_sizes, update_json
from pipeline.records import RecordError
from pipeline.runtime.progress import Progress
from pipeline.storage.manifest import FileEntry
from pipeline.storage.parquet_limits import read_small
from pipeline.storage.shards import read_cache
from pipeline.storage.statistics import SplitStatistics, StepStatistics, split_statistics
from pipeline.storage.validate import check_shard, refuse, scan_together

CHECKED = "checked.json"
RULES = 5  # increase it when what `visit` checks or returns changes, so that every shard is checked again


@dataclass(frozen=True)
class ToCheck:
    """A shard to check, unless a valid cache entry exists.

    Attributes:
        stem: of its file names.
        key: identifies its content and manifest.
        files: the files to read.
        visit: reads and checks the shard completely; returns what later builds need.
        is_usable: whether the cached result of a visit can still be used.
    """

    stem: str
    key: str
    files: tuple[FileEntry, ...]
    visit: Callable[[], dict[str, Any]]
    is_usable: Callable[[dict[str, Any]], bool] = lambda record: True


def check_once(directory: Path, shards: Sequence[ToCheck], rules: int, progress: Progress) -> list[dict[str, Any]]:
    """The result of checking each shard of a folder, fresh or cached by the same rules, in the given order.

    Results are cached even if a later shard fails or the build is killed.

    Raises:
        UserError: a shard breaks a rule.
    """
    sizes = list_sizes(directory)
    known = read_cache(directory / CHECKED) if CHECKED in sizes else {}
    found: dict[str, dict[str, Any]] = {}
    try:
        for shard in shards:
            stamps = [list(sizes[entry.name]) for entry in shard.files]
            record = {"key": shard.key, "stamps": stamps, "rules": rules}
            before = _valid(known.get(shard.stem), record, shard)
            found[shard.stem] = before if before is not None else sign(record | shard.visit())
            progress.advance()
    finally:
        if found != known:
            update_json(directory / CHECKED, known | found, None)
    return [found[shard.stem] for shard in shards]


def _valid(before: Any, record: dict[str, Any], shard: ToCheck) -> dict[str, Any] | None:
    """The cached record if it is this user's and of the same files and rules, else None."""
    if not isinstance(before, dict) or any(before.get(name) != value for name, value in record.items()):
        return None
    return before if is_ours(before) and shard.is_usable(before) else None


def visit(task: Task, shard: Shard) -> SplitStatistics:
    """Read a shard completely, check it, and return the statistics of its episodes.

    Raises:
        UserError: it breaks a rule; names file, row and reason.
    """
    steps = StepStatistics(task)
    check_shard(task, shard.directory, shard.manifest, steps.add)
    side = read_small(shard.directory / shard.manifest.episodes.name)
    return split_statistics(task, side, steps, shard.manifest.data.num_bytes)


def check_all(shards: Mapping[Task, Sequence[Shard]]) -> dict[Task, list[SplitStatistics]]:
    """Statistics of each shard, fresh or cached by an earlier build, in the given order.

    Raises:
        UserError: a shard breaks a rule, or two shards are incompatible.
    """
    for of_task in shards.values():
        scan_together([(shard.directory, shard.manifest) for shard in of_task], refuse)
    progress = Progress("shards checked", sum(map(len, shards.values())))
    return {task: _check_task(task, of_task, progress) for task, of_task in shards.items()}


def _check_task(task: Task, shards: Sequence[Shard], progress: Progress) -> list[SplitStatistics]:
    found = []
    for directory in dict.fromkeys(shard.directory for shard in shards):
        of_folder = [_to_check(task, shard) for shard in shards if shard.directory == directory]
        records = check_once(directory, of_folder, RULES, progress)
        found += [SplitStatistics.from_json(record["statistics"]) for record in records]
    return found


def _to_check(task: Task, shard: Shard) -> ToCheck:
    manifest = shard.manifest
    return ToCheck(
        manifest.stem,
        digest_of(manifest),
        (manifest.data, manifest.episodes),
        lambda: {"statistics": dataclasses.asdict(visit(task, shard))},
        _has_statistics,
    )


def _has_statistics(record: dict[str, Any]) -> bool:
    try:
        SplitStatistics.from_json(record["statistics"])
    except (KeyError, RecordError):
        return False
    return True

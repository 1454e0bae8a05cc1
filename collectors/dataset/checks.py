"""Every shard is looked into once, and what was found is kept beside it, in ``checked.json``.

A later build looks again only into shards that are new, whose files have another size or time of change than when they
were checked, or that were checked by older rules. ``make validate`` trusts no record: it reads everything.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from collectors.dataset.sources import Shard
from pipeline.files import list_sizes, read_json, update_json
from pipeline.progress import Progress
from pipeline.statistics import SplitStatistics, StepStatistics, split_statistics
from pipeline.tasks import Task
from pipeline.validate import check_shard, refuse, scan_together

log = logging.getLogger(__name__)

CHECKED = "checked.json"
RULES = 3  # raise it when what `visit` checks or finds changes, so that every shard is visited again


@dataclass(frozen=True)
class CheckedShard:
    """What one visit of a shard found.

    Attributes:
        key: of the content, ``Shard.key``.
        stamps: size and time of change of the data file and the side table when they were read.
        rules: version of the rules they were checked by.
        statistics: of its episodes.
    """

    key: str
    stamps: tuple[tuple[int, str], ...]
    rules: int
    statistics: SplitStatistics

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> CheckedShard:
        stamps = tuple((size, time) for size, time in raw["stamps"])
        statistics = SplitStatistics.from_json(raw["statistics"])
        return CheckedShard(**{**raw, "stamps": stamps, "statistics": statistics})


def visit(task: Task, shard: Shard, stamps: tuple[tuple[int, str], ...]) -> CheckedShard:
    """Read a shard whole, check it, and return what later builds need to know of it.

    Raises:
        UserError: it breaks a rule; names file, row and reason.
    """
    steps = StepStatistics(task)
    check_shard(task, shard.directory, shard.manifest, steps.add)
    side = pq.read_table(shard.directory / shard.manifest.episodes.name)
    statistics = split_statistics(task, side, steps, shard.manifest.data.num_bytes)
    return CheckedShard(shard.key, stamps, RULES, statistics)


def check_all(shards: Mapping[Task, Sequence[Shard]]) -> dict[Task, list[CheckedShard]]:
    """What a visit of each shard found, now or at an earlier build, in the order given.

    Raises:
        UserError: a shard breaks a rule, or two do not go together.
    """
    for of_task in shards.values():
        scan_together([(shard.directory, shard.manifest) for shard in of_task], refuse)
    progress = Progress("shards checked", sum(map(len, shards.values())))
    return {task: _check_task(task, of_task, progress) for task, of_task in shards.items()}


def _check_task(task: Task, shards: Sequence[Shard], progress: Progress) -> list[CheckedShard]:
    checked = []
    for directory in dict.fromkeys(shard.directory for shard in shards):
        checked += _check_folder(task, directory, [shard for shard in shards if shard.directory == directory], progress)
    return checked


def _check_folder(task: Task, directory: Path, shards: Sequence[Shard], progress: Progress) -> list[CheckedShard]:
    """Check the shards of one folder; what was found is kept even if a later one is refused or the build killed."""
    sizes = list_sizes(directory)
    known = _known(directory) if CHECKED in sizes else {}
    found: dict[str, CheckedShard] = {}
    try:
        for shard in shards:
            manifest = shard.manifest
            stamps = tuple(sizes[entry.name] for entry in (manifest.data, manifest.episodes))
            before = known.get(manifest.stem)
            is_known = before is not None and (before.key, before.stamps, before.rules) == (shard.key, stamps, RULES)
            found[manifest.stem] = before if before is not None and is_known else visit(task, shard, stamps)
            progress.advance()
    finally:
        if found != known:
            update_json(directory / CHECKED, {s: dataclasses.asdict(c) for s, c in (known | found).items()}, None)
    return [found[shard.manifest.stem] for shard in shards]


def _known(directory: Path) -> dict[str, CheckedShard]:
    """What earlier visits found; records of another version's fields are none."""
    raw = read_json(directory / CHECKED)
    return {stem: CheckedShard.from_json(value) for stem, value in raw.items() if value.get("rules") == RULES}

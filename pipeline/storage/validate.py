"""Validate shards of episodes: checksums, manifest, side table, episodes, and overlaps between shards.

``check_shard`` raises on the first problem, with the file, the row and the reason; ``scan_shard`` reports all problems.
Returns, successes and rejections in a side table or a manifest are recomputed from the data and the side table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.envs.task import Task
from pipeline.errors import UserError, first_line
from pipeline.files import sha256_of
from pipeline.foreign import leads_out
from pipeline.seeds import SPLITS, seed_range
from pipeline.storage.episode_rules import (
    COLUMN_TYPE,
    EXTRA_COLUMN,
    LENGTHS,
    NO_COLUMN,
    UNREADABLE,
    Problem,
    Report,
    Take,
    ignore,
    scan_episodes,
)
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.outcomes import Rewards, count_outcomes, scan_outcomes
from pipeline.storage.parquet_limits import read_small
from pipeline.storage.schema import EPISODE_COLUMNS_ADDED, LABEL_COLUMNS, episode_features
from pipeline.storage.shards import MAX_REASON
from pipeline.versions import format_versions

MISSING_FILE = "file missing"
CHECKSUM = "checksum"
LINK = "link that leads out of its folder"
OTHER_TASK = "shard of another task"
SEEDS = "seeds"
ROWS = "rows of the side table"
TOTALS = "manifest and files disagree"
OVERLAP = "seeds in two shards"
MIXED_VERSIONS = "mixed package versions"
FIXES = {
    MISSING_FILE: "; run `jat collect` again to make it anew",
    CHECKSUM: "; delete it and run `jat collect` again to make it anew",
    UNREADABLE: "; delete it and run `jat collect` again to make it anew",
}


def check_shard(task: Task, directory: Path, shard: ShardManifest, take: Take = ignore) -> None:
    """Check both files of a shard against its manifest and the rules, a few episodes at a time.

    Args:
        task: expected task of the shard.
        directory: folder of the shard's files.
        shard: manifest of the shard.
        take: called with every step of the data file, see ``scan_episodes``.

    Raises:
        UserError: a checksum, a column, a length, a value or a seed is wrong.
    """
    scan_shard(task, directory, shard, refuse, take)


def refuse(problem: Problem) -> None:
    """Raise the ``UserError`` of a problem in a shard; the strictest ``Report``."""
    raise UserError(f"{problem}{FIXES.get(problem.kind, '')}")


def scan_shard(task: Task, directory: Path, shard: ShardManifest, report: Report, take: Take = ignore) -> None:
    """Report every problem of a single shard.

    Args:
        task: expected task of the shard.
        directory: folder of the shard's files.
        shard: manifest of the shard.
        report: called with each problem; an exception that it raises ends the scan.
        take: called with the values of the data file, see ``scan_episodes``.
    """
    sidecar = directory / f"{shard.stem}.json"
    if shard.task != task.name:
        report(Problem(OTHER_TASK, sidecar, f"is a shard of {shard.task}, in the folder of {task.name}; move it away"))
        return
    for problem in _seed_range_problems(sidecar, shard):
        report(problem)
    sound = [scan_file(directory, entry, report) for entry in (shard.data, shard.episodes)]
    side = read_side(directory / shard.episodes.name, report) if sound[1] else None
    data_path = directory / shard.data.name
    rewards = Rewards(take)
    lengths = scan_episodes(task, data_path, report, flagged_rows(side), rewards.take) if sound[0] else None
    if side is not None:
        _scan_side(directory, shard, side, lengths, report)
        scan_outcomes(task, directory / shard.episodes.name, side, lengths, rewards, report)
        _scan_counts(task, sidecar, shard, side, report)


def _seed_range_problems(sidecar: Path, shard: ShardManifest) -> Iterator[Problem]:
    if Path(shard.data.name).stem != shard.stem:  # `load` has compared the sidecar's file name with `data.name`
        yield Problem(SEEDS, sidecar, f"{shard.data.name} is named for other seeds than {shard.stem}")
    if shard.split not in SPLITS:
        yield Problem(SEEDS, sidecar, f"split {shard.split!r}, expected one of {', '.join(SPLITS)}")
        return
    allowed = seed_range(shard.split)
    last = shard.first_seed + shard.num_seeds - 1
    if shard.num_seeds < 1 or shard.first_seed not in allowed or last not in allowed:
        yield Problem(
            SEEDS,
            sidecar,
            f"seeds {shard.first_seed} to {last} are not of {shard.split}, which has {allowed[0]} to {allowed[-1]}",
        )


def scan_file(directory: Path, entry: FileEntry, report: Report) -> bool:
    """Whether a file exists and has the SHA-256 of its manifest; if not, report why."""
    path = directory / entry.name
    if leads_out(path, directory):
        report(Problem(LINK, path, "is a link that leads out of the folder; put the file itself there"))
        return False
    if not path.exists():
        report(Problem(MISSING_FILE, path, "the file is missing"))
        return False
    found = sha256_of(path)
    if found != entry.sha256:
        reason = f"the file is damaged: SHA-256 {found[:12]}..., expected {entry.sha256[:12]}..."
        report(Problem(CHECKSUM, path, reason))
        return False
    return True


def _scan_side(
    directory: Path, shard: ShardManifest, side: pa.Table, lengths: np.ndarray | None, report: Report
) -> None:
    """Check the side table against the manifest and, if the data could be read, against the episodes' lengths."""
    path, data_path = directory / shard.episodes.name, directory / shard.data.name
    scan_rows(path, side, shard.num_episodes, data_path, lengths, report)
    if shard.source is not None:
        if len(side) != shard.num_seeds:
            report(Problem(TOTALS, path, f"{len(side)} rows of the source, the manifest says {shard.num_seeds}"))
        if side["seed"].null_count != len(side):
            report(Problem(SEEDS, path, "imported episodes have seeds, which say nothing of this environment"))
    else:
        last_seed = shard.first_seed + shard.num_seeds - 1
        seeds = side["seed"]
        counted = np.arange(len(side)) + shard.first_seed
        if seeds.null_count or len(side) != shard.num_seeds or (seeds.to_numpy() != counted).any():
            report(Problem(SEEDS, path, f"seeds are not {shard.first_seed} to {last_seed}, each once"))
    scan_versions(path, side, shard.versions, report)
    if lengths is not None and len(lengths) == shard.num_episodes and lengths.sum() != shard.num_steps:
        report(Problem(TOTALS, data_path, f"{lengths.sum()} steps, the manifest says {shard.num_steps}"))


def _scan_counts(task: Task, sidecar: Path, shard: ShardManifest, side: pa.Table, report: Report) -> None:
    """Recompute the counts of a manifest from the side table and report differences."""
    counts = count_outcomes(task, side)
    reasons = Counter(reason[:MAX_REASON] for reason in side["rejected"].drop_null().to_pylist())
    pairs = [
        ("rejected", counts.num_rejected, shard.num_rejected),
        ("flagged", int(flagged_rows(side).sum()), shard.num_flagged),
        ("labelled steps", count_labels(side), shard.num_labelled),
        ("successes", counts.num_successes, shard.num_successes),
    ]
    for what, found, said in pairs:
        if found != said:
            report(Problem(TOTALS, sidecar, f"{said} {what}, the side table has {found}"))
    if counts.num_rejected == shard.num_rejected and reasons != Counter(shard.rejected):
        report(Problem(TOTALS, sidecar, "the reasons for rejections are not those of the side table"))
    if not counts.has_return_sum(shard.return_sum):
        reason = f"return_sum {shard.return_sum:g}, the side table has {counts.return_sum:g}"
        report(Problem(TOTALS, sidecar, reason))


def flagged_rows(side: pa.Table | None) -> np.ndarray:
    """``(E,)`` bool: rows of the data file that the side table flags because their actions are out of range."""
    if side is None or "flagged" not in side.column_names:
        return np.zeros(0, bool)
    accepted = side.filter(side["row"].is_valid())
    flags: np.ndarray = accepted["flagged"].is_valid().to_numpy()
    return flags


def count_labels(side: pa.Table) -> int:
    """Number of labelled steps that a side table says there are."""
    return sum(side["num_labelled"].drop_null().to_pylist()) if "num_labelled" in side.column_names else 0


def read_side(path: Path, report: Report) -> pa.Table | None:
    """Read the side table of a shard; if it cannot be read or columns are missing, report that and return None."""
    return read_table(path, episode_features(True).arrow_schema, report, (*EPISODE_COLUMNS_ADDED, *LABEL_COLUMNS))


def read_table(path: Path, expected: pa.Schema, report: Report, optional: Collection[str] = ()) -> pa.Table | None:
    """Read a small file as a table; if it cannot be read or its columns are wrong, report that and return None.

    Args:
        path: path of the file.
        expected: expected columns.
        report: called with each problem.
        optional: names of the columns that may be missing.
    """
    try:
        table = read_small(path)
    except (pa.ArrowException, OSError) as error:
        report(Problem(UNREADABLE, path, f"cannot be read ({first_line(error)})"))
        return None
    return table if scan_columns(path, table.schema, expected, report, optional) else None


def scan_columns(
    path: Path, found: pa.Schema, expected: pa.Schema, report: Report, optional: Collection[str] = ()
) -> bool:
    """Whether a file has exactly the expected columns (``optional`` ones may be missing); if not, report why."""
    problems = list(_column_problems(path, found, expected, optional))
    for problem in problems:
        report(problem)
    return not problems


def scan_rows(
    path: Path, side: pa.Table, num_episodes: int, data_path: Path, lengths: np.ndarray | None, report: Report
) -> None:
    """Report inconsistencies between a side table and its data file.

    Args:
        path: path of the side table.
        side: the side table.
        num_episodes: expected number of accepted episodes.
        data_path: path of the data file.
        lengths: ``(E,)`` steps of each episode of the data file, or None if it could not be read.
        report: called with each problem.
    """
    accepted = side.filter(pa.compute.is_valid(side["row"]))
    if len(accepted) != num_episodes or (accepted["row"].to_numpy() != np.arange(len(accepted))).any():
        report(Problem(ROWS, path, f"accepted rows are not 0 to {num_episodes - 1} in order"))
    if lengths is None:
        return
    if len(lengths) != num_episodes:
        report(Problem(TOTALS, data_path, f"{len(lengths)} episodes, expected {num_episodes}"))
    if len(lengths) == len(accepted):
        said = accepted["length"].to_numpy()
        wrong = np.flatnonzero(lengths != said)
        if len(wrong):
            row = int(wrong[0])
            reason = f"{lengths[row]} steps, the side table says {said[row]}"
            report(Problem(LENGTHS, data_path, reason, row, len(wrong)))


def scan_versions(path: Path, side: pa.Table, versions: dict[str, str], report: Report) -> None:
    """Report a side table that has other package versions than its manifest."""
    expected = format_versions(versions)
    strange = set(side.filter(side["seed"].is_valid())["versions"].to_pylist()) - {expected}
    if strange:
        report(Problem(MIXED_VERSIONS, path, f"made with {sorted(map(str, strange))[0]}, the manifest says {expected}"))


def _column_problems(path: Path, found: pa.Schema, expected: pa.Schema, optional: Collection[str]) -> Iterator[Problem]:
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0 and field.name not in optional:
            yield Problem(NO_COLUMN, path, f"there is no column {field.name}; there are {', '.join(found.names)}")
        elif index >= 0 and found.field(index).type != field.type:
            yield Problem(COLUMN_TYPE, path, f"{field.name} is {found.field(index).type}, expected {field.type}")
    extra = [name for name in found.names if expected.get_field_index(name) < 0]
    if extra:
        yield Problem(EXTRA_COLUMN, path, f"unexpected columns: {', '.join(extra)}")


def scan_together(shards: Iterable[tuple[Path, ShardManifest]], report: Report) -> None:
    """Report conflicts between the shards of one task: seeds in more than one shard, or mixed package versions.

    Imported shards are skipped: each source numbers its rows independently.

    Args:
        shards: folder and manifest of each shard.
        report: called with each problem.
    """
    collected = [shard for shard in shards if shard[1].source is None]
    ordered = sorted(collected, key=lambda shard: (shard[1].first_seed, shard[1].num_seeds))
    end, holder = -1, Path()
    for directory, shard in ordered:
        sidecar = directory / f"{shard.stem}.json"
        shared = end - shard.first_seed
        if shared > 0:
            last = min(end, shard.first_seed + shard.num_seeds) - 1
            reason = f"seeds {shard.first_seed} to {last} are in {holder}, too; move one of the two shards away"
            report(Problem(OVERLAP, sidecar, reason, count=last - shard.first_seed + 1))
        if shard.first_seed + shard.num_seeds > end:
            end, holder = shard.first_seed + shard.num_seeds, sidecar
        first = ordered[0][1]
        if shard.versions != first.versions:
            reason = (
                f"made with {format_versions(shard.versions)}, but {first.stem} with "
                f"{format_versions(first.versions)}; a task has one environment: delete one and collect again"
            )
            report(Problem(MIXED_VERSIONS, directory / f"{shard.stem}.json", reason))

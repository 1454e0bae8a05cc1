"""Make one dataset of several.

jat dataset merge --datasets runs/a/dataset runs/b/dataset --to runs/both
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from collectors.dataset.surgery.pieces import write_dataset
from collectors.dataset.surgery.places import NewPlace, new_folder, recover
from collectors.dataset.surgery.source import Piece, Source, open_source, refuse_damage
from pipeline.cli import parse
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.errors import UserError
from pipeline.seeds import SPLITS
from pipeline.storage.episode_rules import scan_episodes
from pipeline.storage.manifest import CorpusManifest, DatasetManifest
from pipeline.storage.validate import flagged_rows
from pipeline.versions import format_versions

MAX_RANGES = 20  # of seeds, in an error
SAME = 0.5  # share of equal episodes that chance does not explain where observations are not real numbers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MergeConfig:
    """Make one dataset of all episodes and corpora of several."""

    datasets: tuple[Path, ...]
    """Folders of the datasets, at least two."""
    to: Path
    """Folder of the new dataset, not there yet."""
    mix: bool = False
    """Allow episodes of one task from different environments, such as v2 and v3 of Meta-World."""


def merge_datasets(config: MergeConfig, tasks: Sequence[Task] | None = None) -> DatasetManifest:
    """Write a dataset with the episodes of all.

    Args:
        config: the options.
        tasks: the table of tasks; all 157 if None.

    Raises:
        UserError: episodes that cannot be in one dataset (the message says which, and how to take them out), a damaged
            dataset, or a place that is taken.
    """
    if len(config.datasets) < 2:
        raise UserError(f"--datasets names {len(config.datasets)}; name at least two")
    if len({folder.resolve() for folder in config.datasets}) < len(config.datasets):
        raise UserError("--datasets names one dataset twice; name each once")
    for folder in config.datasets:
        recover(folder)
    sources = [open_source(folder, tasks) for folder in config.datasets]
    names = {name for source in sources for name in source.manifest.tasks}
    order = {task.name: task for source in sources for task in source.tasks}
    pieces = {}
    for task in order.values():
        if task.name in names:
            _check_environments(config, task, sources)
            _check_versions(task, sources)
            of_task = {
                split: [p for s in sources if task in s.tasks for p in s.pieces(task, split)] for split in SPLITS
            }
            of_all = [piece for of_split in of_task.values() for piece in of_split]
            _check_seeds(task, of_all)
            _check_copies(task, of_all)
            pieces[task] = of_task
    corpora: dict[str, tuple[Path, CorpusManifest]] = {}
    for source in sources:
        for name, info in source.manifest.corpora.items():
            if name in corpora:
                raise UserError(f"{name} is in {corpora[name][0]} and in {source.folder}; {_take_out(source, name)}")
            corpora[name] = (source.folder, info)
    edit = f"merge of {', '.join(source.manifest.digest for source in sources)}"
    with new_folder(NewPlace(config.datasets[0], config.to), "merge") as folder:
        return write_dataset(folder, sources, pieces, corpora, edit)


def _take_out(source: Source, name: str, more: str = "") -> str:
    return f"take it out of one, as in `jat dataset remove --dataset {source.folder} --task {name}{more}`"


def _check_seeds(task: Task, pieces: Sequence[Piece]) -> None:
    """Refuse seeds that are in two datasets, and files that are in both."""
    holders: dict[str, Path] = {}
    for piece in pieces:
        if holders.setdefault(piece.data.sha256, piece.folder) != piece.folder and len(piece.side):
            raise UserError(f"{holders[piece.data.sha256]} and {piece.folder} have the same episodes of {task.name}")
    seen: dict[int, Path] = {}
    for folder in dict.fromkeys(piece.folder for piece in pieces):
        seeds = [piece.side["seed"].drop_null().to_numpy() for piece in pieces if piece.folder == folder]
        of_folder = np.concatenate(seeds).tolist()
        both = sorted(seed for seed in of_folder if seed in seen)
        if both:
            raise UserError(
                f"{len(both)} seeds of {task.name}, from {both[0]} on, are in {seen[both[0]]} and in {folder}; "
                f"take them out of one, as in `jat dataset remove --dataset {folder} --task {task.name} "
                f"--seeds {_ranges(both)}`"
            )
        seen |= dict.fromkeys(of_folder, folder)


def _ranges(seeds: Sequence[int]) -> str:
    """Ascending seeds as ``--seeds`` takes them; the first ranges only where there are many."""
    numbers = np.array(seeds)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
    ends = [*(starts[1:] - 1), len(numbers) - 1]
    found = [f"{numbers[a]}-{numbers[b]}" if a < b else f"{numbers[a]}" for a, b in zip(starts, ends, strict=True)]
    return ",".join(found[:MAX_RANGES]) + (",..." if len(found) > MAX_RANGES else "")


def _check_copies(task: Task, pieces: Sequence[Piece]) -> None:
    """Refuse equal episodes of two datasets where a seed is unknown, as in imported ones.

    Few equal episodes of a grid world or a game may be chance; real numbers do not repeat.
    """
    known = {piece.data.sha256: piece.side.filter(piece.side["row"].is_valid())["seed"].is_valid() for piece in pieces}
    if len({piece.folder for piece in pieces}) < 2 or all(pc.all(of_piece).as_py() for of_piece in known.values()):
        return
    first: dict[bytes, tuple[Path, bool]] = {}
    sizes, copies = Counter[Path](), Counter[tuple[Path, Path]]()
    for piece in pieces:
        digests: list[bytes] = []
        path = piece.folder / piece.data.name
        scan_episodes(task, path, refuse_damage, flagged_rows(piece.side), digests=digests)
        sizes[piece.folder] += len(digests)
        for digest, has_seed in zip(digests, known[piece.data.sha256].to_pylist(), strict=True):
            folder, had_seed = first.setdefault(digest, (piece.folder, has_seed))
            if digest and folder != piece.folder and not (has_seed and had_seed):
                copies[folder, piece.folder] += 1
    for (one, other), count in copies.items():
        if task.observation == CONTINUOUS or count >= SAME * min(sizes[one], sizes[other]):
            raise UserError(
                f"{count} episodes of {task.name}, whose seeds are not known, are in {one} and in {other}; the task "
                f"can be of one of them only, as after `jat dataset remove --dataset {other} --task {task.name}`"
            )


def _check_versions(task: Task, sources: Sequence[Source]) -> None:
    found: dict[str, Path] = {}
    for source in sources:
        info = source.manifest.tasks.get(task.name)
        if info is not None and info.versions:
            found.setdefault(format_versions(info.versions), source.folder)
    if len(found) > 1:
        said = " and ".join(f"{versions} in {folder}" for versions, folder in found.items())
        raise UserError(f"{task.name} was played with {said}; a task has one environment: take it out of one of them")


def _check_environments(config: MergeConfig, task: Task, sources: Sequence[Source]) -> None:
    found: dict[str, Path] = {}
    for source in sources:
        info = source.manifest.tasks.get(task.name)
        if info is None:
            continue
        imported = {environment for of_source in info.imported.values() for environment in of_source}
        for environment in imported | ({task.env_id} if info.versions else set()):
            found.setdefault(environment, source.folder)
    if len(found) > 1 and not config.mix:
        said = "; ".join(f"{environment} in {folder}" for environment, folder in found.items())
        raise UserError(f"{task.name} has episodes of several environments: {said}; take it out of one, or give --mix")


def main() -> None:
    merge_datasets(parse(MergeConfig))

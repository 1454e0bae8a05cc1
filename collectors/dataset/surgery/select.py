"""Make a dataset of some episodes of another: those that meet conditions, or all but those.

jat dataset filter --dataset runs/default/dataset --success yes --to runs/default/successful
jat dataset remove --dataset runs/default/dataset --task 'mujoco-*' --max-return 100 --in-place
jat dataset split  --dataset runs/default/dataset --by domain --to runs/default/domains
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from collectors.dataset.surgery.pieces import num_kept, write_dataset
from collectors.dataset.surgery.places import NewPlace, new_folder, recover
from collectors.dataset.surgery.selection import Conditions, explain_nothing, matching_rows
from collectors.dataset.surgery.source import Piece, Source, open_source
from pipeline.cli import parse
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.seeds import SPLITS
from pipeline.storage.corpora import corpora_named
from pipeline.storage.manifest import CorpusManifest, DatasetManifest
from pipeline.text import format_count

log = logging.getLogger(__name__)

Chosen = dict[Task, dict[str, list[Piece]]]
Corpora = dict[str, tuple[Path, CorpusManifest]]


@dataclass(frozen=True)
class FilterConfig(Conditions, NewPlace):
    """Make a dataset of the episodes that meet all conditions. Conditions on episodes do not concern corpora."""


@dataclass(frozen=True)
class RemoveConfig(Conditions, NewPlace):
    """Make a dataset without the episodes that meet all conditions; with `--task` alone, without these tasks."""


@dataclass(frozen=True)
class SplitConfig(NewPlace):
    """Make several datasets of one, in folders of `--to`."""

    by: Literal["domain", "task", "split", "expert", "success", "return", "length", "seed"] = "domain"
    """What the episodes of one dataset have in common."""
    at: float | None = None
    """Of `--by return`, `length` or `seed`: where to cut, into the datasets `below` and `from`."""


def filter_dataset(config: FilterConfig, tasks: Sequence[Task] | None = None) -> DatasetManifest:
    """Write a dataset of the episodes that meet all conditions.

    Args:
        config: the options.
        tasks: the table to choose from; all 157 if None.

    Raises:
        UserError: no condition, one that no episode meets, a damaged dataset, or a place that is taken.
    """
    source = _open(config, tasks)
    chosen = _matching(source, config, tasks)
    corpora = _corpora(source, config.task)
    if not any(map(num_kept, chosen.values())) and (config.concern_episodes or not corpora):
        raise UserError(f"{config.dataset}: the filter keeps nothing: {_explain(source, config, tasks)}")
    return _write(config, "filter", source, chosen, corpora)


def remove_episodes(config: RemoveConfig, tasks: Sequence[Task] | None = None) -> DatasetManifest:
    """Write a dataset without the episodes that meet all conditions; arguments and errors as ``filter_dataset``."""
    source = _open(config, tasks)
    out = _matching(source, config, tasks)
    gone = {} if config.concern_episodes else _corpora(source, config.task)
    if not any(map(num_kept, out.values())) and not gone:
        raise UserError(f"{config.dataset}: nothing to remove: {_explain(source, config, tasks)}")
    chosen: Chosen = {}
    for task in source.tasks:
        kept = {split: list(source.pieces(task, split)) for split in SPLITS}
        for split, pieces in out.get(task, {}).items():
            kept[split] = [dataclasses.replace(piece, keep=~piece.keep) for piece in pieces]
        chosen[task] = kept
    corpora = {name: entry for name, entry in _corpora(source, "*").items() if name not in gone}
    if not any(map(num_kept, chosen.values())) and not corpora:
        raise UserError(f"{config.dataset}: these are all its episodes; to remove them all, delete the folder")
    return _write(config, "remove", source, chosen, corpora)


def split_dataset(config: SplitConfig, tasks: Sequence[Task] | None = None) -> dict[str, DatasetManifest]:
    """Write a dataset for every value of ``config.by``, in folders of ``config.to`` named by the values.

    Corpora go with the domain or task of their name, and are left out otherwise.

    Raises:
        UserError: nothing to split by, a damaged dataset, or a place that is taken.
    """
    if config.in_place:
        raise UserError("--in-place: a dataset cannot be replaced by several; give --to a folder")
    if (config.at is None) == (config.by in ("return", "length", "seed")):
        raise UserError(f"--by {config.by} {'needs' if config.at is None else 'takes no'} --at, where to cut")
    recover(config.dataset)
    source = open_source(config.dataset, tasks)
    everything = {task: {split: list(source.pieces(task, split)) for split in SPLITS} for task in source.tasks}
    parts: dict[str, Chosen] = {}
    for task, of_task in everything.items():
        for split, pieces in of_task.items():
            for piece in pieces:
                for value, keep in _groups(config, task, split, piece.side).items():
                    of_value = parts.setdefault(_folder_name(value), {}).setdefault(task, {})
                    of_value.setdefault(split, []).append(dataclasses.replace(piece, keep=keep))
    parts = {name: part for name, part in parts.items() if any(map(num_kept, part.values()))}
    for name in source.manifest.corpora if config.by in ("task", "domain") else ():
        parts.setdefault(name, {})
    if len(parts) < 2:
        raise UserError(f"{config.dataset}: --by {config.by} gives one dataset only: {', '.join(parts) or 'none'}")
    written = {}
    with new_folder(config, "split") as folder:
        for name, part in sorted(parts.items()):
            corpora = {} if part else _corpora(source, name)
            edit = f"split --by {config.by}{'' if config.at is None else f' --at {config.at:g}'}: {name}"
            written[name] = write_dataset(folder / name, [source], part, corpora, _named(source, edit))
    return written


def _open(config: FilterConfig | RemoveConfig, tasks: Sequence[Task] | None) -> Source:
    if not config.are_given:
        raise UserError("no condition is given; give at least one, such as --success yes or --task 'metaworld-*'")
    recover(config.dataset)
    return open_source(config.dataset, tasks)


def _matching(source: Source, conditions: Conditions, tasks: Sequence[Task] | None) -> Chosen:
    """The pieces of the named tasks, with the rows to keep that meet the conditions."""
    chosen: Chosen = {}
    for task in source.matching(conditions.task, tasks):
        chosen[task] = {
            split: [
                dataclasses.replace(piece, keep=matching_rows(conditions, split, piece.side))
                for piece in source.pieces(task, split)
            ]
            for split in SPLITS
        }
    return chosen


def _explain(source: Source, conditions: Conditions, tasks: Sequence[Task] | None) -> str:
    named = source.matching(conditions.task, tasks)
    if not named:
        there = [*source.manifest.tasks, *source.manifest.corpora]
        return f"it has no {conditions.task}; it has {', '.join(there)}"
    sides = [(split, piece.side) for task in named for split in SPLITS for piece in source.pieces(task, split)]
    return explain_nothing(conditions, sides)


def _corpora(source: Source, pattern: str) -> Corpora:
    names = {corpus.name for corpus in corpora_named(pattern)}
    return {name: (source.folder, info) for name, info in source.manifest.corpora.items() if name in names}


def _write(
    config: FilterConfig | RemoveConfig, command: str, source: Source, chosen: Chosen, corpora: Corpora
) -> DatasetManifest:
    with new_folder(config, command) as folder:
        manifest = write_dataset(folder, [source], chosen, corpora, _named(source, f"{command} {config.text()}"))
    before, after = (
        sum(split.num_episodes for task in m.tasks.values() for split in task.splits.values())
        for m in (source.manifest, manifest)
    )
    log.info("%s of %d are in it", format_count(after, "episode"), before)
    return manifest


def _named(source: Source, edit: str) -> str:
    """An edit with the dataset that it was made from, by the digest of its content."""
    return f"{edit}, of {source.manifest.digest}"


def _groups(config: SplitConfig, task: Task, split: str, side: pa.Table) -> Mapping[str, np.ndarray]:
    """Rows of a side table by the value that ``config.by`` is about; a rejected episode has no outcome."""
    everything = np.ones(len(side), bool)
    whole = {"domain": task.domain, "task": task.name, "split": split}
    if config.by in whole:
        return {whole[config.by]: everything}
    value_of: Callable[[dict[str, object]], str | None] = {
        "expert": lambda row: str(row["expert_revision"]),
        "success": lambda row: {True: "successful", False: "failed", None: "unknown"}[row["success"]],
        "return": lambda row: _side_of(row["return"], config.at),
        "length": lambda row: _side_of(row["length"], config.at),
        "seed": lambda row: _side_of(row["seed"], config.at),
    }[config.by]
    names = ["row", "expert_revision", "success", "return", "length", "seed"]
    values = [value_of(row) if row["row"] is not None else None for row in side.select(names).to_pylist()]
    found = dict.fromkeys(value for value in values if value is not None)
    return {value: np.array([v == value for v in values], bool) for value in found}


def _side_of(value: object, at: float | None) -> str | None:
    if not isinstance(value, int | float) or at is None:
        return None  # an imported episode has no seed
    return "below" if value < at else "from"


def _folder_name(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9._+-]", "-", value).lstrip(".-") or "unnamed"


def main() -> None:
    """``jat dataset filter``."""
    filter_dataset(parse(FilterConfig))

"""Opened datasets: their tasks, and their data files with the side tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from collectors.dataset.corpora import pattern_of_tasks
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.storage.episode_rules import Problem
from pipeline.storage.manifest import DatasetManifest, FileEntry
from pipeline.storage.validate import read_side, scan_file


@dataclass(frozen=True)
class Piece:
    """A data file of a dataset with its side table, and the rows of the side table to keep.

    Attributes:
        folder: of the dataset.
        data, episodes: the entries of its manifest.
        side: the side table.
        keep: ``(rows,)`` bool.
    """

    folder: Path
    data: FileEntry
    episodes: FileEntry
    side: pa.Table
    keep: np.ndarray

    @property
    def is_whole(self) -> bool:
        return bool(self.keep.all()) and "task" in self.side.column_names


@dataclass(frozen=True)
class Source:
    """A dataset to take pieces of.

    Attributes:
        folder: of the dataset.
        manifest: of the dataset.
        tasks: the tasks of the manifest, in its order.
    """

    folder: Path
    manifest: DatasetManifest
    tasks: tuple[Task, ...]

    def matching(self, pattern: str, tasks: Sequence[Task] | None = None) -> list[Task]:
        """The tasks of the dataset that a pattern matches, maybe none; ``tasks`` is the table, all known ones if
        None."""
        of_tasks = pattern_of_tasks(pattern, tasks)
        names = {task.name for task in select_tasks(of_tasks, tasks, self.manifest.tasks)} if of_tasks else set()
        return [task for task in self.tasks if task.name in names]

    def choose(self, pattern: str, tasks: Sequence[Task] | None = None) -> list[Task]:
        """As ``matching``.

        Raises:
            UserError: no task matches.
        """
        chosen = self.matching(pattern, tasks)
        if not chosen:
            there = ", ".join(self.manifest.tasks) or "no tasks"
            raise UserError(f"{self.folder} has no episodes of {pattern}; it has {there}")
        return chosen

    def pieces(self, task: Task, split: str) -> Iterator[Piece]:
        """The files of a split, all rows kept.

        Raises:
            UserError: a side table is damaged.
        """
        info = self.manifest.tasks[task.name].splits.get(split)
        if info is None:
            return
        for data, episodes in zip(info.data, info.episodes, strict=True):
            path = self.folder / episodes.name
            side = read_side(path, refuse_damage) if scan_file(self.folder, episodes, refuse_damage) else None
            if side is not None:
                yield Piece(self.folder, data, episodes, side, np.ones(len(side), bool))


def refuse_damage(problem: Problem) -> None:
    """Raise the ``UserError`` of a problem in a dataset."""
    raise UserError(f"{problem}; the dataset is damaged: `jat dataset validate` lists everything that is wrong with it")


def open_source(folder: Path, tasks: Sequence[Task] | None = None) -> Source:
    """Open a dataset.

    Raises:
        UserError: there is none, or it has tasks that are not in the table.
    """
    path = folder / DatasetManifest.FILE_NAME
    if not path.is_file():
        raise UserError(f"{folder} is no dataset: it has no {path.name}; name a folder made by `jat dataset`")
    manifest = DatasetManifest.load(path)
    table = {task.name: task for task in select_tasks("*", tasks, manifest.tasks)}
    for name in sorted(set(manifest.tasks) - set(table)):
        raise UserError(f"{folder} has episodes of {name}, which is no task of this version")
    return Source(folder, manifest, tuple(table[name] for name in manifest.tasks))

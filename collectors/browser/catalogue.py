"""The tasks and episodes of a dataset, as the pages list them.

A list needs eight short columns of a task's side tables. They are read once and kept, with the order of the last few
queries, so a page of 100,000 episodes costs as much as one of 100. Steps are read only for the episode that is shown.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from collectors.browser.elsewhere import find_elsewhere
from collectors.browser.query import Query
from collectors.dataset.surgery.selection import matching_rows
from collectors.stored import StoredEpisode, load_episode
from pipeline.envs.registry import all_tasks, select_tasks
from pipeline.envs.task import Task
from pipeline.errors import UserError, first_line
from pipeline.foreign import leads_out
from pipeline.run_layout import RunLayout
from pipeline.seeds import SPLITS
from pipeline.storage.manifest import DatasetManifest, FileEntry, SplitManifest
from pipeline.storage.parquet_limits import check_steps, open_parquet, read_small
from pipeline.storage.schema import REWARDS

PAGE_ROWS = 50
MAX_INDEXES, MAX_ORDERS = 8, 16  # kept in memory: of tasks, and of queries of a task
COLUMNS = {
    "seed": pa.int64(),
    "row": pa.int32(),
    "return": pa.float64(),
    "length": pa.int32(),
    "success": pa.bool_(),
    "expert": pa.string(),
    "expert_revision": pa.string(),
    "rejected": pa.string(),
}
# Of one episode; `final_observation` is not shown.
DETAILS = (*COLUMNS, "ended", "noise", "versions", "flagged")


class NotFoundError(UserError):
    """There is no such task, episode or page."""


@dataclass(frozen=True)
class EpisodePage:
    """Some episodes of a list.

    Attributes:
        rows: of the side table, with ``split``, ``number`` (index of the row among those of the split) and ``at``
            (index in the list).
        total: number of episodes of the whole list.
        page, num_pages: from 1.
    """

    rows: list[dict[str, Any]]
    total: int
    page: int
    num_pages: int


@dataclass
class TaskIndex:
    """The side tables of a task, in the order of splits and files.

    Attributes:
        table: ``COLUMNS`` with ``split`` and ``number``.
    """

    table: pa.Table
    _orders: OrderedDict[Query, np.ndarray] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)  # requests are answered by several threads

    def order(self, query: Query) -> np.ndarray:
        """Rows of the table that the query lists, in its order: ``(E,)`` int64."""
        key = query.order
        with self._lock:
            if key not in self._orders:
                self._orders[key] = self._sort(query)
            self._orders.move_to_end(key)
            while len(self._orders) > MAX_ORDERS:
                self._orders.popitem(last=False)
            return self._orders[key]

    def page(self, query: Query) -> EpisodePage:
        """The episodes of one page; the last page if there are fewer."""
        order = self.order(query)
        num_pages = max(1, -(-len(order) // PAGE_ROWS))
        page = min(query.page, num_pages)
        first = (page - 1) * PAGE_ROWS
        rows = self.table.take(pa.array(order[first : first + PAGE_ROWS])).to_pylist()
        return EpisodePage([row | {"at": first + i} for i, row in enumerate(rows)], len(order), page, num_pages)

    def beside(self, query: Query, at: int) -> list[tuple[int, str, int] | None]:
        """Index in the list, split and number of the episodes before and after one; None at an end."""
        order = self.order(query)
        found: list[tuple[int, str, int] | None] = []
        for index in (at - 1, at + 1):
            row = int(order[index]) if 0 <= index < len(order) else None
            names = None if row is None else (self.table["split"][row].as_py(), self.table["number"][row].as_py())
            found.append(None if names is None else (index, *names))
        return found

    def _sort(self, query: Query) -> np.ndarray:
        met = np.zeros(len(self.table), bool)
        splits = self.table["split"].to_numpy(zero_copy_only=False)
        for split in dict.fromkeys(splits):
            of_split = np.flatnonzero(splits == split)
            rows = self.table.slice(int(of_split[0]), len(of_split))  # a split's rows are consecutive
            met[of_split] = matching_rows(query.conditions, split, rows)
        if query.rejected:
            met &= self.table["row"].is_null().to_numpy() == (query.rejected == "yes")
        chosen = np.flatnonzero(met)
        if query.sort == "number":
            return chosen[::-1] if query.descending else chosen
        direction = "descending" if query.descending else "ascending"
        column = self.table[query.sort].take(pa.array(chosen))
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.int8())
        keys = pa.table({"key": column})
        order = pc.sort_indices(keys, sort_keys=[("key", direction, "at_end")])
        return chosen[order.to_numpy()]


class Catalogue:
    """A dataset; read again when its manifest is replaced.

    Args:
        place: the dataset, or a run with one.
        tasks: the table of tasks; all known ones if None.
        downloads: empty folder for files of a dataset that is elsewhere.

    Raises:
        UserError: there is no dataset, or it is damaged.
    """

    def __init__(self, place: Path, tasks: Sequence[Task] | None = None, downloads: Path | None = None) -> None:
        self.elsewhere = None if downloads is None else find_elsewhere(place, downloads)
        self.dataset = self.elsewhere.folder if self.elsewhere else find_dataset(place)
        self.title = str(self.elsewhere.place if self.elsewhere else self.dataset)
        self.out = self.dataset.parent
        self._tasks = tasks
        self._lock = threading.Lock()
        self._stamp: tuple[int, int] | None = None
        self._indexes: OrderedDict[tuple[str, str], TaskIndex] = OrderedDict()
        self._manifest = DatasetManifest.load(self.dataset / DatasetManifest.FILE_NAME)

    @property
    def manifest(self) -> DatasetManifest:
        path = self.dataset / DatasetManifest.FILE_NAME
        try:
            info = path.stat()
        except OSError as error:
            raise NotFoundError(f"{self.dataset} is gone, or is being built again; try again later") from error
        with self._lock:
            stamp = (info.st_mtime_ns, info.st_ino)
            if stamp != self._stamp:
                self._manifest, self._stamp = DatasetManifest.load(path), stamp
                self._indexes.clear()
            return self._manifest

    @property
    def is_of_run(self) -> bool:
        """Whether the dataset is that of the run in ``out``."""
        return self.dataset == RunLayout(self.out).dataset

    @property
    def names(self) -> list[str]:
        """Names of the tasks of the dataset, followed by those of all other known ones."""
        known = (task.name for task in (all_tasks() if self._tasks is None else self._tasks))
        return list(dict.fromkeys((*self.manifest.tasks, *known)))

    def task(self, name: str) -> Task:
        """The task of this name, which is needed to read steps.

        Raises:
            UserError: no known task has the name, or its package is imported only if the user names it.
        """
        known = {task.name: task for task in (all_tasks() if self._tasks is None else self._tasks)}
        if name in known:
            return known[name]
        found = select_tasks("gym", among=[name]) if name.startswith("gym-") else ()
        by_name = {task.name: task for task in found}
        if name not in by_name:
            raise UserError(f"{name} is no task that is known here, so its steps cannot be read; see --domain")
        return by_name[name]

    def index(self, name: str) -> TaskIndex:
        """The side tables of a task.

        Raises:
            NotFoundError: the dataset has no such task.
            UserError: a file is damaged.
        """
        key = (self.manifest.digest, name)
        splits = self._splits(name)
        with self._lock:
            if key not in self._indexes:
                pieces = [self._read_split(split, info) for split, info in splits.items()]
                self._indexes[key] = TaskIndex(pa.concat_tables(pieces).combine_chunks())
            self._indexes.move_to_end(key)
            while len(self._indexes) > MAX_INDEXES:
                self._indexes.popitem(last=False)
            return self._indexes[key]

    def row(self, name: str, split: str, number: int) -> tuple[Path, dict[str, Any]]:
        """Data file and row of the side table of an episode, by its number among those of the split.

        Raises:
            NotFoundError: there is no such episode.
            UserError: a file is damaged.
        """
        info = self._splits(name).get(split)
        if info is None:
            raise NotFoundError(f"{name} has no episodes of the split {split[:40]!r}")
        first = 0
        for data, side in zip(info.data, info.episodes, strict=True):
            path = self._local(side)
            with _naming(path):
                num_rows = pq.read_metadata(path).num_rows
                if number < first + num_rows:
                    present = pq.read_schema(path).names
                    table = read_small(path, [column for column in DETAILS if column in present])
                    row = _cast(table.slice(number - first, 1)).to_pylist()[0]
                    empty = dict.fromkeys(DETAILS)
                    return self._local(data), empty | row
            first += num_rows
        raise NotFoundError(f"{split} of {name} has {first:,} rows, so there is no row {number:,}")

    def episode(self, name: str, data: Path, row: dict[str, Any]) -> StoredEpisode:
        """Read the steps of an accepted episode.

        Raises:
            UserError: the task is unknown, or the file is damaged.
        """
        task = self.task(name)
        with _naming(data):
            with open_parquet(data) as file:
                check_steps(file.metadata, REWARDS)
            stored = load_episode(task, data, row)
            if not stored.length or len(stored.steps.rewards) != stored.length:
                raise ValueError(f"{len(stored.steps.rewards)} steps, {stored.length} in the side table")
            if stored.steps.actions.ndim != (1 if task.action.kind == "discrete" else 2):
                raise ValueError("actions of another shape than the task's")
        return stored

    def _local(self, entry: FileEntry) -> Path:
        return self.elsewhere.fetch(entry) if self.elsewhere else _inside(self.dataset, entry.name)

    def _read_split(self, split: str, info: SplitManifest) -> pa.Table:
        pieces = []
        for entry in info.episodes:
            path = self._local(entry)
            with _naming(path):
                pieces.append(_cast(read_small(path, list(COLUMNS))))
        table = pa.concat_tables(pieces) if pieces else pa.schema(COLUMNS.items()).empty_table()
        table = table.append_column("split", pa.array([split] * len(table), pa.string()))
        return table.append_column("number", pa.array(np.arange(len(table)), pa.int64()))

    def _splits(self, name: str) -> dict[str, SplitManifest]:
        manifest = self.manifest
        if name not in manifest.tasks:
            raise NotFoundError(f"the dataset has no task {name[:80]!r}")
        return {split: manifest.tasks[name].splits[split] for split in SPLITS if split in manifest.tasks[name].splits}


def find_dataset(place: Path) -> Path:
    """The dataset that is meant by a path: that of a run, or the path itself.

    Raises:
        UserError: there is none.
    """
    for folder in (place, RunLayout(place).dataset):
        if (folder / DatasetManifest.FILE_NAME).exists():
            return folder.absolute()
    if not place.is_dir():
        raise UserError(f"{place} is no folder; name a dataset, or a run with one; one of the Hub is hub:owner/name")
    raise UserError(
        f"{place} is no dataset and has none: neither {DatasetManifest.FILE_NAME} nor dataset/ is in it; "
        f"`jat dataset --out {place}` builds one"
    )


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what reading a damaged file raises into a ``UserError`` that names it."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read ({first_line(error)}); `jat dataset validate` says what is wrong"
        ) from error


def _inside(dataset: Path, name: str) -> Path:
    path = dataset / name
    if leads_out(path, dataset):
        raise UserError(f"{path} is a link that leads out of its folder, which is not followed")
    return path


def _cast(table: pa.Table) -> pa.Table:
    """The table with the expected types of its columns."""
    types = {name: COLUMNS.get(name, pa.string()) for name in table.column_names}
    return pa.table({name: pc.cast(table[name], kind) for name, kind in types.items()})

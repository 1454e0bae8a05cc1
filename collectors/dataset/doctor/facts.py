"""What the checks of a dataset's quality need to know about a task, gathered from side tables, statistics and data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.dataset.surgery.source import Source, refuse_damage
from pipeline.envs.task import Task
from pipeline.scoring.measurement import Measurement
from pipeline.seeds import SPLITS
from pipeline.storage.episode_rules import scan_episodes
from pipeline.storage.manifest import DatasetManifest
from pipeline.storage.schema import action_column
from pipeline.storage.statistics import SplitStatistics
from pipeline.storage.validate import flagged_rows

COLUMNS = ("seed", "row", "return", "length", "success", "expert_revision", "noise", "flagged")


@dataclass(frozen=True)
class TaskFacts:
    """The E accepted episodes of a task, training ones first, in the order of their files.

    Attributes:
        splits: number of episodes of each split.
        seeds: ``(E,)`` int64, -1 where there is none.
        returns, lengths: ``(E,)`` float64.
        successes: ``(E,)`` float64: 1, 0, or NaN where success is not known.
        experts: revision of the expert of each episode.
        noisy: ``(E,)`` bool: noise was added to its actions.
        statistics: of both splits together.
        digests: of the content of each episode; None if the data was not read.
        clipped: ``(size,)`` share of the steps with the action at a bound, by dimension; None if the actions are
            discrete or the data was not read.
        measurements: of its experts, by revision.
    """

    task: Task
    splits: Mapping[str, int]
    seeds: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    successes: np.ndarray
    experts: tuple[str, ...]
    noisy: np.ndarray
    statistics: SplitStatistics
    digests: tuple[bytes, ...] | None = None
    clipped: np.ndarray | None = None
    measurements: Mapping[str, Measurement] | None = None

    def __len__(self) -> int:
        return len(self.returns)


def gather_facts(
    dataset: Path,
    manifest: DatasetManifest,
    task: Task,
    statistics: Mapping[str, SplitStatistics],
    reads_data: bool = False,
    measurements: Mapping[str, Measurement] | None = None,
) -> TaskFacts:
    """Gather the facts about one task.

    Args:
        dataset: its folder.
        manifest: of the dataset.
        task: the task.
        statistics: of the task, by split.
        reads_data: whether to read the steps, for digests and clipped actions.
        measurements: of its experts, by revision.

    Raises:
        UserError: a file is damaged.
    """
    sides, splits, digests, counter = [], {}, list[bytes](), _ClippedActions(task)
    source = Source(dataset, manifest, (task,))
    for split in SPLITS:
        info = manifest.tasks[task.name].splits.get(split)
        if info is None:
            continue
        splits[split] = info.num_episodes
        for piece in source.pieces(task, split):
            if reads_data:
                path = dataset / piece.data.name
                scan_episodes(task, path, refuse_damage, flagged_rows(piece.side), counter.take, digests)
            sides.append(_accepted(piece.side))
    table = pa.concat_tables(sides)
    success = pc.cast(table["success"], pa.float64()).to_numpy()  # null becomes NaN
    return TaskFacts(
        task=task,
        splits=splits,
        seeds=table["seed"].fill_null(-1).to_numpy(),
        returns=table["return"].to_numpy().astype(np.float64),
        lengths=table["length"].to_numpy().astype(np.float64),
        successes=success.astype(np.float64),
        experts=tuple(revision or "" for revision in table["expert_revision"].to_pylist()),
        noisy=table["noise"].is_valid().to_numpy(),
        statistics=statistics["train"].merge(statistics["test"]),
        digests=tuple(digests) if reads_data else None,
        clipped=counter.shares if reads_data else None,
        measurements=measurements,
    )


def _accepted(side: pa.Table) -> pa.Table:
    """The columns needed, of the accepted rows; columns that old tables lack are null."""
    rows = side.filter(pc.is_valid(side["row"]))
    columns = {name: rows[name] if name in rows.column_names else pa.nulls(len(rows)) for name in COLUMNS}
    types = {"noise": pa.string(), "flagged": pa.string(), "success": pa.bool_()}
    return pa.table({name: pc.cast(column, types.get(name, column.type)) for name, column in columns.items()})


class _ClippedActions:
    """Counts steps whose action is at a bound; a ``take`` callback of ``scan_episodes``."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._count, self._num_steps = np.zeros(task.action.size, np.int64), 0

    def take(self, column: str, values: np.ndarray) -> None:
        action = self._task.action
        if column == action_column(self._task) and action.kind == "continuous":
            self._count += ((values <= np.float32(action.low)) | (values >= np.float32(action.high))).sum(axis=0)
            self._num_steps += len(values)

    @property
    def shares(self) -> np.ndarray | None:
        return self._count / self._num_steps if self._num_steps else None

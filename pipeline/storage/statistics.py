"""Dataset statistics: counts of episodes and steps, provenance, outcomes, and range, mean and standard deviation.

The statistics of a shard are computed in the pass that validates it, and those of a task by merging its shards, so a
dataset of any size is read only once. Counts and histograms do not depend on the order of merging; means and standard
deviations do not either, up to rounding. Shards are merged in a fixed order, so equal data gives equal bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from pipeline.envs.episode import is_labelled
from pipeline.envs.task import IMAGE, Task
from pipeline.errors import UserError
from pipeline.records import read_record, record_of
from pipeline.run_layout import STATISTICS
from pipeline.storage.observations import observation_column, parts_by_column
from pipeline.storage.schema import REWARDS, action_column, label_column
from pipeline.storage.shards import MAX_REASON

MAX_BINS = 64
FINEST_RETURN = 2.0**-10
CHUNK_VALUES = 2**19  # numbers converted to float64 at a time: they fit in the CPU cache


DIMENSIONS = ("mean", "std", "low", "high")  # fields of `Moments` with a number per dimension


@dataclass(frozen=True)
class Moments:
    """Range, mean and standard deviation of ``count`` vectors, per dimension; empty tuples if there are no vectors."""

    count: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @staticmethod
    def of(values: np.ndarray) -> Moments:
        """Moments of ``(n, size)`` or ``(n,)`` numbers; two passes over each chunk avoid cancellation."""
        if not len(values):
            return Moments()
        rows = values.reshape(len(values), -1)
        step = max(1, CHUNK_VALUES // rows.shape[1])
        pieces = (rows[begin : begin + step] for begin in range(0, len(rows), step))
        return functools.reduce(Moments.merge, map(_moments_of_piece, pieces), Moments())

    @staticmethod
    def of_bytes(values: np.ndarray) -> Moments:
        """Moments of uint8 numbers of any shape as one dimension, from the count of each value."""
        counts = np.zeros(256, np.int64)
        flat = values.reshape(-1)
        for begin in range(0, len(flat), CHUNK_VALUES):
            counts += np.bincount(flat[begin : begin + CHUNK_VALUES], minlength=256)
        present = np.flatnonzero(counts)
        if not len(present):
            return Moments()
        mean = float(np.average(present, weights=counts[present]))
        variance = float(np.average((present - mean) ** 2, weights=counts[present]))
        low, high = float(present[0]), float(present[-1])
        return Moments(int(counts.sum()), (mean,), (math.sqrt(variance),), (low,), (high,))

    @staticmethod
    def beside(parts: Sequence[Moments]) -> Moments:
        """Moments of vectors that have these parts, one after the other; of none where a part has none."""
        counts = {part.count for part in parts}
        if len(counts) != 1 or counts == {0}:
            return Moments()
        chained = (itertools.chain.from_iterable(getattr(part, name) for part in parts) for name in DIMENSIONS)
        return Moments(counts.pop(), *map(tuple, chained))

    def merge(self, other: Moments) -> Moments:
        """Moments of the union of both (Chan, Golub and LeVeque 1983: pairwise update of means and squares)."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        share = other.count / count
        mean, other_mean = np.array(self.mean), np.array(other.mean)
        shift = other_mean - mean
        variance = np.array(self.std) ** 2 * (1 - share) + np.array(other.std) ** 2 * share
        variance += shift**2 * share * (1 - share)
        return Moments(
            count,
            tuple((mean + shift * share).tolist()),
            tuple(np.sqrt(variance).tolist()),
            tuple(np.minimum(self.low, other.low).tolist()),
            tuple(np.maximum(self.high, other.high).tolist()),
        )


def _moments_of_piece(rows: np.ndarray) -> Moments:
    wide = rows.astype(np.float64)
    columns = (wide.mean(axis=0), wide.std(axis=0), wide.min(axis=0), wide.max(axis=0))
    return Moments(len(rows), *(tuple(column.tolist()) for column in columns))


@dataclass(frozen=True)
class Histogram:
    """``counts[i]`` values lie in ``[(first + i) * width, (first + i + 1) * width)``.

    The width is the smallest power of two, not below a minimum, that needs at most ``MAX_BINS`` bins. A bin of the
    next larger width is the union of two bins, so merging gives exactly the histogram of all values.
    """

    width: float
    first: int = 0
    counts: tuple[int, ...] = ()

    @staticmethod
    def of(values: np.ndarray, finest: float) -> Histogram:
        """Histogram of ``(n,)`` finite numbers.

        Args:
            values: the numbers.
            finest: minimum width, a power of two.
        """
        if not len(values):
            return Histogram(finest)
        values = values.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        width = finest
        if high - low > finest * MAX_BINS:
            width = 2.0 ** (math.frexp((high - low) / MAX_BINS)[1] - 1)
        while math.floor(high / width) - math.floor(low / width) >= MAX_BINS:
            width *= 2
        bins = np.floor(values / width)
        counts = np.bincount((bins - bins.min()).astype(np.int64))
        return Histogram(width, int(bins.min()), tuple(counts.tolist()))

    def merge(self, other: Histogram) -> Histogram:
        """Histogram of the union of both."""
        if not self.counts or not other.counts:
            return self if self.counts else other
        width = max(self.width, other.width)
        while True:
            a, b = self._bins(width), other._bins(width)
            first, last = min(*a, *b), max(*a, *b)
            if last - first < MAX_BINS:
                return Histogram(width, first, tuple(a[i] + b[i] for i in range(first, last + 1)))
            width *= 2

    def _bins(self, width: float) -> Counter[int]:
        """Counts by bin index for a larger ``width``, a multiple of this histogram's."""
        factor = int(width / self.width)
        bins: Counter[int] = Counter()
        for i, count in enumerate(self.counts):
            bins[(self.first + i) // factor] += count
        return bins

    @property
    def edges(self) -> list[float]:
        """Bin edges, one more than the number of bins."""
        return [(self.first + i) * self.width for i in range(len(self.counts) + 1)]


@dataclass(frozen=True)
class SplitStatistics:
    """Statistics of the episodes of one split of one task; rejected episodes are counted in ``rejected`` only.

    Attributes:
        num_bytes: size of the data files.
        num_judged: number of episodes with a known success or failure; 0 if the task does not define success.
        experts: number of episodes by revision of the expert that played them, ``""`` if unknown.
        noise: number of episodes by the noise in their actions, ``""`` for none.
        ended: number of episodes by how they ended.
        rejected: number of rejected episodes by reason.
        returns: moments of the undiscounted returns.
        observations: moments per dimension; for images, of all pixels of the newest frame as one dimension.
        actions: moments per dimension of continuous actions, else None.
        action_counts: how often each discrete action was taken, else None.
        label_experts: number of labelled episodes by revision of the expert that labelled them.
        num_labelled, num_unlabelled: number of their steps with a label, and of those that the expert could not label.
    """

    num_episodes: int
    num_steps: int
    num_bytes: int
    num_judged: int
    num_successes: int
    experts: dict[str, int]
    noise: dict[str, int]
    ended: dict[str, int]
    rejected: dict[str, int]
    returns: Moments
    return_histogram: Histogram
    lengths: Moments
    length_histogram: Histogram
    rewards: Moments
    observations: Moments
    actions: Moments | None
    action_counts: tuple[int, ...] | None
    label_experts: dict[str, int] = field(default_factory=dict)  # absent in statistics older than labels
    num_labelled: int = 0
    num_unlabelled: int = 0

    @property
    def success_rate(self) -> float | None:
        return self.num_successes / self.num_judged if self.num_judged else None

    def merge(self, other: SplitStatistics) -> SplitStatistics:
        """Statistics of the union of both."""
        return SplitStatistics(
            **{each.name: _merged(getattr(self, each.name), getattr(other, each.name)) for each in fields(self)}
        )

    @staticmethod
    def from_json(raw: Any) -> SplitStatistics:
        """Raises RecordError if ``raw`` is not a record of statistics."""
        return record_of(raw, SplitStatistics)


def _merged(a: Any, b: Any) -> Any:
    """Merge two values of one field."""
    if a is None or b is None:
        if a is not b:
            raise ValueError(f"statistics of different tasks do not merge: {a} and {b}")
        return None
    if isinstance(a, Moments | Histogram):
        return a.merge(b)
    if isinstance(a, dict):
        return {name: a.get(name, 0) + b.get(name, 0) for name in sorted(a.keys() | b.keys())}
    if isinstance(a, tuple):
        return tuple(x + y for x, y in zip(a, b, strict=True))
    return a + b


class StepStatistics:
    """Accumulates the step statistics of a data file while it is validated; see ``SplitStatistics``."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.rewards, self._observations, self.actions = Moments(), Moments(), Moments()
        self._parts = {name: Moments() for name in parts_by_column(task)}
        self.action_counts = np.zeros(task.action.size, np.int64)
        self.num_labelled, self.num_unlabelled = 0, 0

    def add(self, column: str, values: np.ndarray) -> None:
        """Add some steps of a column; a ``take`` callback for ``pipeline.storage.episode_rules.scan_episodes``."""
        task = self._task
        if column == REWARDS:
            self.rewards = self.rewards.merge(Moments.of(values))
        elif column == observation_column(task):
            seen = Moments.of_bytes(values[..., -1]) if task.observation == IMAGE else Moments.of(values)
            self._observations = self._observations.merge(seen)
        elif column in self._parts:
            seen = Moments.of(parts_by_column(task)[column].encode(values))
            self._parts[column] = self._parts[column].merge(seen)
        elif column == action_column(task) and task.action.kind == "discrete":
            self.action_counts += np.bincount(values, minlength=task.action.size)
        elif column == action_column(task):
            self.actions = self.actions.merge(Moments.of(values))
        elif column == label_column(task):
            count = int(is_labelled(values).sum())
            self.num_labelled += count
            self.num_unlabelled += len(values) - count

    @property
    def observations(self) -> Moments:
        """Moments of the whole observation."""
        return Moments.beside(list(self._parts.values())) if self._parts else self._observations


def split_statistics(task: Task, side: pa.Table, steps: StepStatistics, num_bytes: int) -> SplitStatistics:
    """Statistics of a data file and its side table.

    Args:
        task: task of the episodes.
        side: side table, one row per seed played.
        steps: statistics of all steps of the data file.
        num_bytes: size of the data file.
    """
    discrete = task.action.kind == "discrete"
    accepted = side.filter(pa.compute.is_valid(side["row"]))
    returns = accepted["return"].to_numpy().astype(np.float64)
    lengths = accepted["length"].to_numpy().astype(np.int64)
    reasons = [reason[:MAX_REASON] for reason in side["rejected"].drop_null().to_pylist()]
    noise = accepted["noise"].to_pylist() if "noise" in side.column_names else [None] * len(accepted)
    return SplitStatistics(
        num_episodes=len(accepted),
        num_steps=int(lengths.sum()),
        num_bytes=num_bytes,
        num_judged=len(accepted) - accepted["success"].null_count,
        num_successes=sum(map(bool, accepted["success"].to_pylist())),
        experts=_counted(accepted["expert_revision"].to_pylist()),
        noise=_counted(noise),
        ended=_counted(accepted["ended"].to_pylist()),
        rejected=_counted(reasons),
        returns=Moments.of(returns),
        return_histogram=Histogram.of(returns, FINEST_RETURN),
        lengths=Moments.of(lengths),
        length_histogram=Histogram.of(lengths, 1.0),
        rewards=steps.rewards,
        observations=steps.observations,
        actions=None if discrete else steps.actions,
        action_counts=tuple(steps.action_counts.tolist()) if discrete else None,
        label_experts=_counted(accepted["label_expert"].to_pylist()) if "label_expert" in side.column_names else {},
        num_labelled=steps.num_labelled,
        num_unlabelled=steps.num_unlabelled,
    )


def _counted(values: Sequence[str | None]) -> dict[str, int]:
    return dict(sorted(Counter(value or "" for value in values).items()))


def merge_all(parts: Sequence[SplitStatistics]) -> SplitStatistics:
    """Statistics of the union of all parts, merged in the given order."""
    return functools.reduce(SplitStatistics.merge, parts)


@dataclass(frozen=True)
class TaskStatistics:
    """Content of ``statistics/<task>.json`` of a dataset: the statistics of each split, by name."""

    task: str
    splits: dict[str, SplitStatistics]


def statistics_path(dataset: Path, task_name: str) -> Path:
    return dataset / STATISTICS / f"{task_name}.json"


def load_statistics(dataset: Path, task: Task) -> TaskStatistics:
    """Load the statistics of a task of a dataset.

    Raises:
        UserError: the dataset was built without statistics, or they cannot be read.
    """
    path = statistics_path(dataset, task.name)
    fix = f"build the dataset anew with `jat dataset --task {task.name}`"
    if not path.exists():
        raise UserError(f"{path} is missing; {fix}")
    return read_record(path, TaskStatistics, "the statistics of a task", f"remove it and {fix}")

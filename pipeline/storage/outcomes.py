"""Recompute the outcomes of episodes: returns from the rewards, successes and totals from the side table.

The values stored in a side table or a manifest are not trusted; ``pipeline/storage/validate.py`` compares them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute

from pipeline.envs.episode import is_labelled
from pipeline.envs.task import Task
from pipeline.names import MAX_NAME
from pipeline.storage.episode_rules import Problem, Report, Take, ignore
from pipeline.storage.schema import LABEL_PREFIX, REWARDS

OUTCOME = "side table and data disagree"
ROUNDING = 1e-6  # relative tolerance for sums of the same rewards in another order


@dataclass
class Rewards:
    """A ``take`` callback that collects the rewards of a data file, and which steps have a label; forwards all columns.

    Attributes:
        then: callback that gets everything, see ``scan_episodes``.
    """

    then: Take = ignore
    pieces: list[np.ndarray] = field(default_factory=list)
    labelled: list[np.ndarray] = field(default_factory=list)

    def take(self, column: str, values: np.ndarray) -> None:
        if column == REWARDS:
            self.pieces.append(values)
        elif column.startswith(LABEL_PREFIX):
            self.labelled.append(is_labelled(values))
        self.then(column, values)

    def by_episode(self, lengths: np.ndarray | None) -> list[np.ndarray] | None:
        """Rewards of each episode of ``lengths``; None if some are missing because of a problem in the file."""
        return _by_episode(self.pieces, lengths)

    def labelled_by_episode(self, lengths: np.ndarray | None) -> list[np.ndarray] | None:
        """Which steps of each episode have a label; None if the file has no labels, or some are missing."""
        return _by_episode(self.labelled, lengths)


def _by_episode(pieces: Sequence[np.ndarray], lengths: np.ndarray | None) -> list[np.ndarray] | None:
    values = np.concatenate(pieces) if pieces else np.empty(0, np.float32)
    if lengths is None or len(values) != lengths.sum() or not len(lengths) or not lengths.all():
        return None
    return np.split(values, np.cumsum(lengths)[:-1])


def scan_outcomes(
    task: Task, path: Path, side: pa.Table, lengths: np.ndarray | None, rewards: Rewards, report: Report
) -> None:
    """Report returns and successes in a side table that differ from the data, and rows that are not of the task.

    Args:
        task: task of the shard.
        path: path of the side table.
        side: the side table.
        lengths: ``(E,)`` steps of each episode of the data file, or None if it could not be read.
        rewards: rewards of the data file.
        report: called with each problem.
    """
    _scan_task(task, path, side, report)
    accepted = side.filter(pa.compute.is_valid(side["row"]))
    episodes = rewards.by_episode(lengths)
    if episodes is None or len(episodes) != len(accepted):
        return
    said = accepted["return"].to_numpy()
    found = np.array([episode.sum(dtype=np.float64) for episode in episodes])
    sizes = np.array([np.abs(episode).sum(dtype=np.float64) for episode in episodes])
    wrong = np.flatnonzero(~(np.abs(said - found) <= ROUNDING * (1 + sizes)))  # true for NaN
    if len(wrong):
        row = int(wrong[0])
        report(Problem(OUTCOME, path, f"return {said[row]:g}, the rewards sum up to {found[row]:g}", row, len(wrong)))
    _scan_labels(path, accepted, rewards.labelled_by_episode(lengths), report)
    if task.success == "reward":
        succeeded = [bool(episode[-1] > 0) for episode in episodes]
        told = accepted["success"].to_pylist()
        differ = [row for row, (here, there) in enumerate(zip(told, succeeded, strict=True)) if here != there]
        if differ:
            reason = f"success {told[differ[0]]}, the last reward says {succeeded[differ[0]]}"
            report(Problem(OUTCOME, path, reason, differ[0], len(differ)))


def _scan_labels(path: Path, accepted: pa.Table, labelled: Sequence[np.ndarray] | None, report: Report) -> None:
    """Report accepted episodes whose number of labels in the side table is not that of the data."""
    none = [None] * len(accepted)
    said = accepted["num_labelled"].to_pylist() if "num_labelled" in accepted.column_names else none
    found = none if labelled is None else [int(steps.sum()) for steps in labelled]
    differ = [row for row, (here, there) in enumerate(zip(said, found, strict=True)) if here != there]
    if differ:
        reason = f"num_labelled {said[differ[0]]}, the data has {found[differ[0]]}"
        report(Problem(OUTCOME, path, reason, differ[0], len(differ)))


def _scan_task(task: Task, path: Path, side: pa.Table, report: Report) -> None:
    """Report rows of a side table that name another task, or whose final observation is not one of the task."""
    if "task" in side.column_names:
        others = [row for row, name in enumerate(side["task"].to_pylist()) if name not in (task.name, None)]
        if others:
            found = str(side["task"][others[0]])[:MAX_NAME]
            report(Problem(OUTCOME, path, f"task {found!r}, expected {task.name}", others[0], len(others)))
    if "final_observation" in side.column_names:
        size = int(np.prod(task.observation_shape))
        finals = side["final_observation"]
        lengths = pa.compute.list_value_length(finals).fill_null(size).to_numpy()
        wrong = np.flatnonzero(lengths != size)
        if len(wrong):
            reason = f"{lengths[wrong[0]]} numbers in final_observation, expected {size}"
            report(Problem(OUTCOME, path, reason, int(wrong[0]), len(wrong)))
        elif not np.isfinite(pa.compute.list_flatten(finals).to_numpy()).all():
            report(Problem(OUTCOME, path, "final_observation not finite"))


@dataclass(frozen=True)
class Outcomes:
    """Totals of the episodes of a side table.

    Attributes:
        num_successes: None if the task does not define success, or the success of an episode is unknown.
        return_sum, return_size: sum of the accepted episodes' returns, and of their absolute values.
    """

    num_episodes: int
    num_rejected: int
    num_successes: int | None
    return_sum: float
    return_size: float

    @property
    def mean_return(self) -> float:
        return self.return_sum / max(1, self.num_episodes)

    def has_return_sum(self, said: float) -> bool:
        """Whether ``said`` equals the sum of these returns, up to the rounding of another order of summation."""
        return math.isfinite(said) and abs(said - self.return_sum) <= ROUNDING * (1 + self.return_size)


def count_outcomes(task: Task, side: pa.Table) -> Outcomes:
    """Compute the totals of the episodes of a side table."""
    accepted = side.filter(pa.compute.is_valid(side["row"]))
    returns = accepted["return"].to_numpy().astype(np.float64)
    is_known = task.success is not None and not accepted["success"].null_count
    return Outcomes(
        num_episodes=len(accepted),
        num_rejected=side["row"].null_count,
        num_successes=sum(accepted["success"].to_pylist()) if is_known else None,
        return_sum=float(returns.sum()),
        return_size=float(np.abs(returns).sum()),
    )


def merge_outcomes(parts: Sequence[Outcomes]) -> Outcomes:
    """Totals of several side tables together."""
    successes = [part.num_successes for part in parts]
    return Outcomes(
        num_episodes=sum(part.num_episodes for part in parts),
        num_rejected=sum(part.num_rejected for part in parts),
        num_successes=None if None in successes else sum(count for count in successes if count is not None),
        return_sum=math.fsum(part.return_sum for part in parts),
        return_size=math.fsum(part.return_size for part in parts),
    )

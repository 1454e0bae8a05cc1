"""Measurement of a policy on fixed seeds: the record that both the experts stage and the evaluation write."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.names import check_name, check_texts
from pipeline.records import RecordError, read_record
from pipeline.run_layout import EMBEDDED, MEASUREMENT, RunLayout
from pipeline.scoring.scores import Interval, mean_interval
from pipeline.seeds import seeds_of
from pipeline.versions import versions_of

# The success rate of a task's best expert may be at most this much below the highest one.
SUCCESS_MARGIN = 0.05


@dataclass(frozen=True)
class EpisodeResult:
    """Outcome of one episode.

    Attributes:
        success: None if the task does not define success.
        rejected: the reason why the episode is not counted, or None.
    """

    seed: int
    total_reward: float
    length: int
    success: bool | None
    rejected: str | None

    @staticmethod
    def of(episode: Episode) -> EpisodeResult:
        return EpisodeResult(episode.seed, episode.total_reward, len(episode), episode.success, episode.rejected)


@dataclass(frozen=True)
class Measurement:
    """Outcomes of all episodes that one policy played in one task, in the order of the seeds.

    Attributes:
        policy: expert kind, or ``agent``.
        revision: revision of the policy; for an expert, the name of its folder in the store.
        versions: versions of the packages that define the environment.
        successes: per episode, or None if the task does not define success.
        rejected: per episode, the reason why it is not counted, or None.
    """

    task: str
    policy: str
    revision: str
    versions: dict[str, str]
    seeds: list[int]
    returns: list[float]
    lengths: list[int]
    successes: list[bool] | None
    rejected: list[str | None]

    def __post_init__(self) -> None:
        check_name("task", self.task)
        check_texts((self.policy, self.revision), self.versions, self.versions.values())
        columns = (self.seeds, self.returns, self.lengths, self.rejected, self.successes)
        lengths = {len(column) for column in columns if column is not None}
        if len(lengths) > 1:
            raise RecordError(f"its columns have {' and '.join(map(str, sorted(lengths)))} episodes")
        if not all(
            math.isfinite(value) for value, reason in zip(self.returns, self.rejected, strict=True) if not reason
        ):
            raise RecordError("returns of episodes that count are not all finite")

    @property
    def episodes(self) -> list[EpisodeResult]:
        """The outcomes as one record per episode."""
        successes: Sequence[bool | None] = self.successes or [None] * len(self.seeds)
        rows = zip(self.seeds, self.returns, self.lengths, successes, self.rejected, strict=True)
        return [EpisodeResult(*row) for row in rows]

    @property
    def accepted_returns(self) -> np.ndarray:
        """Returns of the episodes that are not rejected, ``(n,)`` float64."""
        pairs = zip(self.returns, self.rejected, strict=True)
        return np.array([value for value, reason in pairs if reason is None])

    @property
    def mean_return(self) -> Interval:
        """Mean return of the episodes that are not rejected."""
        return mean_interval([self.accepted_returns])

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else float(np.mean(self.successes))


def summarise(
    task: Task, episodes: Iterable[Episode], policy: str, revision: str, versions: dict[str, str]
) -> Measurement:
    """Measurement of a stream of episodes; they are not kept in memory."""
    return measurement_of(task, [EpisodeResult.of(episode) for episode in episodes], policy, revision, versions)


def measurement_of(
    task: Task, episodes: Sequence[EpisodeResult], policy: str, revision: str, versions: dict[str, str]
) -> Measurement:
    """Measurement of the outcomes of episodes."""
    return Measurement(
        task=task.name,
        policy=policy,
        revision=revision,
        versions=versions,
        seeds=[played.seed for played in episodes],
        returns=[played.total_reward for played in episodes],
        lengths=[played.length for played in episodes],
        successes=None if task.success is None else [bool(played.success) for played in episodes],
        rejected=[played.rejected for played in episodes],
    )


def read_measurement(path: Path, fix: str = "delete it and measure again with `jat experts`") -> Measurement:
    """Read the file of a measurement; ``fix`` is what the user can do if it is damaged.

    Raises:
        UserError: it is not a measurement.
    """
    return read_record(path, Measurement, "a measurement", fix)


def best_measurement(found: Sequence[Measurement]) -> Measurement:
    """Return the highest mean return among the experts within ``SUCCESS_MARGIN`` of the best success rate.

    A few tasks of Meta-World reward staying near the goal more than reaching it, so the highest return alone would
    select an expert that never solves them. In tasks that do not define success, only the mean return counts.

    Args:
        found: at least one, without the random policy.
    """
    rates = [-1.0 if measurement.success_rate is None else measurement.success_rate for measurement in found]
    good = [one for one, rate in zip(found, rates, strict=True) if rate >= max(rates) - SUCCESS_MARGIN]
    return max(good, key=lambda measurement: measurement.mean_return.mean)


def load_measurement(folder: Path, task: Task) -> Measurement | None:
    """Load the measurement in the folder of an expert's revision; None if there is no valid one.

    It is valid only for the installed versions of the task's packages, because another version may be another
    environment.
    """
    path = folder / MEASUREMENT
    if not path.exists():
        return None
    found = read_measurement(path)
    is_valid = (
        (found.task, found.revision) == (task.name, folder.name)
        and found.versions == versions_of(task.packages)
        and found.seeds == seeds_of("measure", len(found.seeds))
    )
    return found if is_valid else None


def load_measurements(out: Path, task: Task) -> dict[str, Measurement]:
    """Valid measurements of the experts of a task in a run, including the random policy, by revision."""
    return _load_measurements(RunLayout(out).experts_of(task.name), task)


def packaged_measurements(task: Task) -> dict[str, Measurement]:
    """Valid measurements that come with the package, as ``load_measurements``."""
    return _load_measurements(EMBEDDED / task.name, task)


def _load_measurements(directory: Path, task: Task) -> dict[str, Measurement]:
    folders = [path.parent for path in sorted(directory.glob(f"[!.]*/{MEASUREMENT}"))]
    found = {folder.name: load_measurement(folder, task) for folder in folders}
    return {revision: measurement for revision, measurement in found.items() if measurement is not None}

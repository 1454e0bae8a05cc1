"""How well a policy did on fixed seeds: what the experts stage and the evaluation both write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.episode import Episode
from pipeline.files import read_json
from pipeline.tasks import Task

MEASUREMENT = "measurement.json"


@dataclass(frozen=True)
class Measurement:
    """Every episode one policy played in one task, in the order of its seeds.

    Attributes:
        policy: expert kind, or ``agent``.
        revision: which version of that policy.
        versions: of the packages that define the environment.
        successes: per episode, or None where the task has no notion of it.
        rejected: per episode, the reason it is not counted, or None.
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

    @property
    def accepted_returns(self) -> np.ndarray:
        """Returns of the episodes that count, ``(n,)`` float64."""
        pairs = zip(self.returns, self.rejected, strict=True)
        return np.array([value for value, reason in pairs if reason is None])

    @property
    def success_rate(self) -> float | None:
        return None if self.successes is None else float(np.mean(self.successes))


def summarise(
    task: Task, episodes: Iterable[Episode], policy: str, revision: str, versions: dict[str, str]
) -> Measurement:
    """Measurement of episodes as they come; none of them is kept in memory."""
    rows = [(e.seed, e.total_reward, len(e), e.success, e.rejected) for e in episodes]
    return Measurement(
        task=task.name,
        policy=policy,
        revision=revision,
        versions=versions,
        seeds=[row[0] for row in rows],
        returns=[row[1] for row in rows],
        lengths=[row[2] for row in rows],
        successes=None if task.success is None else [bool(row[3]) for row in rows],
        rejected=[row[4] for row in rows],
    )


def experts_directory(out: Path, task_name: str) -> Path:
    """Where the experts of a task stand in a run, one folder per revision."""
    return out / "experts" / task_name


def load_measurement(folder: Path) -> Measurement | None:
    """The measurement in the folder of an expert's revision, or None if it was not measured."""
    path = folder / MEASUREMENT
    return Measurement(**read_json(path)) if path.exists() else None

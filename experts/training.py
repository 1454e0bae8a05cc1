"""What every way of training an expert shares: the job, its budget, and the monitor that reports and stops it.

A training lives in ``OUT/training/<task>/<algorithm>/``: checkpoints, TensorBoard events and ``curve.csv``. When it has
ended, its result is a revision in the store (``experts/store.py``) and the folder is removed; until then, running the
same job again goes on from the last checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from experts.store import CurvePoint, StoredExpert
from pipeline.tasks import Task

log = logging.getLogger(__name__)

# Training episodes before their mean return counts. The first to end after a start or a resumption are the short ones,
# which in Pong are the clear ones: a policy that loses most of its games seems to win them all.
MIN_EPISODES = 20


@dataclass(frozen=True)
class Budget:
    """When a training ends, whichever comes first.

    Attributes:
        steps: environment steps.
        seconds: of training, summed over all resumptions.
        target: mean return of recent training episodes that is good enough; None to use up the budget.
        success: success rate of these that the target also needs, where the task has one.
        patience: steps without an improvement of the mean return by 1 % after which a training is given up as
            finished; None for endless patience.
    """

    steps: int
    seconds: float
    target: float | None = None
    success: float = 0.95
    patience: int | None = None


@dataclass(frozen=True)
class TrainJob:
    """Train one expert of ``task`` with ``algorithm`` and put it into the store of ``out``.

    Attributes:
        steps, seconds, target: replace the recipe's budget where given.
    """

    task: Task
    algorithm: str
    out: Path
    seed: int = 0
    steps: int | None = None
    seconds: float | None = None
    target: float | None = None

    def __str__(self) -> str:
        return f"training {self.task.name} with {self.algorithm}"

    @property
    def folder(self) -> Path:
        """Where the training keeps its state until it has ended."""
        return self.out / "training" / self.task.name / self.algorithm

    def budget(self, recipe: Budget) -> Budget:
        """The recipe's budget with what this job says instead."""
        return Budget(
            steps=self.steps or recipe.steps,
            seconds=self.seconds or recipe.seconds,
            target=recipe.target if self.target is None else self.target,
            success=recipe.success,
            patience=recipe.patience,
        )


Train = Callable[[TrainJob], StoredExpert]


class TrainingMonitor:
    """Progress of one training, kept over resumptions: a curve on disk, TensorBoard, a line in the log, a verdict.

    Args:
        job: what is trained; the curve is appended to ``job.folder / "curve.csv"``.
        budget: when to stop.
        start_steps: steps in the checkpoint the training goes on from; later points of an interrupted run are dropped.
        interval_s: seconds between two reports at least.
    """

    def __init__(self, job: TrainJob, budget: Budget, start_steps: int = 0, interval_s: float = 10.0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._job, self._budget, self._interval_s = job, budget, interval_s
        self._path = job.folder / "curve.csv"
        self.curve = [point for point in read_curve(self._path) if point.steps <= start_steps]
        job.folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._seconds_before = self.curve[-1].seconds if self.curve else 0.0
        self._started = self._last = time.monotonic()
        self._start_steps = start_steps
        self._improved = CurvePoint(0, 0.0, -math.inf)
        for point in self.curve:
            self._note_improvement(point)
        self._board = SummaryWriter(str(job.folder / "tensorboard"))

    @property
    def seconds(self) -> float:
        """Of training so far, resumptions included."""
        return self._seconds_before + time.monotonic() - self._started

    def report(
        self, steps: int, mean_return: float | None, force: bool = False, success_rate: float | None = None
    ) -> bool:
        """Note the state of the training; True if it must stop.

        Args:
            steps: environment steps so far, over all resumptions.
            mean_return: of recent training episodes; None if none has ended yet.
            force: report even if the last report is recent.
            success_rate: of the same episodes; None where the task has no notion of it.
        """
        now, budget = time.monotonic(), self._budget
        over = steps >= budget.steps or self.seconds >= budget.seconds
        if mean_return is not None and budget.target is not None and mean_return >= budget.target:
            over = over or success_rate is None or success_rate >= budget.success
        if mean_return is not None:
            self._note_improvement(CurvePoint(steps, self.seconds, mean_return))
            over = over or (budget.patience is not None and steps - self._improved.steps >= budget.patience)
        if not (force or over or now - self._last >= self._interval_s):
            return False
        self._last = now
        rate = (steps - self._start_steps) / max(now - self._started, 1e-9)
        left = min((budget.steps - steps) / max(rate, 1e-9), budget.seconds - self.seconds)
        shown = "-" if mean_return is None else f"{mean_return:.4g}"
        goal = "" if budget.target is None else f" of {budget.target:g}"
        if success_rate is not None:
            goal += f", success {success_rate:.2f}"
        log.info(
            "%s %s: %s of %s steps, return %s%s, %.0f steps/s, at most %.0f s left",
            self._job.task.name, self._job.algorithm, f"{steps:,}", f"{budget.steps:,}", shown, goal, rate, left,
        )  # fmt: skip
        if mean_return is not None:
            self.curve.append(CurvePoint(steps, self.seconds, mean_return))
            self._write(self.curve[-1])
            self._board.add_scalar("return", mean_return, steps)
        self._board.add_scalar("steps_per_second", rate, steps)
        return over

    def _note_improvement(self, point: CurvePoint) -> None:
        best = self._improved.mean_return
        if not math.isfinite(best) or point.mean_return > best + 0.01 * abs(best):
            self._improved = point

    def close(self) -> None:
        self._board.close()

    def _write(self, point: CurvePoint | None = None) -> None:
        """The whole curve, or one more point of it."""
        points = self.curve if point is None else [point]
        with self._path.open("w" if point is None else "a", encoding="utf-8") as handle:
            handle.writelines(f"{point.row}\n" for point in points)


def read_curve(path: Path) -> list[CurvePoint]:
    """Points of a ``curve.csv``; none if there is no file."""
    if not path.exists():
        return []
    rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
    return [CurvePoint(int(r[0]), float(r[1]), float(r[2])) for r in rows if len(r) == 3 and r[0].isdecimal()]

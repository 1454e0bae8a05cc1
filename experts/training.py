"""Code shared by all algorithms that train an expert: the job, its budget, and the monitor that reports and stops it.

A training writes to ``OUT/training/<task>/<algorithm>/``: checkpoints, TensorBoard events, ``curve.csv`` and
``progress.json``. When it ends, its result is a revision in the store (``experts/store.py``) and the folder is
removed. Until then, running the same job again resumes from the last checkpoint. Trainings of the queue
(``experts/queue/``) write to ``OUT/queue/...`` instead. Their folders are kept, so they can resume with larger budgets.

A trainer implements the following interface, which both one-off trainings and the queue use. ``ALGORITHMS`` names its
module, which defines

- ``train(job) -> StoredExpert``: resumes from the newest checkpoint in ``job.folder``, if there is one, and calls
  ``TrainingMonitor.report`` at least every few seconds. When that returns True it writes a last checkpoint, closes the
  monitor, calls ``monitor.raise_if_stopped()``, writes the best policy to the store, and calls ``job.remove_state()``.
- ``export(job) -> StoredExpert``: writes the best policy of the newest checkpoint to the store, and changes nothing in
  ``job.folder``. A training may be running there at the same time.

The same folder has a module ``recipes``, which does not import torch and defines

- ``check(job)``: raises ``UserError`` if the checkpoint in ``job.folder`` was made with other settings.

Checkpoints are written at most ``CHECKPOINT_SECONDS`` apart and atomically (``pipeline.files``), so a kill loses at
most that much work. Trainers install no signal handlers: ``report`` returns True when the training must stop.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from experts.store import StoredExpert, TrainingPoint
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import replacing, write_json
from pipeline.foreign import MIB, check_file
from pipeline.records import read_record
from pipeline.run_layout import RunLayout
from pipeline.runtime.heartbeat import STOP, WORKER_PROGRESS

log = logging.getLogger(__name__)

CURVE, PROGRESS = "curve.csv", "progress.json"
# Seconds between two checkpoints of a training.
CHECKPOINT_SECONDS = 120.0

# Minimum number of training episodes for a mean return. The first episodes to end after a start or a resumption are the
# short ones. In Pong these are the one-sided games, so a policy that loses most games can appear to win them all.
MIN_EPISODES = 20
MAX_CURVE = 64 * MIB


@dataclass(frozen=True)
class Budget:
    """Limits of a training; it ends at the first one reached.

    Attributes:
        steps: environment steps.
        seconds: wall-clock seconds of training, summed over all resumptions; None for no limit.
        target: mean return of recent training episodes at which the training ends early; None for no target.
        success: success rate of these episodes that the target also requires, where the task defines success.
        patience: early stopping: steps without an improvement of the mean return by 1 % after which the training ends;
            None to disable.
        core_seconds: CPU seconds, summed over all resumptions; None for no limit.
    """

    steps: int
    seconds: float | None
    target: float | None = None
    success: float = 0.95
    patience: int | None = None
    core_seconds: float | None = None


@dataclass(frozen=True)
class TrainJob:
    """Train one expert of ``task`` with ``algorithm`` and write it to the store of ``out``.

    Attributes:
        steps, seconds, target, patience, core_seconds: override the recipe's budget where given. ``core_seconds`` also
            removes the recipe's limit of wall-clock time, because that depends on the machine's load.
        is_queued: whether the training belongs to the queue, which keeps its state after it has ended.
    """

    task: Task
    algorithm: str
    out: Path
    seed: int = 0
    steps: int | None = None
    seconds: float | None = None
    target: float | None = None
    patience: int | None = None
    core_seconds: float | None = None
    is_queued: bool = False

    def __str__(self) -> str:
        return f"training {self.task.name} with {self.algorithm}"

    @property
    def folder(self) -> Path:
        """Folder of the training's state."""
        layout = RunLayout(self.out)
        folder = layout.queued_training if self.is_queued else layout.expert_training
        return folder(self.task.name, self.algorithm)

    def remove_state(self) -> None:
        """Remove the folder of a training whose expert is in the store, unless it belongs to the queue."""
        if not self.is_queued:
            shutil.rmtree(self.folder)

    def budget(self, recipe: Budget) -> Budget:
        """Return the recipe's budget with this job's overrides."""
        return Budget(
            steps=self.steps or recipe.steps,
            seconds=self.seconds or (recipe.seconds if self.core_seconds is None else None),
            target=recipe.target if self.target is None else self.target,
            success=recipe.success,
            patience=self.patience or recipe.patience,
            core_seconds=self.core_seconds or recipe.core_seconds,
        )


Train = Callable[[TrainJob], StoredExpert]


class TrainingStoppedError(RuntimeError):
    """The training was stopped before its budget was used up; a last checkpoint has been written."""


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a training, stored as ``progress.json`` in its folder.

    Attributes:
        steps: environment steps; after a kill, the steps since the last checkpoint are repeated.
        mean_return: mean return of recent training episodes; None if too few have ended.
        seconds: wall-clock seconds spent, summed over all resumptions, including work lost in kills.
        core_seconds: CPU seconds spent, counted the same way.
        budget: limits of the training.
    """

    steps: int = 0
    mean_return: float | None = None
    seconds: float = 0.0
    core_seconds: float = 0.0
    budget: Budget | None = None


def read_progress(folder: Path) -> TrainingProgress:
    """Read the progress of the training in ``folder``; all zeros if it has not begun."""
    path = folder / PROGRESS
    if not path.exists():
        return TrainingProgress()
    return read_record(path, TrainingProgress, "the progress of a training", f"remove {folder} to start anew")


class TrainingMonitor:
    """Records the progress of one training across resumptions and decides when it must stop.

    Progress goes to a curve on disk, to TensorBoard and to the log.

    Args:
        job: the training; the curve and the progress are written to ``job.folder``.
        budget: limits of the training.
        start_steps: steps of the checkpoint the training resumes from; later points of the curve are dropped.
        interval_s: minimum seconds between two reports.
        core_clock: returns CPU seconds; pass another function if other processes do the work.
    """

    def __init__(
        self,
        job: TrainJob,
        budget: Budget,
        start_steps: int = 0,
        interval_s: float = 10.0,
        core_clock: Callable[[], float] = time.process_time,
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._job, self._budget, self._interval_s, self._core_clock = job, budget, interval_s, core_clock
        self._path = job.folder / CURVE
        points = read_curve(self._path)
        self.curve = [point for point in points if point.steps <= start_steps]
        job.folder.mkdir(parents=True, exist_ok=True)
        self._write_curve()
        before = read_progress(job.folder)
        self._seconds_before = max([before.seconds, *(point.seconds for point in points)])
        self._core_seconds_before = before.core_seconds
        self._started = self._last = time.monotonic()
        self._core_started = core_clock()
        self._start_steps = self._steps = start_steps
        self._mean_return = self.curve[-1].mean_return if self.curve else None
        self._improved = TrainingPoint(0, 0.0, -math.inf)
        for point in self.curve:
            self._note_improvement(point)
        self._is_finished = False
        self._write_progress()
        self._board = SummaryWriter(str(job.folder / "tensorboard"))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds spent so far, including earlier runs and work lost in kills."""
        return self._seconds_before + time.monotonic() - self._started

    @property
    def core_seconds(self) -> float:
        """CPU seconds spent so far, including earlier runs and work lost in kills."""
        return self._core_seconds_before + self._core_clock() - self._core_started

    def report(
        self, steps: int, mean_return: float | None, force: bool = False, success_rate: float | None = None
    ) -> bool:
        """Record the state of the training; return True if it must stop.

        Args:
            steps: environment steps so far, over all resumptions.
            mean_return: mean return of recent training episodes; None if none has ended yet.
            force: report even if the last report is recent.
            success_rate: success rate of the same episodes; None where the task does not define success.
        """
        now = time.monotonic()
        WORKER_PROGRESS.beats += 1
        self._steps = steps
        if mean_return is not None:
            self._mean_return = mean_return
            self._note_improvement(TrainingPoint(steps, self.seconds, mean_return))
        self._is_finished = self._is_used_up(steps) or self._is_good_enough(mean_return, success_rate)
        over = self._is_finished or STOP.is_set()
        if not (force or over or now - self._last >= self._interval_s):
            return False
        self._last = now
        self._log(steps, mean_return, success_rate)
        if mean_return is not None:
            self.curve.append(TrainingPoint(steps, self.seconds, mean_return))
            with self._path.open("a", encoding="utf-8") as handle:
                handle.write(f"{self.curve[-1].row}\n")
            self._board.add_scalar("return", mean_return, steps)
        self._board.add_scalar("steps_per_second", self._rate(steps), steps)
        self._write_progress()
        return over

    def _is_used_up(self, steps: int) -> bool:
        budget = self._budget
        return (
            steps >= budget.steps
            or (budget.seconds is not None and self.seconds >= budget.seconds)
            or (budget.core_seconds is not None and self.core_seconds >= budget.core_seconds)
        )

    def _is_good_enough(self, mean_return: float | None, success_rate: float | None) -> bool:
        """Whether the target is reached, or the return no longer improves."""
        budget = self._budget
        if mean_return is None:
            return False
        succeeds = success_rate is None or success_rate >= budget.success
        if budget.target is not None and mean_return >= budget.target and succeeds:
            return True
        return budget.patience is not None and self._steps - self._improved.steps >= budget.patience

    def _log(self, steps: int, mean_return: float | None, success_rate: float | None) -> None:
        budget, rate = self._budget, self._rate(steps)
        left = (budget.steps - steps) / max(rate, 1e-9)
        if budget.seconds is not None:
            left = min(left, budget.seconds - self.seconds)
        shown = "-" if mean_return is None else f"{mean_return:.4g}"
        goal = "" if budget.target is None else f" of {budget.target:g}"
        if success_rate is not None:
            goal += f", success {success_rate:.2f}"
        log.info(
            "%s %s: %s of %s steps, return %s%s, %.0f steps/s, at most %.0f s left",
            self._job.task.name, self._job.algorithm, f"{steps:,}", f"{budget.steps:,}", shown, goal, rate, left,
        )  # fmt: skip

    def _rate(self, steps: int) -> float:
        return (steps - self._start_steps) / max(time.monotonic() - self._started, 1e-9)

    def _note_improvement(self, point: TrainingPoint) -> None:
        best = self._improved.mean_return
        if not math.isfinite(best) or point.mean_return > best + 0.01 * abs(best):
            self._improved = point

    def close(self) -> None:
        """Write the final progress; call this even if the training fails."""
        self._write_progress()
        self._board.close()

    def raise_if_stopped(self) -> None:
        """Raise if the training was stopped before it finished; call this after the last checkpoint.

        Raises:
            TrainingStoppedError: the budget is not used up and the target is not reached.
        """
        if STOP.is_set() and not self._is_finished:
            raise TrainingStoppedError(f"{self._job} was stopped at {self._steps:,} steps")

    def _write_progress(self) -> None:
        found = TrainingProgress(self._steps, self._mean_return, self.seconds, self.core_seconds, self._budget)
        write_json(self._job.folder / PROGRESS, asdict(found))

    def _write_curve(self) -> None:
        with replacing(self._path) as temporary:
            temporary.write_text("".join(f"{point.row}\n" for point in self.curve), encoding="utf-8")


def read_curve(path: Path) -> list[TrainingPoint]:
    """Read the points of a ``curve.csv``; an empty list if there is no file.

    Raises:
        UserError: the file is not a training curve.
    """
    if not path.exists():
        return []
    check_file(path, MAX_CURVE)
    try:
        rows = [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]
        return [TrainingPoint(int(r[0]), float(r[1]), float(r[2])) for r in rows if len(r) == 3 and r[0].isdecimal()]
    except ValueError as error:
        raise UserError(f"{path} is not the curve of a training ({str(error)[:200]}); remove it") from error

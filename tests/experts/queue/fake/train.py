from __future__ import annotations

import os
import time
from pathlib import Path

from experts.store import StoredExpert, TrainingPoint
from experts.training import Budget, TrainingMonitor, TrainJob, read_curve
from pipeline.errors import UserError
from pipeline.files import read_json, write_json
from tests.experts.queue.fake.recipes import NETWORK
from tests.fakes import store_network

CORE_SECONDS_A_STEP = 0.25  # pretended
STEP_S = float(os.environ.get("FAKE_STEP_S", "0.0"))
CHECKPOINT_STEPS = 10
BUDGET = Budget(steps=40, seconds=3600.0)


def fault(job: TrainJob) -> str:
    """What a test wants to go wrong in a task: what stands in a file beside the outputs."""
    path = job.out / f"fault-{job.task.name}"
    return path.read_text() if path.exists() else ""


def train(job: TrainJob) -> StoredExpert:
    """Adds up the numbers of its steps."""
    checkpoint = job.folder / "checkpoint.json"
    steps, total = 0, 0
    if checkpoint.exists():
        saved = read_json(checkpoint)
        steps, total = saved["steps"], saved["total"]
    ledger = Ledger(job.folder / "ledger")
    monitor = TrainingMonitor(job, job.budget(BUDGET), steps, interval_s=0.0, core_clock=ledger.core_seconds)
    wanted = fault(job)
    try:
        while not monitor.report(steps, float(steps) if steps else None):
            if wanted == "always" or (wanted == "once" and steps == 15):
                (job.out / f"fault-{job.task.name}").write_text("always" if wanted == "always" else "")
                raise RuntimeError(f"the simulator broke at step {steps}")
            if wanted == "damaged":
                raise UserError(f"{checkpoint} is damaged; remove it")
            time.sleep(STEP_S)
            steps += 1
            total += steps
            ledger.note(steps)
            if steps % CHECKPOINT_STEPS == 0:
                write_json(checkpoint, {"steps": steps, "total": total, "network": NETWORK})
        write_json(checkpoint, {"steps": steps, "total": total, "network": NETWORK})
    finally:
        monitor.close()
    monitor.raise_if_stopped()
    expert = _store(job)
    job.remove_state()
    return expert


def export(job: TrainJob) -> StoredExpert:
    if not (job.folder / "checkpoint.json").exists():
        raise UserError(f"{job.folder} holds no checkpoint to export; wait for the first")
    return _store(job)


def _store(job: TrainJob) -> StoredExpert:
    """Acts as far from zero as the training got."""
    total = read_json(job.folder / "checkpoint.json")["total"]
    curve: list[TrainingPoint] = read_curve(job.folder / "curve.csv")
    return store_network(job.out, job.task, total / 1e6, "fake", curve)


class Ledger:
    """A line for each step that any process ever made: its process and its number."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._count = path, 0

    def note(self, step: int) -> None:
        self._count += 1
        with self._path.open("a") as handle:
            handle.write(f"{os.getpid()} {step}\n")

    def core_seconds(self) -> float:
        return CORE_SECONDS_A_STEP * self._count

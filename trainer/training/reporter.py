"""Reports each optimiser step of a run: to ``log.jsonl``, to the trackers, and on the display."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.run_layout import TRAIN_LOG
from trainer.checkpoint import CheckpointProgress
from trainer.config import TrainConfig
from trainer.training.budget import TrainingBudget
from trainer.training.display import Display
from trainer.training.tracking import open_trackers


class StepReporter:
    """The reporter of one part of a run, from its start or its resumption on.

    Args:
        config: settings of the run.
        directory: folder of the run, ``OUT/train``.
        progress: where this part begins.
    """

    def __init__(self, config: TrainConfig, directory: Path, progress: CheckpointProgress) -> None:
        self._log = directory / TRAIN_LOG
        self._trackers = open_trackers(config.trackers, directory, progress.step, progress.identity)
        self._display = Display(totals_of(progress), TrainingBudget.of(config))

    def report(self, row: dict[str, float], progress: CheckpointProgress) -> None:
        """Report the row of a step, with the totals after it."""
        row = row | totals_of(progress)
        with self._log.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        for tracker in self._trackers:
            tracker.log(progress.step, row)
        self._display.update(row)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        self._display.close()


def totals_of(progress: CheckpointProgress) -> dict[str, float]:
    """The totals of a row of the training log."""
    return {name: getattr(progress, name) for name in Display.TOTALS}

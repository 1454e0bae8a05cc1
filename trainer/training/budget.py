"""How long a training goes on: a number of optimiser steps, or a time. The learning rate follows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.config import TrainConfig


@dataclass(frozen=True)
class TrainingBudget:
    """The end of a training.

    Attributes:
        unit: what is counted: the column of the training log.
        amount: optimiser steps, or seconds, at which the training ends.
        peak, warmup_steps: of the learning rate.
    """

    unit: Literal["step", "seconds"]
    amount: float
    peak: float
    warmup_steps: int

    @staticmethod
    def of(config: TrainConfig) -> TrainingBudget:
        if config.seconds is not None:
            return TrainingBudget("seconds", config.seconds, config.learning_rate, config.warmup_steps)
        return TrainingBudget("step", config.steps, config.learning_rate, config.warmup_steps)

    @property
    def label(self) -> str:
        return "training steps" if self.unit == "step" else "seconds of training"

    def left(self, row: Mapping[str, float]) -> float:
        """Units that are left after a row of the training log."""
        return max(0.0, self.amount - row[self.unit])

    def learning_rate(self, step: int, seconds: float) -> float:
        """The learning rate of a step that begins after ``seconds`` of training.

        Linear warm-up by steps, then cosine decay to a tenth at the end of the budget.
        """
        warm = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.unit == "seconds":
            return self.peak * warm * _decay(seconds / self.amount)
        done = (step - self.warmup_steps) / max(1.0, self.amount - self.warmup_steps)
        return self.peak * warm * _decay(max(0.0, done))


def _decay(done: float) -> float:
    return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))

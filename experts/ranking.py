"""Rank the measured experts of a task, and compare them with the random policy and with JAT's expert."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from experts.registry import RANDOM, experts_of
from experts.store import StoredExpert
from pipeline.envs.task import Task
from pipeline.scoring.measurement import Measurement, best_measurement, load_measurement
from pipeline.scoring.scores import Interval, jat_scale, normalise


@dataclass(frozen=True)
class ExpertResult:
    """An expert and its valid measurement."""

    task: Task
    expert: StoredExpert
    measurement: Measurement

    @property
    def revision(self) -> str:
        return self.expert.record.revision

    @property
    def is_random(self) -> bool:
        return self.expert.record.kind == RANDOM

    @cached_property
    def mean_return(self) -> Interval:
        return self.measurement.mean_return

    @property
    def mean_length(self) -> float:
        """Mean episode length in steps, including rejected episodes."""
        return float(np.mean(self.measurement.lengths))

    @cached_property
    def on_jat_scale(self) -> Interval | None:
        """Normalised mean return: JAT's random policy is 0, JAT's expert is 1; None for tasks without this scale."""
        scale = jat_scale(self.task.name)
        if scale is None:
            return None
        found = self.mean_return
        scores = normalise([found.mean, found.low, found.high], *scale)
        return Interval(*scores.tolist())


def rank_experts(out: Path, task: Task) -> list[ExpertResult]:
    """Return the experts of a task with a valid measurement, sorted by mean return, with the random policy last."""
    found = [
        ExpertResult(task, expert, measurement)
        for expert in experts_of(out, task)
        if (measurement := load_measurement(expert.folder, task)) is not None
    ]
    return sorted(found, key=lambda s: (s.is_random, -s.mean_return.mean))


def best_of(found: Sequence[ExpertResult]) -> ExpertResult | None:
    """Return the best expert by the rule of ``best_measurement``, excluding the random policy."""
    experts = [standing for standing in found if not standing.is_random]
    if not experts:
        return None
    best = best_measurement([standing.measurement for standing in experts])
    return next(standing for standing in experts if standing.measurement is best)


def best_by_return(found: Sequence[ExpertResult]) -> ExpertResult | None:
    """Return the expert with the highest mean return, excluding the random policy."""
    experts = [standing for standing in found if not standing.is_random]
    return max(experts, key=lambda s: s.mean_return.mean, default=None)


def best_by_success(found: Sequence[ExpertResult]) -> ExpertResult | None:
    """Return the expert with the highest success rate, ties broken by return; None if success is not defined."""
    experts = [s for s in found if not s.is_random and s.measurement.success_rate is not None]
    return max(experts, key=lambda s: (s.measurement.success_rate, s.mean_return.mean), default=None)


def random_among(found: Sequence[ExpertResult]) -> ExpertResult | None:
    return next((standing for standing in found if standing.is_random), None)


def is_better_than_random(standing: ExpertResult, random: ExpertResult) -> bool:
    """Whether the 95 % interval of the expert's mean return is entirely above the random policy's."""
    return standing.mean_return.low > random.mean_return.high

"""Normalised scores and their intervals.

A score puts a return on the scale where a random policy is 0 and the expert is 1:
``(return - random) / (expert - random)``, the definition of the JAT paper (arXiv 2402.09844, section 5).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import read_json


@dataclass(frozen=True)
class Interval:
    """A mean with a 95 % interval."""

    mean: float
    low: float
    high: float


@functools.cache
def jat_scores() -> dict[str, dict[str, float]]:
    """Mean returns that JAT published, by task: ``random``, ``expert``, ``jat`` and, for Atari, ``human``.

    Source: the model card of the released agent and the score table of its evaluation code, four slips corrected
    (the sign or scale of human doubledunk, fishingderby and tennis, and of random battlezone).
    """
    scores: dict[str, dict[str, float]] = read_json(Path(__file__).with_name("jat_scores.json"))
    return scores


def is_scorable(random_mean: float, expert_mean: float) -> bool:
    """Whether a normalised score means anything: the expert must be better than random."""
    return expert_mean > random_mean


def normalise(returns: Sequence[float] | np.ndarray, random_mean: float, expert_mean: float) -> np.ndarray:
    """Scores of single episodes, ``(n,)``.

    Raises:
        ValueError: the expert is not better than random; such a task is "not scorable", never 1.0.
    """
    if not is_scorable(random_mean, expert_mean):
        raise ValueError(f"not scorable: the expert's {expert_mean} is not above random's {random_mean}")
    return (np.asarray(returns, np.float64) - random_mean) / (expert_mean - random_mean)


def mean_interval(samples: Sequence[np.ndarray]) -> Interval:
    """Mean over tasks of the mean over episodes, with a stratified bootstrap 95 % interval.

    Episodes are resampled within each task, tasks are not: the tasks are the benchmark, not a sample of one
    (Agarwal et al. 2021, arXiv 2108.13264). With one task this is the ordinary percentile bootstrap.

    Args:
        samples: per task, the scores or returns of its episodes.
    """
    generator = np.random.default_rng(0)
    resampled = np.mean([generator.choice(s, (2000, len(s))).mean(axis=1) for s in samples], axis=0)
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(np.mean([np.mean(s) for s in samples])), float(low), float(high))

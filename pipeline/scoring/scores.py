"""Normalised scores, their aggregates over tasks, and confidence intervals.

A score puts a return on the scale where a random policy is 0 and the expert is 1:
``(return - random) / (expert - random)``, the definition of the JAT paper (arXiv 2402.09844, section 5).

The aggregates are those of Agarwal et al. 2021 (arXiv 2108.13264). Their package rliable is not used: its last
release, 1.2.0, does not support arch 8 or later, and arch 7.2.0 cannot be imported with pandas 3. It also requires the
same number of episodes for every task, although an environment may have crashed. The tests compare these aggregates
with those of rliable.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import read_json

NUM_RESAMPLES = 2000
# Minimum gap between JAT's two means, relative to the larger one: with a smaller gap, a score is mostly noise. Of the
# 157 tasks disassemble (40.3 and 42.8), solaris, bowling and venture have less; the next one, skiing, has 0.37.
MIN_JAT_GAP = 0.1
# Maximum count of resampled numbers in memory at a time.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic, with a 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregate:
    """Four aggregates of the scores of some tasks, each with a stratified bootstrap 95 % interval.

    Attributes:
        num_tasks: number of tasks.
        num_episodes: total number of episodes.
        mean, median: over tasks, of each task's mean.
        iqm: interquartile mean over all episodes together, without the lowest and the highest quarter.
        optimality_gap: mean over tasks of 1 minus the score, where scores above 1 count as 1; lower is better.
    """

    num_tasks: int
    num_episodes: int
    mean: Interval
    median: Interval
    iqm: Interval
    optimality_gap: Interval


@functools.cache
def jat_scores() -> dict[str, dict[str, float]]:
    """Mean returns that JAT published, by task: ``random``, ``expert``, ``jat`` and, for Atari, ``human``.

    Source: the model card of the released agent and the score table of its evaluation code, with four errors corrected
    (the sign or scale of human doubledunk, fishingderby and tennis, and of random battlezone).
    """
    scores: dict[str, dict[str, float]] = read_json(Path(__file__).with_name("jat_scores.json"))
    return scores


def jat_scale(task_name: str) -> tuple[float, float] | None:
    """Mean returns that JAT published for its random policy and its expert, which have the scores 0 and 1.

    None if JAT does not have the task, or if its expert is hardly better than random (``MIN_JAT_GAP``): in such a task
    a policy that solves it would score 160, and one such task would dominate the mean of fifty.
    """
    scores = jat_scores().get(task_name)
    if scores is None:
        return None
    random, expert = scores["random"], scores["expert"]
    return (random, expert) if expert - random >= MIN_JAT_GAP * max(abs(random), abs(expert), 1e-9) else None


def is_scorable(random_mean: float, expert_mean: float) -> bool:
    """Whether normalised scores are defined: the expert must be better than random."""
    return expert_mean > random_mean


def normalise(returns: Sequence[float] | np.ndarray, random_mean: float, expert_mean: float) -> np.ndarray:
    """Scores of single episodes, ``(n,)``.

    Raises:
        ValueError: the expert is not better than random; such a task is "not scorable" and never gets the score 1.0.
    """
    if not is_scorable(random_mean, expert_mean):
        raise ValueError(f"not scorable: the expert's {expert_mean} is not above random's {random_mean}")
    return (np.asarray(returns, np.float64) - random_mean) / (expert_mean - random_mean)


def mean_interval(samples: Sequence[np.ndarray]) -> Interval:
    """Mean over tasks of the mean over episodes, with a stratified bootstrap 95 % interval.

    Episodes are resampled within each task. Tasks are not resampled: they are the whole benchmark, not a sample from
    one (Agarwal et al. 2021, arXiv 2108.13264). With one task this is the ordinary percentile bootstrap.

    Args:
        samples: per task, the scores or returns of its episodes.
    """
    resampled = resampled_means(samples, np.random.default_rng(0))
    return interval_of(np.mean([np.mean(s) for s in samples]), resampled)


def resampled_means(samples: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Means over tasks of the mean over episodes, with episodes resampled within each task, ``(NUM_RESAMPLES,)``."""
    by_task = [generator.choice(sample, (NUM_RESAMPLES, len(sample))).mean(axis=1) for sample in samples]
    means: np.ndarray = np.mean(by_task, axis=0)
    return means


def aggregate(samples: Sequence[Sequence[float] | np.ndarray]) -> Aggregate:
    """Four aggregates of scores with their intervals.

    Args:
        samples: per task, the scores of its episodes; at least one task, and at least one episode of each task.

    Raises:
        ValueError: there are no tasks, or a task has no episodes.
    """
    tasks = [np.asarray(sample, np.float64) for sample in samples]
    if not tasks or min(map(len, tasks)) == 0:
        raise ValueError("nothing to aggregate: at least one task is needed, and an episode of each")
    points = _statistics([task[None] for task in tasks])[:, 0]
    resampled = np.concatenate([_statistics(drawn) for drawn in _resamples(tasks)], axis=1)
    mean, median, iqm, gap = (interval_of(p, r) for p, r in zip(points, resampled, strict=True))
    return Aggregate(len(tasks), sum(map(len, tasks)), mean, median, iqm, gap)


def probability_of_improvement(
    first: Sequence[Sequence[float] | np.ndarray], second: Sequence[Sequence[float] | np.ndarray]
) -> Interval:
    """Probability that an episode of ``first`` beats one of ``second`` in a random task; a tie counts as one half.

    Args:
        first, second: per task, in the same order, the scores or returns of the episodes of two agents.

    Raises:
        ValueError: the numbers of tasks differ, or there are no tasks.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} tasks cannot be compared with {len(second)}")
    generator = np.random.default_rng(0)
    points, resampled = [], []
    for a, b in zip(first, second, strict=True):
        x, y = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
        wins = (x > y) + 0.5 * (x == y)
        # Count of each episode in a resample; the count of a pair is the product of the counts of its two episodes.
        counts_x = generator.multinomial(len(a), np.full(len(a), 1 / len(a)), NUM_RESAMPLES)
        counts_y = generator.multinomial(len(b), np.full(len(b), 1 / len(b)), NUM_RESAMPLES)
        points.append(wins.mean())
        resampled.append(((counts_x @ wins) * counts_y).sum(axis=1) / wins.size)
    return interval_of(np.mean(points), np.mean(resampled, axis=0))


def _resamples(tasks: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Yield episodes drawn with replacement within each task, in batches of resamples: per task ``(R, episodes)``."""
    generator = np.random.default_rng(0)
    at_once = max(1, min(NUM_RESAMPLES, _CHUNK // sum(map(len, tasks))))
    for start in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - start)
        yield [task[generator.integers(len(task), size=(count, len(task)))] for task in tasks]


def _statistics(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Mean, median, IQM and optimality gap of R resamples, ``(4, R)``; ``samples`` has ``(R, episodes)`` per task."""
    means = np.stack([sample.mean(axis=1) for sample in samples], axis=1)
    gaps = np.stack([1 - np.minimum(sample, 1).mean(axis=1) for sample in samples], axis=1)
    pool = np.concatenate(samples, axis=1)
    # Like the trimmed mean of scipy and rliable: the number of episodes cut at each end is rounded down.
    size = pool.shape[1]
    cut = size // 4
    middle = np.partition(pool, sorted({cut, size - cut - 1}), axis=1)[:, cut : size - cut]
    return np.stack([means.mean(axis=1), np.median(means, axis=1), middle.mean(axis=1), gaps.mean(axis=1)])


def interval_of(point: float | np.floating, resampled: np.ndarray) -> Interval:
    """A statistic with the middle 95 % of its values in resamples."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(point), float(low), float(high))

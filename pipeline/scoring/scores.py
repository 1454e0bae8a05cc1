"""Normalised scores, what is said of many of them in one number, and the intervals of these numbers.

A score puts a return on the scale where a random policy is 0 and the expert is 1:
``(return - random) / (expert - random)``, the definition of the JAT paper (arXiv 2402.09844, section 5).

The aggregates are those of Agarwal et al. 2021 (arXiv 2108.13264). Their package rliable is not called: its last
release, 1.2.0, takes no arch from 8 on, and arch 7.2.0 cannot be imported beside pandas 3; and it wants as many
episodes of every task, where an environment may have crashed. The tests hold these numbers to its own.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files import read_json

NUM_RESAMPLES = 2000
# Of the larger of JAT's two means, what must lie between them: with less, a score is mostly noise. Of its 157 tasks
# disassemble (40.3 and 42.8), solaris, bowling and venture have less; the next one, skiing, has 0.37.
MIN_JAT_GAP = 0.1
# What resamples may take in memory at once, in numbers.
_CHUNK = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A mean, or another statistic, with a 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Aggregate:
    """The scores of some tasks in four numbers, each with a stratified bootstrap 95 % interval.

    Attributes:
        num_tasks: how many tasks are in it.
        num_episodes: of all of them together.
        mean, median: over tasks, of each task's mean.
        iqm: interquartile mean: of all episodes together without the lowest and the highest quarter.
        optimality_gap: mean over tasks of what is missing to 1, where scores above 1 count as 1; less is better.
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

    Source: the model card of the released agent and the score table of its evaluation code, four slips corrected
    (the sign or scale of human doubledunk, fishingderby and tennis, and of random battlezone).
    """
    scores: dict[str, dict[str, float]] = read_json(Path(__file__).with_name("jat_scores.json"))
    return scores


def jat_scale(task_name: str) -> tuple[float, float] | None:
    """Mean returns that JAT published for its random policy and its expert, which are 0 and 1 on its scale.

    None where JAT has no such task, or where its expert is hardly better than random (``MIN_JAT_GAP``): there a
    policy that solves the task scores 160, and one such task would decide the mean of fifty.
    """
    scores = jat_scores().get(task_name)
    if scores is None:
        return None
    random, expert = scores["random"], scores["expert"]
    return (random, expert) if expert - random >= MIN_JAT_GAP * max(abs(random), abs(expert), 1e-9) else None


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
    resampled = resampled_means(samples, np.random.default_rng(0))
    return interval_of(np.mean([np.mean(s) for s in samples]), resampled)


def resampled_means(samples: Sequence[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Means over tasks of the mean over episodes, the episodes resampled within each task: ``(NUM_RESAMPLES,)``."""
    by_task = [generator.choice(sample, (NUM_RESAMPLES, len(sample))).mean(axis=1) for sample in samples]
    means: np.ndarray = np.mean(by_task, axis=0)
    return means


def aggregate(samples: Sequence[Sequence[float] | np.ndarray]) -> Aggregate:
    """Four aggregates of scores with their intervals.

    Args:
        samples: per task, the scores of its episodes; at least one task, and one episode of each.

    Raises:
        ValueError: there is nothing to aggregate.
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
    """How likely an episode of ``first`` beats one of ``second`` in a task drawn at random, ties counting half.

    Args:
        first, second: per task, in the same order, the scores or returns of the episodes of two agents.

    Raises:
        ValueError: the two are not of the same tasks, or there are none.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"{len(first)} tasks cannot be compared with {len(second)}")
    generator = np.random.default_rng(0)
    points, resampled = [], []
    for a, b in zip(first, second, strict=True):
        x, y = np.asarray(a, np.float64)[:, None], np.asarray(b, np.float64)[None]
        wins = (x > y) + 0.5 * (x == y)
        # How often each episode is in a resample; a pair is in it as often as the product of its two.
        counts_x = generator.multinomial(len(a), np.full(len(a), 1 / len(a)), NUM_RESAMPLES)
        counts_y = generator.multinomial(len(b), np.full(len(b), 1 / len(b)), NUM_RESAMPLES)
        points.append(wins.mean())
        resampled.append(((counts_x @ wins) * counts_y).sum(axis=1) / wins.size)
    return interval_of(np.mean(points), np.mean(resampled, axis=0))


def _resamples(tasks: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Episodes drawn with replacement within each task: per task ``(resamples, episodes)``, some resamples at once."""
    generator = np.random.default_rng(0)
    at_once = max(1, min(NUM_RESAMPLES, _CHUNK // sum(map(len, tasks))))
    for start in range(0, NUM_RESAMPLES, at_once):
        count = min(at_once, NUM_RESAMPLES - start)
        yield [task[generator.integers(len(task), size=(count, len(task)))] for task in tasks]


def _statistics(samples: Sequence[np.ndarray]) -> np.ndarray:
    """Mean, median, IQM and optimality gap of R resamples, ``(4, R)``; per task ``(R, episodes)``."""
    means = np.stack([sample.mean(axis=1) for sample in samples], axis=1)
    gaps = np.stack([1 - np.minimum(sample, 1).mean(axis=1) for sample in samples], axis=1)
    pool = np.concatenate(samples, axis=1)
    # As scipy's and rliable's trimmed mean: what is cut from each end is rounded down to whole episodes.
    size = pool.shape[1]
    cut = size // 4
    middle = np.partition(pool, sorted({cut, size - cut - 1}), axis=1)[:, cut : size - cut]
    return np.stack([means.mean(axis=1), np.median(means, axis=1), middle.mean(axis=1), gaps.mean(axis=1)])


def interval_of(point: float | np.floating, resampled: np.ndarray) -> Interval:
    """A statistic with the middle 95 % of what it is in resamples."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(point), float(low), float(high))

"""Aggregates of scores, held to what rliable computes and to its formulas.

``RLIABLE`` was made by rliable 1.2.0 with arch 7.2.0, numpy 2.4.6, scipy 1.17.1 and pandas 2.3.3, in an environment of
its own because arch 7.2.0 cannot be imported beside pandas 3, from the ``score_matrix`` below::

    def four(s):
        return np.array([metrics.aggregate_mean(s), metrics.aggregate_median(s), metrics.aggregate_iqm(s),
                         metrics.aggregate_optimality_gap(s)])

    np.random.seed(0)
    for s in (score_matrix(30, 5, 0.0), score_matrix(7, 3, 0.1)):
        print(library.get_interval_estimates({"a": s}, four, reps=50_000))
    pair = score_matrix(30, 5, 0.0), score_matrix(20, 5, 0.1)
    print(library.get_interval_estimates({"a": pair}, metrics.probability_of_improvement, reps=20_000))
"""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from pipeline.scoring.scores import Interval, aggregate, probability_of_improvement

# Mean, median, IQM and optimality gap, each as point, low and high.
RLIABLE = {
    (30, 5, 0.0): [
        (0.9776666666666666, 0.9023316666666668, 1.0530666666666668),
        (1.017, 0.8626666666666665, 1.157),
        (0.8386842105263157, 0.7501315789473685, 0.9378947368421054),
        (0.2686666666666666, 0.23620000000000008, 0.3018666666666667),
    ],
    (7, 3, 0.1): [
        (0.8595238095238095, 0.7152380952380953, 0.9966666666666667),
        (0.8357142857142856, 0.5885714285714286, 1.0628571428571427),
        (0.7754545454545454, 0.5890909090909091, 0.9763636363636364),
        (0.27809523809523806, 0.19428571428571417, 0.36761904761904773),
    ],
}
RLIABLE_IMPROVEMENT = (0.38933333333333336, 0.31916667, 0.4605)


def score_matrix(episodes: int, tasks: int, shift: float) -> np.ndarray:
    """``(episodes, tasks)``, with ties and scores above 1; by a formula, so that it is the same everywhere."""
    e, t = np.arange(episodes)[:, None], np.arange(tasks)
    scores: np.ndarray = np.round(0.4 + 0.3 * t + shift + (0.2 + 0.2 * t) * np.sin(1.7 * e * (t + 1) + t), 2)
    return scores


def assert_agrees(found: Interval, rliable: tuple[float, float, float]) -> None:
    """The point exactly, the interval up to what two bootstraps differ by."""
    point, low, high = rliable
    assert found.mean == pytest.approx(point, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize("shape", RLIABLE, ids=str)
def test_numbers_are_those_that_rliable_gives(shape: tuple[int, int, float]) -> None:
    scores = score_matrix(*shape)
    assert scores.max() > 1
    found = aggregate(list(scores.T))
    for interval, rliable in zip(
        (found.mean, found.median, found.iqm, found.optimality_gap), RLIABLE[shape], strict=True
    ):
        assert_agrees(interval, rliable)


def test_the_probability_of_improvement_is_the_one_that_rliable_gives() -> None:
    first, second = score_matrix(30, 5, 0.0), score_matrix(20, 5, 0.1)
    assert (first[:, None] == second).any()  # ties
    assert_agrees(probability_of_improvement(list(first.T), list(second.T)), RLIABLE_IMPROVEMENT)


def points(scores: np.ndarray) -> list[float]:
    """Mean, median, IQM and optimality gap of scores ``(episodes, tasks)`` as rliable 1.2.0 computes them."""
    by_task = scores.mean(axis=0)
    return [
        by_task.mean(),
        np.median(by_task),
        scipy.stats.trim_mean(scores, proportiontocut=0.25, axis=None),
        1 - np.mean(np.minimum(scores, 1)),
    ]


@pytest.mark.parametrize("shape", [(100, 6), (7, 3), (1, 5), (5, 1), (1, 1)])
def test_points_are_those_of_rliable(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(1).normal(0.7, 0.6, shape)
    found = aggregate(list(scores.T))
    assert (found.num_tasks, found.num_episodes) == (shape[1], scores.size)
    assert [found.mean.mean, found.median.mean, found.iqm.mean, found.optimality_gap.mean] == pytest.approx(
        points(scores), abs=1e-12
    )


def test_intervals_are_those_of_a_bootstrap_within_each_task() -> None:
    generator = np.random.default_rng(2)
    scores = generator.normal([0.2, 0.9, 3.0], [0.1, 0.5, 1.0], (40, 3))
    resampled = np.array(
        [points(np.take_along_axis(scores, generator.integers(40, size=(40, 3)), axis=0)) for _ in range(4000)]
    )
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    found = aggregate(list(scores.T))
    for index, interval in enumerate((found.mean, found.median, found.iqm, found.optimality_gap)):
        width = high[index] - low[index]
        assert (interval.low, interval.high) == pytest.approx((low[index], high[index]), abs=0.1 * width)


def test_aggregates_written_out() -> None:
    found = aggregate([[0.0, 0.0], [0.5, 0.5], [4.0, 4.0]])
    assert found.mean.mean == 1.5
    assert found.median == Interval(0.5, 0.5, 0.5)
    assert found.iqm.mean == 1.25  # of 0 0 .5 .5 4 4 without the first and the last
    assert found.optimality_gap.mean == 0.5  # 1, 0.5 and 0


def test_tasks_with_other_numbers_of_episodes_count_alike_in_means() -> None:
    found = aggregate([[0.0, 1.0], [1.0] * 50])
    assert (found.mean.mean, found.median.mean, found.num_episodes) == (0.75, 0.75, 52)
    assert (found.mean.low, found.mean.high) == (0.5, 1.0)


def test_many_episodes_give_the_same_numbers_as_few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = list(np.random.default_rng(3).normal(0.5, 0.2, (3, 20)))
    before = aggregate(scores)
    monkeypatch.setattr("pipeline.scoring.scores._CHUNK", 60 * 700)
    after = aggregate(scores)
    assert after.iqm.mean == before.iqm.mean
    assert after.iqm.low == pytest.approx(before.iqm.low, abs=0.02)


@pytest.mark.parametrize("samples", [[], [[]], [[1.0], []]])
def test_nothing_cannot_be_aggregated(samples: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="nothing to aggregate"):
        aggregate(samples)


def test_the_probability_of_improvement_is_that_of_mann_and_whitney() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.integers(0, 6, (30, 3)).astype(float), generator.integers(1, 6, (20, 3)).astype(float)
    expected = np.mean(
        [scipy.stats.mannwhitneyu(first[:, task], second[:, task], alternative="greater")[0] / 600 for task in range(3)]
    )
    found = probability_of_improvement(list(first.T), list(second.T))
    assert found.mean == pytest.approx(expected)
    assert found.low < found.mean < found.high
    other = probability_of_improvement(list(second.T), list(first.T))
    assert other.mean == pytest.approx(1 - expected)


def test_the_interval_of_the_probability_is_that_of_a_bootstrap_of_both() -> None:
    generator = np.random.default_rng(5)
    x, y = generator.normal(0.3, 1, 25), generator.normal(0, 1, 25)

    def probability(a: np.ndarray, b: np.ndarray) -> float:
        return float((a[:, None] > b).mean())

    resampled = [probability(generator.choice(x, 25), generator.choice(y, 25)) for _ in range(4000)]
    found = probability_of_improvement([x], [y])
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(resampled, (0.025, 0.975))), abs=0.02)


def test_an_agent_is_as_good_as_itself_and_always_beats_a_worse_one() -> None:
    scores = [[1.0, 2.0, 3.0], [5.0, 5.0]]
    assert probability_of_improvement(scores, scores).mean == 0.5
    assert probability_of_improvement(scores, [[0.0], [4.0]]) == Interval(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="2 tasks cannot be compared with 1"):
        probability_of_improvement(scores, [[1.0]])

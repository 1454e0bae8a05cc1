from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from pipeline.scoring.measurement import Measurement
from trainer.evaluation.results import TaskScore
from trainer.evaluation.scoring import score_task
from trainer.reporting.histograms import BIN_WIDTH, NUM_BINS, ROW_HEIGHT, returns_histogram


def measured(policy: str, returns: list[float]) -> Measurement:
    seeds = list(range(len(returns)))
    return Measurement("fake-a", policy, "1", {}, seeds, returns, [1] * len(seeds), None, [None] * len(seeds))


@pytest.fixture
def score() -> TaskScore:
    random, expert = measured("random", [0.0, 10.0]), measured("bot", [100.0] * 5)
    return score_task("fake", measured("agent", [50.0, 50.0, 90.0]), random, expert)


def heights(path: str) -> np.ndarray:
    """Of each bin, as the path draws it."""
    found, at, height = np.zeros(NUM_BINS), 0, 0
    bottom = int(re.findall(r"M\d+,(\d+)", path)[0])
    for command, first in re.findall(r"([MVvh])(-?\d+)", path):
        if command == "M":
            at, height = int(first) // BIN_WIDTH, 0
        elif command == "v":
            height = -int(first)
        elif command == "V":
            height = bottom - int(first)
        else:
            found[at] = height
            at += int(first) // BIN_WIDTH
    return found


def test_every_policy_s_returns_stand_on_one_axis(score: TaskScore) -> None:
    histogram = returns_histogram(score)
    assert histogram is not None
    assert (histogram.low, histogram.high) == (0.0, 100.0)
    agent, expert, random = (heights(row.path) for row in histogram.rows)
    assert np.flatnonzero(agent).tolist() == [20, 36] and agent[20] == ROW_HEIGHT and agent[36] == ROW_HEIGHT / 2
    assert np.flatnonzero(expert).tolist() == [NUM_BINS - 1]
    assert np.flatnonzero(random).tolist() == [0, 4]
    assert [row.mean_at for row in histogram.rows] == pytest.approx([126.7, 200.0, 10.0])
    assert [row.num_episodes for row in histogram.rows] == [3, 5, 2]


def test_neighbouring_bins_are_drawn_as_they_are_counted() -> None:
    values = [0.0, *np.repeat(np.arange(40) + 0.5, np.arange(40)).tolist(), 40.0]
    score = score_task("fake", measured("agent", values), measured("random", [0.0]), measured("bot", [40.0]))
    histogram = returns_histogram(score)
    assert histogram is not None
    counts, _ = np.histogram(values, 40, (0, 40))
    assert (
        heights(histogram.rows[0].path).tolist() == np.maximum(np.round(counts / counts.max() * ROW_HEIGHT), 1).tolist()
    )


def test_equal_returns_and_results_of_earlier_versions_are_drawn(score: TaskScore) -> None:
    alone = replace(score, returns=[3.0, 3.0], expert_returns=[], random_returns=[])
    histogram = returns_histogram(alone)
    assert histogram is not None
    assert (histogram.low, histogram.high, [row.who for row in histogram.rows]) == (2.5, 3.5, ["agent"])
    assert np.count_nonzero(heights(histogram.rows[0].path)) == 1
    assert returns_histogram(replace(alone, returns=[])) is None

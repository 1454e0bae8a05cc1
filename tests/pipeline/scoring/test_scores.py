from __future__ import annotations

import numpy as np
import pytest

from pipeline.scoring.scores import Interval, is_scorable, jat_scale, jat_scores, mean_interval, normalise


def test_random_scores_0_and_the_expert_1() -> None:
    assert normalise([10.0, 20.0, 30.0, 40.0, 0.0], 10.0, 30.0).tolist() == [0.0, 0.5, 1.0, 1.5, -0.5]
    assert normalise([-100.0, -50.0], -100.0, -50.0).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("expert_mean", [3.0, 2.0, -3.0])
def test_a_task_whose_expert_is_not_better_than_random_is_not_scorable(expert_mean: float) -> None:
    assert not is_scorable(3.0, expert_mean)
    with pytest.raises(ValueError, match="not scorable"):
        normalise([1.0], 3.0, expert_mean)


def test_the_published_scores_can_be_looked_up() -> None:
    assert jat_scores()["atari-alien"] == {"expert": 16912.5, "human": 7127.7, "jat": 1518.7, "random": 227.8}
    assert all({"random", "expert", "jat"} <= set(scores) for scores in jat_scores().values())
    assert [name for name, scores in jat_scores().items() if "human" in scores] == [
        name for name in jat_scores() if name.startswith("atari-")
    ]


def test_the_mean_is_over_tasks_not_over_episodes() -> None:
    # Tasks with other numbers of episodes count alike; tasks are not resampled, so constant tasks leave no interval.
    assert mean_interval([np.full(9, 1.0), np.full(1, 4.0)]) == Interval(2.5, 2.5, 2.5)


def test_the_interval_of_coin_tosses_is_the_textbook_one() -> None:
    interval = mean_interval([np.repeat([0.0, 1.0], 50)])
    # 0.5 +- 1.96 * sqrt(0.25 / 100)
    assert interval.mean == 0.5
    assert interval.low == pytest.approx(0.402, abs=0.015)
    assert interval.high == pytest.approx(0.598, abs=0.015)


def test_two_tasks_together_have_a_narrower_interval_than_each() -> None:
    tosses = np.repeat([0.0, 1.0], 50)
    interval = mean_interval([tosses, tosses])
    # The standard error falls with the square root of the number of tasks.
    assert interval.high - interval.low == pytest.approx(0.196 / np.sqrt(2), abs=0.02)


def test_the_interval_contains_the_mean_repeats_and_shrinks_with_more_samples() -> None:
    samples = np.random.default_rng(3).normal(5.0, 2.0, 400)
    few, many = mean_interval([samples[:25]]), mean_interval([samples])
    assert few.low < few.mean < few.high
    assert many.low < many.mean < many.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    assert mean_interval([samples[:25]]) == few


def test_jat_s_scale_leaves_out_tasks_whose_expert_is_hardly_better_than_random() -> None:
    without = {name for name in jat_scores() if jat_scale(name) is None}
    assert without == {"metaworld-disassemble", "atari-solaris", "atari-bowling", "atari-venture"}
    assert jat_scale("metaworld-reach") == pytest.approx((149.6709, 681.3714))
    assert jat_scale("no-such-task") is None

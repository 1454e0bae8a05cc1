from __future__ import annotations

import numpy as np
import pytest

from trainer.data.adaptive import UNIFORM, SamplingState, shares_of, updated
from trainer.data.loader import Mixture

BASE = np.array([0.25, 0.25, 0.25, 0.25])


def state(needs: list[float | None], shares: list[float] | None = None) -> SamplingState:
    return SamplingState(5, 1, [1, 2, 3, 4], shares or BASE.tolist(), needs, [0.0] * 4)


def test_a_quarter_of_the_draws_stays_as_without_adaptation_and_the_rest_goes_where_the_need_is() -> None:
    shares = shares_of([0.0, 0.0, 0.0, 1.0], [0.0] * 4, BASE)
    assert shares.tolist() == pytest.approx([UNIFORM / 4] * 3 + [1 - 3 * UNIFORM / 4])
    # Without a need the progress says nothing.
    assert shares_of([0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 0.0], BASE).tolist() == shares.tolist()


def test_of_tasks_in_equal_need_the_one_that_improves_gets_more_and_the_one_that_does_not_some() -> None:
    shares = shares_of([0.5] * 4, [0.0, 0.0, 0.1, 0.3], BASE)
    assert shares[0] == shares[1] < shares[2] < shares[3]
    assert (shares[3] - UNIFORM / 4) == pytest.approx(4 * (shares[0] - UNIFORM / 4))


def test_sampling_weights_still_count_and_a_source_without_a_need_keeps_its_share() -> None:
    shares = shares_of([None, 1.0, 1.0, None], [0.0] * 4, np.array([0.4, 0.3, 0.1, 0.2]))
    assert shares.tolist() == pytest.approx([0.4, 0.3, 0.1, 0.2])
    assert shares_of([None, 0.0, 1.0, None], [0.0] * 4, np.array([0.4, 0.3, 0.1, 0.2])).tolist() == pytest.approx(
        [0.4, 0.075, 0.325, 0.2]
    )


@pytest.mark.parametrize("needs", [[0.0] * 4, [None] * 4])
def test_when_nothing_is_left_to_learn_or_nothing_is_known_the_draws_are_as_without(needs: list[float | None]) -> None:
    assert shares_of(needs, [0.2] * 4, BASE).tolist() == BASE.tolist()


def test_progress_is_how_fast_the_need_falls_and_never_negative() -> None:
    after = updated(state([1.0, 1.0, 0.5, None]), [0.5, 1.0, 0.9, None], BASE, 10, [2, 3, 4, 5], 1.5)
    assert after.needs == pytest.approx([0.65, 1.0, 0.78, None])
    assert after.progress == pytest.approx([0.7 * 0.35, 0.0, 0.0, 0.0])
    assert (after.step, after.updates, after.drawn, after.seconds) == (10, 2, [2, 3, 4, 5], 1.5)
    # What could not be measured stays as it was known.
    assert updated(after, [None] * 4, BASE, 20, [0] * 4, 1.0).needs == after.needs


def test_before_the_first_measurement_of_a_training_a_need_was_one_and_of_trained_weights_unknown() -> None:
    untrained = updated(None, [0.5, 1.0, 1.0, None], BASE, 10, [0] * 4, 0.0)
    assert untrained.progress[0] > 0 and untrained.needs[3] is None
    trained = updated(None, [0.5, 1.0, 1.0, None], BASE, 0, [0] * 4, 0.0)
    assert trained.needs[0] == 0.5 and trained.progress[0] == 0


def test_a_mixture_goes_on_with_the_batches_that_another_has_not_drawn() -> None:
    before = Mixture([1.0, 2.0], seed=3, num_draws=60)
    first = [before[draw] for draw in range(24)]
    drawn = before.drawn_before(24)
    assert drawn == [sum(task == i for task, _ in first) for i in range(2)]
    after = Mixture([9.0, 1.0], 3, 60, first=24, drawn=drawn)
    later = [after[draw] for draw in range(24, 60)]
    for task in range(2):
        numbers = [index for source, index in first + later if source == task]
        assert numbers == list(range(len(numbers)))
    assert sum(task == 0 for task, _ in later) > 24
    # The same whether its end is known or not, and whoever makes it.
    endless = Mixture([9.0, 1.0], 3, None, first=24, drawn=drawn)
    assert [endless[draw] for draw in range(24, 60)] == later
    assert endless.drawn_before(60) == after.drawn_before(60) == [sum(t == i for t, _ in first + later) for i in (0, 1)]

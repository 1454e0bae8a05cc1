from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from pipeline.storage.parquet import ends_row_group

TARGET = 1000


def bounds(sizes: list[int]) -> list[int]:
    """Where row groups end, episodes counted from 1."""
    ends, held = [], 0
    for seed, size in enumerate(sizes):
        held += size
        if ends_row_group(seed, size, held, TARGET):
            ends.append(seed + 1)
            held = 0
    return ends


@given(st.lists(st.integers(1, 3 * TARGET), min_size=1, max_size=200))
def test_row_groups_have_a_quarter_of_their_size_at_least_and_end_once_they_have_twice(sizes: list[int]) -> None:
    ends = [0, *bounds(sizes)]
    for begin, end in itertools.pairwise(ends):
        assert sum(sizes[begin:end]) >= TARGET / 4
        assert sum(sizes[begin : end - 1]) < 2 * TARGET
    assert sum(sizes[ends[-1] :]) < 2 * TARGET


def test_row_groups_have_about_their_size() -> None:
    ends = bounds([10] * 100_000)
    assert 0.85 < 100_000 * 10 / len(ends) / TARGET < 1.1


@given(st.integers(0, 300), st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_groups_soon_end_where_they_did_after_some_episodes_changed(first: int, others: list[int]) -> None:
    sizes = [20 + seed * 7 % 60 for seed in range(1000)]
    changed = [*sizes[:first], *others, *sizes[first + len(others) :]]
    before, after = set(bounds(sizes)), set(bounds(changed))
    last = max(before ^ after, default=0)
    # Fifty bytes each: a group has twenty of them.
    assert last < first + len(others) + 200


def test_an_episode_is_a_group_where_groups_are_of_no_size() -> None:
    assert ends_row_group(seed=7, num_bytes=1, held_bytes=1, group_bytes=0)

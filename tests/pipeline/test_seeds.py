from __future__ import annotations

from itertools import pairwise

from pipeline.seeds import FIRST_SEED, SPLITS, seeds_of


def test_each_purpose_has_its_own_hundred_million_seeds_and_more() -> None:
    firsts = sorted(FIRST_SEED.values())
    assert all(after - before >= 100_000_000 for before, after in pairwise(firsts))
    # ALE takes a signed 32-bit integer.
    assert firsts[0] >= 0
    assert firsts[-1] + 100_000_000 < 2**31


def test_the_first_seeds_of_a_purpose_are_written_down() -> None:
    # Changing one of these would mix old and new shards of a split.
    assert seeds_of("train", 3) == [0, 1, 2]
    assert seeds_of("test", 2) == [1_000_000_000, 1_000_000_001]
    assert seeds_of("measure", 2) == [1_500_000_000, 1_500_000_001]
    assert seeds_of("evaluate", 2) == [1_800_000_000, 1_800_000_001]
    assert seeds_of("test", 0) == []


def test_the_splits_of_a_dataset_are_train_and_test() -> None:
    assert SPLITS == ("train", "test")

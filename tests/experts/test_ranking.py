from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from experts.ranking import (
    ExpertResult,
    best_by_return,
    best_by_success,
    best_of,
    is_better_than_random,
    random_among,
    rank_experts,
)
from pipeline.files import read_json, write_json
from tests.fakes import FAKE_COUNT, FAKE_PIXELS, store_network, store_random, write_measurement

HOPPER = replace(FAKE_COUNT, name="mujoco-hopper")  # a name that JAT has figures for: random 18.38, expert 1858.73


pytestmark = pytest.mark.usefixtures("nothing_embedded")


def store(out: Path, action: float, returns: Sequence[float], successes: Sequence[bool] | None = None) -> str:
    expert = store_network(out, action=action)
    write_measurement(expert, FAKE_COUNT, returns, successes)
    return expert.record.revision


def test_experts_are_ranked_by_mean_return_and_random_comes_last(tmp_path: Path) -> None:
    low = store(tmp_path, 0.1, [1, 2, 3])
    high = store(tmp_path, 0.2, [5, 4])
    write_measurement(store_random(tmp_path), FAKE_COUNT, [90, 91])
    store_network(tmp_path, action=0.3)  # not measured
    found = rank_experts(tmp_path, FAKE_COUNT)
    assert [(s.revision, s.mean_return.mean) for s in found] == [(high, 4.5), (low, 2.0), ("random-1", 90.5)]
    assert [s.is_random for s in found] == [False, False, True]
    assert best_by_return(found) is found[0]
    assert random_among(found) is found[2]
    assert random_among(found[:2]) is None


def test_a_measurement_with_other_packages_does_not_count(tmp_path: Path) -> None:
    revision = store(tmp_path, 0.1, [1, 2])
    path = tmp_path / "experts" / "fake-count" / revision / "measurement.json"
    write_json(path, {**read_json(path), "versions": {"numpy": "0.1"}})
    assert rank_experts(tmp_path, FAKE_COUNT) == []
    assert best_by_return([]) is None


def test_of_equal_successes_the_higher_return_is_the_best(tmp_path: Path) -> None:
    rich = store(tmp_path, 0.1, [9, 9], [True, False])
    good = store(tmp_path, 0.2, [5, 4], [True, True])
    store(tmp_path, 0.3, [3, 4], [True, True])
    write_measurement(store_random(tmp_path), FAKE_COUNT, [1, 1], [True, True])
    found = rank_experts(tmp_path, FAKE_COUNT)
    by_return, by_success = best_by_return(found), best_by_success(found)
    assert by_return is not None and by_return.revision == rich
    assert by_success is not None and by_success.revision == good


def test_where_there_is_no_success_nobody_is_best_by_it(tmp_path: Path) -> None:
    write_measurement(store_random(tmp_path, FAKE_PIXELS), FAKE_PIXELS, [1, 2])
    found = rank_experts(tmp_path, FAKE_PIXELS)
    assert len(found) == 1
    assert best_by_success(found) is None


def standing(out: Path, action: float, returns: Sequence[float]) -> ExpertResult:
    revision = store(out, action, returns)
    return next(s for s in rank_experts(out, FAKE_COUNT) if s.revision == revision)


def test_better_than_random_means_that_the_intervals_are_apart(tmp_path: Path) -> None:
    chance = standing(tmp_path, 0.1, [0, 2] * 50)  # 1 [0.8, 1.2]
    assert is_better_than_random(standing(tmp_path, 0.2, [1.5] * 100), chance)
    assert not is_better_than_random(standing(tmp_path, 0.3, [1.1] * 100), chance)  # higher, but who knows
    assert not is_better_than_random(standing(tmp_path, 0.4, [0.5] * 100), chance)
    assert not is_better_than_random(standing(tmp_path, 0.5, [0, 0, 0, 9]), chance)


def test_jat_s_scale_has_its_random_at_0_and_its_expert_at_1(tmp_path: Path) -> None:
    for action, value, score in ((0.1, 18.3802, 0.0), (0.2, 1858.7284, 1.0), (0.3, 3699.0766, 2.0)):
        expert = store_network(tmp_path, HOPPER, action)
        write_measurement(expert, HOPPER, [value, value])
        (found,) = [s for s in rank_experts(tmp_path, HOPPER) if s.revision == expert.record.revision]
        assert found.on_jat_scale is not None
        assert found.on_jat_scale.mean == pytest.approx(score, abs=1e-4)
    assert standing(tmp_path, 0.1, [1, 2]).on_jat_scale is None  # JAT has no such task


def test_the_best_earns_most_among_those_that_succeed_about_as_often_as_any(tmp_path: Path) -> None:
    idle = store(tmp_path, 0.1, [9] * 100, [False] * 100)
    often = store(tmp_path, 0.2, [5] * 100, [True] * 95 + [False] * 5)
    always = store(tmp_path, 0.3, [4] * 100, [True] * 100)
    found = rank_experts(tmp_path, FAKE_COUNT)
    assert [s.revision for s in found] == [idle, often, always]
    assert best_of(found) is found[1]
    assert best_of([found[0], found[2]]) is found[2]
    assert best_of(found[:1]) is found[0]
    assert best_of([]) is None


def test_without_a_notion_of_success_the_best_earns_most(tmp_path: Path) -> None:
    store(tmp_path, 0.1, [1, 2])
    high = store(tmp_path, 0.2, [3, 4])
    best = best_of(rank_experts(tmp_path, FAKE_COUNT))
    assert best is not None and best.revision == high

from __future__ import annotations

import functools
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.envs.episode import Episode
from pipeline.envs.task import Task
from pipeline.errors import UserError
from pipeline.files import write_json
from pipeline.storage.episode_rules import scan_episodes
from pipeline.storage.plan import ShardJob
from pipeline.storage.shards import Provenance, write_shard
from pipeline.storage.statistics import (
    MAX_BINS,
    Histogram,
    Moments,
    SplitStatistics,
    StepStatistics,
    TaskStatistics,
    load_statistics,
    merge_all,
    split_statistics,
    statistics_path,
)
from pipeline.storage.validate import refuse
from tests.fakes import FAKE_COUNT, FAKE_GRID, FAKE_PIXELS, expected_episode, is_success

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def statistics_of(root: Path, task: Task, episodes: list[Episode], noise: str | None = None) -> SplitStatistics:
    """Write a shard and describe it."""
    first = episodes[0].seed
    job = ShardJob(task, "train", first, len(episodes), "random", noise=noise)
    actor = lambda seed: Provenance("random", f"random-{seed % 2}", noise)  # noqa: E731
    manifest = write_shard(root, job, "1", episodes, actor)
    path = root / task.name / manifest.data.name
    side = pq.read_table(root / task.name / manifest.episodes.name)
    return split_statistics(task, side, steps_of(task, path), manifest.data.num_bytes)


def steps_of(task: Task, path: Path) -> StepStatistics:
    steps = StepStatistics(task)
    scan_episodes(task, path, refuse, take=steps.add)
    return steps


def assert_moments(found: Moments | None, values: np.ndarray) -> None:
    assert found is not None
    wide = values.reshape(len(values), -1).astype(np.float64)
    assert found.count == len(wide)
    np.testing.assert_allclose(found.mean, wide.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.std, wide.std(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(found.low, wide.min(axis=0))
    np.testing.assert_array_equal(found.high, wide.max(axis=0))


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_statistics_of_any_split_into_shards_are_numpy_s_of_all_episodes(task: Task, tmp_path: Path) -> None:
    episodes = [expected_episode(task, seed) for seed in range(12)]
    for sizes in ((12,), (1, 11), (5, 4, 3), (1,) * 12):
        bounds = np.cumsum((0, *sizes))
        parts = [
            statistics_of(tmp_path / str(len(sizes)), task, episodes[begin:end])
            for begin, end in itertools.pairwise(bounds)
        ]
        found = merge_all(parts)
        lengths = np.array([len(episode) for episode in episodes])
        returns = np.array([episode.total_reward for episode in episodes])
        assert (found.num_episodes, found.num_steps) == (12, lengths.sum())
        assert found.num_bytes == sum(part.num_bytes for part in parts) > 0
        judged = 0 if task is FAKE_PIXELS else 12
        assert (found.num_judged, found.num_successes) == (judged, sum(map(is_success, range(judged))))
        assert found.success_rate == (4 / 12 if judged else None)
        assert found.experts == {"random-0": 6, "random-1": 6}
        assert found.noise == {"": 12}
        assert found.ended == {"terminated": 8, "truncated": 4}
        assert found.rejected == {}
        assert_moments(found.returns, returns)
        assert_moments(found.lengths, lengths)
        assert_moments(found.rewards, np.concatenate([episode.rewards for episode in episodes]))
        assert found.return_histogram == Histogram.of(returns, 2.0**-10)
        assert found.length_histogram == Histogram.of(lengths, 1.0)
        observations = np.concatenate([episode.observations for episode in episodes])
        assert_moments(found.observations, observations[..., -1].ravel() if task is FAKE_PIXELS else observations)
        actions = np.concatenate([episode.actions for episode in episodes])
        if task.action.kind == "discrete":
            assert found.actions is None
            assert found.action_counts == tuple(np.bincount(actions, minlength=task.action.size))
        else:
            assert found.action_counts is None
            assert_moments(found.actions, actions)


def test_rejected_episodes_count_by_reason_and_nowhere_else(tmp_path: Path) -> None:
    good = expected_episode(FAKE_COUNT, 0)
    episodes = [good, *(replace(expected_episode(FAKE_COUNT, s), ended="rejected", rejected="no plan") for s in (1, 2))]
    found = statistics_of(tmp_path, FAKE_COUNT, [*episodes, expected_episode(FAKE_COUNT, 3)])
    assert (found.num_episodes, found.num_steps, found.rejected) == (2, 1 + 4, {"no plan": 2})
    assert found.experts == {"random-0": 1, "random-1": 1}


def test_noise_and_successes_are_counted_over_shards(tmp_path: Path) -> None:
    plain = statistics_of(tmp_path / "a", FAKE_COUNT, [expected_episode(FAKE_COUNT, 0)])
    noisy = statistics_of(tmp_path / "b", FAKE_COUNT, [expected_episode(FAKE_COUNT, s) for s in (1, 2)], "gaussian=0.1")
    both = plain.merge(noisy)
    assert both.noise == {"": 1, "gaussian=0.1": 2}
    assert both.num_successes == 1


def test_a_shard_without_episodes_changes_nothing(tmp_path: Path) -> None:
    some = statistics_of(tmp_path / "a", FAKE_COUNT, [expected_episode(FAKE_COUNT, s) for s in range(3)])
    rejected = replace(expected_episode(FAKE_COUNT, 3), ended="rejected", rejected="why")
    none = statistics_of(tmp_path / "b", FAKE_COUNT, [rejected])
    assert none.observations == Moments()
    for merged in (some.merge(none), none.merge(some)):
        assert merged == replace(some, rejected={"why": 1}, num_bytes=some.num_bytes + none.num_bytes)


def test_shards_of_different_tasks_do_not_merge(tmp_path: Path) -> None:
    a = statistics_of(tmp_path, FAKE_COUNT, [expected_episode(FAKE_COUNT, 0)])
    b = statistics_of(tmp_path, FAKE_PIXELS, [expected_episode(FAKE_PIXELS, 0)])
    with pytest.raises(ValueError, match="different tasks"):
        a.merge(b)


def test_side_tables_from_before_there_was_noise_are_taken(tmp_path: Path) -> None:
    job = ShardJob(FAKE_COUNT, "train", 0, 2, "random")
    write_shard(tmp_path, job, "1", [expected_episode(FAKE_COUNT, seed) for seed in (0, 1)])
    path = tmp_path / "fake-count" / f"{job.stem}.parquet"
    side = pq.read_table(path.with_suffix(".episodes.parquet")).drop_columns(["noise"])
    assert split_statistics(FAKE_COUNT, side, steps_of(FAKE_COUNT, path), 1).noise == {"": 2}


@given(st.lists(st.lists(st.tuples(numbers, numbers), min_size=1), min_size=1, max_size=5))
def test_merged_moments_are_those_of_all_values(parts: list[list[tuple[float, float]]]) -> None:
    merged = functools.reduce(Moments.merge, [Moments.of(np.array(part)) for part in parts])
    values = np.array([pair for part in parts for pair in part])
    scale = np.abs(values).max()
    np.testing.assert_allclose(merged.mean, values.mean(axis=0), atol=1e-13 * scale)
    np.testing.assert_allclose(merged.std, values.std(axis=0), atol=1e-9 * scale)
    assert merged.count == len(values)
    assert (merged.low, merged.high) == (tuple(values.min(axis=0)), tuple(values.max(axis=0)))


def test_a_small_spread_far_from_zero_keeps_its_digits() -> None:
    values = np.float64(1e8) + np.random.default_rng(0).standard_normal(10_000)
    parts = np.array_split(values, 37)
    merged = functools.reduce(Moments.merge, map(Moments.of, parts))
    # By the mean of squares less the square of the mean, 1e16 - 1e16, no digit would be left.
    assert merged.std[0] == pytest.approx(values.std(), rel=1e-7)


def test_moments_of_more_values_than_are_held_at_once() -> None:
    values = np.random.default_rng(0).standard_normal((3000, 376)).astype(np.float32)
    assert_moments(Moments.of(values), values)


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=1), min_size=1, max_size=5), st.sampled_from([1.0, 2.0**-10]))
def test_merged_histograms_are_exactly_the_histogram_of_all_values(parts: list[list[float]], finest: float) -> None:
    values = np.array([value for part in parts for value in part])
    whole = Histogram.of(values, finest)
    for order in (parts, parts[::-1]):
        merged = functools.reduce(Histogram.merge, [Histogram.of(np.array(part), finest) for part in order])
        assert merged == whole
    assert sum(whole.counts) == len(values)
    assert len(whole.counts) <= MAX_BINS
    assert whole.edges[0] <= values.min() <= values.max() <= whole.edges[-1]


def test_a_histogram_s_bins_are_as_narrow_as_they_may_be() -> None:
    assert Histogram.of(np.array([3, 5, 5]), 1.0) == Histogram(1.0, 3, (1, 0, 2))
    assert Histogram.of(np.array([0.0, 63.9]), 1.0).width == 1.0
    assert Histogram.of(np.array([0.0, 64.0]), 1.0) == Histogram(2.0, 0, (1, *[0] * 31, 1))
    assert Histogram.of(np.array([-0.1, 0.1]), 0.25) == Histogram(0.25, -1, (1, 1))
    assert Histogram.of(np.array([]), 0.25) == Histogram(0.25)


@pytest.mark.parametrize("task", [FAKE_COUNT, FAKE_GRID, FAKE_PIXELS], ids=lambda task: task.name)
def test_statistics_come_back_from_their_file(task: Task, tmp_path: Path) -> None:
    found = statistics_of(tmp_path, task, [expected_episode(task, seed) for seed in range(3)])
    written = TaskStatistics(task.name, {"train": found})
    write_json(statistics_path(tmp_path, task.name), written)
    assert load_statistics(tmp_path, task) == written
    json.loads(statistics_path(tmp_path, task.name).read_text(), parse_constant=pytest.fail)  # no NaN, no Infinity


def test_missing_and_damaged_statistics_are_told_with_the_fix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fake-count.json is missing; build .* `jat dataset --task fake-count`"):
        load_statistics(tmp_path, FAKE_COUNT)
    for damage in ("{}", "[]", '{"task": "fake-count", "splits": {"train": {"x": 1}}}', '{"splits": 1}'):
        path = statistics_path(tmp_path, "fake-count")
        path.parent.mkdir(exist_ok=True)
        path.write_text(damage)
        with pytest.raises(UserError, match=r"fake-count.json is not the statistics of a task .* remove it and build"):
            load_statistics(tmp_path, FAKE_COUNT)


def test_an_empty_side_table_and_no_steps_are_statistics_of_nothing() -> None:
    side = pa.table(
        {
            "row": pa.array([], pa.int32()), "return": pa.array([], pa.float64()), "length": pa.array([], pa.int32()),
            "success": pa.array([], pa.bool_()), "expert_revision": pa.array([], pa.string()),
            "ended": pa.array([], pa.string()), "rejected": pa.array([], pa.string()),
        }
    )  # fmt: skip
    found = split_statistics(FAKE_COUNT, side, StepStatistics(FAKE_COUNT), 0)
    assert (found.num_episodes, found.returns, found.length_histogram) == (0, Moments(), Histogram(1.0))

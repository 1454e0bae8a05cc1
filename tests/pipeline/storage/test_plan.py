from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.storage.manifest import FileEntry, ShardManifest
from pipeline.storage.plan import ShardJob, missing_jobs, read_task_plan
from tests.fakes import FAKE_COUNT

TEST = 1_000_000_000
NO_FILE = FileEntry("", 0, "")


def finished(first_seed: int, num_seeds: int, split: str = "train") -> ShardManifest:
    return ShardManifest(
        task=FAKE_COUNT.name,
        split=split,
        first_seed=first_seed,
        num_seeds=num_seeds,
        expert="random",
        expert_revision="1",
        versions={},
        num_episodes=num_seeds,
        num_steps=num_seeds,
        rejected={},
        num_successes=None,
        return_sum=0.0,
        data=NO_FILE,
        episodes=NO_FILE,
    )


def missing(num_episodes: int, done: list[tuple[int, int]], grid: int, split: str = "train") -> list[tuple[int, int]]:
    shards = [finished(first, count, split) for first, count in done]
    jobs = missing_jobs(FAKE_COUNT, split, num_episodes, "random", shards, grid)
    assert all((job.task, job.split, job.expert) == (FAKE_COUNT, split, "random") for job in jobs)
    return [(job.first_seed, job.num_seeds) for job in jobs]


@pytest.mark.parametrize(
    ("num_episodes", "done", "grid", "expected"),
    [
        (10, [], 4, [(0, 4), (4, 4), (8, 2)]),
        (4, [], 4, [(0, 4)]),
        (1, [], 4, [(0, 1)]),
        (10, [(0, 4), (4, 4), (8, 2)], 4, []),
        # A hole in the middle is filled by the same shard.
        (10, [(0, 4), (8, 2)], 4, [(4, 4)]),
        # More episodes: the short last shard stays, the rest of its grid cell comes as another.
        (14, [(0, 4), (4, 4), (8, 2)], 4, [(10, 2), (12, 2)]),
        # Fewer episodes than there are.
        (5, [(0, 4), (4, 4), (8, 2)], 4, []),
        # Another grid than before.
        (12, [(0, 4), (8, 2)], 6, [(4, 2), (6, 2), (10, 2)]),
        # In any order, and beyond what is asked for.
        (10, [(8, 4), (0, 4)], 4, [(4, 4)]),
        (6, [(8, 4)], 4, [(0, 4), (4, 2)]),
    ],
)
def test_missing_jobs_fill_the_gaps(
    num_episodes: int, done: list[tuple[int, int]], grid: int, expected: list[tuple[int, int]]
) -> None:
    assert missing(num_episodes, done, grid) == expected


def test_the_test_split_counts_from_its_own_first_seed() -> None:
    assert missing(5, [], 4, "test") == [(TEST, 4), (TEST + 4, 1)]
    assert missing(5, [(TEST, 4)], 4, "test") == [(TEST + 4, 1)]


# (episodes wanted, episodes per shard, which of the shards so far are lost before the next request)
REQUESTS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 15), st.sets(st.integers(0, 20), max_size=6)), min_size=1, max_size=6
)


@given(requests=REQUESTS)
def test_after_any_history_the_wanted_seeds_are_covered_exactly_once(
    requests: list[tuple[int, int, set[int]]],
) -> None:
    done: list[tuple[int, int]] = []
    for num_episodes, grid, lost in requests:
        jobs = missing(num_episodes, done, grid)
        done += jobs
        times_covered = Counter(seed for first, count in done for seed in range(first, first + count))
        assert set(range(num_episodes)) <= set(times_covered)
        assert set(times_covered.values()) == {1}
        assert all(1 <= count <= grid and first + count <= num_episodes for first, count in jobs)
        assert missing(num_episodes, done, grid) == []
        done = [shard for index, shard in enumerate(done) if index not in lost]


def test_a_job_names_its_file_by_split_first_seed_and_count() -> None:
    job = ShardJob(FAKE_COUNT, "test", TEST + 250, 25, "random")
    assert job.stem == "test-1000000250-000025"
    assert list(job.seeds) == list(range(TEST + 250, TEST + 275))
    # The order of the names is the order of the seeds.
    assert ShardJob(FAKE_COUNT, "train", 90, 10, "random").stem < ShardJob(FAKE_COUNT, "train", 100, 1, "random").stem


@pytest.mark.parametrize("text", ["{}", "[]", '{"expert": 1}', "[" * 100_000])
def test_a_plan_of_other_types_is_one_line_that_says_what_to_do(text: str, tmp_path: Path) -> None:
    path = tmp_path / "fake-count" / "plan.json"
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(UserError, match=r"plan.json is .*delete it and run"):
        read_task_plan(tmp_path, "fake-count")

from __future__ import annotations

import mmap
import sys

import pytest

from pipeline.envs.rollout import rollout
from pipeline.runtime.heartbeat import WORKER_PROGRESS, resident_bytes
from tests.fakes import FAKE_COUNT, AssertingPolicy, num_steps


def test_a_rollout_beats_once_per_step_in_lockstep_and_counts_its_episodes() -> None:
    beats, episodes = WORKER_PROGRESS.beats, WORKER_PROGRESS.episodes
    seeds = [0, 1, 2, 3, 4]
    list(rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), seeds, num_envs=1))
    assert WORKER_PROGRESS.beats - beats == sum(num_steps(seed) for seed in seeds)
    assert WORKER_PROGRESS.episodes - episodes == 5


def test_steps_are_counted_of_all_environments_in_lockstep() -> None:
    beats, steps = WORKER_PROGRESS.beats, WORKER_PROGRESS.steps
    seeds = [0, 1, 2, 3, 4]
    list(rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), seeds, num_envs=3))
    assert WORKER_PROGRESS.steps - steps == sum(num_steps(seed) for seed in seeds)
    assert WORKER_PROGRESS.beats - beats < WORKER_PROGRESS.steps - steps


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_used_shows() -> None:
    before = resident_bytes()
    assert before > 10 * 2**20
    size = 64 * 2**20
    with mmap.mmap(-1, size) as held:  # from the system; an array may get what the process has freed but not given back
        held[:] = b"1" * size
        assert resident_bytes() - before > 48 * 2**20

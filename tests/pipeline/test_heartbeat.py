from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from pipeline.heartbeat import PULSE, resident_bytes
from pipeline.rollout import rollout
from tests.fakes import FAKE_COUNT, AssertingPolicy, num_steps


def test_a_rollout_beats_once_per_step_in_lockstep_and_counts_its_episodes() -> None:
    beats, episodes = PULSE.beats, PULSE.episodes
    seeds = [0, 1, 2, 3, 4]
    list(rollout(FAKE_COUNT, AssertingPolicy(FAKE_COUNT), seeds, num_envs=1))
    assert PULSE.beats - beats == sum(num_steps(seed) for seed in seeds)
    assert PULSE.episodes - episodes == 5


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_used_shows() -> None:
    before = resident_bytes()
    assert before > 10 * 2**20
    held = np.ones(64 * 2**20 // 8)
    assert resident_bytes() - before > 48 * 2**20
    assert held.sum() > 0
    assert os.sysconf("SC_PAGE_SIZE") > 0

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

from experts.scripted.random_policy import RandomPolicy
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import CONTINUOUS, Action, Task
from tests.fakes import FAKE_COUNT, FAKE_GRID

WIDE = replace(FAKE_COUNT, action=Action("continuous", 3, -2.0, 6.0))


def actions(task: Task, seeds: list[int], num_steps: int) -> np.ndarray:
    """``(num_steps, len(seeds), ...)``"""
    policy = RandomPolicy(task)
    slots = list(range(len(seeds)))
    policy.reset(slots, seeds, [None] * len(seeds))  # type: ignore[list-item]
    unseen = Observations(np.empty(0), None, np.empty(0))
    chosen: list[Any] = [policy.act(slots, unseen) for _ in range(num_steps)]
    return np.array(chosen)


def test_the_same_seed_gives_the_same_actions_in_any_slot() -> None:
    for task in (WIDE, FAKE_GRID):
        found = actions(task, [7, 8, 7], 20)
        np.testing.assert_array_equal(found[:, 0], found[:, 2])
        assert (found[:, 0] != found[:, 1]).any()


def test_a_new_episode_starts_its_own_actions_anew() -> None:
    policy = RandomPolicy(WIDE)
    unseen = Observations(np.empty(0), None, np.empty(0))
    firsts = []
    for seed in (7, 8, 7):
        policy.reset([0], [seed], [None])  # type: ignore[list-item]
        firsts.append(policy.act([0], unseen)[0].tolist())
        policy.act([0], unseen)
    assert firsts[0] == firsts[2] != firsts[1]


def test_continuous_actions_fill_the_range_evenly() -> None:
    found = actions(WIDE, [1], 2000)
    assert found.shape == (2000, 1, 3)
    counts, _ = np.histogram(found, bins=8, range=(-2.0, 6.0))
    assert counts.sum() == 6000
    # 750 expected, standard deviation 26.
    assert np.abs(counts - 750).max() < 130


def test_every_choice_is_equally_likely() -> None:
    counts = Counter(actions(FAKE_GRID, [1], 5000).ravel().tolist())
    assert set(counts) == {0, 1, 2, 3, 4}
    # 1000 expected, standard deviation 28.
    assert max(abs(count - 1000) for count in counts.values()) < 140


def test_random_actions_have_nothing_to_do_with_what_the_environment_draws() -> None:
    (task,) = select_tasks("mujoco-pendulum")
    env = task.make_env()
    # The first number of the state is noise around 0, drawn first after the reset.
    states = [env.reset(seed=seed)[0][CONTINUOUS][0] for seed in range(50)]
    env.close()
    firsts = [actions(task, [seed], 1)[0, 0, 0] for seed in range(50)]
    assert abs(np.corrcoef(states, firsts)[0, 1]) < 0.5

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experts.scripted.metaworld import ScriptedPolicy
from pipeline.envs.policy import Observations
from pipeline.envs.registry import select_tasks
from pipeline.envs.rollout import rollout
from pipeline.envs.task import CONTINUOUS, Task


def task_named(name: str) -> Task:
    (task,) = select_tasks(name)
    return task


@pytest.mark.parametrize("name", ["metaworld-reach", "metaworld-button-press", "metaworld-drawer-close"])
def test_the_scripted_policy_succeeds_from_what_the_agent_will_see(name: str) -> None:
    task = task_named(name)
    episodes = list(rollout(task, ScriptedPolicy(task), range(3), num_envs=2))
    assert [episode.success for episode in episodes] == [True, True, True]
    for episode in episodes:
        assert len(episode) == 100
        assert np.abs(episode.actions).max() <= 1
        # The goal the policy needs stays out of the data.
        assert not episode.observations[:, 36:].any()


def test_each_slot_keeps_the_goal_of_its_own_environment() -> None:
    task = task_named("metaworld-reach")
    envs: list[Any] = [task.make_env() for _ in range(2)]
    first, _ = envs[0].reset(seed=1)
    envs[1].reset(seed=2)
    assert np.abs(envs[0].unwrapped._target_pos - envs[1].unwrapped._target_pos).max() > 0.01

    def act(policy: ScriptedPolicy, slots: list[int]) -> list[np.ndarray]:
        # The same observation in every slot, so that only the goal can make a difference.
        values = np.stack([first[CONTINUOUS]] * len(slots))
        actions = list(policy.act(slots, Observations(values, None, np.zeros(len(slots), np.float32))))
        # What the policy was shown is not its own to write to.
        assert not values[:, 36:].any()
        return actions

    alone = []
    for env in envs:
        policy = ScriptedPolicy(task)
        policy.reset([0], [0], [env])
        alone += act(policy, [0])
    together = ScriptedPolicy(task)
    together.reset([0, 1], [1, 2], envs)
    np.testing.assert_array_equal(act(together, [0, 1]), alone)
    np.testing.assert_array_equal(act(together, [1]), alone[1:])
    assert (alone[0] != alone[1]).any()
    for env in envs:
        env.close()

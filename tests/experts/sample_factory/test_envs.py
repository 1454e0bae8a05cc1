from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from experts.sample_factory.envs import TrainingEnv
from tests.experts.sample_factory.tasks import task_named


@pytest.mark.parametrize("name", ["atari-breakout", "mujoco-pendulum", "metaworld-reach"])
def test_observations_are_one_array_of_the_announced_space(name: str) -> None:
    env = TrainingEnv(task_named(name))
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        assert env.observation_space.contains(observation)
        observation, *_ = env.step(env.action_space.sample())
    env.close()


def test_frames_are_those_of_the_task_channels_first() -> None:
    task = task_named("atari-breakout")
    env, base = TrainingEnv(task, seed=3), task.make_env()
    observation, _ = env.reset(seed=4)
    expected, _ = base.reset(seed=7)
    np.testing.assert_array_equal(observation, np.moveaxis(expected["image_observation"], -1, 0))
    env.close()
    base.close()


def test_a_lost_life_ends_the_training_episode_but_not_the_game() -> None:
    """Two games of Breakout with FIRE pressed all the time: five lives are soon lost."""
    env = TrainingEnv(task_named("atari-breakout"))
    original = env.env.step
    raw: list[float] = []

    def step(action: int) -> Any:
        result = original(action)
        raw.append(float(result[1]))
        return result

    env.env.step = step  # type: ignore[method-assign]
    env.reset(seed=0)
    for expect_total in (False, True):
        raw.clear()
        lives, rewards = [], []
        while lives[-1:] != [0]:
            _, reward, terminated, truncated, info = env.step(1)
            rewards.append(reward)
            assert not truncated
            if terminated:
                lives.append(info["lives"])
                game = info.get("episode")
                env.reset()
        assert lives == [4, 3, 2, 1, 0]
        assert set(rewards) <= {0.0, 1.0}
        assert game == ({"r": sum(raw), "l": len(raw)} if expect_total else None)
    env.close()


def test_the_goal_of_metaworld_is_shown_at_every_step() -> None:
    env = TrainingEnv(task_named("metaworld-reach"))
    goals = []
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        goal = env.unwrapped._get_pos_goal()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(observation[-3:], goal.astype(np.float32))
        observation, *_ = env.step(np.zeros(4, np.float32))
        np.testing.assert_array_equal(observation[-3:], goal.astype(np.float32))
        goals.append(tuple(goal))
    assert goals[0] != goals[1]
    env.close()


def test_actions_are_clipped_as_in_a_rollout() -> None:
    env = TrainingEnv(task_named("mujoco-reacher"))
    rewards = []
    for actions in (np.full(2, 9.0), np.ones(2)):
        env.reset(seed=0)
        rewards.append([env.step(actions)[1] for _ in range(10)])
    assert rewards[0] == rewards[1]
    env.close()


def test_returns_are_told_of_episodes_that_began_without_a_seed() -> None:
    env = TrainingEnv(task_named("mujoco-reacher"))
    env.reset(seed=0)
    for is_counted in (False, True):
        rewards, truncated, info = [], False, {}
        while not truncated:
            _, reward, _, truncated, info = env.step(np.zeros(2))
            rewards.append(reward)
        assert info.get("episode") == ({"r": pytest.approx(sum(rewards)), "l": 50} if is_counted else None)
        env.reset()
    env.close()

from __future__ import annotations

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
    """Breakout with FIRE pressed all the time: five lives are soon lost."""
    env = TrainingEnv(task_named("atari-breakout"))
    env.reset(seed=0)
    lives, rewards, raw, length, game = [], [], 0.0, 0, None
    original = env.env.step

    def step(action: int) -> tuple:
        nonlocal raw, length
        result = original(action)
        raw, length = raw + float(result[1]), length + 1
        return result

    env.env.step = step  # type: ignore[method-assign]
    while game is None:
        _, reward, terminated, truncated, info = env.step(1)
        rewards.append(reward)
        assert not truncated
        game = info.get("episode")
        if terminated:
            lives.append(env.unwrapped.ale.lives())  # type: ignore[attr-defined]
            if game is None:
                env.reset()
    assert lives == [4, 3, 2, 1, 0]
    assert set(rewards) <= {0.0, 1.0}
    assert game == {"r": raw, "l": length}
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


def test_actions_are_clipped_as_in_a_rollout_and_the_return_is_told_at_the_end() -> None:
    env = TrainingEnv(task_named("mujoco-reacher"))
    far, near = [], []
    for actions, rewards in ((np.full(2, 9.0), far), (np.ones(2), near)):
        env.reset(seed=0)
        truncated = False
        while not truncated:
            _, reward, _, truncated, info = env.step(actions)
            rewards.append(reward)
        assert info["episode"] == {"r": pytest.approx(sum(rewards)), "l": 50}
    assert far == near
    env.close()

"""Training games show what the task's environment shows, and count what learners and scores want."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from experts.ppo_cpu.games import BLOCK, CHANNELS_PER_FRAME, GRID, TrainingGames, to_blocks
from pipeline.envs.atari_game import STACK_SIZE
from pipeline.envs.registry import select_tasks
from pipeline.envs.task import IMAGE, Task


def from_blocks(blocks: np.ndarray) -> np.ndarray:
    """``(n, 21, 21, 64)`` -> ``(n, 84, 84, 4)``, the slow way."""
    images = np.empty((len(blocks), GRID * BLOCK, GRID * BLOCK, STACK_SIZE), np.uint8)
    for frame in range(STACK_SIZE):
        for y in range(BLOCK):
            for x in range(BLOCK):
                channel = frame * CHANNELS_PER_FRAME + y * BLOCK + x
                images[:, y::BLOCK, x::BLOCK, frame] = blocks[..., channel]
    return images


def test_blocks_hold_every_pixel_once() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 84, 84), np.uint8)
    blocks = np.tile(to_blocks(frames), STACK_SIZE)
    np.testing.assert_array_equal(from_blocks(blocks)[..., 2], frames)


def test_games_show_what_the_task_shows_over_lost_lives_and_new_games() -> None:
    (task,) = select_tasks("atari-breakout")
    games = TrainingGames(task, 2, seed=0)
    seeds = np.random.default_rng(0)
    envs = [task.make_env() for _ in range(2)]
    shown = [env.reset(seed=int(seeds.integers(2**31)))[0][IMAGE] for env in envs]
    actions = np.random.default_rng(1)
    totals, returns, num_ends, num_games = [0.0, 0.0], [], 0, 0
    lives = [5, 5]
    for _ in range(600):
        np.testing.assert_array_equal(from_blocks(games.observations), shown)
        chosen = actions.integers(task.action.size, size=2)
        result = games.step(chosen)
        returns += result.returns
        num_ends += int(result.ends.sum())
        for i, env in enumerate(envs):
            observation, reward, terminated, truncated, info = env.step(int(chosen[i]))
            totals[i] += float(reward)
            assert result.rewards[i] == np.sign(reward)
            assert result.ends[i] == (terminated or truncated or info["lives"] < lives[i])
            lives[i] = info["lives"]
            if terminated or truncated:
                assert returns.pop(0) == totals[i]
                num_games += 1
                observation, info = env.reset(seed=int(seeds.integers(2**31)))
                totals[i], lives[i] = 0.0, info["lives"]
            shown[i] = observation[IMAGE]
    assert num_games > 2 and num_ends >= 5 * num_games


class Payer(gym.Env):
    """Pays what the action says times 7, and is over after three steps."""

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        self.steps = 0
        return {IMAGE: np.zeros((84, 84, 4), np.uint8)}, {"lives": 0}

    def step(self, action):  # type: ignore[no-untyped-def]
        self.steps += 1
        return {IMAGE: np.zeros((84, 84, 4), np.uint8)}, 7.0 * (action - 1), False, self.steps == 3, {"lives": 0}


def test_rewards_are_clipped_and_returns_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    (task,) = select_tasks("atari-freeway")
    monkeypatch.setattr(Task, "make_env", lambda self, drawable=False: Payer())
    games = TrainingGames(task, 1, seed=0)
    results = [games.step(np.array([action])) for action in (2, 2, 0)]
    assert [float(result.rewards[0]) for result in results] == [1.0, 1.0, -1.0]
    assert [bool(result.ends[0]) for result in results] == [False, False, True]
    assert results[-1].returns == [7.0]

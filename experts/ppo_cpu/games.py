"""Vectorised Atari games with the observations, rewards and episodes for training.

Rewards are clipped to their sign, and a lost life ends a training episode while the game continues. Scores are returns
of whole games with raw rewards. Observations are ``(n, 21, 21, 64)`` uint8: blocks of 4 x 4 pixels of each of the 4
stacked frames are channels (16 per frame, oldest frame first). A convolution with kernel 8 and stride 4 over
84 x 84 x 4 then becomes one with kernel 2 and stride 1, which takes half the time on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.envs.atari_game import FRAME_SHAPE, STACK_SIZE
from pipeline.envs.task import IMAGE, Task

BLOCK = 4
GRID = FRAME_SHAPE[0] // BLOCK
CHANNELS_PER_FRAME = BLOCK * BLOCK
CHANNELS = STACK_SIZE * CHANNELS_PER_FRAME


@dataclass(frozen=True)
class StepResult:
    """Result of one step of every game.

    Attributes:
        rewards: ``(n,)`` float32, clipped to their sign.
        ends: ``(n,)`` bool; a life was lost or the game ended, so the next observation belongs to another episode.
        returns: raw returns of the games that ended.
    """

    rewards: np.ndarray
    ends: np.ndarray
    returns: list[float]


class TrainingGames:
    """``num_envs`` vectorised games of one task, reset automatically.

    Args:
        task: an Atari task.
        num_envs: number of games.
        seed: seed of the generator that draws the seed of every game.

    Attributes:
        observations: ``(num_envs, GRID, GRID, CHANNELS)`` uint8; the next ``step`` overwrites it.
    """

    def __init__(self, task: Task, num_envs: int, seed: int | tuple[int, ...]) -> None:
        self._envs = [task.make_env() for _ in range(num_envs)]
        self._seeds = np.random.default_rng(seed)
        self._lives = np.zeros(num_envs, np.int64)
        self._totals = np.zeros(num_envs)
        self._frames = np.empty((num_envs, *FRAME_SHAPE), np.uint8)
        self.observations = np.empty((num_envs, GRID, GRID, CHANNELS), np.uint8)
        for i in range(num_envs):
            self._frames[i] = self._begin(i)
        blocks = to_blocks(self._frames)
        self.observations[:] = np.tile(blocks, STACK_SIZE)

    def step(self, actions: np.ndarray) -> StepResult:
        """Take one step in every game; games that end are reset."""
        num_envs = len(self._envs)
        rewards, ends = np.zeros(num_envs, np.float32), np.zeros(num_envs, bool)
        returns: list[float] = []
        begun: list[int] = []
        for i, (env, action) in enumerate(zip(self._envs, actions.tolist(), strict=True)):
            observation, reward, terminated, truncated, info = env.step(action)
            reward = float(reward)
            self._totals[i] += reward
            rewards[i] = np.sign(reward)
            ends[i] = terminated or truncated or info["lives"] < self._lives[i]
            self._lives[i] = info["lives"]
            if terminated or truncated:
                returns.append(float(self._totals[i]))
                self._frames[i] = self._begin(i)
                begun.append(i)
            else:
                self._frames[i] = observation[IMAGE][..., -1]
        blocks = to_blocks(self._frames)
        self.observations[..., :-CHANNELS_PER_FRAME] = self.observations[..., CHANNELS_PER_FRAME:].copy()
        self.observations[..., -CHANNELS_PER_FRAME:] = blocks
        self.observations[begun] = np.tile(blocks[begun], STACK_SIZE)
        return StepResult(rewards, ends, returns)

    def _begin(self, i: int) -> np.ndarray:
        """Start a new game in slot ``i``; return its first frame."""
        observation, info = self._envs[i].reset(seed=int(self._seeds.integers(2**31)))
        self._lives[i], self._totals[i] = info["lives"], 0.0
        frame: np.ndarray = observation[IMAGE][..., -1]
        return frame


def to_blocks(frames: np.ndarray) -> np.ndarray:
    """Reshape ``(n, 84, 84)`` to ``(n, 21, 21, 16)``: every block of 4 x 4 pixels becomes channels, row by row."""
    grid = frames.reshape(-1, GRID, BLOCK, GRID, BLOCK)
    return np.ascontiguousarray(grid.transpose(0, 1, 3, 2, 4)).reshape(-1, GRID, GRID, CHANNELS_PER_FRAME)

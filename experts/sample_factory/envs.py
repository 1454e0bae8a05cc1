"""Wrap this project's tasks as training environments for Sample Factory."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.registry import domain_of
from pipeline.envs.task import Task


class TrainingEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A task with the observations, rewards and episodes for training an expert.

    It wraps the task's own environment, so an expert is trained in the environment in which it is measured. Changes:

    - Observations are one array: images channels first, ``(4, 84, 84)`` uint8; vectors float32, with the goal in the
      last entries if the task hides one.
    - Continuous actions are clipped to their bounds first, as in a rollout. The environments clip the executed action,
      but compute the control cost from the unclipped one.
    - Arcade games: rewards are clipped to their sign, and a lost life ends the training episode; the game then
      continues with a no-op.
    - ``info["episode"]`` contains the raw return and length of a whole episode (or game) at its end. Episodes that were
      reset with a seed are not reported: they are Sample Factory's first ones, in which it takes random actions to
      decorrelate the environments.

    Differences to Sample Factory's own Atari environment: FIRE is pressed after a new game, not after a lost life, so
    the policy learns to press it, as it must in a full game; the frame stack is kept over a lost life; frames are
    converted to grey before they are resized, not after.

    Args:
        task: task to train.
        seed: offset added to Sample Factory's seeds, which number the environments from 0.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        env = task.make_env()
        super().__init__(env)
        self._task, self._first_seed = task, seed
        self._is_arcade, self._is_continuous = domain_of(task).is_arcade, task.action.kind == "continuous"
        shape = task.observation_shape
        self.observation_space = (
            gym.spaces.Box(0, 255, (shape[2], *shape[:2]), np.uint8)
            if len(shape) == 3
            else gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        )
        self._over, self._is_counted = True, True
        self._lives = 0
        self._total, self._length = 0.0, 0
        self._goal: np.ndarray | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start a new episode, or the next life of the current game."""
        if self._is_arcade and seed is None and not self._over:
            observation, reward, terminated, truncated, info = self.env.step(0)
            self._total, self._length = self._total + float(reward), self._length + 1
            self._over = terminated or truncated
        if not self._is_arcade or seed is not None or self._over:
            self._is_counted = seed is None
            seed = None if seed is None else self._first_seed + seed
            observation, info = self.env.reset(seed=seed, options=options)
            self._total, self._length, self._over = 0.0, 0, False
        if self._is_arcade:
            self._lives = info["lives"]
        if self._task.hidden_goal is not None:
            self._goal = self._task.hidden_goal(self.env)
        return self._array(observation), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self._is_continuous:
            action = np.clip(np.asarray(action, np.float32), self._task.action.low, self._task.action.high)
        observation, reward, terminated, truncated, info = self.env.step(action)
        reward = float(reward)
        self._total, self._length = self._total + reward, self._length + 1
        self._over = terminated or truncated
        if self._over and self._is_counted:
            info["episode"] = {"r": self._total, "l": self._length}
        if self._is_arcade:
            reward = float(np.sign(reward))
            lives = info["lives"]
            # Some games stay at 0 lives for a few frames before they end.
            terminated = terminated or 0 < lives < self._lives
            self._lives = lives
        return self._array(observation), reward, terminated, truncated, info

    def _array(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        values = observation[self._task.observation]
        if values.ndim == 3:
            return np.ascontiguousarray(np.moveaxis(values, -1, 0))
        if self._goal is not None:
            values = values.copy()
            values[-len(self._goal) :] = self._goal
        return values


def make_training_env(
    name: str, cfg: Any = None, env_config: Any = None, render_mode: str | None = None
) -> gym.Env[Any, Any]:
    """Factory that Sample Factory calls in every process that steps environments."""
    from pipeline.envs.registry import select_tasks

    (task,) = select_tasks(name)
    return TrainingEnv(task, seed=1000 * cfg.seed)

"""Vectorised environments for training: EnvPool's C++ environments behind Stable-Baselines3's interface.

EnvPool is used for speed. Experts trained here are measured in the reference environment (gymnasium, metaworld),
because EnvPool contains its own MuJoCo: free flight agrees to 1e-10, contacts do not. ``post_constraint`` makes EnvPool
compute the contact forces that gymnasium returns with MuJoCo 3. Tasks that EnvPool implements differently are trained
in the reference environment.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from experts.network import one_hot
from pipeline.envs.registry import domain_of
from pipeline.envs.task import DISCRETE, Task


def make_vec_env(task: Task, num_envs: int, seed: int) -> VecEnv:
    """Make ``num_envs`` vectorised copies of a task with float32 observations; a hidden goal is visible."""
    if pool_of(task) is not None:
        return PoolVecEnv(task, num_envs, seed)
    env = DummyVecEnv([lambda: ReferenceEnv(task) for _ in range(num_envs)])
    env.seed(seed)
    return env


class ReferenceEnv(gym.Wrapper[Any, Any, Any, Any]):
    """A task's own environment, whose observations are one vector: integers as ones and zeros; its last entries are
    the goal if it hides one."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.make_env())
        self._task = task
        self._one_hot = task.observation_values if task.observation == DISCRETE else ()
        shape = (sum(self._one_hot),) if self._one_hot else task.observation_shape
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = (
            gym.spaces.Discrete(task.action.size)
            if task.action.kind == "discrete"
            else gym.spaces.Box(task.action.low, task.action.high, (task.action.size,), np.float32)
        )
        self._goal: np.ndarray | None = None

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        if self._task.hidden_goal is not None:
            self._goal = self._task.hidden_goal(self.env).astype(np.float32)
        return self._show(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._show(observation), float(reward), terminated, truncated, info

    def _show(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        values: np.ndarray = observation[self._task.observation]
        if self._one_hot:
            return one_hot(values[None], self._one_hot)[0]
        if self._goal is not None:
            values = values.copy()
            values[-len(self._goal) :] = self._goal
        return values


def pool_of(task: Task) -> tuple[str, dict[str, Any]] | None:
    """Return EnvPool's id of a task and its options; None if EnvPool does not have the task, or implements another."""
    find = domain_of(task).envpool
    return find(task) if find else None


class PoolVecEnv(VecEnv):
    """``num_envs`` vectorised copies of a task in EnvPool, with float32 observations; a hidden goal is visible.

    Args:
        task: a task that EnvPool has (``pool_of``).
        num_envs: number of copies.
        seed: EnvPool only accepts a seed at construction; copy i is seeded with ``seed + i``.
    """

    def __init__(self, task: Task, num_envs: int, seed: int) -> None:
        import envpool

        found = pool_of(task)
        if found is None:
            raise ValueError(f"EnvPool does not have {task.name}")
        options = {"max_episode_steps": task.max_steps, **found[1]}
        self._pool = envpool.make_gymnasium(found[0], num_envs=num_envs, num_threads=1, seed=seed, **options)
        action = task.action
        super().__init__(
            num_envs,
            gym.spaces.Box(-np.inf, np.inf, task.observation_shape, np.float32),
            gym.spaces.Box(action.low, action.high, (action.size,), np.float32),
        )
        self._dtype = self._pool.action_space.dtype
        self._actions = np.empty(0)

    def reset(self) -> np.ndarray:
        observations, _ = self._pool.reset()
        return observations.astype(np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions.astype(self._dtype)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observations, rewards, terminated, truncated, info = self._pool.step(self._actions)
        observations = observations.astype(np.float32)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if "success" in info:
            for one, success in zip(infos, info["success"], strict=True):
                one["success"] = bool(success)
        indices = np.flatnonzero(done)
        if len(indices):
            for index in indices:
                infos[index]["terminal_observation"] = observations[index].copy()
                infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            observations[indices] = self._pool.reset(indices.astype(np.int32))[0]
        return observations, rewards.astype(np.float32), done, infos

    def close(self) -> None:
        self._pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError("EnvPool's environments have no Python attributes")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError("EnvPool's environments have no Python methods")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

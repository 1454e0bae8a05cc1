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

from pipeline.envs.metaworld import goal_of
from pipeline.envs.task import CONTINUOUS, Task
from pipeline.errors import UserError

# In EnvPool 1.2.5 the rewards or successes of these tasks differ from metaworld's. The scripted policy, which has the
# same return in both for other tasks, gets 0.3 in EnvPool and 332 in metaworld, 250 and 386, and 484 and 335 in three
# of these. The lever of lever-pull rests at another angle. This does not affect the script, but a network with 594 in
# EnvPool had 79 in metaworld.
DIFFERENT_IN_ENVPOOL = (
    "metaworld-button-press-topdown-wall", "metaworld-dial-turn", "metaworld-door-lock", "metaworld-lever-pull",
)  # fmt: skip


def make_vec_env(task: Task, num_envs: int, seed: int) -> VecEnv:
    """Make ``num_envs`` vectorised copies of a task with float32 observations, in Meta-World with a visible goal."""
    if task.name not in DIFFERENT_IN_ENVPOOL:
        return PoolVecEnv(task, num_envs, seed)
    env = DummyVecEnv([lambda: VisibleGoal(task) for _ in range(num_envs)])
    env.seed(seed)
    return env


class VisibleGoal(gym.Wrapper[Any, Any, Any, Any]):
    """The reference environment of a Meta-World task with the goal in the last three entries of observations."""

    def __init__(self, task: Task) -> None:
        super().__init__(task.make_env())
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, task.observation_shape, np.float32)
        self.action_space = gym.spaces.Box(task.action.low, task.action.high, (task.action.size,), np.float32)
        self._goal = np.zeros(3, np.float32)

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        observation, info = self.env.reset(**options)
        self._goal = goal_of(self.env).astype(np.float32)
        return self._show(observation), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._show(observation), float(reward), terminated, truncated, info

    def _show(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        values = observation[CONTINUOUS].copy()
        values[-3:] = self._goal
        return values


def pool_id(task: Task) -> str:
    """Return EnvPool's id of a task.

    Raises:
        UserError: this domain is not trained in EnvPool.
    """
    if task.domain == "mujoco":
        return task.env_id
    if task.domain == "metaworld":
        name, version = task.env_id.rsplit("-", 1)
        return f"MetaWorld/{name.title().replace('-', '')}-{version}"
    raise UserError(f"{task.name}: only mujoco and metaworld are trained over EnvPool")


class PoolVecEnv(VecEnv):
    """``num_envs`` vectorised copies of a task with float32 observations; in Meta-World the goal is visible.

    Args:
        task: a task of MuJoCo or Meta-World.
        num_envs: number of copies.
        seed: EnvPool only accepts a seed at construction; copy i is seeded with ``seed + i``.
    """

    def __init__(self, task: Task, num_envs: int, seed: int) -> None:
        import envpool

        options: dict[str, Any] = {"max_episode_steps": task.max_steps}
        if task.domain == "metaworld":
            options["partially_observable"] = False
        elif task.env_id.startswith(("Humanoid", "Ant")):
            options["post_constraint"] = True
        self._pool = envpool.make_gymnasium(pool_id(task), num_envs=num_envs, num_threads=1, seed=seed, **options)
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

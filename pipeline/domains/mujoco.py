"""MuJoCo locomotion and control: 11 tasks, gymnasium's v4 environments as in JAT.

``Pusher-v4`` refuses mujoco >= 3, which Meta-World needs, so the pusher is v5 here: same observation and action sizes,
its reward is computed after the step instead of before it.
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.tasks import CONTINUOUS, Action, Task

# name, environment id, JAT's id, observation size, action size, action bound, step limit
TABLE = (
    ("ant", "Ant-v4", "Ant-v4", 27, 8, 1.0, 1000),
    ("doublependulum", "InvertedDoublePendulum-v4", "InvertedDoublePendulum-v4", 11, 1, 1.0, 1000),
    ("halfcheetah", "HalfCheetah-v4", "HalfCheetah-v4", 17, 6, 1.0, 1000),
    ("hopper", "Hopper-v4", "Hopper-v4", 11, 3, 1.0, 1000),
    ("humanoid", "Humanoid-v4", "Humanoid-v4", 376, 17, 0.4, 1000),
    ("pendulum", "InvertedPendulum-v4", "InvertedPendulum-v4", 4, 1, 3.0, 1000),
    ("pusher", "Pusher-v5", "Pusher-v4", 23, 7, 2.0, 100),
    ("reacher", "Reacher-v4", "Reacher-v4", 11, 2, 1.0, 50),
    ("standup", "HumanoidStandup-v4", "HumanoidStandup-v4", 376, 17, 0.4, 1000),
    ("swimmer", "Swimmer-v4", "Swimmer-v4", 8, 2, 1.0, 1000),
    ("walker", "Walker2d-v4", "Walker2d-v4", 17, 6, 1.0, 1000),
)


class ContinuousObservation(gym.ObservationWrapper[Any, Any, Any]):
    """JAT's key, float32."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        self.observation_space = gym.spaces.Dict(
            {CONTINUOUS: gym.spaces.Box(-np.inf, np.inf, shape=shape, dtype=np.float32)}
        )

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {CONTINUOUS: observation.astype(np.float32)}


def make_env(task: Task) -> gym.Env[Any, Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*")  # v4 is JAT's choice, not an oversight
        # The rollout resets before it steps; each wrapper that asks whether it did costs a hundredth of a step.
        spec = dataclasses.replace(gym.spec(task.env_id), order_enforce=False, disable_env_checker=True)
        return ContinuousObservation(gym.make(spec))


TASKS = tuple(
    Task(
        name=f"mujoco-{name}",
        domain="mujoco",
        env_id=env_id,
        jat_env_id=jat_env_id,
        observation=CONTINUOUS,
        observation_shape=(observation_size,),
        action=Action("continuous", action_size, -bound, bound),
        max_steps=max_steps,
        success=None,
        lockstep=32,
        packages=("gymnasium", "mujoco", "numpy"),
        factory=make_env,
    )
    for name, env_id, jat_env_id, observation_size, action_size, bound, max_steps in TABLE
)

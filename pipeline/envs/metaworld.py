"""Defines the Meta-World domain: 50 robot-arm tasks, episodes of 100 steps, goal hidden from the observation.

JAT used the v2 environments; metaworld 3 has the same tasks as v3, with the v2 reward as its default. The goal is
sampled from the seed at every reset. The last three of the 39 observation entries, which would hold the goal, are zero.
Experts that need the goal read it from the environment.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.task import CONTINUOUS, Action, Task

MAX_STEPS = 100

NAMES = (
    "assembly", "basketball", "bin-picking", "box-close", "button-press", "button-press-topdown",
    "button-press-topdown-wall", "button-press-wall", "coffee-button", "coffee-pull", "coffee-push", "dial-turn",
    "disassemble", "door-close", "door-lock", "door-open", "door-unlock", "drawer-close", "drawer-open",
    "faucet-close", "faucet-open", "hammer", "hand-insert", "handle-press", "handle-press-side", "handle-pull",
    "handle-pull-side", "lever-pull", "peg-insert-side", "peg-unplug-side", "pick-out-of-hole", "pick-place",
    "pick-place-wall", "plate-slide", "plate-slide-back", "plate-slide-back-side", "plate-slide-side", "push",
    "push-back", "push-wall", "reach", "reach-wall", "shelf-place", "soccer", "stick-pull", "stick-push", "sweep",
    "sweep-into", "window-close", "window-open",
)  # fmt: skip


class HiddenGoal(gym.Wrapper[Any, Any, Any, Any]):
    """Makes ``reset(seed=...)`` work, uses JAT's observation key and float32, and truncates after 100 steps.

    Meta-World ignores ``reset(seed=...)``: its own ``seed`` and ``seeded_rand_vec`` determine the goal and the objects.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict(
            {CONTINUOUS: gym.spaces.Box(-np.inf, np.inf, shape=(39,), dtype=np.float32)}
        )
        sawyer: Any = env.unwrapped
        sawyer.seeded_rand_vec = True
        sawyer._freeze_rand_vec = False  # sample goal and objects at every reset
        sawyer._partially_observable = True  # hide the goal
        sawyer._set_task_called = True  # otherwise step raises
        self._sawyer = sawyer
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        if seed is not None:
            self._sawyer.seed(seed)
        self._steps = 0
        observation, info = self.env.reset()
        return {CONTINUOUS: observation.astype(np.float32)}, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self.env.step(action)
        self._steps += 1
        truncated = self._steps >= MAX_STEPS
        return {CONTINUOUS: observation.astype(np.float32)}, float(reward), terminated, truncated, info


def goal_of(env: gym.Env[Any, Any]) -> np.ndarray:
    """Return the hidden goal, ``(3,)``: the last entries of a full observation. It changes only at a reset."""
    sawyer: Any = env.unwrapped
    goal: np.ndarray = sawyer._get_pos_goal().copy()
    return goal


@functools.lru_cache(maxsize=1)
def _compiled_once(env_id: str) -> Callable[..., gym.Env[Any, Any]]:
    """Make a subclass of an environment whose instances share one compiled scene.

    Compiling a scene with its meshes takes longer than an episode, and a rollout creates several environments of a
    task. Each environment gets a copy, because a reset moves parts of the scene. Only the last task's scene is cached,
    because a scene takes up to some tens of MB.
    """
    import metaworld
    import mujoco

    original: Any = metaworld.ALL_V3_ENVIRONMENTS[env_id]
    compiled: list[mujoco.MjModel] = []

    class CompiledOnce(original):  # type: ignore[misc]
        def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
            if compiled:
                model = copy.copy(compiled[0])
                return model, mujoco.MjData(model)
            model, data = super()._initialize_simulation()
            compiled.append(copy.copy(model))
            return model, data

    return CompiledOnce


def make_env(task: Task) -> gym.Env[Any, Any]:
    return HiddenGoal(_compiled_once(task.env_id)(camera_name="corner2"))


TASKS = tuple(
    Task(
        name=f"metaworld-{name}",
        domain="metaworld",
        env_id=f"{name}-v3",
        jat_env_id=f"{name}-v2",
        observation=CONTINUOUS,
        observation_shape=(39,),
        action=Action("continuous", 4),
        max_steps=MAX_STEPS,
        success="info",
        lockstep=2,  # measured with scripted expert and network: 1.9 times as fast as 16
        packages=("metaworld", "mujoco", "gymnasium", "numpy"),
        factory=make_env,
    )
    for name in NAMES
)

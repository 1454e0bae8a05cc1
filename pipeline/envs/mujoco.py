"""Defines the MuJoCo domain: 11 locomotion and control tasks, gymnasium's v4 environments as in JAT.

``Pusher-v4`` does not support mujoco >= 3, which Meta-World needs, so the pusher is v5 here: its observation and action
sizes are the same, but its reward is computed after the step instead of before it.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.domain import Domain
from pipeline.envs.task import CONTINUOUS, Action, Task

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


# Environments that compute the control cost from the action; the humanoid computes it from the joint controls.
CHARGED_FOR_ACTIONS = ("AntEnv", "HalfCheetahEnv", "HopperEnv", "SwimmerEnv", "Walker2dEnv")


class ContinuousObservation(gym.Wrapper[Any, Any, Any, Any]):
    """Converts observations to float32 under JAT's key, and applies the step limit."""

    def __init__(self, env: gym.Env[Any, Any], max_steps: int) -> None:
        super().__init__(env)
        shape = env.observation_space.shape
        self.observation_space = gym.spaces.Dict(
            {CONTINUOUS: gym.spaces.Box(-np.inf, np.inf, shape=shape, dtype=np.float32)}
        )
        self._max_steps, self._steps = max_steps, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._steps = 0
        return {CONTINUOUS: observation.astype(np.float32)}, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, _, info = self.env.step(action)
        self._steps += 1
        return {CONTINUOUS: observation.astype(np.float32)}, reward, terminated, self._steps >= self._max_steps, info


@functools.cache
def _quick(env_class: Any) -> Any:
    """Make a faster subclass of a gymnasium environment, which saves an eighth of a half-cheetah's step time.

    A test checks for every task that the results equal those of gymnasium's own class, bit by bit.
    """
    import mujoco

    class Quick(env_class):  # type: ignore[misc]
        @functools.cached_property
        def dt(self) -> float:
            """Duration of a step in seconds."""
            return float(self.model.opt.timestep * self.frame_skip)

        def do_simulation(self, ctrl: np.ndarray, n_frames: int) -> None:
            if np.shape(ctrl) != (self.model.nu,):  # numpy would broadcast one number to all joints
                raise ValueError(f"an action of shape {np.shape(ctrl)}, expected {(self.model.nu,)}")
            self.data.ctrl[:] = ctrl
            mujoco.mj_step(self.model, self.data, nstep=n_frames)
            mujoco.mj_rnePostConstraint(self.model, self.data)

    if env_class.__name__ not in CHARGED_FOR_ACTIONS:
        return Quick

    class Charging(Quick):
        def control_cost(self, action: np.ndarray) -> Any:
            return self._ctrl_cost_weight * np.add.reduce(np.square(action))  # np.sum takes twice as long

    return Charging


def make_env(task: Task) -> gym.Env[Any, Any]:
    from gymnasium.envs.registration import load_env_creator

    spec = gym.spec(task.env_id)
    env_class: Any = load_env_creator(str(spec.entry_point))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is out of date.*")  # v4 is intended: JAT uses it
        if task.is_reference:
            return ContinuousObservation(gym.make(task.env_id), task.max_steps)
        # The rollout always resets before it steps; each wrapper that checks this costs 1 % of a step.
        spec = dataclasses.replace(
            spec,
            entry_point=_quick(env_class),
            order_enforce=False,
            disable_env_checker=True,
            max_episode_steps=None,
        )
        return ContinuousObservation(gym.make(spec), task.max_steps)


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

MUJOCO_CITATION = """@inproceedings{todorov2012mujoco,
  title = {MuJoCo: A physics engine for model-based control},
  author = {Todorov, Emanuel and Erez, Tom and Tassa, Yuval},
  booktitle = {IEEE/RSJ International Conference on Intelligent Robots and Systems},
  year = {2012}
}"""


def _envpool(task: Task) -> tuple[str, dict[str, Any]]:
    # gymnasium returns the contact forces of these two with MuJoCo 3; EnvPool computes them on request.
    return task.env_id, {"post_constraint": True} if task.env_id.startswith(("Humanoid", "Ant")) else {}


def _hub_experts(task: Task) -> tuple[str, ...]:
    name, env = task.name.removeprefix("mujoco-"), task.env_id.rpartition("-")[0]
    found = [_JAT_EXPERTS[task.name]]
    if name not in ("ant", "humanoid", "standup"):  # gymnasium's v5 of these three observes other things
        found.insert(0, f"farama-minari/{env}-v5-SAC-expert")
    if name in ("halfcheetah", "hopper", "humanoid", "swimmer", "walker"):  # in v3 as in v4
        found.append(f"sb3/sac-{env}-v3")
    return tuple(found)


_JAT_EXPERTS = {task.name: f"qgallouedec/sample-factory-{task.name.removeprefix('mujoco-')}-v2" for task in TASKS}

DOMAIN = Domain(
    name="mujoco",
    title="MuJoCo",
    tasks=TASKS,
    about="Locomotion and reaching in gymnasium's MuJoCo environments. Observations and actions are vectors of "
    "numbers whose sizes differ by task (a humanoid's observation has 376).",
    differences=(
        "The pusher is `Pusher-v5`, because `Pusher-v4` refuses MuJoCo 3 and later; all others are v4, as in JAT.",
        "Actions are stored as the environment took them, clipped to their bounds (JAT's reach up to 9).",
    ),
    licence="gymnasium is MIT; MuJoCo is Apache-2.0.",
    citations=(MUJOCO_CITATION,),
    colours=("#7c3aed", "#b79af8"),
    jat_iqm=0.85,
    jat_context_steps=128,
    jat_experts=_JAT_EXPERTS,
    hub_experts={task.name: _hub_experts(task) for task in TASKS},
    envpool=_envpool,
)

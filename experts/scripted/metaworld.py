"""Meta-World's scripted policy for each task, which needs the goal that the task hides."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.metaworld import goal_of
from pipeline.envs.policy import Observations
from pipeline.envs.task import Task


class ScriptedPolicy:
    """Reads the goal from the environment and writes it to the observation entries that the script reads."""

    def __init__(self, task: Task) -> None:
        from metaworld.policies import ENV_POLICY_MAP

        policy: Any = ENV_POLICY_MAP[task.env_id]
        if not task.is_reference:
            from pipeline.envs.quick_metaworld.functions import with_quick_globals

            policy, original = type(policy.__name__, (policy,), {}), policy
            with_quick_globals(original, policy)
        self._policy = policy()
        self._goals: dict[int, np.ndarray] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, env in zip(slots, envs, strict=True):
            self._goals[slot] = goal_of(env)

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        full = observations.values.astype(np.float64)
        full[:, 36:] = [self._goals[slot] for slot in slots]
        with warnings.catch_warnings():
            # The script warns that its actions exceed [-1, 1]; the rollout clips them, as the environment would.
            warnings.simplefilter("ignore")
            return [self._policy.get_action(observation) for observation in full]

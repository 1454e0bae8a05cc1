"""Uniform random actions: the zero of every normalised score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.policy import Observations
from pipeline.envs.task import Task
from pipeline.seeds import policy_generator


class RandomPolicy:
    """Draws uniform actions from a generator seeded with the episode's seed."""

    def __init__(self, task: Task) -> None:
        self._action = task.action
        self._generators: dict[int, np.random.Generator] = {}

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        for slot, seed in zip(slots, seeds, strict=True):
            self._generators[slot] = policy_generator(seed)

    def act(self, slots: Sequence[int], observations: Observations) -> Sequence[Any]:
        action = self._action
        if action.kind == "discrete":
            return [self._generators[slot].integers(action.size) for slot in slots]
        return [self._generators[slot].uniform(action.low, action.high, action.size) for slot in slots]

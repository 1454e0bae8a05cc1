"""Experts of a user's own, as tests name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from pipeline.envs.policy import Observations
from pipeline.envs.task import Task

NUMBER = 3


def lean(observation: np.ndarray) -> int:
    """Balances a pole for a while."""
    return int(observation[2] + observation[3] > 0)


def word(observation: np.ndarray, text: str) -> int:
    return len(text) % 5


def half(observation: np.ndarray) -> float:
    return 0.5


class Leaning:
    def __init__(self, task: Task) -> None:
        self.size = task.action.size

    def reset(self, slots: Sequence[int], seeds: Sequence[int], envs: Sequence[gym.Env[Any, Any]]) -> None:
        pass

    def act(self, slots: Sequence[int], observations: Observations) -> list[int]:
        return [lean(values) % self.size for values in observations.values]


class Nothing:
    def __init__(self, task: Task) -> None:
        pass

"""An episode as it comes out of the rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Episode:
    """T steps of one environment. As in JAT, the observation after the last action is not kept.

    Attributes:
        seed: what the environment and the policy were seeded with.
        observations: ``(T, *task.observation_shape)``; what the policy saw before each action.
        texts: T mission texts, or None for a task without text.
        actions: ``(T,)`` int64 or ``(T, size)`` float32; what the environment was given, so always in range.
        rewards: ``(T,)`` float32; ``rewards[t]`` is what ``actions[t]`` earned.
        ended: ``terminated`` by the environment, ``truncated`` at the step limit, or ``rejected``.
        success: None where the task has no notion of it.
        rejected: why the episode is not data (the policy gave up, a value was not finite), or None.
    """

    seed: int
    observations: np.ndarray
    texts: tuple[str, ...] | None
    actions: np.ndarray
    rewards: np.ndarray
    ended: Literal["terminated", "truncated", "rejected"]
    success: bool | None
    rejected: str | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))

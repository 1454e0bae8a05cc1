"""Defines the episode record that the rollout yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Episode:
    """T steps of one environment. As in JAT, ``observations`` ends with what the last action was chosen from.

    Attributes:
        seed: seed of the environment and the policy; for an imported episode, its index in the source.
        observations: ``(T, *task.observation_shape)``; the policy's observation before each action.
        texts: T mission texts, or None for a task without text.
        actions: ``(T,)`` int64 or ``(T, size)`` float32; as passed to the environment, so in range (unless
            ``flagged``).
        rewards: ``(T,)`` float32; ``rewards[t]`` is the reward of ``actions[t]``.
        ended: ``terminated`` by the environment, ``truncated`` at the step limit, or ``rejected``; ``unknown`` for an
            imported episode whose source does not record it.
        success: None if the task does not define success, or the source does not record it.
        rejected: why the episode is excluded from the data (the policy gave up, a value was not finite), or None.
        flagged: what is unusual about an imported episode that is kept as data (actions out of range), or None.
        final_observation: ``task.observation_shape``; the observation after the last action. None if it is not known,
            is not finite, or the episode is rejected.
    """

    seed: int
    observations: np.ndarray
    texts: tuple[str, ...] | None
    actions: np.ndarray
    rewards: np.ndarray
    ended: Literal["terminated", "truncated", "rejected", "unknown"]
    success: bool | None
    rejected: str | None = None
    flagged: str | None = None
    final_observation: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def total_reward(self) -> float:
        """The undiscounted return, summed in float64."""
        return float(self.rewards.sum(dtype=np.float64))
